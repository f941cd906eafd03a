"""The picture of a sweep: time of a tick against the number of streams, and the deadline."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spatial_v2a.inference.bench.figures import DEADLINE_MS, Report


def draw_sweep(path: Path, reports: list[Report], *, title: str) -> None:
    """Writes p50 and p99 against streams as PNG.

    Args:
        path: file to write.
        reports: of 1, 2, 4 ... streams.
        title: what ran where.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    streams = [report.num_streams for report in reports]
    for label, times_ms, style in (
        ("p50", [report.tick.p50_ms for report in reports], "o-"),
        ("p99", [report.tick.p99_ms for report in reports], "s--"),
    ):
        axes.plot(streams, times_ms, style, label=label)
    axes.axhline(DEADLINE_MS, color="tab:red", linewidth=1, label=f"{DEADLINE_MS:.1f} ms")
    axes.set_xscale("log", base=2)
    axes.set_xticks(streams, [str(number) for number in streams])
    axes.set(xlabel="streams in one batch", ylabel="tick (ms)", ylim=(0, None))
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, format="png")
