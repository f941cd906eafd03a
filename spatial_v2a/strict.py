"""Base class of every configuration section, and the bounds of its numbers.

A configuration may come with a stranger's checkpoint: what it asks for is bounded before anything
is allocated. The bounds lie well above the largest preset.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Layers, heads, slots, tokens: things there are a few of.
Count = Annotated[int, Field(ge=1, le=512)]
# Features of a layer.
Width = Annotated[int, Field(ge=1, le=16_384)]
# A side of an encoder's input picture.
Pixels = Annotated[int, Field(ge=1, le=2048)]
# Samples of a kernel, or a hidden size over a width.
Factor = Annotated[int, Field(ge=1, le=64)]
# Steps, crops and workers of a training run.
Long = Annotated[int, Field(ge=1, le=10**9)]
Share = Annotated[float, Field(ge=0, le=1)]


def check_heads(width: int, num_heads: int) -> None:
    """Refuses attention heads that do not share a width evenly."""
    if width % num_heads:
        raise ValueError(f"width {width} is no multiple of {num_heads} heads; change one of them")


class StrictConfig(BaseModel):
    """Immutable settings; unknown keys, coerced types and numbers without end are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )
