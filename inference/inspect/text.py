"""The report in plain English: one aligned block a file, and a table when there are several."""

from collections.abc import Iterator

import numpy as np

from spatial_v2a.audio.stereo import NOTHING_DBFS, SIDED_DB, SILENT_DBFS
from spatial_v2a.inference.inspect.delay import MIN_PEAK, DelaySummary
from spatial_v2a.inference.inspect.levels import MIN_CLIP_RUN
from spatial_v2a.inference.inspect.measure import PERCENTILES, Measured, StereoFigures
from spatial_v2a.inference.inspect.report import FileReport
from spatial_v2a.inference.inspect.sound import Track
from spatial_v2a.inference.inspect.swap import RULE, UNKNOWN, SwapVerdict

LABEL_WIDTH = 18


def as_text(report: FileReport) -> str:
    """One file's report."""
    measured = report.measured
    rows = [("verdict", measured.kind), *_file_rows(report.job.track, measured)]
    rows += _level_rows(measured)
    if measured.stereo is not None:
        rows += _stereo_rows(measured.stereo)
    rows += _swap_rows(report.swap)
    rows += [("warning", text) for text in report.warnings] or [("warnings", "none")]
    rows.append(("wrote", str(report.job.png)))
    lines = [f"  {label:<{LABEL_WIDTH}}{text}" for label, text in rows]
    return "\n".join([str(report.job.path), *lines])


def as_table(reports: list[FileReport]) -> str:
    """A line per file."""
    rows = [("file", "kind", "side/mid", "L / C / R %", "picture", "warnings")]
    for report in reports:
        side, shares = "-", "-"
        if report.measured.stereo is not None:
            summary = report.measured.stereo.summary
            side = _side_over_mid(report.measured.stereo)
            parts = (summary.left, summary.centre, summary.right)
            shares = " / ".join(f"{100 * part:.0f}" for part in parts)
        swap = report.swap.verdict if report.swap else "-"
        name = report.job.path.name
        rows.append((name, report.measured.kind, side, shares, swap, str(len(report.warnings))))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(r, widths, strict=True)] for r in rows]
    return "\n".join("  ".join(row).rstrip() for row in padded)


def _file_rows(track: Track, measured: Measured) -> Iterator[tuple[str, str]]:
    picture = "with a picture" if track.has_picture else "sound only"
    yield "container", f"{track.container_name}, {picture}"
    more = f"; track 1 of {track.num_tracks}" if track.num_tracks > 1 else ""
    yield "sound", f"{track.codec_name}, {track.sample_rate_hz} Hz, {_channels(track)}{more}"
    yield "length", f"{measured.duration_s:.3f} s"


def _channels(track: Track) -> str:
    if track.num_channels == 1:
        return "1 channel"
    if track.num_channels == 2:
        return "2 channels"
    names = track.channel_names
    if track.pair is None:
        return f"{track.num_channels} channels ({track.layout})"
    if track.is_pair_assumed:
        return f"{track.num_channels} channels, layout unknown"
    left, right = (names[index] for index in track.pair)
    return f"{track.num_channels} channels ({track.layout}); stereo is that of {left} and {right}"


def _level_rows(measured: Measured) -> Iterator[tuple[str, str]]:
    names = [channel.name for channel in measured.channels]
    peaks = [_db(channel.peak_dbfs) for channel in measured.channels]
    levels = [_db(channel.rms_dbfs) for channel in measured.channels]
    yield "peak", f"{_each(names, peaks)} dBFS"
    yield "RMS level", f"{_each(names, levels)} dBFS"
    full = [f"{100 * channel.at_full_scale:.3g} %" for channel in measured.channels]
    runs = sum(channel.num_clip_runs for channel in measured.channels)
    longest = max(channel.longest_clip_run for channel in measured.channels)
    detail = f"{runs} runs of {MIN_CLIP_RUN} or more" + (f", longest {longest}" if runs else "")
    yield "at full scale", f"{_each(names, full)} of the samples; {detail}"
    yield "offset", _each(names, [f"{channel.offset:+.5f}" for channel in measured.channels])
    yield (
        "silence",
        f"{measured.silent:.0%} of the ticks (1/30 s) under {SILENT_DBFS:g} dBFS;"
        f" {measured.digital_silence:.0%} exactly zero",
    )


