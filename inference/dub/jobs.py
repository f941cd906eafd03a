"""What is to be dubbed and where to, checked in full before any work begins."""

import logging
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from spatial_v2a.conditioning.video import MAX_LENGTH_S, VideoSource, open_video
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.files import check_writable
from spatial_v2a.inference.dub.mixing import Extent, MixSettings, mix_extent
from spatial_v2a.inference.dub.mux import PACKAGINGS, SoundPlan, check_suffix, plan_copies
from spatial_v2a.inference.dub.original_sound import OriginalTrack, original_tracks
from spatial_v2a.inference.marking.manifest import signing_credential
from spatial_v2a.inference.marking.provenance import needs_sidecar, sidecar_of
from spatial_v2a.strict import StrictConfig
from spatial_v2a.timing import TIMING

if TYPE_CHECKING:
    from spatial_v2a.conditioning.track_edits import TrackEdits

log = logging.getLogger(__name__)

MAX_TAKES = 16
# The title of a generated track that stands beside others.
TRACK_TITLE = "spatial-v2a"
# Of the sound on its way, float32.
BYTES_PER_SAMPLE = 4


class DubOptions(StrictConfig):
    """What a dub is besides the sound that is drawn.

    Attributes:
        mix: what happens to the original sound, gains, loudness.
        takes: soundtracks to make, with seeds one after another.
        track: whether the sound becomes a further track beside all the original ones.
        watermark: whether the samples carry the inaudible mark.
        provenance: whether the file states where its sound comes from, signed with the user's key.
    """

    mix: MixSettings = MixSettings()
    takes: int = Field(default=1, ge=1, le=MAX_TAKES)
    track: bool = False
    watermark: bool = True
    provenance: bool = True


@dataclass(frozen=True)
class Take:
    """One soundtrack of a job: its file, and the picture of its pan curve or None."""

    out: Path
    report: Path | None = None


@dataclass(frozen=True)
class DubJob:
    """One video to dub.

    Attributes:
        source: the checked video.
        takes: files to write, one per seed.
        options: mix, marks and so on.
        track: the original sound that is mixed in, or None.
        sound: where the new sound lies in a video file, and beside what.
        annotations: JSONL of boxes and depth, or None.
        edits: changes to the objects in it, or None.
        ranking: where the ranking of several takes goes (JSON; .md and .png beside it), or None.
        stems: folder for one sound per object, or None.
        command: the command line, for the statement of origin.
        truth: JSONL of true positions for the report; the model never sees it.
        truth_sound: true sound for the report, when the video comes without.
        overwrite: whether files that exist are replaced.
    """

    source: VideoSource
    takes: tuple[Take, ...]
    options: DubOptions = DubOptions()
    track: OriginalTrack | None = None
    sound: SoundPlan = SoundPlan()
    annotations: Path | None = None
    edits: "TrackEdits | None" = None
    ranking: Path | None = None
    stems: Path | None = None
    command: str = ""
    truth: Path | None = None
    truth_sound: Path | None = None
    overwrite: bool = False

    @property
    def out(self) -> Path:
        """The file of the first take."""
        return self.takes[0].out

    @property
    def report(self) -> Path | None:
        """The pan picture of the first take."""
        return self.takes[0].report

    @property
    def paths(self) -> list[Path]:
        """Every file that is written, the stems left out."""
        return _paths_of(self.takes, self.options, self.ranking)

    def extent(self, take: Take) -> Extent:
        """Where the sound of a take's file lies: that of a video keeps the original's ends."""
        is_video = take.out.suffix.lower() in PACKAGINGS
        return mix_extent(self.source, self.track if is_video else None)


