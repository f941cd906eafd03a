"""The clip that ships with the package, with its true source positions, ready to be dubbed."""

from importlib import resources
from pathlib import Path

from spatial_v2a.conditioning.video import open_video
from spatial_v2a.errors import UserError
from spatial_v2a.files import check_writable
from spatial_v2a.inference.dub.jobs import DubJob, Take

DEMO_CHECKPOINT = "stage"


def plan_demo(folder: Path, *, overwrite: bool = False) -> DubJob:
    """Job that dubs the bundled clip from its picture alone; the truth only goes to the report.

    Args:
        folder: where demo.mp4 and demo.pan.png go; made when missing.
        overwrite: whether files of an earlier demo are replaced.

    Raises:
        UserError: the folder cannot be made or written.
    """
    bundled = Path(str(resources.files("spatial_v2a").joinpath("bundled", "demo")))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error.strerror}); choose another with -o"
        ) from error
    out, report = folder / "demo.mp4", folder / "demo.pan.png"
    for path in (out, report):
        check_writable(path, overwrite=overwrite)
    return DubJob(
        source=open_video(bundled / "clip.mp4"),
        takes=(Take(out, report),),
        truth=bundled / "geometry.jsonl",
        truth_sound=bundled / "truth.flac",
        overwrite=overwrite,
    )
