"""Frames in: any video file as 30 Hz ticks, lazily, causally by timestamps, rotation honoured."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType

from spatial_v2a.conditioning.media import decoded, open_input
from spatial_v2a.conditioning.ticks import causal_ticks
from spatial_v2a.conditioning.video_scan import (
    MAX_MISSING_S,
    PictureExtent,
    picture_stream,
    scan_picture,
)
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING, Timing

log = logging.getLogger(__name__)

# Containers with a coarse clock (Matroska: 1 ms) round their stamps, up as well as down, so half a
# unit may be forgiven. A unit longer than this is a frame number, which is exact.
MAX_ROUNDING_UNIT_S = Fraction(1, 500)
# 8K; larger pictures are decoded one at a time.
MAX_THREADED_PIXELS = 2**25


@dataclass(frozen=True)
class VideoSource:
    """A checked video file; frames are decoded anew by each call of `ticks`.

    Attributes:
        path: the file.
        extent: exact start and length of its picture.
        timing: the clocks.
    """

    path: Path
    extent: PictureExtent
    timing: Timing

    @property
    def duration(self) -> Fraction:
        """Length of the picture in seconds, exact."""
        return self.extent.duration_s

    @property
    def num_ticks(self) -> int:
        """Ticks that cover the picture; the last may be partial."""
        return self.timing.num_ticks(self.duration)

    @property
    def num_samples(self) -> int:
        """Audio samples per channel for exactly the picture's length."""
        return self.timing.num_samples(self.duration)

    def ticks(self, *, max_width: int | None = None) -> Iterator[np.ndarray]:
        """Yields uint8 RGB [height, width, 3] per tick: the newest frame with pts <= tick time.

        A held frame is the same array again (do not write to it). Few frames are in memory.

        Args:
            max_width: frames stored wider than this are scaled down to it, keeping their shape.

        Raises:
            UserError: no frame can be decoded, or decoding stops clearly before the end.
        """
        shown: av.VideoFrame | None = None
        image = np.empty(0, np.uint8)
        matrix: bytes | None = None
        unit_s = self.extent.time_base_s
        for frame in causal_ticks(
            self._timed_frames(),
            num_ticks=self.num_ticks,
            timing=self.timing,
            tolerance_s=unit_s / 2 if unit_s <= MAX_ROUNDING_UNIT_S else Fraction(0),
        ):
            if shown is None:
                matrix = display_matrix(frame)
            if frame is not shown:
                shown, image = frame, to_rgb(frame, matrix=matrix, max_width=max_width)
            yield image

    def _timed_frames(self) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        """Decoded frames with their times from the picture's start."""
        num_bad, end_s = 0, None
        with open_input(self.path) as container:
            stream = picture_stream(container, self.path)
            # Every thread holds a picture.
            is_large = self.extent.width * self.extent.height > MAX_THREADED_PIXELS
            stream.thread_type = "SLICE" if is_large else "AUTO"
            frame_s = self.duration / self.extent.num_frames
            for frame in decoded(container, stream):
                if frame is None:
                    num_bad += 1
                    continue
                stamp = frame.pts if frame.pts is not None else frame.dts
                if stamp is not None:
                    time_s = stamp * Fraction(frame.time_base) - self.extent.start_s
                else:
                    time_s = Fraction(0) if end_s is None else end_s
                end_s = time_s + frame_s
                yield time_s, frame
        if num_bad:
            log.warning(
                "%s: %d damaged packets skipped; the last picture is held", self.path, num_bad
            )
        if end_s is None:
            raise UserError(f"{self.path}: none of its frames can be decoded; convert it to H.264")
        if end_s + max(MAX_MISSING_S, 4 * frame_s) < self.duration and num_bad:
            raise UserError(
                f"{self.path}: decoding stops at {float(end_s):.1f} s of {float(self.duration):.1f}"
                " s, the rest is damaged; copy it again or cut it there"
            )


def open_video(path: str | Path, *, timing: Timing = TIMING) -> VideoSource:
    """Checks a video file and measures its picture exactly (reads packets, decodes nothing).

    Raises:
        UserError: missing, unreadable, cut off, sound only, or without frames.
    """
    return VideoSource(path=Path(path), extent=scan_picture(path), timing=timing)


def display_matrix(frame: av.VideoFrame) -> bytes | None:
    """The frame's display matrix (36 bytes, see `apply_display_matrix`), or None without one.

    Ask once a stream, not once a frame: a frame whose side data was read is part of a reference
    cycle, which lives on until the collector comes by (PyAV 18). It is a tiny copy here, for whole
    pictures would pile up.
    """
    small = frame.reformat(width=16, height=16, format="gray", threads=1)
    matrix = small.side_data.get(SideDataType.DISPLAYMATRIX)
    return None if matrix is None else bytes(matrix)


def to_rgb(
    frame: av.VideoFrame, *, matrix: bytes | None = None, max_width: int | None = None
) -> np.ndarray:
    """A decoded frame as the viewer sees it: scaled, then turned by its display matrix.

    Returns:
        uint8 RGB [height, width, 3], contiguous.
    """
    width, height = frame.width, frame.height
    if max_width is not None and width > max_width:
        width, height = max_width, max(1, round(height * max_width / width))
    # On one thread: starting others for a picture takes longer than scaling it.
    rgb = frame.reformat(
        width=width, height=height, format="rgb24", interpolation="AREA", threads=1
    )
    image = rgb.to_ndarray()
    return image if matrix is None else np.ascontiguousarray(apply_display_matrix(image, matrix))


def apply_display_matrix(image_HWC: np.ndarray, matrix: bytes) -> np.ndarray:
    """Turns or flips a picture by quarter turns.

    Args:
        image_HWC: the stored picture.
        matrix: nine little-endian int32 [a b u, c d v, x y w] of the ISO base media file format,
            section 6.2.2: a stored point (p, q) is displayed at (a p + c q + x, b p + d q + y).
    """
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        flip_x, flip_y = a < 0, d < 0
    else:
        image_HWC = image_HWC.swapaxes(0, 1)
        flip_x, flip_y = c < 0, b < 0
    return image_HWC[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
