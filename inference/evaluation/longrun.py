"""The long run: do memory, speed and sound stay the same for minutes or an hour in one go?

A video shorter than the run is played again from its start, with no reset of any state.
Legend: C channels, L samples, T ticks.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from spatial_v2a.conditioning.bundle import Perception
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.engine.ahead import ahead
from spatial_v2a.inference.engine.engine import Engine, engine_threads
from spatial_v2a.inference.evaluation.generate import System
from spatial_v2a.inference.evaluation.minutes import (
    BAND_CENTRES_HZ,
    Minute,
    band_changes_db,
    minute_of,
)
from spatial_v2a.timing import TIMING

MINUTE_TICKS = 60 * TIMING.tick_hz
# So often a stream is begun anew beside the long one, to see how fast the machine is just then.
FRESH_EVERY_TICKS = TIMING.tick_hz


@dataclass(frozen=True)
class LongRun:
    """What a long run showed; changes are last minute against second.

    Attributes:
        minutes: figures of every minute.
        realtime_factor: seconds of video per second of compute.
    """

    minutes: list[Minute]
    realtime_factor: float

    @property
    def memory_growth_mb(self) -> float:
        """Memory at the end of the last minute above that at the end of the first."""
        return self.minutes[-1].memory_mb - self.minutes[0].memory_mb

    @property
    def level_db(self) -> float:
        """Change of the RMS level."""
        return self.minutes[-1].level_dbfs - self.minutes[1].level_dbfs

    @property
    def side_over_mid_db(self) -> float:
        """Change of the side relative to the mid."""
        return self.minutes[-1].side_over_mid_db - self.minutes[1].side_over_mid_db

    @property
    def worst_band_db(self) -> float:
        """Largest change of a third octave, without its sign."""
        return float(np.abs(band_changes_db(self.minutes[1], self.minutes[-1])).max())

    @property
    def tick_change(self) -> float:
        """Change of the median tick, as a share."""
        return self.minutes[-1].p50_ms / self.minutes[1].p50_ms - 1.0

    @property
    def fresh_change(self) -> float:
        """Change of the time in streams begun anew, as a share: the machine's own change."""
        return self.minutes[-1].fresh_ms / self.minutes[1].fresh_ms - 1.0

    @property
    def tick_change_beside_fresh(self) -> float:
        """Change of the median tick where the machine's own is divided out, as a share."""
        return (1.0 + self.tick_change) / (1.0 + self.fresh_change) - 1.0

    @property
    def trend_beside_fresh(self) -> float:
        """Growth of the median tick over fresh streams from the second minute to the last.

        A share: a straight line through all those minutes, because on a shared host single ones
        differ by more than an hour's growth.
        """
        beside_M = np.array([minute.p50_ms / minute.fresh_ms for minute in self.minutes[1:]])
        at_M = np.arange(len(beside_M))
        slope, start = np.polyfit(at_M, beside_M, 1)
        return float(slope * at_M[-1] / start)

    def as_json(self) -> dict[str, Any]:
        """Plain values; bands by centre frequency."""
        changes = band_changes_db(self.minutes[1], self.minutes[-1])
        return {
            "memory_growth_mb": round(self.memory_growth_mb, 1),
            "level_db": round(self.level_db, 2),
            "side_over_mid_db": round(self.side_over_mid_db, 2),
            "worst_band_db": round(self.worst_band_db, 2),
            "tick_change": round(self.tick_change, 4),
            "fresh_change": round(self.fresh_change, 4),
            "tick_change_beside_fresh": round(self.tick_change_beside_fresh, 4),
            "trend_beside_fresh": round(self.trend_beside_fresh, 4),
            "realtime_factor": round(self.realtime_factor, 3),
            "band_db": {
                f"{centre:.0f} Hz": round(float(change), 2)
                for centre, change in zip(BAND_CENTRES_HZ, changes, strict=True)
            },
            "minutes": [_rounded(asdict(minute)) for minute in self.minutes],
        }


