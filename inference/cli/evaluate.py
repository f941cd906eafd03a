"""`spatial-v2a evaluate`: scores a checkpoint, or anyone's sounds, against known positions.

Run: spatial-v2a evaluate --suite stagebench --out DIR [--checkpoint stage | --audio DIR]
     spatial-v2a evaluate --suite footage FOLDER --out DIR
"""

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.options import (
    OBJECTS_HELP,
    Detector,
    DetectorWeights,
    HeardObjects,
    say_loading,
)


class SuiteName(StrEnum):
    """Sets of clips with fixed seeds and hashes; or any footage, whose positions nobody knows."""

    STAGEBENCH = "stagebench"
    FOOTAGE = "footage"


Data = Annotated[
    list[Path] | None, typer.Option("--data", help="Folder of test shards; repeatable.")
]
Out = Annotated[Path, typer.Option(help="Report folder; the same command resumes it.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Folder, bundled name or hub id ('stage')."),
]
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
    checkpoint: Checkpoint = None,
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
    seed: Annotated[int, typer.Option(help="Seed of the sound and of the bootstrap.")] = 0,
    nfe: Annotated[int | None, typer.Option(min=1, help="Denoiser calls per tick.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="Stream the model never gets; repeatable.")
    ] = None,
    objects: Annotated[HeardObjects, typer.Option(help=OBJECTS_HELP)] = HeardObjects.apart,
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
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
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
    fov: Annotated[
        float, typer.Option(help="Field of view of footage or of the long run's video, deg.")
    ] = 90.0,
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
    if suite is SuiteName.FOOTAGE and folder is not None:
        from spatial_v2a.inference.cli.footage import run_footage

        run_footage(
            folder,
            out,
            checkpoint=checkpoint or "stage",
            clips=clips,
            seed=seed,
            nfe=nfe,
            device=device,
            fov_deg=fov,
            objects=objects.value,
            run_as=run_as,
            detector=detector,
            detector_weights=detector_weights,
        )
        return
    if long_run is not None:
        from spatial_v2a.inference.cli.longrun import run_long

        run_long(
            long_run,
            out,
            checkpoint=checkpoint or "stage",
            minutes=minutes,
            fov_deg=fov,
            objects=objects.value,
            run_as=run_as or "live",
            seed=seed,
            nfe=nfe,
            device=device,
            detector=detector,
            detector_weights=detector_weights,
        )
        return
    from spatial_v2a.inference.engine.engine import EngineSettings
    from spatial_v2a.inference.evaluation.clips import choose_clips
    from spatial_v2a.inference.evaluation.generate import load_system
    from spatial_v2a.inference.evaluation.sounds import Plan
    from spatial_v2a.inference.evaluation.suite import ClipSuite

    num_jobs = jobs or _num_jobs(device)
    if validate:
        from spatial_v2a.inference.cli.validate import validate_metric

        folders = _suite_clips(out, data, num_workers=num_jobs) if suite else data
        validate_metric(out, choose_clips(folders, num_clips=clips, scenario=scenario))
        return
    name = checkpoint or (None if audio else "stage")
    settings = EngineSettings(seed=seed, nfe=nfe, without=_streams(without))
    system = (
        load_system(
            name,
            settings=settings,
            device=device,
            objects=objects.value,
            detector=detector,
            detector_weights=detector_weights,
            run_as=run_as,
        )
        if name
        else None
    )
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
        progress=lambda line: print(line, flush=True),
    )
    description = {
        "suite": suite.value if suite else "none",
        "checkpoint": name or "none",
        "sounds": str(audio) if audio else "none",
        "data": [str(folder) for folder in data],
        "seed": seed,
        "settings": str(system.settings) if system else "none",
        "as": (run_as or "dub, by PyTorch alone") if system else "none",
        "objects": objects.value if system else "none",
        "detector": system.model.config.perception.boxes_from if system else "none",
        "device": device,
    }
    print(report.run(description))
    print(f"report: {out / 'report.md'}")


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

    def progress(line: str) -> None:
        print(line, flush=True)

    folders = data or record_suite(spec, out / "clips", num_workers=num_workers, progress=progress)
    check_clips(spec, folders)
    progress(f"{len(spec.digests)} clips, version {spec.version}: every hash is right")
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


def _streams(names: list[str] | None) -> tuple[str, ...]:
    """Checked stream names."""
    from spatial_v2a.conditioning.perception import CUES

    for name in names or []:
        if name not in CUES:
            raise UserError(f"unknown stream {name!r}; choose among {', '.join(CUES)}")
    return tuple(names or ())


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
