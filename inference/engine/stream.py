"""The library's stream: one frame in, one tick of stereo sound out, perception and engine inside.

    with SpatialV2A.from_pretrained("stage").stream(seed=3) as stream:
        audio_LC = stream.push(frame_HWC)    # uint8 [H, W, 3] in, float32 [1600, 2] out

`push` is `hear(perceive(frame))`; whoever has two threads runs the halves beside each other.
Legend: H W picture rows and columns, C colours or channels, L samples.
"""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from spatial_v2a.conditioning.bundle import Perception
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.engine.engine import Engine, EngineSettings, Weights, engine_threads
from spatial_v2a.model import SpatialV2A
from spatial_v2a.strict import StrictConfig

MIN_FOV_DEG, MAX_FOV_DEG = 1, 175

Kind = TypeVar("Kind", bound=StrictConfig)


class Stream:
    """An open stream over a model; open from its construction until `close` or the end of `with`.

    On a CPU it takes a few seconds to open, and PyTorch runs on one thread while it is open
    (`engine_threads`); `close` brings back the number that was set before. Streams that are open
    at the same time are closed in the reverse order.

    Args:
        model: from `SpatialV2A.from_pretrained`; stays on its device.
        seed, nfe, guidance, spatial_guidance, without, weights: as in `EngineSettings`.
        fov_deg: horizontal field of view of the frames, degrees; None is the checkpoint's own.

    Attributes:
        model, fov_deg: as given.
        settings: how sound is drawn.
        max_width: frames wider than this, in pixels, gain nothing.

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
    ) -> None:
        self._open: ExitStack | None = None
        self.settings = checked_config(
            EngineSettings,
            seed=seed,
            nfe=nfe,
            guidance=guidance,
            spatial_guidance=spatial_guidance,
            without=as_tuple(without, name="without"),
            weights=weights,
        )
        self.model = model
        config = model.config.perception
        self.fov_deg = _checked_fov(config.default_fov_deg if fov_deg is None else fov_deg)
        self.max_width = config.max_image_width
        self._perception = Perception.from_checkpoint(
            folder_of(model),
            config,
            device=model.latent_mean_D.device,
            detector_weights=model.detector_weights,
        )
        self._engine = Engine(model, settings=self.settings, is_compiled=True)
        self._open = ExitStack()
        self._open.enter_context(engine_threads(self._engine.device))

    def push(self, frame_HWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Sound of the next tick of 1/30 s.

        Args:
            frame_HWC: uint8 RGB [height, width, 3]; not written to, any size, which may change.

        Returns:
            float32 [1600, 2], left and right, about -1..1; the caller's own.

        Raises:
            UserError: another dtype or shape, an empty frame, or a stream that is closed.
        """
        return self.hear(self.perceive(frame_HWC))

    def perceive(self, frame_HWC: NDArray[np.uint8]) -> FrameFeatures:
        """What is seen in the next frame, [1, 1] leading; the first half of `push`."""
        self._check_open()
        frames_BHWC = checked_frame(frame_HWC)[None]
        return self._perception.step(frames_BHWC, fov_deg=self.fov_deg)

    def hear(self, features: FrameFeatures) -> NDArray[np.float32]:
        """Sound [1600, 2] of what `perceive` saw; the second half of `push`."""
        self._check_open()
        return self._engine.step(features)[0].numpy()

    def reset(self) -> None:
        """Forgets everything pushed: the next sound is that of a stream just opened."""
        self._check_open()
        self._perception.reset()
        self._engine.reset()

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


def _checked_fov(fov_deg: float) -> float:
    if not MIN_FOV_DEG <= fov_deg <= MAX_FOV_DEG:
        raise UserError(
            f"field of view {fov_deg:g} is not in {MIN_FOV_DEG}..{MAX_FOV_DEG} degrees; mend it"
        )
    return fov_deg


def folder_of(model: SpatialV2A) -> Path:
    """The checkpoint folder that a model came from, which holds its encoders.

    Raises:
        UserError: it came from none.
    """
    if model.folder is None:
        raise UserError(
            "this model comes from no checkpoint folder, so it has no encoders; save it with"
            " save_pretrained and load it with from_pretrained"
        )
    return model.folder
