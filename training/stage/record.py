"""Records a plan: plays its scenarios tic by tic, and writes what is missing of its shards.

Legend: T output ticks (30 Hz), N engine tics (35 Hz), L samples, C channels.
"""

import ctypes
import json
import logging
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchaudio
import webdataset
from numpy.typing import NDArray

from spatial_v2a.bounded import read_json
from spatial_v2a.clip import clip_to_sample, jpeg_bytes
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text, written_whole
from spatial_v2a.geometry import nearness_from_buffer, pool_grid
from spatial_v2a.processes import end_with_parent
from spatial_v2a.timing import TIMING
from spatial_v2a.training.stage.game import SAMPLES_PER_TIC, TIC_HZ, StageGame
from spatial_v2a.training.stage.mod import (
    WALKER_ACTOR,
    Thing,
    Wad,
    build_mod,
    class_of_actor,
    freedoom_path,
)
from spatial_v2a.training.stage.plan import (
    CLIPS_PER_SHARD,
    ClipPlan,
    RecordingSettings,
    make_plan,
)
from spatial_v2a.training.stage.scenarios import SCENARIOS, Scenario, azimuth_deg
from spatial_v2a.training.stage.sounds import ENGINE_RATE_HZ

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 30
CHOOSY_ATTEMPTS = 10  # after so many, a clip whose sources are often hidden is kept all the same
MAX_DISTANCE_UNITS = 4_000.0
MIN_CROSSING_DEG = 30.0
SEEN_SHARE = {"walkers": 0.6, "passers-by": 0.7}
SETTINGS_FILE = "recording.json"
WAD_NAMES = ("freedoom1.wad", "freedoom2.wad")
DEPTH_GRID = (60, 80)
MIN_BOX_PIXELS = 4
# "A secret is revealed" must not stand in the picture; revision 1 left it there for good.
FIRST_MESSAGE_ARGUMENTS = "+con_midtime 0"
MESSAGE_ARGUMENTS = "+con_midtime 0.03 +cl_showsecretmessage 0"
WALKER_ID = 0  # the third-person walker; cast members have their tid, 1 and up


@dataclass
class Take:
    """What a run of a scenario leaves behind."""

    jpegs: list[bytes] = field(default_factory=list)
    depth: list[NDArray[np.uint8]] = field(default_factory=list)
    ticks: list[dict[str, Any]] = field(default_factory=list)
    audio: list[NDArray[np.int16]] = field(default_factory=list)
    trace: list[tuple] = field(default_factory=list)


def num_tics(num_ticks: int) -> int:
    """Engine tics that cover a clip of `num_ticks` output ticks."""
    return math.ceil(num_ticks * TIC_HZ / TIMING.tick_hz)


def shown_tic(tick: int) -> int:
    """The newest engine tic at or before an output tick."""
    return tick * TIC_HZ // TIMING.tick_hz


def to_output_rate(audio_NC: NDArray[np.int16], num_ticks: int) -> NDArray[np.float32]:
    """Resamples a whole clip 44.1 -> 48 kHz; exactly num_ticks * 1600 samples."""
    audio_CL = torch.from_numpy(audio_NC.T.astype(np.float32) / 32768)
    audio_CL = torchaudio.functional.resample(
        audio_CL, ENGINE_RATE_HZ, TIMING.sample_rate_hz, lowpass_filter_width=64, rolloff=0.95
    )
    length = num_ticks * TIMING.samples_per_tick
    if audio_CL.shape[1] < length:
        raise ValueError(f"{audio_CL.shape[1]} samples after resampling, need {length}")
    # Overshoot of a peak at full scale is the only way past 1.
    return audio_CL[:, :length].T.clamp(-1.0, 1.0).numpy()


def _boxes(game: StageGame, ids: dict[int, int]) -> list[dict[str, Any]]:
    height, width = game.state.labels_buffer.shape
    boxes = []
    for label in game.state.labels:
        class_name = class_of_actor(label.object_name)
        if class_name is None or min(label.width, label.height) < MIN_BOX_PIXELS:
            continue
        is_walker = label.object_name == WALKER_ACTOR
        source_id = WALKER_ID if is_walker else ids.get(label.object_id)
        if source_id is None:
            continue
        pixels = game.state.depth_buffer[game.state.labels_buffer == label.value]
        near = float(nearness_from_buffer(np.median(pixels))) if pixels.size else 0.0
        boxes.append(
            {
                "id": source_id,
                "class": class_name,
                "x": round(label.x / width, 5),
                "y": round(label.y / height, 5),
                "w": round(label.width / width, 5),
                "h": round(label.height / height, 5),
                "nearness": round(near, 4),
            }
        )
    return boxes


