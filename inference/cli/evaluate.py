"""`spatial-v2a evaluate`: scores a checkpoint, or anyone's sounds, against known positions.

Run: spatial-v2a evaluate --suite stagebench --out DIR [--checkpoint stage | --audio DIR]
     spatial-v2a evaluate --suite footage FOLDER --out DIR
"""

import json
import os
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import (
    CHECKPOINT,
    FOV,
    Detector,
    DetectorWeights,
    Device,
    DeviceName,
    HeardObjects,
    Nfe,
    Objects,
    Seed,
    Without,
    engine_settings,
    streams,
)
from spatial_v2a.inference.cli.output import say_loading

if TYPE_CHECKING:
    from spatial_v2a.inference.evaluation.clips import Chosen
    from spatial_v2a.inference.evaluation.generate import System


class SuiteName(StrEnum):
    """Sets of clips with fixed seeds and hashes; or any footage, whose positions nobody knows."""

    STAGEBENCH = "stagebench"
    FOOTAGE = "footage"


Data = Annotated[
    list[Path] | None, typer.Option("--data", help="Folder of test shards; repeatable.")
]
Out = Annotated[Path, typer.Option(help="Report folder; the same command resumes it.")]
Audio = Annotated[
    Path | None, typer.Option(help="Score someone's sounds: a folder of KEY.wav files.")
]


def evaluate(
    out: Out,
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of footage, for --suite footage.")
    ] = None,
    suite: Annotated[
        SuiteName | None,
        typer.Option(help="Score its clips, recorded below OUT unless --data has them."),
    ] = None,
    data: Data = None,
    checkpoint: Annotated[str | None, CHECKPOINT] = None,
    audio: Audio = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Score this many clips.")] = None,
    scenario: Annotated[str | None, typer.Option(help="Score one scenario only.")] = None,
    given: Annotated[bool, typer.Option(help="Also run with the engine's geometry.")] = True,
    mirror: Annotated[bool, typer.Option(help="Also run the mirror test.")] = True,
    brief: Annotated[
        bool,
        typer.Option("--brief", help="Leave out the rows to compare with; for many checkpoints."),
    ] = False,
    silence: Annotated[
        list[Path] | None, typer.Option(help="Take silent clips from this folder too.")
    ] = None,
    seed: Seed = 0,
    nfe: Nfe = None,
    without: Without = None,
    objects: Objects = None,
    run_as: Annotated[
        Literal["dub", "live"] | None,
        typer.Option(
            "--as",
            help="Measure exactly what this command runs, weights and compiler included.",
            show_default="dub to rounding, by PyTorch alone; live for --long-run",
        ),
    ] = None,
    detector: Detector = None,
    detector_weights: DetectorWeights = None,
    device: DeviceName = Device.cpu,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that make sounds; one a core if absent.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(help="Sound classifier folder; the bundled one if absent.")
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Instead: check the metric itself on the clips.")
    ] = False,
    long_run: Annotated[
        Path | None, typer.Option(help="Instead: dub this video for minutes on end, in one run.")
    ] = None,
    minutes: Annotated[int, typer.Option(min=3, help="Length of the long run.")] = 10,
    fov: Annotated[float, FOV] = 90.0,
) -> None:
    """Measures left and right against known positions: report.md, report.json, plots, audio."""
    refused_with_footage = {
        "--data": data,
        "--audio": audio,
        "--scenario": scenario,
        "--silence": silence,
        "--without": without,
        "--jobs": jobs,
        "--classifier": classifier,
        "--validate": validate,
        "--no-given": not given,
        "--no-mirror": not mirror,
        "--brief": brief,
    }
    _check_footage(folder, suite=suite, refused=refused_with_footage)
    _check(out, suite=suite, data=data, audio=audio, long_run=long_run)
    say_loading(checkpoint or audio)
    wanted = _Wanted(
        checkpoint=checkpoint or "stage",
        seed=seed,
        nfe=nfe,
        without=streams(without),
        objects=(objects or HeardObjects.apart).value,
        run_as=run_as,
        detector=detector,
        detector_weights=detector_weights,
        device=str(device),
        fov_deg=None if suite is SuiteName.STAGEBENCH or data else fov,
    )
    if suite is SuiteName.FOOTAGE and folder is not None:
        _run_footage(folder, out, wanted, clips=clips)
        return
    if long_run is not None:
        _run_long(long_run, out, replace(wanted, run_as=run_as or "live"), minutes=minutes)
        return
    from spatial_v2a.inference.evaluation.clips import choose_clips
    from spatial_v2a.inference.evaluation.sounds import Plan
    from spatial_v2a.inference.evaluation.suite import ClipSuite

    num_jobs = jobs or _num_jobs(wanted.device)
    if validate:
        folders = _suite_clips(out, data, num_workers=num_jobs) if suite else data
        _validate(out, choose_clips(folders, num_clips=clips, scenario=scenario))
        return
    name = checkpoint or (None if audio else "stage")
    system = wanted.load() if name else None
    if suite is not None:
        data = _suite_clips(out, data, num_workers=num_jobs)
    chosen = choose_clips(data, num_clips=clips, scenario=scenario, silence_folders=silence)
    out.mkdir(parents=True, exist_ok=True)
    report = ClipSuite(
        chosen=chosen,
        out=out,
        system=system,
        rival=audio,
        plan=Plan(given=given, mirror=mirror, is_brief=brief),
        classifier=_load_classifier(classifier),
        seed=seed,
        num_jobs=num_jobs,
        progress=_say,
    )
    description = {
        "suite": suite.value if suite else "none",
        "checkpoint": name or "none",
        "sounds": str(audio) if audio else "none",
        "data": [str(folder) for folder in data],
        "seed": seed,
        "settings": str(system.settings) if system else "none",
        "as": wanted.command if system else "none",
        "objects": wanted.objects if system else "none",
        "detector": system.model.config.perception.boxes_from if system else "none",
        "device": wanted.device,
    }
    print(report.run(description))
    print(f"report: {out / 'report.md'}")


