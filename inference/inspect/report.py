"""One file's report: what was measured, what is wrong with it; as text, table or JSON."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from spatial_v2a.audio.delay import MIN_PEAK
from spatial_v2a.audio.stereo import MIN_CLIP_RUN, NOTHING_DBFS, SIDED_DB, SILENT_DBFS
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.files import cannot_write, check_writable, written_whole
from spatial_v2a.inference.inspect.measure import (
    FIXED,
    NARROW,
    NO_PAIR,
    PERCENTILES,
    SILENT,
    STEREO,
    DelaySummary,
    Measured,
    StereoFigures,
    measure,
)
from spatial_v2a.inference.inspect.sound import Track, describe_track
from spatial_v2a.inference.inspect.swap import (
    RULE,
    SWAPPED,
    UNKNOWN,
    BearingTrack,
    BoxFinder,
    SwapVerdict,
    difference_at,
    find_bearings,
    judge,
)

# An offset of this size (-46 dBFS) is no sound's own; it clicks at cuts.
MAX_OFFSET = 0.005
# A steady time difference of this size moves a centred voice to one side.
STEADY_DELAY_MS = 0.1
OPPOSITE_CORRELATION = -0.5
MAX_MISSING_S = 0.25
LABEL_WIDTH = 18

OnProgress = Callable[[str, float], None]


@dataclass(frozen=True)
class InspectJob:
    """One file to inspect: the file, its first sound track, and where its picture goes.

    Attributes:
        overwrite: whether a picture that exists is replaced.
    """

    path: Path
    track: Track
    png: Path
    overwrite: bool = False


@dataclass(frozen=True)
class FileReport:
    """What is known of one file.

    Attributes:
        job: the file.
        measured: from one pass over its sound.
        swap: whether left and right agree with the picture; None for a file without a picture.
        warnings: what is wrong with it, in plain words.
    """

    job: InspectJob
    measured: Measured
    swap: SwapVerdict | None
    warnings: tuple[str, ...]


def plan_inspection(
    files: list[Path], *, out: Path | None = None, overwrite: bool = False
) -> list[InspectJob]:
    """Checks files and outputs before any work.

    Args:
        files: audio or video files.
        out: folder for the pictures, made when missing; None puts each beside its file.
        overwrite: whether pictures that exist are replaced.

    Raises:
        UserError: a file cannot be inspected, or a picture cannot be written.
    """
    files = list(as_tuple(files, name="files"))
    tracks = [describe_track(path) for path in files]
    if out is not None:
        _make_folder(out)
    # The whole name: take.mp4 and take.wav may lie side by side.
    pngs = [(path.parent if out is None else out) / f"{path.name}.stereo.png" for path in files]
    for png in pngs:
        if pngs.count(png) > 1:
            raise UserError(f"two files would both have their picture in {png}; inspect them apart")
        longest = os.pathconf(png.parent if png.parent.is_dir() else ".", "PC_NAME_MAX")
        if len(os.fsencode(png.name)) > longest:
            raise UserError(f"the picture's name {png.name} is too long; rename its file")
        check_writable(png, overwrite=overwrite, option="--out")
    return [InspectJob(*parts, overwrite) for parts in zip(files, tracks, pngs, strict=True)]


def inspect_file(
    job: InspectJob, *, finder: BoxFinder | None = None, on_progress: OnProgress | None = None
) -> FileReport:
    """Measures one file and writes its picture.

    Args:
        job: from `plan_inspection`.
        finder: detector for the comparison with the picture; None leaves that out.
        on_progress: called with what is being done and the seconds of the file done.
    """
    from spatial_v2a.inference.inspect.picture import draw_picture

    tell = on_progress or (lambda what, seconds: None)
    measured = measure(job.path, job.track, on_window=lambda n: tell("sound", n / 5))
    swap, bearings = _compare_with_picture(job, measured, finder, tell)
    try:
        with written_whole(job.png, overwrite=job.overwrite) as draft:
            draw_picture(draft, measured, title=job.path.name, bearings=bearings)
    except OSError as error:
        raise cannot_write(job.png, error, option="--out") from error
    return FileReport(job, measured, swap, tuple(_warnings(job.track, measured, swap)))


def _compare_with_picture(
    job: InspectJob, measured: Measured, finder: BoxFinder | None, tell: OnProgress
) -> tuple[SwapVerdict | None, BearingTrack | None]:
    if not job.track.has_picture:
        return None, None
    if finder is None:
        return SwapVerdict(UNKNOWN, "not looked for (--no-boxes)"), None
    if measured.kind not in (STEREO, NARROW):
        return SwapVerdict(UNKNOWN, f"nothing to compare: {measured.kind}"), None
    try:
        track = find_bearings(job.path, finder, on_picture=lambda n: tell("picture", n / 5))
    except UserError as error:
        # The sound is measured all the same: the report says what the picture lacks.
        return SwapVerdict(UNKNOWN, f"picture not readable: {error}"), None
    difference_P = difference_at(track.times_P, measured.times_T, measured.energies_TE)
    return judge(track.bearing_deg_P, difference_P), track


def _warnings(track: Track, measured: Measured, swap: SwapVerdict | None) -> list[str]:
    """What is wrong, most serious first."""
    found = []
    if measured.num_bad:
        found.append(f"{measured.num_bad} samples are NaN or infinite (measured as 0)")
    missing_s = (track.stated_s or 0.0) - measured.duration_s
    if missing_s > MAX_MISSING_S:
        found.append(f"{missing_s:.1f} s of the length in the header are missing: cut off?")
    if measured.num_damaged:
        found.append(f"{measured.num_damaged} packets could not be decoded")
    if measured.num_gaps:
        found.append(f"timestamps jump {measured.num_gaps} times ({measured.gap_s:+.2f} s in all)")
    if swap is not None and swap.verdict == SWAPPED:
        found.append("left and right seem to be swapped against the picture")
    runs = sum(channel.num_clip_runs for channel in measured.channels)
    if runs:
        found.append(f"clipped: {runs} runs at full scale")
    peak_dbfs = max(channel.peak_dbfs for channel in measured.channels)
    if peak_dbfs > 0.005:
        found.append(f"exceeds full scale by {peak_dbfs:.2f} dB: clips when it is played")
    for channel in measured.channels:
        if abs(channel.offset) > MAX_OFFSET:
            found.append(f"channel {channel.name} has an offset of {channel.offset:+.4f}")
    return found + _pair_warnings(track, measured)


def _pair_warnings(track: Track, measured: Measured) -> list[str]:
    found, stereo = [], measured.stereo
    if track.is_pair_assumed:
        found.append("channel layout unknown: the first two channels are taken as left and right")
    if measured.kind == NO_PAIR:
        found.append(f"layout {track.layout} has no left and right: stereo is not measured")
    if stereo is None or measured.kind == SILENT:
        return found
    if stereo.correlation < OPPOSITE_CORRELATION:
        found.append("left and right are nearly opposite: they cancel when mixed to mono")
    delay, kind = stereo.delay, measured.kind
    is_steady = 2 * delay.num_clear > delay.num_windows > 0
    is_steady = is_steady and delay.low_ms * delay.high_ms > 0 and kind in (STEREO, FIXED)
    if is_steady and abs(delay.median_ms) >= STEADY_DELAY_MS:
        first = "left" if delay.median_ms > 0 else "right"
        found.append(f"the {first} channel is {abs(delay.median_ms):.2f} ms early throughout")
    return found


def as_json(report: FileReport) -> dict[str, object]:
    """The report for machines: plain numbers, null where something is undefined."""
    measured, stereo = report.measured, report.measured.stereo
    values: dict[str, object] = {
        "file": str(report.job.path),
        "kind": measured.kind,
        "warnings": report.warnings,
        "track": asdict(report.job.track),
        "duration_s": measured.duration_s,
        "channels": [asdict(channel) for channel in measured.channels],
        "silent": measured.silent,
        "digital_silence": measured.digital_silence,
        "num_nan_or_infinite": measured.num_bad,
        "num_damaged_packets": measured.num_damaged,
        "num_gaps": measured.num_gaps,
        "gap_s": measured.gap_s,
        "stereo": None,
        "picture": None,
        "png": str(report.job.png),
    }
    if stereo is not None:
        values["stereo"] = asdict(stereo) | {
            "side_over_mid_db": stereo.summary.side_over_mid_db,
            "difference_db": dict(
                zip([f"p{p}" for p in PERCENTILES], stereo.difference_db, strict=True)
            ),
        }
    if report.swap is not None:
        values["picture"] = asdict(report.swap) | {"rule": RULE}
    return values


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


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(f"--out {folder} is a file; name a folder") from error
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error.strerror}); choose another --out"
        ) from error
