"""The passes of a tick, compiled for one state: traced on a CPU, as CUDA graphs on a GPU.

A tick is some two thousand small operations; handing them out takes Python a good part of the
tick, and keeps other threads of the process from running meanwhile.
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from spatial_v2a.conditioning.compiled import OPTIONS, make_key, traced_once
from spatial_v2a.conditioning.frozen import capture
from spatial_v2a.features import FrameFeatures, empty_features
from spatial_v2a.inference.engine.passes import EngineState, Passes
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.attention import AttentionPlan
from spatial_v2a.models.generator import Condition
from spatial_v2a.models.streaming import reset_, state_tensors, with_tensors

# Weights that no pass reads.
_NOT_RUN = "autoencoder.encoder."
# Where the code of the passes is.
PACKAGES = (
    "spatial_v2a",
    "spatial_v2a.models",
    "spatial_v2a.audio",
    "spatial_v2a.conditioning",
    "spatial_v2a.inference.engine",
)

# Takes the trees of a pass; gives the tensors of what the pass returns.
Call = Callable[..., tuple[Tensor, ...]]
# Gives the trees that a pass is compiled for; for some of them other passes have to run.
Example = Callable[[], tuple]


class Flattener:
    """Gives the tensors of a pass's arguments in a row; those of the state are found once.

    The state among them, which comes last, is the same in every call.
    """

    def __init__(self) -> None:
        self._state: list[Tensor] | None = None

    def __call__(self, args: tuple) -> list[Tensor]:
        """All of them."""
        if self._state is None:
            self._state = [x for tree in args if is_state(tree) for x in state_tensors(tree)]
        return self.changing(args) + self._state

    def changing(self, args: tuple) -> list[Tensor]:
        """Those that differ from call to call: all but the state's."""
        return [x for tree in args if not is_state(tree) for x in state_tensors(tree)]


def is_state(tree: Any) -> bool:
    """Whether an argument of a pass is the engine's state."""
    return isinstance(tree, EngineState)


class CompiledPasses(Passes):
    """Passes compiled for the state that `init_state` returns; with idle streams they run eagerly.

    Arguments as for `Passes`. A subclass says in `compile` what is made of a pass.
    """

    def __init__(self, model: SpatialV2A, **options: Any) -> None:
        super().__init__(model, **options)
        self._options = options

    @cached_property
    def _key(self) -> str | None:
        if self.model.folder is None:
            return None
        tensors = self.model.state_dict().items()
        return make_key(
            "passes",
            [item for item in tensors if not item[0].startswith(_NOT_RUN)],
            packages=PACKAGES,
            config=self.model.config.model_dump(mode="json", exclude={"name", "training"}),
            options=OPTIONS,
            **self._options,
        )

    def key_of(self, name: str) -> str | None:
        """What a pass computes, as from `make_key`; None where the model is of no checkpoint."""
        return None if self._key is None else f"{self._key}-{name}"

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


class TracedPasses(CompiledPasses):
    """Passes traced on the CPU, bit for bit what they are eagerly; about a second to make."""

    def compile(
        self, name: str, function: Callable, example: Example, weights: nn.Module
    ) -> "Traced":
        """See `CompiledPasses`."""
        return Traced(function, example(), weights, key=self.key_of(name))


class Traced:
    """A function of trees, traced for trees of these shapes; it gives the tensors of its result.

    Args:
        function, weights: as for `CompiledPasses.compile`.
        example: the trees.
        key: as for `traced_once`.
    """

    def __init__(
        self, function: Callable, example: tuple, weights: nn.Module, *, key: str | None
    ) -> None:
        self._flatten = Flattener()
        tensors = tuple(self._flatten(example))

        def trace() -> torch.jit.ScriptModule:
            flat = _Flat(function, example, weights).eval()
            with warnings.catch_warnings():
                # Shapes are those of one tick for good, which is all that the tracer warns about.
                warnings.simplefilter("ignore")
                # Not frozen: folding constants changes the rounding and saves no time here.
                return torch.jit.trace(flat, tensors, check_trace=False)

        self._graph = traced_once(key, trace)

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        return self._graph(*self._flatten(args))


class _Flat(nn.Module):
    """A function of trees as a module of their tensors, which is what the tracer takes."""

    def __init__(self, function: Callable, example: tuple, weights: nn.Module) -> None:
        super().__init__()
        self.weights = weights
        self._call = lambda tensors: function(*with_tensors(example, iter(tensors)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        # A graph returns something: a pass that only writes hands its first argument back.
        return tuple(state_tensors(self._call(tensors))) or tensors[:1]


class GraphedPasses(CompiledPasses):
    """Passes captured on a GPU: one launch each, not hundreds; a replay equals the eager pass.

    A captured pass reads and writes fixed addresses: its state stays where it is, everything else
    is copied into buffers of its own before each replay. Not yet run on a GPU.
    """

    def compile(
        self, name: str, function: Callable, example: Example, weights: nn.Module
    ) -> "_Graphed":
        """See `CompiledPasses`."""
        return _Graphed(function, example())


class _Graphed:
    def __init__(self, function: Callable, example: tuple) -> None:
        self._flatten = Flattener()
        # The state itself, copies of all else.
        inputs = tuple(
            tree
            if is_state(tree)
            else with_tensors(tree, (tensor.clone() for tensor in state_tensors(tree)))
            for tree in example
        )
        self._buffers = self._flatten.changing(inputs)
        self._graph, self._outputs = capture(lambda: tuple(state_tensors(function(*inputs))))

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        for buffer, value in zip(self._buffers, self._flatten.changing(args), strict=True):
            buffer.copy_(value)
        self._graph.replay()
        return self._outputs
