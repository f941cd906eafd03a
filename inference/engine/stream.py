"""The library's stream: one frame in, one tick of stereo sound out, perception and engine inside.

    with SpatialV2A.from_pretrained("stage").stream(seed=3) as stream:
        audio_LC = stream.push(frame_HWC)    # uint8 [H, W, 3] in, float32 [1600, 2] out

Legend: H W picture rows and columns, C colours or channels, L samples.
"""

from contextlib import ExitStack
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from spatial_v2a.conditioning.detectors import STAGE
from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.inference.engine.engine import EngineSettings, Weights, engine_threads
from spatial_v2a.inference.engine.object_mix import DEFAULT_OBJECTS, Objects
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.model import SpatialV2A
from spatial_v2a.strict import StrictConfig

Kind = TypeVar("Kind", bound=StrictConfig)


class Stream(Pipeline):
    """An open stream over a model; open from its construction until `close` or the end of `with`.

    On a CPU it takes a few seconds to open, and PyTorch runs on one thread while it is open
    (`engine_threads`); `close` brings back the number that was set before. Streams that are open
    at the same time are closed in the reverse order.

    Args:
        model: from `SpatialV2A.from_pretrained`; stays on its device.
        seed, nfe, guidance, spatial_guidance, without, weights: as in `EngineSettings`.
        fov_deg, objects, detector, is_live: as in `Pipeline`; without a source, auto takes the
            general detector where its weights are on this machine.
        source: the video that the frames are of, where there is one: auto chooses by it.

    Raises:
        UserError: an option out of range, a model without a checkpoint folder, missing weights.
    """

    def __init__(
        self,
        model: SpatialV2A,
        *,
        seed: int = 0,
        nfe: int | None = None,
        guidance: float | None = None,
        spatial_guidance: float = 1.0,
        without: tuple[str, ...] = (),
        fov_deg: float | None = None,
        weights: Weights = "float32",
        objects: Objects = DEFAULT_OBJECTS,
        detector: str = STAGE,
        is_live: bool = True,
        source: VideoSource | None = None,
    ) -> None:
        self._open: ExitStack | None = None
        settings = checked_config(
            EngineSettings,
            seed=seed,
            nfe=nfe,
            guidance=guidance,
            spatial_guidance=spatial_guidance,
            without=as_tuple(without, name="without"),
            weights=weights,
        )
        super().__init__(
            model,
            settings=settings,
            fov_deg=fov_deg,
            objects=objects,
            detector=detector,
            is_live=is_live,
            is_compiled=True,
        )
        self.source = source
        self.begin(source)
        self._open = ExitStack()
        self._open.enter_context(engine_threads(self.device))

    def push(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Sound of the next tick of 1/30 s.

        Args:
            frame_HWC: uint8 RGB [height, width, 3]; not written to, any size, which may change.

        Returns:
            float32 [1600, 2], left and right, about -1..1; the caller's own.

        Raises:
            UserError: another dtype or shape, an empty frame, or a stream that is closed.
        """
        self._check_open()
        # A copy: a take's sound lies among those of all streams.
        return self.step(checked_frame(frame_HWC)).audio_LC.copy()

    def reset(self) -> None:
        """Forgets everything pushed: the next sound is that of a stream just opened."""
        self._check_open()
        self.begin(self.source)

    def close(self) -> None:
        """Ends the stream and brings back PyTorch's threads; closing twice is harmless."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._open is None:
            raise UserError("this stream is closed; open another with model.stream()")


def checked_frame(frame_HWC: object) -> NDArray[np.uint8]:
    """The frame itself, if it is a picture.

    Raises:
        UserError: no numpy array, not uint8, not [height, width, 3], or without a pixel.
    """
    if not isinstance(frame_HWC, np.ndarray):
        kind = type(frame_HWC).__name__
        raise UserError(f"a frame is a numpy array, got {kind}; convert it, e.g. np.asarray(frame)")
    if frame_HWC.dtype != np.uint8:
        raise UserError(
            f"a frame is uint8 with values 0..255, got {frame_HWC.dtype}; convert it, e.g."
            " (frame * 255).astype(np.uint8) for values 0..1"
        )
    if frame_HWC.ndim != 3 or frame_HWC.shape[2] != 3:
        raise UserError(
            f"a frame is RGB [height, width, 3], got shape {frame_HWC.shape}; push one frame at a"
            " time, colours last, without alpha"
        )
    if frame_HWC.size == 0:
        raise UserError(f"a frame has pixels, got shape {frame_HWC.shape}; leave empty frames out")
    return frame_HWC


def checked_config(kind: type[Kind], **values: object) -> Kind:
    """A strict config from arguments of the same names.

    Raises:
        UserError: a value out of range, named as its argument.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        reason = first["msg"][0].lower() + first["msg"][1:]
        raise UserError(f"{name}={first['input']!r}: {reason}") from error
