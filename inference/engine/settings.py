"""How the engine draws sound; options are checked with it before torch is loaded."""

from typing import Literal

from pydantic import Field

from spatial_v2a.strict import StrictConfig

CueName = Literal["depth", "boxes", "dino"]
Weights = Literal["float32", "int8", "bfloat16"]


class EngineSettings(StrictConfig):
    """How the engine draws sound.

    Attributes:
        seed: stream b draws its noise from seed + b, so its sound does not depend on the others
            (where streams share their noise: group b of them).
        nfe: evaluations of the head per tick; None is the checkpoint's own number.
        guidance: weight of everything seen; 1 is plain sampling and costs nothing, None is the
            checkpoint's own weight.
        spatial_guidance: weight of depth and boxes; 1 is plain sampling.
        without: streams of perception to leave out.
        weights: int8 is for a CPU with OpenVINO and a compiled engine: about a quarter faster,
            near the samples of float32 at first, which history takes apart; levels stay.
            bfloat16 is for a GPU: backbone and head in it, what rounding would hurt in float32.
        pan_strength: 1 is the checkpoint's own pan, 0 mono, 2 twice as wide.
    """

    seed: int = Field(default=0, ge=0, lt=2**62)
    nfe: int | None = Field(default=None, ge=1, le=256)
    guidance: float | None = Field(default=None, ge=0, le=20)
    spatial_guidance: float = Field(default=1.0, ge=0, le=20)
    without: tuple[CueName, ...] = ()
    weights: Weights = "float32"
    pan_strength: float = Field(default=1.0, ge=0, le=2)