def plan_jobs(
    videos: list[Path],
    *,
    out: Path | None = None,
    overwrite: bool = False,
    report: bool = False,
    annotations: Path | None = None,
    edits: "TrackEdits | None" = None,
    options: DubOptions | None = None,
    seed: int = 0,
    stems: Path | None = None,
    command: str = "",
) -> list[DubJob]:
    """Checks videos and outputs; touches nothing.

    Args:
        videos: files to dub.
        out: output file for one video, or an existing folder; None writes beside each video.
        overwrite: whether outputs that exist are replaced.
        report: whether each output gets a pan picture beside it.
        annotations: JSONL of boxes and depth, for one video only.
        edits: changes to the objects in `annotations`.
        options: mix, takes and so on.
        seed: of the first take; it names the files of several takes.
        stems: folder for one sound per object.
        command: the command line, for the statement of origin.

    Raises:
        UserError: anything that would stop the work later.
    """
    videos = list(as_tuple(videos, name="videos"))
    if not videos:
        raise UserError("no video given; name at least one file")
    if len(videos) > 1 and annotations is not None:
        raise UserError(
            f"--annotations {annotations} fits one video only; dub the {len(videos)} one by one"
        )
    if len(videos) > 1 and stems is not None:
        raise UserError(f"--stems {stems} fits one video only; dub the {len(videos)} one by one")
    if annotations is not None and not annotations.is_file():
        raise UserError(f"no such file: {annotations}; check the path behind --annotations")
    if annotations is None and edits is not None:
        raise UserError(
            "--mute, --solo and --move change a file of tracks; name it with --annotations"
        )
    options = options or DubOptions()
    if options.provenance:
        signing_credential()
    if stems is not None and options.takes > 1:
        raise UserError(f"--stems {stems} fits one take only; leave --takes {options.takes} out")
    if len(videos) > 1:
        check_apart(videos, out=out, options=options, seed=seed, report=report)
    return [
        replace(
            _plan(video, out, overwrite, report, annotations, edits, options, seed, stems),
            command=command,
        )
        for video in videos
    ]


def check_apart(
    videos: list[Path], *, out: Path | None, options: DubOptions, seed: int, report: bool
) -> None:
    """Refuses several videos that would be written over one another; by their names only.

    Raises:
        UserError: -o is no folder, or two videos would be written to one file.
    """
    if out is not None and not out.is_dir():
        raise UserError(f"-o {out} is not a folder, and {len(videos)} videos are given; create it")
    owners: dict[Path, Path] = {}
    for video in videos:
        for path in output_paths(default_out(video, out), options, seed=seed, report=report):
            if path in owners:
                raise UserError(
                    f"two videos would both be written to {path} ({owners[path]} and {video});"
                    " dub them one by one"
                )
            owners[path] = video


def output_paths(target: Path, options: DubOptions, *, seed: int, report: bool) -> list[Path]:
    """Every file that is written for a video, its stems left out.

    Args:
        target: the file of its only take.
        options, seed, report: as for `plan_jobs`.
    """
    takes = plan_takes(target, options.takes, seed=seed, report=report)
    return _paths_of(takes, options, ranking_path(target) if options.takes > 1 else None)


def _paths_of(takes: tuple[Take, ...], options: DubOptions, ranking: Path | None) -> list[Path]:
    paths = [path for take in takes for path in (take.out, take.report) if path is not None]
    if options.provenance:
        paths += [sidecar_of(take.out) for take in takes if needs_sidecar(take.out)]
    if ranking is not None:
        paths += [ranking.with_suffix(suffix) for suffix in (".json", ".md", ".png")]
    return paths


def default_out(video: Path, out: Path | None) -> Path:
    """The file that a video's only take goes to."""
    if out is None or out.is_dir():
        return (video.parent if out is None else out) / default_name(video)
    return out


def default_name(video: Path) -> str:
    """`clip.mp4` becomes `clip.dubbed.mp4`; others become Matroska, but a GIF becomes MOV.

    Matroska holds a GIF's pictures too, but loses which of them stand alone.
    """
    if video.suffix.lower() in PACKAGINGS:
        return f"{video.stem}.dubbed{video.suffix}"
    return f"{video.stem}.dubbed{'.mov' if video.suffix.lower() == '.gif' else '.mkv'}"


def ranking_path(target: Path) -> Path:
    """`clip.dubbed.mp4` has the ranking of its takes in `clip.dubbed.takes.json`."""
    return target.with_name(f"{target.stem}.takes.json")


def report_path(out: Path) -> Path:
    """`clip.dubbed.mp4` has its picture in `clip.dubbed.pan.png`."""
    return out.with_name(f"{out.stem}.pan.png")


