"""The causal generator: frame tokens and past latents in, a denoiser of the next latent out.

Order of a tick i: `observe_frame(v_i)`, draw x_i with `denoiser`, then, between frames,
`observe_latent(x_i)`. The condition of tick i sees frames up to i and latents before i.
Where nothing runs between frames, `hold_latent(x_i)` keeps x_i for `attend_with_latent` of tick
i + 1: the same sums in one pass of two tokens. A stream stays with one of the two ways.

Legend: B streams, T ticks, D latent width (backbone width inside), Z condition width,
V frame token width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor, nn

from spatial_v2a.features import FrameFeatures
from spatial_v2a.models.attention import AttentionPlan
from spatial_v2a.models.autoencoder import split_latents
from spatial_v2a.models.conditioner import (
    Conditioner,
    ConditionerConfig,
    ConditionerState,
    PerceptionShapes,
)
from spatial_v2a.models.head import Head, HeadConfig, Uncertainty
from spatial_v2a.models.streaming import write_
from spatial_v2a.models.transformer import BackboneConfig, Transformer, TransformerState
from spatial_v2a.strict import StrictConfig, Width

TOKENS_PER_TICK = 2  # the frame's and the latent's: [BOS, v1, x1, v2, x2, ...]


class GeneratorConfig(StrictConfig):
    """The generator and its ablations.

    Attributes:
        conditioner, backbone, head: sizes of the parts.
        latent_dim: width of an audio latent.
        direct_head_path: whether the head also gets the frame token itself.
        forgotten_dims: that many dimensions at the end of a latent, where the pan lies, are not
            carried by the history. A past pan says what the next one is so well that a model which
            has it learns little from where things are seen, and loses the side as its own pan,
            narrower than the truth's, comes back to it.
    """

    conditioner: ConditionerConfig
    backbone: BackboneConfig
    head: HeadConfig
    latent_dim: Width
    direct_head_path: bool = True
    forgotten_dims: int = Field(default=0, ge=0, le=16_384)


@dataclass
class Condition:
    """What the head knows of a tick.

    Attributes:
        z_BTZ: backbone outputs at x_(i-1) and at v_i side by side.
        v_BTV: frame tokens, for the direct path.
    """

    z_BTZ: Tensor
    v_BTV: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """Applies `function` to both tensors."""
        return Condition(function(self.z_BTZ), function(self.v_BTV))

    def detach(self) -> "Condition":
        """The same values without a gradient."""
        return self.map(torch.Tensor.detach)


@dataclass
class GeneratorState:
    """State of B streams.

    Attributes:
        conditioner: the previous tick's perception.
        backbone: ring caches and positions.
        memory_BD: what the latest latent left behind: the backbone's output at it, or its
            embedding when held back.
    """

    conditioner: ConditionerState
    backbone: TransformerState
    memory_BD: Tensor


class Generator(nn.Module):
    """Conditioner, backbone and head."""

    def __init__(self, config: GeneratorConfig, *, perception_shapes: PerceptionShapes) -> None:
        super().__init__()
        self.config = config
        width, token_dim = config.backbone.width, config.conditioner.token_dim
        self.conditioner = Conditioner(config.conditioner, shapes=perception_shapes)
        self.frame_in = nn.Linear(token_dim, width)
        self.latent_in = nn.Linear(config.latent_dim, width)
        # Stands for a past latent that training drops.
        self.null_latent_D = nn.Parameter(0.5 * torch.randn(width))
        # BOS is alone at its position and sees only itself, so its output is a constant: learning
        # that output directly keeps the all-zero state initial and saves the pass.
        self.bos_D = nn.Parameter(0.5 * torch.randn(width))
        self.backbone = Transformer(config.backbone, tokens_per_tick=TOKENS_PER_TICK)
        condition_dim = 2 * width + (token_dim if config.direct_head_path else 0)
        self.head = Head(config.head, latent_dim=config.latent_dim, condition_dim=condition_dim)
        self.uncertainty = Uncertainty()

    def init_state(
        self,
        batch_size: int,
        *,
        max_chunk: int = 1,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> GeneratorState:
        """All-zero state; `max_chunk` counts ticks per call."""
        tokens = max_chunk * TOKENS_PER_TICK
        return GeneratorState(
            self.conditioner.init_state(
                batch_size, max_chunk=max_chunk, device=device, dtype=dtype
            ),
            self.backbone.init_state(batch_size, max_chunk=tokens, device=device, dtype=dtype),
            torch.zeros(batch_size, self.config.backbone.width, device=device, dtype=dtype),
        )

    def forward(
        self,
        features: FrameFeatures,
        latents_BTD: Tensor,
        state: GeneratorState | None = None,
        active: Tensor | None = None,
        *,
        history_drop_BT: Tensor | None = None,
    ) -> Condition:
        """Conditions of T ticks under teacher forcing.

        Args:
            features: perception of the T ticks.
            latents_BTD: normalised latents of the same ticks, possibly noised by the caller;
                the one at tick i is first seen at tick i + 1.
            state: continues a stream and is written in place; None starts a sequence.
            active: bool [B]; idle rows leave their state untouched.
            history_drop_BT: True replaces a latent by the null embedding.

        Returns:
            The condition of every tick.
        """
        v_BTV = self.conditioner(features, state and state.conditioner, active)
        x_BTD = self._embed(latents_BTD)
        if history_drop_BT is not None:
            x_BTD = torch.where(history_drop_BT[..., None], self.null_latent_D, x_BTD)
        before_B1D = self._memory(state, x_BTD)
        return Condition(self._run(self.frame_in(v_BTV), x_BTD, before_B1D, state, active), v_BTV)

    def observe_frame(
        self, features: FrameFeatures, state: GeneratorState, active: Tensor | None = None
    ) -> Condition:
        """The pass that waits for a frame: perception [B, 1] in, condition [B, 1] out."""
        return self.attend(self.conditioner(features, state.conditioner, active), state, active)

    def attend(
        self,
        v_B1V: Tensor,
        state: GeneratorState,
        active: Tensor | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Condition:
        """The second half of `observe_frame`: the conditioner's token in, condition out."""
        frame_B1D = self.frame_in(v_B1V)
        before_B1D = self._memory(state, frame_B1D)
        out_B1D = self.backbone(frame_B1D, state.backbone, active, plan=plan)
        return Condition(torch.cat((before_B1D, out_B1D), dim=-1), v_B1V)

    def plan_with_latent(self, state: GeneratorState) -> AttentionPlan:
        """The plan of the next `attend_with_latent`: positions, which need float64, and masks."""
        tokens_B2D = state.memory_BD[:, None].expand(-1, TOKENS_PER_TICK, -1)
        return self.backbone.plan(tokens_B2D, state.backbone, has_held_back=True)

    def attend_with_latent(
        self,
        v_B1V: Tensor,
        state: GeneratorState,
        active: Tensor | None = None,
        *,
        plan: AttentionPlan | None = None,
    ) -> Condition:
        """`attend`, and the pass of the latent that `hold_latent` kept, in one."""
        if plan is None:
            plan = self.plan_with_latent(state)
        is_first_B11 = (state.backbone.position_B == 0)[:, None, None]
        tokens_B2D = torch.cat((state.memory_BD[:, None], self.frame_in(v_B1V)), dim=1)
        out_B2D = self.backbone(tokens_B2D, state.backbone, active, plan=plan)
        before_B1D = torch.where(is_first_B11, self.bos_D, out_B2D[:, :1])
        return Condition(torch.cat((before_B1D, out_B2D[:, 1:]), dim=-1), v_B1V)

    def hold_latent(
        self, x_BD: Tensor, state: GeneratorState, active: Tensor | None = None
    ) -> None:
        """Keeps the latent just drawn (normalised) [B, D] for the next `attend_with_latent`."""
        write_(state.memory_BD, self._embed(x_BD), active)

    def observe_latent(
        self, x_BD: Tensor, state: GeneratorState, active: Tensor | None = None
    ) -> None:
        """The pass between frames: takes in the latent just drawn (normalised) [B, D]."""
        out_B1D = self.backbone(self._embed(x_BD)[:, None], state.backbone, active)
        write_(state.memory_BD, out_B1D[:, 0], active)

    def denoiser(self, condition: Condition) -> Callable[[Tensor, Tensor], Tensor]:
        """Returns denoise(x, sigma) for a condition, whose share is computed only once.

        x is [..., D] and sigma broadcasts to its leading axes; the condition's leading axes
        [B, T] broadcast to them too, so x may be [draws, B, T, D]. For x [B, D] the condition
        must hold a single tick.
        """
        parts = [condition.z_BTZ, condition.v_BTV]
        whole = torch.cat(parts, dim=-1) if self.config.direct_head_path else parts[0]
        context = self.head.prepare(whole)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if x.dim() < whole.dim():
                return self.head(x[:, None], sigma[..., None], context)[:, 0]
            return self.head(x, sigma, context)

        return denoise

    def denoise(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """D(x; sigma, condition), shapes as in `denoiser`."""
        return self.denoiser(condition)(x, sigma)

    def _embed(self, latents: Tensor) -> Tensor:
        """Latents [..., D] of the history as the backbone takes them."""
        forgotten = self.config.forgotten_dims
        if forgotten:
            kept, lost = split_latents(latents, forgotten)
            latents = torch.cat((kept, torch.zeros_like(lost)), dim=-1)
        return self.latent_in(latents)

    def _memory(self, state: GeneratorState | None, like: Tensor) -> Tensor:
        """What the tick before this call left, [B, 1, D]; BOS at the start of a stream."""
        bos = self.bos_D.expand(like.shape[0], 1, -1)
        if state is None:
            return bos
        is_first = (state.backbone.position_B == 0)[:, None, None]
        return torch.where(is_first, bos, state.memory_BD[:, None])

    def _run(
        self,
        frame_BTD: Tensor,
        x_BTD: Tensor,
        before_B1D: Tensor,
        state: GeneratorState | None,
        active: Tensor | None,
    ) -> Tensor:
        tokens = torch.stack((frame_BTD, x_BTD), dim=2).flatten(1, 2)
        if state is None:
            out = self.backbone(tokens[:, :-1])
        else:
            out = self.backbone(tokens, state.backbone, active)
            write_(state.memory_BD, out[:, -1], active)
        num_ticks = x_BTD.shape[1]
        at_latent_BTD = torch.cat((before_B1D, out[:, 1::2][:, : num_ticks - 1]), dim=1)
        return torch.cat((at_latent_BTD, out[:, 0::2]), dim=-1)
