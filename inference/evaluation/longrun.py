"""The long run: do memory, speed and sound stay the same for minutes or an hour in one go?

A video shorter than the run is played again from its start, with no reset of any state.
Legend: C channels, L samples, T ticks, F frequency bands, M minutes.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.signal import welch

from spatial_v2a.audio.stereo import mid_side_dbfs, sound_level_dbfs, window_energies
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.errors import UserError
from spatial_v2a.files import written_whole
from spatial_v2a.inference.bench.machine import resident_mb
from spatial_v2a.inference.engine.ahead import ahead
from spatial_v2a.inference.engine.engine import engine_threads
from spatial_v2a.inference.engine.pipeline import Seen
from spatial_v2a.inference.evaluation.generate import System
from spatial_v2a.timing import TIMING

MINUTE_TICKS = 60 * TIMING.tick_hz
# So often a stream is begun anew beside the long one, to see how fast the machine is just then.
FRESH_EVERY_TICKS = TIMING.tick_hz
# Third-octave centres from 50 Hz to 16 kHz.
BAND_CENTRES_HZ = tuple(1000.0 * 2.0 ** (k / 3) for k in range(-13, 13))
# A band this far below the loudest one is not heard; its change is not counted.
BAND_RANGE_DB = 40.0


# Figures of a run in its JSON, and their digits after the point.
ROUNDED = {"memory_growth_mb": 1, "level_db": 2, "side_over_mid_db": 2, "worst_band_db": 2}
ROUNDED |= {"tick_change": 4, "fresh_change": 4, "tick_change_beside_fresh": 4}
ROUNDED |= {"trend_beside_fresh": 4, "realtime_factor": 3}


@dataclass(frozen=True)
class Minute:
    """Figures of one minute.

    Attributes:
        level_dbfs: RMS level of both channels.
        side_over_mid_db: level of the side relative to the mid.
        band_dbfs_F: power in third octaves, see `BAND_CENTRES_HZ`.
        p50_ms, p99_ms: what had to fit into a tick: the slower of perception (decoding included)
            and engine where they run beside each other, else their sum.
        num_misses: ticks that took longer than a tick lasts.
        memory_mb: resident memory at the end of the minute.
        fresh_ms: median time that perception of single pictures of the same minute took in a
            stream begun for each: the same arithmetic without a past, so what changes in it is
            the machine.
    """

    level_dbfs: float
    side_over_mid_db: float
    band_dbfs_F: tuple[float, ...]
    p50_ms: float
    p99_ms: float
    num_misses: int
    memory_mb: float
    fresh_ms: float


def minute_of(audio_LC: NDArray, tick_ms_T: NDArray, fresh_ms_T: NDArray) -> Minute:
    """Figures of a minute that has just ended.

    Args:
        audio_LC: its sound.
        tick_ms_T: time of each tick.
        fresh_ms_T: time of perception in a stream begun anew, NaN where that was not tried.
    """
    energies_TE = window_energies(audio_LC, window_samples=TIMING.samples_per_tick)
    mid_dbfs, side_dbfs = mid_side_dbfs(energies_TE)
    p50_ms, p99_ms = np.percentile(tick_ms_T, [50, 99])
    return Minute(
        level_dbfs=sound_level_dbfs(audio_LC),
        side_over_mid_db=side_dbfs - mid_dbfs,
        band_dbfs_F=tuple(float(value) for value in third_octave_db(audio_LC)),
        p50_ms=float(p50_ms),
        p99_ms=float(p99_ms),
        num_misses=int((tick_ms_T > 1e3 * float(TIMING.tick_s)).sum()),
        memory_mb=resident_mb(),
        fresh_ms=float(np.nanmedian(fresh_ms_T)),
    )


def band_changes_db(before: Minute, after: Minute) -> NDArray:
    """Change of each band [F] in dB, 0 where neither minute has anything to hear."""
    before_F, after_F = np.array(before.band_dbfs_F), np.array(after.band_dbfs_F)
    loudest = max(before_F.max(), after_F.max())
    is_heard_F = np.maximum(before_F, after_F) > loudest - BAND_RANGE_DB
    return np.where(is_heard_F, after_F - before_F, 0.0)


def third_octave_db(audio_LC: NDArray) -> NDArray:
    """Power in third-octave bands (both channels), dB below full scale [F]; Welch's method."""
    rate_hz = TIMING.sample_rate_hz
    size = min(8192, len(audio_LC))
    frequency_hz, density_FC = welch(audio_LC, rate_hz, nperseg=size, detrend=False, axis=0)
    power_F = density_FC.mean(axis=1) * frequency_hz[1]
    edge = 2.0 ** (1 / 6)
    bands = [
        power_F[(frequency_hz >= centre / edge) & (frequency_hz < centre * edge)].sum()
        for centre in BAND_CENTRES_HZ
    ]
    return 10 * np.log10(np.maximum(bands, 1e-12))


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
            **{name: round(getattr(self, name), digits) for name, digits in ROUNDED.items()},
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
    progress: Callable[[str], None],
) -> LongRun:
    """Dubs `minutes` minutes in one run, as `dub` does, and looks at each of them.

    The arrays of one minute are made beforehand and used again, so that the memory measured is
    that of the engine.

    Args:
        system: the loaded checkpoint.
        ticks: starts the frames anew, uint8 [height, width, 3] at the tick rate.
        minutes: length of the run, at least 3.
        progress: receives one line per minute.
    """
    samples = TIMING.samples_per_tick
    audio_LC = np.full((MINUTE_TICKS * samples, 2), np.nan, np.float32)
    tick_ms_T = np.full(MINUTE_TICKS, np.nan)
    system.begin()
    fresh_ms_T = np.full(MINUTE_TICKS, np.nan)
    looks = _looks(system, looped(ticks, minutes * MINUTE_TICKS))
    is_ahead = system.device == "cpu"
    done: list[Minute] = []
    started_s = time.monotonic()
    with engine_threads(system.device):
        for tick, (seen, seen_s, fresh_s) in enumerate(ahead(looks) if is_ahead else looks):
            begin_s = time.perf_counter()
            heard_LC = system.hear(seen).audio_LC
            heard_s = time.perf_counter() - begin_s
            within = tick % MINUTE_TICKS
            audio_LC[within * samples : (within + 1) * samples] = heard_LC
            tick_ms_T[within] = 1e3 * (max(seen_s, heard_s) if is_ahead else seen_s + heard_s)
            fresh_ms_T[within] = 1e3 * fresh_s
            if within == MINUTE_TICKS - 1:
                done.append(minute_of(audio_LC, tick_ms_T, fresh_ms_T))
                progress(f"minute {len(done)}/{minutes}: {_line(done[-1])}")
    return LongRun(done, realtime_factor=minutes * 60 / (time.monotonic() - started_s))


