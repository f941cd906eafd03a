"""Backbone and head in bfloat16; what rounding would hurt stays in float32.

Islands of float32: the conditioner (it subtracts one tick from the next), norms and softmax,
guidance (it widens differences), the sampler's sums, and the decoder with its inverse STFT.
Positions are in float64 either way.
"""

import copy
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import nn

from spatial_v2a.model import SpatialV2A

Module = TypeVar("Module", bound=nn.Module)

NARROW = torch.bfloat16
NARROW_PARTS = ("frame_in", "latent_in", "backbone", "head")


def with_narrow_matrices(model: SpatialV2A) -> SpatialV2A:
    """The model with the matrices of backbone and head in bfloat16; all else is shared with it."""
    narrow, generator = _shallow(model), _shallow(model.generator)
    for name in NARROW_PARTS:
        part = copy.deepcopy(getattr(generator, name))
        for layer in part.modules():
            if isinstance(layer, nn.Linear):
                layer.to(NARROW)
        generator._modules[name] = part
    narrow._modules["generator"] = generator
    return narrow


def narrow_arithmetic(device: torch.device, *, is_on: bool) -> AbstractContextManager:
    """Products in bfloat16 within; nothing is cached, so that a pass can be captured."""
    return torch.autocast(device.type, NARROW, enabled=is_on, cache_enabled=False)


def _shallow(module: Module) -> Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
