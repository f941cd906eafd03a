"""The passes of a tick, compiled for one state: what tracing and CUDA graphs have in common."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from spatial_v2a.features import FrameFeatures, empty_features
from spatial_v2a.inference.engine.passes import EngineState, Passes
from spatial_v2a.models.attention import AttentionPlan
from spatial_v2a.models.generator import Condition
from spatial_v2a.models.streaming import reset_

# Takes the trees of a pass; gives the tensors of what the pass returns.
Call = Callable[..., tuple[Tensor, ...]]
# Gives the trees that a pass is compiled for; for some of them other passes have to run.
Example = Callable[[], tuple]


class CompiledPasses(Passes):
    """Passes compiled for the state that `init_state` returns; with idle streams they run eagerly.

    Arguments as for `Passes`. A subclass says in `compile` what is made of a pass.
    """

    @abstractmethod
    def compile(self, name: str, function: Callable, example: Example, weights: nn.Module) -> Call:
        """A faster `function`.

        Args:
            name: of the pass.
            function: (*trees) -> a tree or None; it writes its state in place.
            example: gives trees of the shapes of every later call; a state in them is that of
                every call.
            weights: holds the parameters that the function reads.
        """

    @torch.inference_mode()
    def init_state(self) -> EngineState:
        """All-zero state, the one that every call must get."""
        state = super().init_state()
        eager, generator, noise_BND = super(), self.model.generator, self.example_noise()
        features = cache(self._example_features)
        v_R1V = cache(lambda: eager.fuse(features(), state))
        condition = cache(lambda: eager.attend(v_R1V(), state))
        # In the shape of a latent that was drawn.
        x_BD = noise_BND[:, 0].clone()
        self._fuse = self.compile(
            "fuse", eager.fuse, lambda: (features(), state), generator.conditioner
        )
        self._attend = self.compile_attend(v_R1V, state)
        self._draw = self.compile("draw", eager.draw, lambda: (noise_BND, condition()), generator)
        self._decode = self.compile_decode(x_BD, state)
        self._remember = self.compile("remember", eager.remember, lambda: (x_BD, state), generator)
        reset_(state)
        return state

    def compile_attend(self, v_R1V: Callable[[], Tensor], state: EngineState) -> Call:
        """`compile` for the pass through the backbone."""
        return self.compile(
            "attend", super().attend, lambda: (v_R1V(), state), self.model.generator
        )

    def compile_decode(self, x_BD: Tensor, state: EngineState) -> Call:
        """`compile` for the pass through the decoder."""
        decoder = self.model.autoencoder.decoder
        return self.compile("decode", super().decode, lambda: (x_BD, state), decoder)

    def fuse(
        self, features_B1: FrameFeatures, state: EngineState, active_B: Tensor | None = None
    ) -> Tensor:
        """As in `Passes`."""
        if active_B is not None:
            return super().fuse(features_B1, state, active_B)
        return self._fuse(features_B1, state)[0]

    def attend(
        self,
        v_R1V: Tensor,
        state: EngineState,
        active_B: Tensor | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Condition:
        """As in `Passes`."""
        if active_B is not None or plan is not None:
            return super().attend(v_R1V, state, active_B, plan=plan)
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
