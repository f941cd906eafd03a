"""The arithmetic of a tick, cut where a tick can be timed, traced or captured.

    condition = attend(fuse(features)); latent = draw(noise, condition); audio = decode(latent)
    remember(latent)                     # between frames: the next frame need not wait for it

Where both must fit into a tick anyway, on a CPU, `remember` only keeps the latent, and `attend` of
the next tick takes it along: one pass through the backbone's weights instead of two.

Every pass takes tensors and a state that it writes in place, and nothing else: no Python number,
no host read. Legend: B streams, W views (the streams, and with `is_symmetric`
their mirrored pictures after them), R rows (views times guidance branches, branch-major), N noise
draws, D latent width, V frame token width, Z condition width, C audio channels, L samples.
"""

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from spatial_v2a.features import FrameFeatures, mirror_features
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.attention import AttentionPlan
from spatial_v2a.models.autoencoder import DecoderState
from spatial_v2a.models.generator import TOKENS_PER_TICK, Condition, GeneratorState
from spatial_v2a.models.samplers import (
    num_noises,
    plain_pan_denoise,
    sample,
    sampler_sigmas,
    symmetric_denoise,
)

Module = TypeVar("Module", bound=nn.Module)

ALL_CUES = ("dino", "depth", "boxes")
SPATIAL_CUES = ("depth", "boxes")

# Backbone and head may run in bfloat16. What rounding would hurt stays in float32: the conditioner
# (it subtracts one tick from the next), norms and softmax, guidance (it widens differences), the
# sampler's sums, and the decoder with its inverse STFT. Positions are in float64 either way.
NARROW = torch.bfloat16
NARROW_PARTS = ("frame_in", "latent_in", "backbone", "head")


@dataclass
class EngineState:
    """Everything that lives from tick to tick: R rows of the generator, B of the decoder."""

    generator: GeneratorState
    decoder: DecoderState


