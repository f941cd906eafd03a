"""What a redo needs to know, checked in full before any work: range, earlier sound, its mix.

Legend: L samples, C audio channels.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from spatial_v2a.conditioning.video import open_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.dub.jobs import DubJob, DubOptions, default_name, plan_jobs
from spatial_v2a.inference.dub.mixing import Extent, MixSettings
from spatial_v2a.inference.dub.mux import PACKAGINGS
from spatial_v2a.inference.dub.original_sound import OriginalTrack, original_tracks, track_pieces
from spatial_v2a.inference.dub.sound_file import SOUND_FORMATS
from spatial_v2a.inference.dub.splice import Splice, check_range
from spatial_v2a.inference.engine.object_mix import Objects
from spatial_v2a.inference.marking.reading import read_provenance
from spatial_v2a.timing import TIMING

log = logging.getLogger(__name__)

# More than twice what the backbone of the bundled checkpoint looks back on.
CONTEXT_TICKS = 10 * TIMING.tick_hz


@dataclass(frozen=True)
class RedoPlan:
    """A range to make anew.

    Attributes:
        job: the new file.
        previous: the sound that stays.
        previous_start_s: the picture's start on the clock of `previous`.
        splice: the range, in samples from the picture's start.
        gain_db: what the earlier dub was brought to its loudness with.
        objects: how several objects were heard in it, None where it does not say.
    """

    job: DubJob
    previous: OriginalTrack
    previous_start_s: Fraction
    splice: Splice
    gain_db: float
    objects: Objects | None

    @property
    def redone(self) -> str:
        """The range in seconds, `FROM-TO`."""
        ends = (self.splice.start, self.splice.stop)
        return "-".join(f"{n / TIMING.sample_rate_hz:.6g}" for n in ends)

    @property
    def ticks(self) -> range:
        """Ticks to make anew."""
        step = TIMING.samples_per_tick
        return range(self.splice.start // step, -(-self.splice.stop // step))

    @property
    def context(self) -> range:
        """Ticks before them that are followed."""
        first = max(0, self.ticks.start - CONTEXT_TICKS)
        return range(first, self.ticks.start)

    def stays(self, extent: Extent) -> Iterator[np.ndarray]:
        """Sound of the earlier file over an extent, in pieces of a tick."""
        start_s = self.previous_start_s + Fraction(extent.start, TIMING.sample_rate_hz)
        return track_pieces(self.previous, start_s=start_s, num_samples=extent.num_samples)


def parse_range(text: str) -> tuple[Fraction, Fraction]:
    """Seconds of `12.5-14`.

    Raises:
        UserError: not two numbers with a minus between, or the second not after the first.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*-\s*(\d+(?:\.\d+)?)\s*", text)
    if match is None:
        raise UserError(f"--redo {text} is not a range; give seconds as FROM-TO, e.g. 12.5-14")
    start_s, stop_s = Fraction(match[1]), Fraction(match[2])
    if stop_s <= start_s:
        raise UserError(f"--redo {text} ends before it begins; give the earlier time first")
    return start_s, stop_s


def plan_redo(
    video: Path,
    text: str,
    *,
    previous: Path | None,
    out: Path | None,
    overwrite: bool,
    options: DubOptions,
    command: str = "",
) -> RedoPlan:
    """Checks a redo in full; touches nothing.

    Args:
        video: the video that was dubbed.
        text: the range, `FROM-TO` in seconds.
        previous: the earlier dub; None looks for it where `dub` writes.
        out: new file, or a folder; None is the first free `NAME.dubbed.vN` beside `previous`.
        overwrite: whether `out` may exist.
        options: those of the earlier dub; where they are left as they are by default, what the
            statement of origin in it says of its mix is taken.
        command: the command line, for the statement of origin.

    Raises:
        UserError: anything that would stop the work later.
    """
    start_s, stop_s = parse_range(text)
    previous = previous or default_previous(video, out)
    if not os.path.isfile(previous):
        raise UserError(f"no such file: {previous}; name the earlier dub with --previous")
    if out is None or out.is_dir():
        out = next_version(previous if out is None else out / previous.name)
    told = _told_by(previous)
    if options.mix == MixSettings() and not options.track:
        options = options.model_copy(update={"mix": told.mix, "track": told.track})
    (job,) = plan_jobs([video], out=out, overwrite=overwrite, options=options, command=command)
    if out.exists() and out.samefile(previous):
        raise UserError(f"{out} is the earlier dub itself; give another name with -o")
    duration_s = job.source.duration
    if stop_s > duration_s:
        raise UserError(
            f"--redo {text} reaches past the end of {video} ({float(duration_s):.3f} s);"
            " give a range within it"
        )
    track, start_of_previous_s = _sound_of(previous, options)
    rate_hz = TIMING.sample_rate_hz
    splice = Splice(round(start_s * rate_hz), round(stop_s * rate_hz))
    if _keeps_packets(out):
        splice = replace(splice, extent_start=job.extent(job.takes[0]).start, is_aac=True)
    check_range(splice, text, previous=track, out=out)
    return RedoPlan(job, track, start_of_previous_s, splice, told.gain_db, told.objects)


def default_previous(video: Path, out: Path | None) -> Path:
    """Where `dub` has put a video's sound."""
    folder = out if out is not None and out.is_dir() else video.parent
    return folder / default_name(video)


def next_version(previous: Path) -> Path:
    """`clip.dubbed.mp4` is followed by `clip.dubbed.v2.mp4`, that by `.v3`: the first free one."""
    stem = re.sub(r"\.v\d+$", "", previous.stem)
    number = 2
    while os.path.lexists(previous.with_name(f"{stem}.v{number}{previous.suffix}")):
        number += 1
    return previous.with_name(f"{stem}.v{number}{previous.suffix}")


def _sound_of(previous: Path, options: DubOptions) -> tuple[OriginalTrack, Fraction]:
    """The dubbed sound of an earlier file, and when the picture starts on that file's clock."""
    tracks = sorted(original_tracks(previous, kind="video or sound file"), key=lambda t: t.index)
    if not tracks:
        raise UserError(f"{previous} holds no sound; name the earlier dub with --previous")
    track = tracks[-1] if options.track else tracks[0]
    if previous.suffix.lower() in SOUND_FORMATS:
        return track, Fraction(0)
    return track, open_video(previous).extent.start_s


@dataclass(frozen=True)
class _Told:
    """What the statement of origin in a dub says of its mix, and of how objects were heard."""

    mix: MixSettings = MixSettings()
    gain_db: float = 0.0
    track: bool = False
    objects: Objects | None = None


def _told_by(previous: Path) -> _Told:
    report = read_provenance(previous)
    if report is None or report.provenance is None:
        return _Told()
    settings = report.provenance.settings
    mix = {name: settings[name] for name in MixSettings.model_fields if name in settings}
    # Statements without it are from before objects were heard apart.
    objects: Objects = "apart" if settings.get("objects") == "apart" else "together"
    try:
        return _Told(
            MixSettings(**mix),
            float(settings.get("gain_db", 0)),
            settings.get("track") is True,
            objects,
        )
    except (TypeError, ValueError):
        log.warning("%s says nothing usable of how it was mixed; give its options again", previous)
        return _Told()


def _keeps_packets(out: Path) -> bool:
    """Whether the sound is stored with loss, so that only kept packets keep the samples."""
    packaging = PACKAGINGS.get(out.suffix.lower())
    return packaging is not None and packaging.codec == "aac"