@dataclass(frozen=True)
class _Wanted:
    """The checkpoint to measure, and how it is to run, as the options say."""

    checkpoint: str
    seed: int
    nfe: int | None
    without: tuple[str, ...]
    objects: Literal["apart", "together"]
    run_as: Literal["dub", "live"] | None
    detector: str | None
    detector_weights: Path | None
    device: str
    fov_deg: float | None

    @property
    def command(self) -> str:
        """The command whose sounds are measured, for the report."""
        return self.run_as or "dub, by PyTorch alone"

    def load(self, *, is_footage: bool = False) -> "System":
        """Opens it; for footage a detector is chosen for every video unless one is named."""
        from spatial_v2a.concepts import AUTO
        from spatial_v2a.inference.evaluation.generate import load_system

        return load_system(
            self.checkpoint,
            settings=engine_settings(seed=self.seed, nfe=self.nfe, without=self.without),
            device=self.device,
            objects=self.objects,
            fov_deg=self.fov_deg,
            detector=self.detector or (AUTO if is_footage else None),
            detector_weights=self.detector_weights,
            run_as=self.run_as,
        )


def _say(line: str) -> None:
    print(line, flush=True)


def _run_footage(folder: Path, out: Path, wanted: _Wanted, *, clips: int | None) -> None:
    """Scores a checkpoint on footage whose positions nobody knows; the same command resumes."""
    from spatial_v2a.concepts import AUTO
    from spatial_v2a.inference.evaluation.footage import find_footage, spread
    from spatial_v2a.inference.evaluation.suite import FootageSuite

    found = find_footage(folder, out=out)
    chosen = spread(found.candidates, clips)
    system = wanted.load(is_footage=True)
    out.mkdir(parents=True, exist_ok=True)
    suite = FootageSuite(
        found=found,
        chosen=chosen,
        out=out,
        system=system,
        seed=wanted.seed,
        progress=_say,
    )
    description = {
        "footage": str(folder),
        "checkpoint": wanted.checkpoint,
        "seed": wanted.seed,
        "settings": str(system.settings),
        "as": wanted.command,
        "objects": wanted.objects,
        "device": wanted.device,
        "field of view": f"{wanted.fov_deg:g} deg",
        "detector": wanted.detector or AUTO,
    }
    print(suite.run(description))
    print(f"report: {out / 'report.md'}")