def _stereo_rows(stereo: StereoFigures) -> Iterator[tuple[str, str]]:
    summary = stereo.summary
    yield (
        "side and mid",
        f"side {_db(summary.side_dbfs)} dBFS, mid {_db(summary.mid_dbfs)} dBFS:"
        f" side/mid {_side_over_mid(stereo)} dB",
    )
    yield (
        "correlation",
        f"{_signed(stereo.correlation)} overall, {_signed(stereo.tick_correlation)} in the median"
        " audible tick",
    )
    yield (
        "where it sounds",
        f"left {summary.left:.0%}, centre {summary.centre:.0%}, right {summary.right:.0%} of the"
        f" audible ticks (a side is {SIDED_DB:g} dB louder)",
    )
    spread = dict(zip(PERCENTILES, (_signed(v, 1) for v in stereo.difference_db), strict=True))
    yield (
        "level difference",
        f"median {spread[50]} dB, half within {spread[25]}..{spread[75]}, 90 % within"
        f" {spread[5]}..{spread[95]} dB; overall {stereo.balance_db:+.1f} dB (positive: left)",
    )
    yield "time difference", _delay(stereo.delay)


def _delay(delay: DelaySummary) -> str:
    if delay.num_clear == 0:
        return (
            f"unclear: none of {delay.num_windows} audible windows (0.2 s) has a GCC-PHAT peak of"
            f" {MIN_PEAK} or more"
        )
    return (
        f"median {delay.median_ms:+.3f} ms, 90 % within {delay.low_ms:+.3f}..{delay.high_ms:+.3f}"
        f" ms (positive: left first); clear in {delay.num_clear} of {delay.num_windows} audible"
        " windows (0.2 s)"
    )


def _swap_rows(swap: SwapVerdict | None) -> Iterator[tuple[str, str]]:
    if swap is None:
        return
    if swap.verdict == UNKNOWN:
        yield "left and right", f"{UNKNOWN} ({swap.reason})"
    else:
        yield "left and right", swap.verdict
    if swap.num_pictures == 0:
        return
    yield (
        "",
        f"{swap.num_pictures} pictures, {swap.num_boxes} with a box, {swap.num_windows} of them"
        " audible",
    )
    if not np.isnan(swap.correlation):
        p_value = "-" if np.isnan(swap.p_value) else f"{swap.p_value:.3f}"
        yield (
            "",
            f"r {swap.correlation:+.2f} of bearing and level difference, p {p_value}"
            f" ({swap.num_shifts} shifts)",
        )
    if swap.num_off_centre:
        yield (
            "",
            f"louder on the box's side in {swap.same_side:.0%} of {swap.num_off_centre} windows"
            " off centre",
        )
    yield "", f"rule: {RULE}"


def _each(names: list[str], values: list[str]) -> str:
    """Values with the channel they belong to; one channel needs no name."""
    if len(values) == 1:
        return values[0]
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def _side_over_mid(stereo: StereoFigures) -> str:
    """A side at the floor of the scale is none at all."""
    summary = stereo.summary
    is_mono = summary.side_dbfs <= NOTHING_DBFS < summary.mid_dbfs
    return "-inf" if is_mono else f"{summary.side_over_mid_db:+.1f}"


def _db(value: float) -> str:
    return "-inf" if value <= NOTHING_DBFS else f"{value:.1f}"


def _signed(value: float, digits: int = 2) -> str:
    return "-" if np.isnan(value) else f"{value:+.{digits}f}"
