"""What a model's `stream()` and `dub()` give, and how what runs them is found, not imported.

The core knows no engine. A package that has one registers a factory with the signature of
`FrameStreamFactory` in the entry point group `GROUP`, and a function with the options of
`SpatialV2A.dub` in `DUB_GROUP`; this distribution registers its own.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, distributions
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.audio.stereo import StereoSummary
from spatial_v2a.errors import UserError

GROUP, DUB_GROUP = "spatial_v2a.stream", "spatial_v2a.dub"


class FrameStream(Protocol):
    """Pictures in, sound out, one tick of 1/30 s at a time; open until `close` or `with` ends."""

    def push(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Sound [1600, 2] of one tick, float32, about -1..1.

        Args:
            frame_HWC: uint8 RGB [height, width, 3]; the size may change from call to call.
        """
        ...

    def reset(self) -> None:
        """Forgets everything pushed: the next sound is that of a stream just opened."""
        ...

    def close(self) -> None:
        """Ends the stream; closing twice is harmless."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class FrameStreamFactory(Protocol):
    """Opens a stream of a model; the options are those of `SpatialV2A.stream`."""

    def __call__(
        self,
        model: Any,
        *,
        seed: int,
        nfe: int | None,
        guidance: float | None,
        spatial_guidance: float,
        without: tuple[str, ...],
        fov_deg: float | None,
        weights: Literal["float32", "int8", "bfloat16"],
        objects: Literal["apart", "together"],
        detector: str,
    ) -> FrameStream: ...


class DubbedTake(Protocol):
    """One soundtrack that was written.

    Attributes:
        out: its file.
        stereo: how stereo its generated sound is.
        files: all files of it.
    """

    out: Path
    stereo: StereoSummary

    @property
    def files(self) -> tuple[Path, ...]: ...


class DubbedVideo(Protocol):
    """What `SpatialV2A.dub` made of a video.

    Attributes:
        takes: one or several, in the order of their seeds.
        duration_s, wall_s: length of the picture, and time the work took, seconds.
        warning: what to do about a picture that shows next to nothing the model knows, or "".
        out: the file of the first take.
        real_time_factor: seconds of video per second of work.
    """

    takes: Sequence[DubbedTake]
    duration_s: float
    wall_s: float
    warning: str

    @property
    def out(self) -> Path: ...

    @property
    def real_time_factor(self) -> float: ...


def find_frame_stream(group: str = GROUP) -> FrameStreamFactory:
    """The registered factory; of several the first by name.

    Raises:
        UserError: nothing is registered, as when the package was installed before it had streams.
    """
    return _first_registered(group)


def find_dub(group: str = DUB_GROUP) -> Callable[..., DubbedVideo]:
    """The registered function behind `SpatialV2A.dub`; of several the first by name.

    Raises:
        UserError: nothing is registered, as when the package was installed before it could dub.
    """
    return _first_registered(group)


def _first_registered(group: str) -> Any:
    points = sorted(_registered(group), key=lambda point: point.name)
    if not points:
        raise UserError(
            f"nothing is registered under {group} (an entry point group); run make setup in the"
            " clone again, or pip install -e . there"
        )
    return points[0].load()


def _registered(group: str) -> list[EntryPoint]:
    """Entry points of every distribution on the path.

    Not `entry_points(group=...)`, which reads one distribution a name: in a checkout the one it
    takes can be an old build's egg-info, and that hides what was installed since.
    """
    return [
        point
        for distribution in distributions()
        for point in distribution.entry_points
        if point.group == group
    ]