class Passes:
    """The passes of one engine.

    Args:
        model: the model, in eval mode on its device.
        num_streams: B.
        nfe: evaluations of the head; None is the checkpoint's own number.
        guidance: weight of everything seen; 1 is plain sampling.
        spatial_guidance: weight of depth and boxes; 1 is plain sampling.
        without: streams of perception to leave out.
        holds_latent: whether a latent waits for the next frame and goes through the backbone
            with it.
        is_narrow: backbone and head in bfloat16.
        pan_strength: scales the pan of the sound, not of what the generator remembers.
    """

    def __init__(
        self,
        model: SpatialV2A,
        *,
        num_streams: int,
        nfe: int | None,
        guidance: float,
        spatial_guidance: float,
        without: tuple[str, ...],
        holds_latent: bool,
        is_narrow: bool = False,
        pan_strength: float = 1.0,
    ) -> None:
        self.model = _with_narrow_matrices(model) if is_narrow else model
        self._is_narrow = is_narrow
        self._pan_strength = pan_strength
        self.holds_latent = holds_latent
        self.num_streams = num_streams
        self._without = without
        # The first branch sees all; guidance moves it away from the others.
        self._branches: list[tuple[tuple[str, ...], float]] = [((), 1.0)]
        if guidance != 1.0:
            self._branches.append((ALL_CUES, guidance))
        if spatial_guidance != 1.0:
            self._branches.append((SPATIAL_CUES, spatial_guidance))
        mean_D = model.latent_mean_D
        sampler = model.config.sampler
        self._num_views = 2 * num_streams if sampler.is_symmetric else num_streams
        self._sign_D = torch.ones_like(mean_D)
        self._num_odd = model.config.autoencoder.num_odd_latents
        self._sign_D[len(mean_D) - self._num_odd :] = -1
        self._guides_pan = sampler.guides_pan
        self._num_draws = num_noises(sampler, nfe=nfe)
        self._sigmas = sampler_sigmas(sampler, nfe=nfe).to(mean_D)

    def init_state(self) -> EngineState:
        """All-zero state on the model's device, in its type."""
        mean_D = self.model.latent_mean_D
        where = {"max_chunk": 1, "device": mean_D.device, "dtype": mean_D.dtype}
        num_rows = self._num_views * len(self._branches)
        generator = self.model.generator.init_state(num_rows, **where)
        if self._is_narrow:
            tokens = TOKENS_PER_TICK
            narrow = where | {"dtype": NARROW, "max_chunk": tokens}
            generator = replace(
                generator, backbone=self.model.generator.backbone.init_state(num_rows, **narrow)
            )
        return EngineState(generator, self.model.autoencoder.init_state(self.num_streams, **where))

    def example_noise(self) -> Tensor:
        """Zeros in the shape of `draw`'s noise [B, N, D]."""
        mean_D = self.model.latent_mean_D
        return mean_D.new_zeros(self.num_streams, self._num_draws, len(mean_D))

    def rows(self, value_B: Tensor | None) -> Tensor | None:
        """A value per stream as a value per row."""
        times = self._num_views // self.num_streams * len(self._branches)
        if value_B is None or times == 1:
            return value_B
        return value_B.repeat(times, *[1] * (value_B.dim() - 1))

    def fuse(
        self, features_B1: FrameFeatures, state: EngineState, active_B: Tensor | None = None
    ) -> Tensor:
        """Perception [B, 1] to frame tokens [R, 1, V]."""
        features = features_B1.without(*self._without)
        if self._num_views > self.num_streams:
            grid_width = self.model.config.perception.shapes.grid_width
            features = _stack([features, mirror_features(features, grid_width=grid_width)])
        if len(self._branches) > 1:
            features = _stack([features.without(*dropped) for dropped, _ in self._branches])
        conditioner = self.model.generator.conditioner
        return conditioner(features, state.generator.conditioner, self.rows(active_B))

    def attend(
        self,
        v_R1V: Tensor,
        state: EngineState,
        active_B: Tensor | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Condition:
        """Frame tokens to the tick's condition [W, 1], guidance included.

        Where the pan is not guided, W guided rows come first and W plain ones after them.
        """
        generator = self.model.generator
        attend = generator.attend_with_latent if self.holds_latent else generator.attend
        with self._narrow():
            condition = attend(v_R1V, state.generator, self.rows(active_B), plan=plan)
        if self._is_narrow:
            condition = condition.map(Tensor.float)
        if len(self._branches) == 1:
            return condition
        if self._guides_pan:
            return condition.map(self._guide)
        return condition.map(lambda rows: torch.cat((self._guide(rows), rows[: self._num_views])))

    def draw(self, noise_BND: Tensor, condition: Condition) -> Tensor:
        """A normalised latent [B, D] from noise after `shape_noise`."""
        config = self.model.config.sampler
        with self._narrow():
            denoise = self.model.generator.denoiser(condition)
            if len(self._branches) > 1 and not self._guides_pan:
                denoise = plain_pan_denoise(denoise, num_odd_latents=self._num_odd)
            if self._num_views > self.num_streams:
                denoise = symmetric_denoise(denoise, self._sign_D)
            return sample(denoise, noise_BND.transpose(0, 1), self._sigmas, config=config)

    def decode(self, x_BD: Tensor, state: EngineState, active_B: Tensor | None = None) -> Tensor:
        """Stereo sound [B, L, C] of a normalised latent; idle streams are silent."""
        latents_B1D = self.latents(x_BD)
        audio_BCL = self.model.autoencoder.decode(latents_B1D, state.decoder, active_B)
        if active_B is not None:
            audio_BCL = audio_BCL * active_B[:, None, None]
        return audio_BCL.transpose(1, 2).float()

    def latents(self, x_BD: Tensor) -> Tensor:
        """What the decoder takes [B, 1, D], of the normalised latent that was drawn."""
        return self.model.denormalize(x_BD, pan_strength=self._pan_strength)[:, None]

    def remember(self, x_BD: Tensor, state: EngineState, active_B: Tensor | None = None) -> None:
        """Takes the latent just drawn into the history."""
        views = x_BD
        if self._num_views > self.num_streams:
            views = torch.cat((x_BD, self._sign_D * x_BD))
        rows = views.repeat(len(self._branches), 1)
        generator = self.model.generator
        remember = generator.hold_latent if self.holds_latent else generator.observe_latent
        with self._narrow():
            remember(rows, state.generator, self.rows(active_B))

    def _narrow(self) -> AbstractContextManager:
        # Nothing is cached, so that a pass can be captured.
        device = self._sigmas.device.type
        return torch.autocast(device, NARROW, enabled=self._is_narrow, cache_enabled=False)

    def _guide(self, value_R: Tensor) -> Tensor:
        """Moves the full branch away from those that saw less.

        full + (g - 1) (full - nothing seen) + (s - 1) (full - nothing spatial): two terms of
        classifier-free guidance (2207.12598, eq. 6 with w = g - 1), applied to the condition, so
        that the head runs once per stream.
        """
        full, *others = value_R.unflatten(0, (len(self._branches), self._num_views)).unbind(0)
        guided = full
        for (_, weight), seen_less in zip(self._branches[1:], others, strict=True):
            guided = guided + (weight - 1.0) * (full - seen_less)
        return guided


def _stack(parts: list[FrameFeatures]) -> FrameFeatures:
    """Joins features along the batch."""
    names = vars(parts[0])
    return FrameFeatures(
        **{name: torch.cat([vars(part)[name] for part in parts]) for name in names}
    )


def _with_narrow_matrices(model: SpatialV2A) -> SpatialV2A:
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


def _shallow(module: Module) -> Module:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
