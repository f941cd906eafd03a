"""Records one clip: runs a scenario tic by tic and gathers picture, depth, geometry and sound.

Legend: T output ticks (30 Hz), N engine tics (35 Hz), L samples, C channels.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray

from spatial_v2a.clip import jpeg_bytes
from spatial_v2a.geometry import nearness_from_buffer, pool_grid
from spatial_v2a.timing import TIMING
from spatial_v2a.training.stage.cast import WALKER_ACTOR, class_of_actor
from spatial_v2a.training.stage.game import SAMPLES_PER_TIC, TIC_HZ, StageGame
from spatial_v2a.training.stage.motion import azimuth_deg
from spatial_v2a.training.stage.plan import ClipPlan
from spatial_v2a.training.stage.scenarios import SCENARIOS, Scenario
from spatial_v2a.training.stage.sounds import ENGINE_RATE_HZ
from spatial_v2a.training.stage.wad import Thing

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
