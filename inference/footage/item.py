"""One piece of footage: pictures at the tick rate, and the sound it came with, if any."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from spatial_v2a.conditioning.video import VideoSource, open_video
from spatial_v2a.inference.evaluation.store import file_digest, stamp_of
from spatial_v2a.inference.inspect.sound import open_media
from spatial_v2a.timing import TIMING


class Ticks(Protocol):
    """Starts the pictures anew: uint8 RGB [height, width, 3] per tick, few of them in memory.

    A held picture is the same array again; none is wider than `max_width`.
    """

    def __call__(self, *, max_width: int | None = None) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Item:
    """Footage that can be dubbed and scored.

    Attributes:
        key: its name in the report, unique, with slashes where it lies in a folder.
        duration_s: length of the picture, exact.
        picture_hz: pictures it stores per second, on average.
        ticks: its pictures.
        files: all that it is made of; their bytes are its identity.
        sound: file whose first sound track is the original, or None.
        sound_start_s: time on that file's clock at which the picture begins.
        source: the video, where it is one.
    """

    key: str
    duration_s: Fraction
    picture_hz: Fraction
    ticks: Ticks
    files: tuple[Path, ...]
    sound: Path | None
    sound_start_s: Fraction = Fraction(0)
    source: VideoSource | None = None

    @property
    def num_ticks(self) -> int:
        """Ticks that cover the picture; the last may be partial."""
        return TIMING.num_ticks(self.duration_s)

    @property
    def num_samples(self) -> int:
        """Audio samples per channel for exactly the picture's length."""
        return TIMING.num_samples(self.duration_s)

    def digest(self) -> str:
        """Hash over the bytes of its files."""
        return stamp_of([(path.name, file_digest(path)) for path in self.files])


def video_item(path: Path, key: str) -> Item:
    """A video file, with or without sound.

    Raises:
        UserError: cut off, sound only, unreadable, or without frames.
    """
    source = open_video(path)
    with open_media(path) as container:
        has_sound = bool(container.streams.audio)
    return Item(
        key=key,
        duration_s=source.duration,
        picture_hz=source.extent.num_frames / source.duration,
        ticks=source.ticks,
        files=(path,),
        sound=path if has_sound else None,
        sound_start_s=source.extent.start_s,
        source=source,
    )
