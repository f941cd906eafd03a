"""What is to be dubbed and where to, checked in full before any work begins."""

from dataclasses import dataclass
from pathlib import Path

from spatial_v2a.conditioning.video import VideoSource, open_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.files import check_writable
from spatial_v2a.inference.mux import PACKAGINGS, check_suffix, kept_streams


@dataclass(frozen=True)
class DubJob:
    """One video to dub.

    Attributes:
        source: the checked video.
        out: file to write.
        report: picture of the pan curve to write, or None.
        given: JSONL of given geometry, or None.
        truth: JSONL of true positions for the report; the model never sees it.
        truth_sound: true sound for the report, when the video comes without.
    """

    source: VideoSource
    out: Path
    report: Path | None = None
    given: Path | None = None
    truth: Path | None = None
    truth_sound: Path | None = None


def plan_jobs(
    videos: list[Path],
    *,
    out: Path | None = None,
    overwrite: bool = False,
    report: bool = False,
    given: Path | None = None,
) -> list[DubJob]:
    """Checks videos and outputs; touches nothing.

    Args:
        videos: files to dub.
        out: output file for one video, or an existing folder; None writes beside each video.
        overwrite: whether outputs that exist are replaced.
        report: whether each output gets a pan picture beside it.
        given: JSONL of given geometry, for one video only.

    Raises:
        UserError: anything that would stop the work later.
    """
    if not videos:
        raise UserError("no video given; name at least one file")
    if len(videos) > 1 and given is not None:
        raise UserError(f"--given {given} fits one video only; dub the {len(videos)} one by one")
    if len(videos) > 1 and out is not None and not out.is_dir():
        raise UserError(f"-o {out} is not a folder, and {len(videos)} videos are given; create it")
    if given is not None and not given.is_file():
        raise UserError(f"no such file: {given}; check the path behind --given")
    jobs = [_plan(video, out, overwrite, report, given) for video in videos]
    targets = [path for job in jobs for path in (job.out, job.report) if path is not None]
    for target in targets:
        if targets.count(target) > 1:
            raise UserError(f"two videos would both be written to {target}; dub them one by one")
    return jobs


def default_name(video: Path) -> str:
    """`clip.mp4` becomes `clip.dubbed.mp4`; containers that are not written become Matroska."""
    suffix = video.suffix if video.suffix.lower() in PACKAGINGS else ".mkv"
    return f"{video.stem}.dubbed{suffix}"


def report_path(out: Path) -> Path:
    """`clip.dubbed.mp4` has its picture in `clip.dubbed.pan.png`."""
    return out.with_name(f"{out.stem}.pan.png")


def _plan(
    video: Path, out: Path | None, overwrite: bool, report: bool, given: Path | None
) -> DubJob:
    if out is None or out.is_dir():
        target = (video.parent if out is None else out) / default_name(video)
    else:
        target = out
    check_suffix(target)
    source = open_video(video)
    if target.exists() and target.samefile(video):
        raise UserError(f"{target} is the video itself; give another name with -o")
    picture = report_path(target) if report else None
    for path in (target, picture):
        if path is not None:
            check_writable(path, overwrite=overwrite)
    if target.suffix.lower() in PACKAGINGS:
        kept_streams(source, target.suffix.lower())
    return DubJob(source=source, out=target, report=picture, given=given, truth=given)
