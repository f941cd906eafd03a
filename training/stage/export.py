"""Takes one clip out of its shard as plain files: a silent video, its true sound, its geometry."""

import json
from pathlib import Path
from typing import Any

import av
import soundfile

from spatial_v2a.clip import Clip, read_shards
from spatial_v2a.conditioning.media import open_output
from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs
from spatial_v2a.geometry import pool_grid
from spatial_v2a.timing import TIMING

VIDEO_NAME, AUDIO_NAME, GEOMETRY_NAME = "clip.mp4", "truth.wav", "geometry.jsonl"
H264_QUALITY_CRF = "20"


def find_clip(shards: list[Path], key: str | None) -> Clip:
    """The clip of this key (None: the first one) in a list of shards."""
    for clip in read_shards(shards):
        if key is None or clip.key == key:
            return clip
    raise UserError(f"no clip {key!r} in {len(shards)} shards; see their json parts for the keys")


def geometry_line(clip: Clip, tick: int, depth_grid: tuple[int, int] | None) -> dict[str, Any]:
    """One line of given geometry: boxes, true sources, and nearness on a grid when asked for."""
    entry = clip.meta["ticks"][tick]
    line = {
        "t": round(tick / TIMING.tick_hz, 6),
        "fov_deg": clip.meta["fov_deg"],
        "boxes": [{**box, "score": 1.0} for box in entry["boxes"]],
        "sources": entry["sources"],
    }
    if depth_grid is not None:
        grid_HW = pool_grid(clip.nearness_THW[tick], depth_grid)
        line["depth"] = [[round(float(v), 3) for v in row] for row in grid_HW]
    return line


def _write_video(path: Path, clip: Clip) -> None:
    with open_output(path, format="mp4", options={"movflags": "+faststart"}) as container:
        options = {"crf": H264_QUALITY_CRF, "threads": "1"}
        stream = container.add_stream("libx264", rate=TIMING.tick_hz, options=options)
        height, width, _ = clip.frame(0).shape
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in clip.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def export_clip(
    clip: Clip, folder: Path, *, depth_grid: tuple[int, int] | None = None
) -> dict[str, Path]:
    """Writes clip.mp4 (h264, 30 fps, no sound), truth.wav and geometry.jsonl into a folder.

    Args:
        clip: a recorded clip.
        folder: made when missing; files of the same names are replaced.
        depth_grid: rows and columns of the nearness grid in the geometry, which must be the
            grid of the model it is given to; None leaves depth out.

    Returns:
        The written paths by file name.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = {name: folder / name for name in (VIDEO_NAME, AUDIO_NAME, GEOMETRY_NAME)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with Outputs(overwrite=True) as outputs:
            drafts = {name: outputs.new(path) for name, path in paths.items()}
            _write_video(drafts[VIDEO_NAME], clip)
            soundfile.write(
                drafts[AUDIO_NAME], clip.audio_LC(), TIMING.sample_rate_hz, "PCM_16", format="WAV"
            )
            lines = (geometry_line(clip, tick, depth_grid) for tick in range(clip.num_ticks))
            text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
            drafts[GEOMETRY_NAME].write_text(text, "utf-8")
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}; choose another") from None
    return paths