def looped(ticks: Callable[[], Iterable[np.ndarray]], num_ticks: int) -> Iterator[np.ndarray]:
    """Frames of `ticks()`, from the start again when they end, `num_ticks` in all.

    Raises:
        UserError: when there are no frames at all.
    """
    given = 0
    while given < num_ticks:
        before = given
        for frame_HWC in ticks():
            if given == num_ticks:
                return
            given += 1
            yield frame_HWC
        if given == before:
            raise UserError("the video holds no frames; give another one")


@torch.inference_mode()
def long_run(
    system: System,
    ticks: Callable[[], Iterable[np.ndarray]],
    *,
    minutes: int,
    fov_deg: float,
    progress: Callable[[str], None],
) -> LongRun:
    """Dubs `minutes` minutes in one run, as `dub` does, and looks at each of them.

    The arrays of one minute are made beforehand and used again, so that the memory measured is
    that of the engine.

    Args:
        system: the loaded checkpoint.
        ticks: starts the frames anew, uint8 [height, width, 3] at the tick rate.
        minutes: length of the run, at least 3.
        fov_deg: horizontal field of view.
        progress: receives one line per minute.
    """
    samples = TIMING.samples_per_tick
    audio_LC = np.full((MINUTE_TICKS * samples, 2), np.nan, np.float32)
    tick_ms_T = np.full(MINUTE_TICKS, np.nan)
    engine = Engine(system.model, num_streams=1, settings=system.settings, is_compiled=True)
    system.perception.init_state(1)
    fresh_ms_T = np.full(MINUTE_TICKS, np.nan)
    seen = _seen(system, looped(ticks, minutes * MINUTE_TICKS), fov_deg)
    is_ahead = engine.device.type == "cpu"
    done: list[Minute] = []
    started_s = time.monotonic()
    with engine_threads(engine.device):
        for tick, (features, seen_s, fresh_s) in enumerate(ahead(seen) if is_ahead else seen):
            begin_s = time.perf_counter()
            heard_LC = engine.step(features)[0].numpy()
            heard_s = time.perf_counter() - begin_s
            within = tick % MINUTE_TICKS
            audio_LC[within * samples : (within + 1) * samples] = heard_LC
            tick_ms_T[within] = 1e3 * (max(seen_s, heard_s) if is_ahead else seen_s + heard_s)
            fresh_ms_T[within] = 1e3 * fresh_s
            if within == MINUTE_TICKS - 1:
                done.append(minute_of(audio_LC, tick_ms_T, fresh_ms_T))
                progress(f"minute {len(done)}/{minutes}: {_line(done[-1])}")
    return LongRun(done, realtime_factor=minutes * 60 / (time.monotonic() - started_s))


def _seen(
    system: System, frames: Iterator[np.ndarray], fov_deg: float
) -> Iterator[tuple[FrameFeatures, float, float]]:
    """Features [1, 1] of each tick, and the seconds that decoding and perception took.

    Last the seconds of perception in a stream that begins with this picture; NaN in most ticks.
    """
    encoders = {name: getattr(system.perception, name) for name in ("dino", "depth", "detector")}
    fresh = Perception(system.perception.config, **encoders)
    begin_s = time.perf_counter()
    for tick, frame_HWC in enumerate(frames):
        frames_BHWC = torch.from_numpy(frame_HWC)[None]
        features = system.perception.step(frames_BHWC, fov_deg=fov_deg)
        seen_s, fresh_s = time.perf_counter() - begin_s, math.nan
        if tick % FRESH_EVERY_TICKS == 0:
            fresh.reset()
            begin_s = time.perf_counter()
            fresh.step(frames_BHWC, fov_deg=fov_deg)
            fresh_s = time.perf_counter() - begin_s
        yield features, seen_s, fresh_s
        begin_s = time.perf_counter()


def _line(minute: Minute) -> str:
    return (
        f"{minute.memory_mb:.0f} MB, {minute.level_dbfs:.1f} dBFS, tick p50 {minute.p50_ms:.1f}, "
        f"p99 {minute.p99_ms:.1f} ms, a fresh stream {minute.fresh_ms:.1f} ms"
    )


def _rounded(minute: dict[str, Any]) -> dict[str, Any]:
    bands = [round(value, 2) for value in minute.pop("band_dbfs_F")]
    plain = {name: round(value, 3) for name, value in minute.items()}
    return plain | {"band_dbfs": bands}
