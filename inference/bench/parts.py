"""Which calls make up which part of a tick, and what each part must at least read and multiply.

Legend: B streams.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from spatial_v2a.conditioning.compiled import MIN_INT8_WEIGHTS
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.inference.bench.stopwatch import Place
from spatial_v2a.inference.engine.engine import Engine
from spatial_v2a.models.streaming import state_tensors

DECODE = "decode"
# In the order of a tick; disjoint, so that their sum is at most the tick.
PARTS = (DECODE, "DINO", "depth", "boxes", "tracking", "fusion", "backbone", "head", "VAE")
# The pass that waits for no frame; it overlaps the backbone, so it is no part of its own.
BETWEEN = "between frames"


@dataclass(frozen=True)
class Work:
    """What a part cannot avoid in one tick.

    Attributes:
        flops: floating-point operations of its products (a multiply and an add are two).
        num_bytes: weights and state it reads, each counted once.
    """

    flops: float
    num_bytes: float


def hearing_places(engine: Engine) -> list[Place]:
    """The timed calls of an engine."""
    return [
        Place("fusion", engine.passes, "fuse"),
        Place("backbone", engine.passes, "attend"),
        Place("backbone", engine.passes, "remember"),
        Place("head", engine.passes, "draw"),
        Place("VAE", engine.passes, "decode"),
        Place(BETWEEN, engine, "remember"),
    ]


def seeing_places(perception: Perception) -> list[Place]:
    """The timed calls of perception; its trackers change with `init_state`, so ask after it."""
    found = []
    if perception.dino is not None:
        found.append(Place("DINO", perception.dino, "encode"))
    if perception.depth is not None:
        found.append(Place("depth", perception.depth, "encode"))
    if perception.detector is not None:
        found.append(Place("boxes", perception.detector, "detect"))
    for stream in perception._streams:  # no public name leads to the trackers
        found.append(Place("tracking", stream, "place"))
        if perception.detector is not None:
            found.append(Place("tracking", stream.tracker, "step"))
            found.append(Place("tracking", stream.builder, "step"))
    return found


def bytes_of_parts(perception: Perception, engine: Engine) -> dict[str, float]:
    """Weights and state of each part in bytes."""
    # The passes' own model: in bfloat16 it is another one than the engine's.
    model = engine.passes.model
    generator, decoder = model.generator, model.autoencoder.decoder
    states, decoder_state = engine.state.generator, engine.state.decoder
    parts = {
        "fusion": ([generator.conditioner], states.conditioner),
        "backbone": (
            [generator.frame_in, generator.latent_in, generator.backbone],
            states.backbone,
        ),
        "head": ([generator.head], None),
        "VAE": ([decoder], decoder_state),
    }
    is_int8 = engine.settings.weights == "int8"
    sizes = {
        name: _size(modules, state, is_int8=is_int8) for name, (modules, state) in parts.items()
    }
    encoders = {"DINO": perception.dino, "depth": perception.depth, "boxes": perception.detector}
    return sizes | {name: _size([one]) for name, one in encoders.items() if one is not None}


def _size(modules: Iterable[nn.Module], state: Any = None, *, is_int8: bool = False) -> float:
    def tensors() -> Iterator[Tensor]:
        for module in modules:
            yield from module.parameters()
            yield from module.buffers()

    def size(tensor: Tensor) -> int:
        is_small = is_int8 and tensor.dim() == 2 and tensor.numel() >= MIN_INT8_WEIGHTS
        return tensor.numel() * (1 if is_small else tensor.element_size())

    held = sum(tensor.numel() * tensor.element_size() for tensor in state_tensors(state))
    return float(sum(map(size, tensors())) + held)


def flop_counter() -> FlopCounterMode:
    """Counts products, convolutions and attention; PyTorch's own forgets attention on the CPU."""
    aten = torch.ops.aten

    def attention(q_shape, k_shape, v_shape, *args: Any, out_shape=None, **kwargs: Any) -> int:
        return sdpa_flop_count(q_shape, k_shape, v_shape)

    mapping = {aten._scaled_dot_product_flash_attention_for_cpu: attention}
    return FlopCounterMode(display=False, custom_mapping=mapping)