def _sources(
    game: StageGame, plan: ClipPlan, seen: set[int], steps_sound: bool
) -> list[dict[str, Any]]:
    pose = game.pose
    sources = []
    if plan.scenario == "third-person":
        here = {"x": round(pose.x, 2), "y": round(pose.y, 2), "z": round(pose.z, 2)}
        sources.append(
            {"id": WALKER_ID, "class": "footsteps", **here, "azimuth_deg": 0.0, "distance": 0.0}
            | {"visible": WALKER_ID in seen, "sounding": steps_sound}
        )
    for tid, actor in sorted(game.actors.items()):
        distance = math.dist((pose.x, pose.y, pose.z), (actor.x, actor.y, actor.z))
        place = {"x": round(actor.x, 2), "y": round(actor.y, 2), "z": round(actor.z, 2)}
        sources.append(
            {"id": tid, "class": actor.class_name, **place}
            | {"azimuth_deg": round(azimuth_deg(game, actor.x, actor.y), 2)}
            | {"distance": round(distance, 2), "visible": tid in seen, "sounding": True}
        )
    return sources


def run_scenario(
    game: StageGame, scenario: Scenario, plan: ClipPlan, *, with_picture: bool
) -> Take | None:
    """Plays a prepared scenario; None when the level ended on the way."""
    take = Take()
    total = num_tics(plan.num_ticks)
    shown = {shown_tic(t) for t in range(plan.num_ticks)}
    last, moved_tic = (game.pose.x, game.pose.y), -TIC_HZ
    for tic in range(total):
        if not game.step(scenario.act(tic)):
            return None
        here = (game.pose.x, game.pose.y)
        if math.dist(here, last) > 0.5:
            moved_tic = tic
        last = here
        take.audio.append(np.array(game.audio_LC[-SAMPLES_PER_TIC:]))
        take.trace.append((*here, *((a.x, a.y) for a in game.actors.values())))
        if tic not in shown or not with_picture:
            continue
        ids = {actor.object_id: tid for tid, actor in game.actors.items()}
        boxes = _boxes(game, ids)
        seen = {box["id"] for box in boxes}
        sources = _sources(game, plan, seen, tic - moved_tic < 8)
        take.ticks.append({"boxes": boxes, "sources": sources})
        take.jpegs.append(jpeg_bytes(game.state.screen_buffer))
        depth = pool_grid(game.state.depth_buffer.astype(np.float32), DEPTH_GRID)
        take.depth.append(np.round(depth).astype(np.uint8))
    return take


def play(
    plan: ClipPlan,
    *,
    attempt: int,
    wad: Path,
    mod: Path,
    things: list[Thing],
    folder: Path,
    with_picture: bool = True,
) -> Take | None:
    """Starts an engine for one attempt at a clip and records it; None when the attempt fails."""
    rng = np.random.default_rng([plan.seed, attempt])
    kind = SCENARIOS[plan.scenario]
    game = StageGame(
        wad,
        mod,
        map_name=plan.map_name,
        seed=int(rng.integers(1, 2**31 - 1)),
        with_monsters=kind.needs_monsters,
        arguments=FIRST_MESSAGE_ARGUMENTS if plan.revision == 1 else MESSAGE_ARGUMENTS,
        folder=folder,
    )
    try:
        classes, length = list(plan.classes), num_tics(plan.num_ticks)
        scenario = kind(game, rng, things, classes, length, plan.revision)
        if not scenario.prepare():
            return None
        return run_scenario(game, scenario, plan, with_picture=with_picture)
    finally:
        game.close()


class ShardReport(NamedTuple):
    """A finished shard."""

    path: Path
    num_clips: int
    audio_s: float


def check_openal() -> None:
    """Refuses to start where the engine would be silent.

    Without a system library, engines started later get the private copy that `make` unpacks.
    """
    try:
        ctypes.CDLL("libopenal.so.1")
    except OSError:
        private = Path(sys.prefix) / "openal" / "lib"  # filled by fetch_openal.sh
        if not (private / "libopenal.so.1").is_file():
            raise UserError(
                "libopenal.so.1 not found, the engine would be silent; install package libopenal1"
            ) from None
        others = os.environ.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = f"{private}:{others}" if others else str(private)


