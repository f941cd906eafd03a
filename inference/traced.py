"""The passes of a tick as TorchScript: the same arithmetic without Python between the operations.

A tick is some two thousand small operations; handing them out takes Python a good part of the
tick, and keeps other threads of the process from running meanwhile.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spatial_v2a.features import FrameFeatures, empty_features
from spatial_v2a.generator import Condition
from spatial_v2a.inference.passes import EngineState, Passes
from spatial_v2a.streaming import reset_, state_tensors, with_tensors


class TracedPasses(Passes):
    """Passes traced for the state that `init_state` returns; with idle streams they run eagerly.

    Takes about a second to make; arguments as for `Passes`, on the CPU.
    """

    @torch.inference_mode()
    def init_state(self) -> EngineState:
        """All-zero state, the one that every call must get."""
        state = super().init_state()
        features, noise_BND = self._example_features(), self.example_noise()
        generator, decoder = self.model.generator, self.model.autoencoder.decoder
        v_R1V = super().fuse(features, state)
        condition = super().attend(v_R1V, state)
        x_BD = super().draw(noise_BND, condition)
        with warnings.catch_warnings():
            # Shapes are those of one tick for good, which is all that the tracer warns about.
            warnings.simplefilter("ignore")
            self._fuse = _Traced(super().fuse, (features, state), generator.conditioner)
            self._attend = _Traced(super().attend, (v_R1V, state), generator)
            self._draw = _Traced(super().draw, (noise_BND, condition), generator)
            self._decode = _Traced(super().decode, (x_BD, state), decoder)
            self._remember = _Traced(super().remember, (x_BD, state), generator)
        reset_(state)
        return state

    def fuse(
        self, features_B1: FrameFeatures, state: EngineState, active_B: Tensor | None = None
    ) -> Tensor:
        """As in `Passes`."""
        if active_B is not None:
            return super().fuse(features_B1, state, active_B)
        return self._fuse(features_B1, state)[0]

    def attend(
        self, v_R1V: Tensor, state: EngineState, active_B: Tensor | None = None
    ) -> Condition:
        """As in `Passes`."""
        if active_B is not None:
            return super().attend(v_R1V, state, active_B)
        return Condition(*self._attend(v_R1V, state))

    def draw(self, noise_BND: Tensor, condition: Condition) -> Tensor:
        """As in `Passes`."""
        return self._draw(noise_BND, condition)[0]

    def decode(self, x_BD: Tensor, state: EngineState, active_B: Tensor | None = None) -> Tensor:
        """As in `Passes`."""
        if active_B is not None:
            return super().decode(x_BD, state, active_B)
        return self._decode(x_BD, state)[0]

    def remember(self, x_BD: Tensor, state: EngineState, active_B: Tensor | None = None) -> None:
        """As in `Passes`."""
        if active_B is not None:
            return super().remember(x_BD, state, active_B)
        self._remember(x_BD, state)

    def _example_features(self) -> FrameFeatures:
        """Features whose every stream is there, so that no branch is folded away."""
        shapes = self.model.config.perception.shapes
        features = empty_features(
            self.num_streams,
            1,
            num_patches=shapes.num_patches,
            dino_dim=shapes.dino_dim,
            depth_grid=shapes.depth_grid,
            max_boxes=shapes.max_boxes,
        )
        return features.map(lambda x: x.to(self.model.latent_mean_D.device))


class _Traced:
    """A function of state trees as a frozen graph of their tensors, called with the same trees.

    Args:
        function: (*trees) -> a tree or None; writes to its arguments stay in place.
        example: arguments of the shapes of every later call.
        weights: module that holds the parameters which the function reads.
    """

    def __init__(self, function: Callable, example: tuple, weights: nn.Module) -> None:
        flat = _Flat(function, example, weights).eval()
        traced = torch.jit.trace(flat, tuple(state_tensors(example)), check_trace=False)
        self._graph = traced

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        return self._graph(*state_tensors(args))


class _Flat(nn.Module):
    def __init__(self, function: Callable, example: tuple, weights: nn.Module) -> None:
        super().__init__()
        self.weights = weights
        self._call = lambda tensors: function(*with_tensors(example, iter(tensors)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # A graph returns something: a pass that only writes hands its first argument back.
        return tuple(state_tensors(self._call(tensors))) or tensors[:1]
