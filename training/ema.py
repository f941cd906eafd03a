"""Exponential moving average of weights; resumes with the run."""

import copy

import torch
from torch import nn


class Ema:
    """Averaged copy of a module; `decay` ramps up so that early steps are not remembered.

    The effective decay at step n is min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Moves the average towards `module` after optimiser step `step` (0-based)."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        averaged = dict(self.module.named_parameters())
        for name, value in module.named_parameters():
            averaged[name].lerp_(value.detach(), weight)
        buffers = dict(self.module.named_buffers())
        for name, value in module.named_buffers():
            buffers[name].copy_(value)
