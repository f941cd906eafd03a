"""A report in plain English."""

from collections.abc import Mapping

from spatial_v2a.inference.bench.figures import (
    DEADLINE_MS,
    PUBLISHED,
    PUBLISHED_NOTE,
    PartFigures,
    Report,
    Spread,
)

COLUMNS = f"{'':15}{'p50':>8}{'p95':>8}{'p99':>8}{'ceiling':>9}{'ratio':>7}{'GFLOP':>8}{'MB':>8}"


def as_text(report: Report, run: Mapping[str, object]) -> str:
    """The report of one number of streams.

    Args:
        report: the figures.
        run: what ran and where, see `describe_run`.
    """
    lines = [
        f"{run['system']}, objects {run['objects']}, {run['weights']} weights, NFE {run['nfe']},"
        f" {run['dtype']}, matrices {run['engine_weights']},"
        f" {'OpenVINO' if run['openvino'] else 'PyTorch'}, batch {report.num_streams}",
        f"{run['name']}: {run['device']}, {run['threads']} of {run['cores']} cores as threads,"
        f" load {run['load_1min']}",
        f"{report.num_ticks} ticks of {run['video']}; {report.num_warmup_ticks} ticks before them"
        " warm up and are not counted",
        "perception of the next tick runs beside the engine: the tick is the slower of the two"
        if report.is_ahead
        else "one thing after the other: the tick is their sum",
        "",
        f"{COLUMNS}    times in ms",
        *(_row(name, part) for name, part in report.parts.items()),
        _row("tick", PartFigures(report.tick, ceiling_ms=report.ceiling_ms)),
        _row("samples ready", PartFigures(report.ready)),
        _published_row(),
        "",
        f"deadline {DEADLINE_MS:.1f} ms: {report.num_misses} of {report.num_ticks} ticks miss it,"
        f" {report.misses_per_1000:.0f} per 1000",
        f"the parts above `other` make up {report.sum_over_tick:.1%} of the work;"
        f" {report.num_boxes:.1f} boxes a picture",
        f"rates behind the ceiling: {report.rates.flops_per_s / 1e9:.0f} GFLOP/s,"
        f" {report.rates.bytes_per_s / 1e9:.1f} GB/s",
        *_stolen(report),
        _memory(report),
    ]
    return "\n".join(lines)


def as_sweep_row(report: Report) -> str:
    """One line of a sweep."""
    return (
        f"{report.num_streams:5d} streams: {_times(report.tick)} ms,"
        f" {report.misses_per_1000:.0f} misses per 1000, {report.memory.resident_mb:.0f} MB"
    )


def _times(times: Spread) -> str:
    return f"p50 {times.p50_ms:.1f}, p95 {times.p95_ms:.1f}, p99 {times.p99_ms:.1f}"


def _row(name: str, part: PartFigures) -> str:
    times = part.spread
    name = name if part.share > 0.99 else f"{name}, {100 * part.share:.0f} %"
    row = f"{name:15}{times.p50_ms:8.2f}{times.p95_ms:8.2f}{times.p99_ms:8.2f}"
    row += _cell(part.ceiling_ms, 9, 2) + _cell(part.ratio, 7, 1)
    return (row + _cell(part.gflop, 8, 3) + _cell(part.megabytes, 8, 1)).rstrip()


def _cell(value: float | None, width: int, digits: int) -> str:
    return " " * width if value is None else f"{value:{width}.{digits}f}"


def _published_row() -> str:
    figures = ", ".join(f"{row['ms']} (NFE {row['nfe']})" for row in PUBLISHED)
    return f"{PUBLISHED[0]['system']:15}   {figures}: {PUBLISHED_NOTE}"


def _stolen(report: Report) -> list[str]:
    if not report.stolen_share:
        return []
    return [
        f"the host gave {report.stolen_share:.1%} of the processor time wanted here to other guests"
    ]


def _memory(report: Report) -> str:
    memory = report.memory
    text = f"memory: {memory.resident_mb:.0f} MB resident, {memory.peak_mb:.0f} MB at most"
    if memory.cuda_peak_mb is not None:
        text += f", {memory.cuda_peak_mb:.0f} MB on the GPU at most"
    return text