class Studio:
    """A worker's own folder with the mods, the audio settings and the game files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # The limiter turns the gain down for seconds after a peak: stems would not sum to the mix.
        settings = folder / "alsoft.conf"
        settings.write_text("[general]\noutput-limiter = false\n")
        os.environ["ALSOFT_CONF"] = str(settings)
        self._wads = {name: Wad(freedoom_path(name)) for name in WAD_NAMES}

    def wad(self, name: str) -> Wad:
        """A Freedoom file by name."""
        return self._wads[name]

    def mod(self, plan: ClipPlan, sounding: str | None) -> Path:
        """The PK3 for a clip's game file; `sounding`: only this class is heard, None is all."""
        steps = "steps" if plan.has_steps else "quiet"
        things = "all" if plan.has_lookalikes else "own"
        path = self.folder / f"{plan.wad_name[:-4]}-{steps}-{things}-{sounding or 'all'}.pk3"
        if not path.exists():
            donor = next(n for n in WAD_NAMES if n != plan.wad_name)
            data = build_mod(
                self.wad(plan.wad_name),
                self.wad(donor),
                has_steps=plan.has_steps,
                has_lookalikes=plan.has_lookalikes,
                sounding=None if sounding is None else {sounding},
            )
            path.write_bytes(data)
        return path

    def play(self, plan: ClipPlan, attempt: int, **options: Any) -> Take | None:
        """One attempt at a clip; options: `sounding`, `with_picture`."""
        wad = self.wad(plan.wad_name)
        mod = self.mod(plan, options.pop("sounding", None))
        things = wad.things(plan.map_name)
        return play(
            plan,
            attempt=attempt,
            wad=wad.path,
            mod=mod,
            things=things,
            folder=self.folder,
            **options,
        )


def _caption(plan: ClipPlan) -> str:
    if plan.scenario == "third-person":
        names = ["footsteps of the walker", *plan.classes]
    elif plan.scenario == "combat":
        names = ["shots and monsters"]
    else:
        names = list(plan.classes)
    return f"{plan.scenario}: {', '.join(names) or 'nothing sounds'}".replace("_", " ")


def _metadata(plan: ClipPlan, take: Take, attempt: int, stems: dict[str, Any]) -> dict[str, Any]:
    ids = {i: c for i, c in enumerate(plan.classes, start=1)}
    if plan.scenario == "third-person":
        ids = {WALKER_ID: "footsteps", **ids}
    parts = {i: f"stem{i}.flac" for i in ids}
    samples = np.concatenate(take.audio)
    return {
        "key": plan.key,
        "scenario": plan.scenario,
        "map": plan.map_name,
        "wad": plan.wad_name,
        "seed": plan.seed,
        "attempt": attempt,
        "num_ticks": plan.num_ticks,
        "fov_deg": 90.0,
        "engine": f"vizdoom {version('vizdoom')}",
        "caption": _caption(plan),
        "clipped_share": float(np.mean(np.abs(samples.astype(np.int32)) >= 32767)),
        "sources": [
            {"id": i, "class": c, "stem": parts[i] if parts[i] in stems else None}
            for i, c in ids.items()
        ],
        "ticks": take.ticks,
    }


def _stems(studio: Studio, plan: ClipPlan, attempt: int, take: Take) -> dict[str, np.ndarray]:
    """Replays the clip once per source with every other class silenced."""
    ids = dict(enumerate(plan.classes, start=1))
    if plan.scenario == "third-person":
        ids[WALKER_ID] = "footsteps"
    stems = {}
    for source_id, class_name in sorted(ids.items()):
        alone = studio.play(plan, attempt, sounding=class_name, with_picture=False)
        if alone is None or alone.trace != take.trace:
            raise RuntimeError(f"clip {plan.key}: the replay for a stem left the recorded path")
        stems[f"stem{source_id}.flac"] = to_output_rate(np.concatenate(alone.audio), plan.num_ticks)
    return stems


def is_worth_keeping(plan: ClipPlan, take: Take) -> bool:
    """Whether the sources are on the map, on screen and moving, as their scenario promises."""
    entries = [s for tick in take.ticks for s in tick["sources"]]
    if plan.revision > 1 and any(s["distance"] > MAX_DISTANCE_UNITS for s in entries):
        return False  # an actor that slipped through a wall
    if plan.scenario not in SEEN_SHARE:
        return True
    azimuths = [s["azimuth_deg"] for s in entries]
    if plan.revision > 1 and plan.scenario == "passers-by" and np.ptp(azimuths) < MIN_CROSSING_DEG:
        return False
    flags = [s["visible"] for s in entries]
    return bool(flags) and float(np.mean(flags)) >= SEEN_SHARE[plan.scenario]


