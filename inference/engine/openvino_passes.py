"""The passes of a tick run by OpenVINO on the CPU: less memory read and fewer small steps.

A graph of OpenVINO writes none of its inputs: what a pass writes into its state comes out of the
graph and is written afterwards. Positions and their rotations stay in PyTorch, in float64.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spatial_v2a.conditioning.compiled import (
    CompiledNetwork,
    OpenVinoGraph,
    Weights,
    compile_traced,
    compiled_once,
)
from spatial_v2a.inference.engine.compiled import Call, CompiledPasses, Example, Flattener, Traced
from spatial_v2a.inference.engine.passes import EngineState, Passes
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.streaming import Write, state_tensors, with_tensors, writes_put_off


class OpenVinoPasses(CompiledPasses):
    """Passes compiled by OpenVINO; in float32 the samples are the eager ones to rounding.

    Args:
        weights: see `OpenVinoGraph`.
        others: as for `Passes`.
    """

    def __init__(self, model: SpatialV2A, *, weights: Weights, **others: Any) -> None:
        super().__init__(model, **others)
        self._weights: Weights = weights

    def compile(
        self, name: str, function: Callable, example: Example, weights: nn.Module
    ) -> "_Graph":
        """See `CompiledPasses`."""
        network = compiled_once(
            self.key_of(f"openvino-{self._weights}-{name}"),
            lambda: _compile(function, example(), weights, kind=self._weights),
        )
        return _Graph(network)

    def compile_attend(self, v_R1V: Callable[[], Tensor], state: EngineState) -> Call:
        """See `CompiledPasses`: the plan is made apart, because it needs float64."""
        generator = self.model.generator

        def make_plan(state: EngineState) -> Any:
            return generator.plan_with_latent(state.generator)

        def attend(v_R1V: Tensor, plan: Any, state: EngineState) -> Any:
            return Passes.attend(self, v_R1V, state, plan=plan)

        planned = Traced(make_plan, (state,), generator, key=self.key_of("plan"))
        graph = self.compile(
            "attend", attend, lambda: (v_R1V(), make_plan(state), state), generator
        )
        # The graph takes the plan's tensors as they come.
        return lambda v_R1V, state: graph(v_R1V, planned(state), state)

    def compile_decode(self, x_BD: Tensor, state: EngineState) -> Call:
        """See `CompiledPasses`: PyTorch's inverse FFT is far faster than OpenVINO's."""
        decoder = self.model.autoencoder.decoder

        def make_spectra(x_BD: Tensor, state: EngineState) -> Tensor:
            return decoder.spectra(self.latents(x_BD), state.decoder)

        def make_sound(spectra_BCJF2: Tensor, state: EngineState) -> Tensor:
            return decoder.sound(spectra_BCJF2, state.decoder).transpose(1, 2)

        spectra = self.compile("spectra", make_spectra, lambda: (x_BD, state), decoder)
        example = (*spectra(x_BD, state), state)
        sound = Traced(make_sound, example, decoder, key=self.key_of("sound"))
        return lambda x_BD, state: sound(*spectra(x_BD, state), state)


def _compile(
    function: Callable, example: tuple, weights: nn.Module, *, kind: Weights
) -> CompiledNetwork:
    """A pass as a network; its notes say where what it writes belongs, as `_Flat.targets`."""
    inputs = tuple(tensor.clone() for tensor in state_tensors(example))
    flat = _Flat(function, example, weights).eval()
    with warnings.catch_warnings():
        # Shapes are those of one tick for good, which is all that the tracer warns about.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(flat, inputs, check_trace=False)
    return compile_traced(traced, inputs, weights=kind, notes=flat.targets)


class _Graph:
    def __init__(self, network: CompiledNetwork) -> None:
        self._targets = network.notes
        self._graph = OpenVinoGraph(network)
        self._flatten = Flattener()

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        tensors = self._flatten(args)
        outputs = self._graph(*tensors)
        num_returned = len(outputs) - len(self._targets)
        for (target, slots), value in zip(self._targets, outputs[num_returned:], strict=True):
            Write(tensors[target], value, None if slots is None else tensors[slots]).carry_out()
        # Copies: the graph's own outputs are overwritten by its next run.
        return tuple(output.clone() for output in outputs[:num_returned])


class _Flat(nn.Module):
    """A function of trees as a module of their tensors that returns what it would have written.

    Attributes:
        targets: for each value written, the input it goes into and that of its ring slots.
    """

    def __init__(self, function: Callable, example: tuple, weights: nn.Module) -> None:
        super().__init__()
        self.weights = weights
        self._call = lambda tensors: function(*with_tensors(example, iter(tensors)))
        self.targets: list[tuple[int, int | None]] = []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        places = {id(tensor): place for place, tensor in enumerate(tensors)}
        with writes_put_off() as writes:
            returned = tuple(state_tensors(self._call(tensors)))
        self.targets = [
            (places[id(w.target)], None if w.slots_BT is None else places[id(w.slots_BT)])
            for w in writes
        ]
        return returned + tuple(write.value for write in writes)
