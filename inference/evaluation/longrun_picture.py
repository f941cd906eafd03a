"""The picture of a long run: memory, ticks, level and spectrum, minute by minute."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.files import written_whole
from spatial_v2a.inference.evaluation.longrun import LongRun
from spatial_v2a.inference.evaluation.minutes import BAND_CENTRES_HZ, band_changes_db
from spatial_v2a.timing import TIMING


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