def _plan(
    video: Path,
    out: Path | None,
    overwrite: bool,
    report: bool,
    annotations: Path | None,
    edits: "TrackEdits | None",
    options: DubOptions,
    seed: int,
    stems: Path | None,
) -> DubJob:
    target = default_out(video, out)
    check_suffix(target)
    source = open_video(video)
    takes = plan_takes(target, options.takes, seed=seed, report=report)
    track, sound = plan_sound(source, options)
    ranking = ranking_path(target) if options.takes > 1 else None
    job = DubJob(
        source=source,
        takes=takes,
        options=options,
        track=track,
        sound=sound,
        annotations=annotations,
        edits=edits,
        ranking=ranking,
        stems=stems,
        truth=annotations,
        overwrite=overwrite,
    )
    for path in output_paths(target, options, seed=seed, report=report):
        # Other than Path.exists, it does not raise for a name that is too long.
        if os.path.exists(path) and path.samefile(video):
            raise UserError(f"{path} is the video itself; give another name with -o")
        check_writable(path, overwrite=overwrite)
    check_size(job)
    if stems is not None:
        _check_stems(stems, overwrite=overwrite)
    if target.suffix.lower() in PACKAGINGS:
        copies = plan_copies(source, target.suffix.lower(), sound.kept)
        job = replace(job, sound=replace(sound, copies=copies))
    return job


def check_size(job: DubJob) -> None:
    """Refuses sound that lasts for days, or needs more scratch than the disk has free."""
    lengths = [job.extent(take).num_samples for take in job.takes]
    length_s = max(lengths) / TIMING.sample_rate_hz
    if length_s > MAX_LENGTH_S:
        raise UserError(
            f"the sound of {job.source.path} would last {length_s / 3600:,.0f} hours, for its own"
            " lies so far from the picture, and a day is the most; leave it out with --original"
            " drop, or a .wav for -o"
        )
    needed = sum(lengths) * TIMING.num_channels * BYTES_PER_SAMPLE
    free = shutil.disk_usage(job.out.parent).free
    if needed > free:
        raise UserError(
            f"dubbing {job.source.path} needs {needed / 1e6:,.1f} MB of scratch in"
            f" {job.out.parent}, where {free / 1e6:,.1f} MB are free; use -o with a folder on"
            " another disk"
        )


def plan_takes(target: Path, num_takes: int, *, seed: int, report: bool) -> tuple[Take, ...]:
    """The files of one take, or of several with their seeds in their names."""
    outs = [target]
    if num_takes > 1:
        outs = [
            target.with_name(f"{target.stem}.seed{seed + number}{target.suffix}")
            for number in range(num_takes)
        ]
    return tuple(Take(out, report_path(out) if report else None) for out in outs)


def plan_sound(source: VideoSource, options: DubOptions) -> tuple[OriginalTrack | None, SoundPlan]:
    """The original sound to mix in, and where the new sound lies beside which of the old tracks."""
    wants_original = options.mix.original != "drop"
    if not wants_original and not options.track:
        return None, SoundPlan()
    tracks = original_tracks(source.path)
    track = tracks[0] if wants_original and tracks else None
    if wants_original and track is None:
        log.warning("%s has no sound of its own to keep; the generated one stands alone",
                    source.path)  # fmt: skip
    extent = mix_extent(source, track)
    if options.track:
        tags = {"title": TRACK_TITLE}
        kept = tuple(track.index for track in tracks)
    else:
        tags = {} if track is None else {k: track.tags[k] for k in TAGS_KEPT if k in track.tags}
        kept = tuple(other.index for other in tracks if other is not track)
    return track, SoundPlan(
        start=extent.start,
        stop=extent.stop,
        kept=tuple(sorted(kept)),
        tags=tags,
        is_default=not (options.track and tracks),
    )


# Of the track that the mix takes the place of.
TAGS_KEPT = ("language", "title", "handler_name")


def _check_stems(folder: Path, *, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--stems {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UserError(f"--stems {folder} is not empty; name another folder, or --overwrite")
    check_writable(folder / "stems.json" if folder.is_dir() else folder, overwrite=True,
                   option="--stems")  # fmt: skip