def record_clip(studio: Studio, plan: ClipPlan) -> dict[str, str | bytes]:
    """The webdataset sample of a clip: the first attempt that succeeds, always the same one."""
    for attempt in range(MAX_ATTEMPTS):
        take = studio.play(plan, attempt)
        if take is None or (attempt < CHOOSY_ATTEMPTS and not is_worth_keeping(plan, take)):
            continue
        stems = _stems(studio, plan, attempt, take) if plan.has_stems else {}
        return clip_to_sample(
            _metadata(plan, take, attempt, stems),
            jpegs=take.jpegs,
            depth_THW=np.stack(take.depth),
            audio_LC=to_output_rate(np.concatenate(take.audio), plan.num_ticks),
            stems=stems,
        )
    raise RuntimeError(f"clip {plan.key}: no attempt of {MAX_ATTEMPTS} found a stage on this map")


@lru_cache(maxsize=1)
def _studio(folder: str) -> Studio:
    path = Path(tempfile.mkdtemp(dir=folder))
    return Studio(path)


def _start_worker() -> None:
    end_with_parent()
    torch.set_num_threads(1)


def record_shard(path: Path, plans: list[ClipPlan], scratch: Path) -> ShardReport:
    """Records one shard, whole or not at all."""
    studio = _studio(str(scratch))
    # Another recorder of this folder has the same settings, and so the same bytes.
    with written_whole(path, overwrite=True) as draft, open(draft, "wb") as stream:
        writer = webdataset.TarWriter(stream, encoder=False, mtime=0, compress=False)
        for plan in plans:
            writer.write(record_clip(studio, plan))
        writer.close()
    seconds = sum(num_tics(p.num_ticks) for p in plans) / 35
    return ShardReport(path, len(plans), seconds)


def shard_paths(out: Path, plans: list[ClipPlan]) -> list[tuple[Path, list[ClipPlan]]]:
    """Shard files with the clips they hold."""
    groups = [plans[i : i + CLIPS_PER_SHARD] for i in range(0, len(plans), CLIPS_PER_SHARD)]
    return [(out / f"stage-{i:06d}.tar", group) for i, group in enumerate(groups)]


def prepare_folder(out: Path, settings: RecordingSettings) -> None:
    """Makes the folder, refuses one that is unwritable or holds a different recording."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}; choose another --out") from None
    known = out / SETTINGS_FILE
    if known.exists() and _read_settings(known) != settings:
        raise UserError(
            f"{out} holds a recording with other settings (see {SETTINGS_FILE}); choose another"
            " --out, or repeat its settings to resume"
        )
    write_text(known, json.dumps(settings.model_dump(), indent=1, sort_keys=True))


def _read_settings(path: Path) -> RecordingSettings:
    """Settings of an earlier recording; the first recorder did not write its revision."""
    data = read_json(path)
    try:
        return RecordingSettings.model_validate({"revision": 1, **data})
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged; remove it and its shards, and record again") from None


def record(
    out: Path, settings: RecordingSettings, *, num_workers: int = 1
) -> Iterator[ShardReport]:
    """Records what is missing and yields shards as they finish (first what was there before).

    Args:
        out: folder of the shards `stage-NNNNNN.tar`.
        settings: what to record; the same settings give the same bytes.
        num_workers: engines at once; does not change the bytes.

    Raises:
        UserError: before anything is recorded: no OpenAL, an unwritable folder, or a folder
            that holds a recording with other settings.
    """
    check_openal()
    prepare_folder(out, settings)
    return _record_missing(shard_paths(out, make_plan(settings)), num_workers)


def _record_missing(
    shards: list[tuple[Path, list[ClipPlan]]], num_workers: int
) -> Iterator[ShardReport]:
    todo = [(path, plans) for path, plans in shards if not path.exists()]
    for path, plans in shards:
        if path.exists():
            yield ShardReport(path, len(plans), 0.0)
    scratch = Path(tempfile.mkdtemp(prefix="stage-"))
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(
            num_workers, mp_context=context, initializer=_start_worker
        ) as pool:
            jobs = [pool.submit(record_shard, path, plans, scratch) for path, plans in todo]
            try:
                for job in as_completed(jobs):
                    yield job.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