def _looks(system: System, frames: Iterator[np.ndarray]) -> Iterator[tuple[Seen, float, float]]:
    """What is seen in each tick, and the seconds that decoding and perception took.

    Last the seconds of perception in a stream that begins with this picture; NaN in most ticks.
    """
    encoders = {name: getattr(system.perception, name) for name in ("dino", "depth", "detector")}
    fresh = Perception(system.perception.config, **encoders)
    begin_s = time.perf_counter()
    for tick, frame_HWC in enumerate(frames):
        seen = system.look(frame_HWC)
        seen_s, fresh_s = time.perf_counter() - begin_s, math.nan
        if tick % FRESH_EVERY_TICKS == 0:
            fresh.reset()
            begin_s = time.perf_counter()
            fresh.step(frame_HWC[None], fov_deg=system.fov_deg)
            fresh_s = time.perf_counter() - begin_s
        yield seen, seen_s, fresh_s
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


def draw_long_run(path: Path, run: LongRun, *, title: str) -> None:
    """Writes the picture as PNG; the spectrum is shown as its change against minute 2."""
    figure = Figure(figsize=(8, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    memory, ticks, level, bands = figure.subplots(4, 1, sharex=True, height_ratios=(1, 1, 1, 1.6))
    at = np.arange(1, len(run.minutes) + 1)
    memory.plot(at, [minute.memory_mb for minute in run.minutes], ".-")
    memory.set(ylabel="resident (MB)", ylim=(0, 1.2 * max(m.memory_mb for m in run.minutes)))
    ticks.plot(at, [minute.p50_ms for minute in run.minutes], ".-", label="p50")
    ticks.plot(at, [minute.p99_ms for minute in run.minutes], ".--", label="p99")
    fresh = [minute.fresh_ms for minute in run.minutes]
    ticks.plot(at, fresh, color="tab:gray", linewidth=1, label="perception begun anew, p50")
    deadline_ms = 1e3 * float(TIMING.tick_s)
    ticks.axhline(deadline_ms, color="tab:red", linewidth=1, label=f"{deadline_ms:.1f} ms")
    ticks.set(ylabel="tick (ms)", ylim=(0, None))
    ticks.legend(fontsize=8, ncols=4, loc="lower right")
    level.plot(at, [minute.level_dbfs for minute in run.minutes], ".-", label="level")
    side = [minute.level_dbfs + minute.side_over_mid_db for minute in run.minutes]
    level.plot(at, side, ".--", label="level + side over mid")
    level.set(ylabel="dBFS")
    level.legend(fontsize=8, ncols=2, loc="center right")
    change_FM = np.stack([band_changes_db(run.minutes[1], m) for m in run.minutes], axis=1)
    drawn = bands.pcolormesh(
        at, np.arange(len(BAND_CENTRES_HZ)), change_FM, cmap="RdBu_r", vmin=-6, vmax=6
    )
    shown = [
        k
        for k, centre in enumerate(BAND_CENTRES_HZ)
        if round(centre) in (62, 250, 1000, 4000, 16000)
    ]
    bands.set_yticks(shown, [f"{BAND_CENTRES_HZ[k]:.0f}" for k in shown])
    bands.set(xlabel="minute", ylabel="third octave (Hz)")
    figure.colorbar(drawn, ax=bands, label="dB against minute 2")
    figure.suptitle(title, fontsize=10)
    with written_whole(path, overwrite=True) as draft:
        figure.savefig(draft, dpi=120, format="png")