def _run_long(video: Path, out: Path, wanted: _Wanted, *, minutes: int) -> None:
    """Dubs a video for minutes on end, as a command does, and says what changed."""
    import torch

    from spatial_v2a.conditioning.video import open_video
    from spatial_v2a.files import write_text
    from spatial_v2a.inference.evaluation.longrun import draw_long_run, long_run

    source = open_video(video)
    system = wanted.load()
    out.mkdir(parents=True, exist_ok=True)
    result = long_run(
        system,
        partial(source.ticks, max_width=system.max_width),
        minutes=minutes,
        progress=_say,
    )
    data = {"video": str(video), "video_s": float(source.duration), "seed": wanted.seed}
    data["device"] = wanted.device
    data["detector"] = system.model.config.perception.boxes_from
    data["engine_weights"] = system.settings.weights
    data |= {"as": wanted.run_as, "objects": wanted.objects}
    data |= {
        "threads": 1 if wanted.device == "cpu" else torch.get_num_threads(),
        **result.as_json(),
    }
    write_text(out / "long_run.json", json.dumps(data, indent=1) + "\n")
    title = f"{wanted.checkpoint} on {wanted.device}, {minutes} minutes of {video.name} in one run"
    draw_long_run(out / "long_run.png", result, title=title)
    print(
        f"memory {result.memory_growth_mb:+.1f} MB after minute 1, "
        f"level {result.level_db:+.2f} dB, worst band {result.worst_band_db:.2f} dB, "
        f"side/mid {result.side_over_mid_db:+.2f} dB, "
        f"median tick {100 * result.tick_change:+.1f} % (perception begun anew "
        f"{100 * result.fresh_change:+.1f} %, the tick beside it "
        f"{100 * result.tick_change_beside_fresh:+.1f} %, a line through all minutes "
        f"{100 * result.trend_beside_fresh:+.1f} %), "
        f"{result.realtime_factor:.2f} x real time"
    )
    print(f"report: {out / 'long_run.json'}, picture: {out / 'long_run.png'}")


def _validate(out: Path, chosen: "Chosen") -> None:
    """Scores known errors of the pan on these clips: validation.md and validation.png."""
    from spatial_v2a.inference.evaluation.clips import clip_record, read_clips
    from spatial_v2a.inference.evaluation.rows import GROUND_TRUTH, stored_row
    from spatial_v2a.inference.evaluation.store import SoundStore
    from spatial_v2a.inference.evaluation.validation import validate

    out.mkdir(parents=True, exist_ok=True)
    store = SoundStore(out / "audio")
    records = []
    for number, clip in enumerate(read_clips(chosen, chosen.scored)):
        records.append(clip_record(clip, number))
        store.save(GROUND_TRUTH, records[-1].key, clip.audio_LC(), stamp="", notes={})
    ground_truth = stored_row(store, GROUND_TRUTH, "ground truth")
    validate(records, ground_truth=ground_truth, folder=out, progress=_say)
    print((out / "validation.md").read_text())
    print(f"table and picture: {out / 'validation.md'}, {out / 'validation.png'}")


def _num_jobs(device: str) -> int:
    """One process a core, four at most; one on any other device, which they would share."""
    return min(4, os.cpu_count() or 1) if device == "cpu" else 1


def _suite_clips(out: Path, data: list[Path] | None, *, num_workers: int) -> list[Path]:
    """Folders with the suite's clips, recorded if none are given, and their hashes checked."""
    from spatial_v2a.inference.evaluation.stagebench import (
        check_clips,
        in_suite_order,
        load_suite,
        record_suite,
    )

    spec = load_suite()

    folders = data or record_suite(spec, out / "clips", num_workers=num_workers, progress=_say)
    check_clips(spec, folders)
    _say(f"{len(spec.digests)} clips, version {spec.version}: every hash is right")
    return in_suite_order(spec, folders)


def _check(
    out: Path,
    *,
    suite: SuiteName | None,
    data: list[Path] | None,
    audio: Path | None,
    long_run: Path | None,
) -> None:
    """Refuses what cannot work before anything is loaded or written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    parent = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not _is_writable(parent):
        raise UserError(f"cannot write in {parent}; choose another --out")
    for folder in data or []:
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; give --data a folder of .tar shards")
    if long_run is None and suite is None and not data:
        raise UserError("no clips given; name --suite stagebench, or shards with --data")
    if long_run is not None and (suite or data or audio):
        raise UserError("--long-run needs no --suite, --data or --audio; run them apart")


def _check_footage(
    folder: Path | None, *, suite: SuiteName | None, refused: dict[str, object]
) -> None:
    """Refuses a folder without its suite, the suite without a folder, and what it cannot use."""
    if suite is not SuiteName.FOOTAGE:
        if folder is not None:
            raise UserError(f"folder {folder} is given without --suite footage; add that")
        return
    if folder is None:
        raise UserError("--suite footage needs a folder of footage; name it")
    for name, value in refused.items():
        if value:
            raise UserError(f"--suite footage has no use for {name}; leave it out")


def _is_writable(folder: Path) -> bool:
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _load_classifier(folder: Path | None):
    """The named classifier, else the bundled one, else None."""
    from spatial_v2a.models.classifier import (
        CONFIG_NAME,
        SoundClassifier,
        bundled_classifier_folder,
    )

    if folder is None:
        folder = bundled_classifier_folder()
        if not (folder / CONFIG_NAME).is_file():
            return None
    return SoundClassifier.load(folder)
