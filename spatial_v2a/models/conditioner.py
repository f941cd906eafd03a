"""Fuses patches, depth and boxes of a frame into one token; any subset of them may be absent.

What a box, a patch grid and a depth grid say as numbers comes first, then the cues that training
drops, so that any subset works and guidance has something to compare, then the trained part.
Legend: B streams, T ticks, M = B x T frames, K tokens of a frame or boxes, F box fields, N patches,
P pooled cells, D width, V frame token width.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from spatial_v2a.features import BOX_FIELDS, MAX_AGE_S, FrameFeatures, without_nearness
from spatial_v2a.models.streaming import write_
from spatial_v2a.models.transformer import RMSNorm, SwiGLU
from spatial_v2a.strict import Count, Factor, StrictConfig, Width, check_heads

NUM_HARMONICS = 4
_SMALL_SIDE = 0.01  # shorter sides count as this long: nothing is known of their proportions
# Number of values `box_inputs` makes of one box.
NUM_BOX_INPUTS = 15 + 4 * NUM_HARMONICS


def box_inputs(boxes_BTKF: Tensor) -> Tensor:
    """Numbers of order one that describe a box, [B, T, K, NUM_BOX_INPUTS].

    Left and right is what matters most, so the bearing comes as an odd line, odd and even
    harmonics: a mirrored picture turns the sign of the odd inputs and keeps the even ones.
    """
    field = dict(zip(BOX_FIELDS, boxes_BTKF.unbind(-1), strict=True))
    x, y = 2 * field["cx"] - 1, 2 * field["cy"] - 1
    bearing = field["azimuth"] / (math.pi / 4)
    width, height, near = field["w"], field["h"], field["nearness"]
    log_width, log_height, log_near = (_soft_log(value) for value in (width, height, near))
    plain = [
        *(x, bearing, bearing * near, bearing.tanh()),
        *(torch.tanh(2 * field["vx"]), torch.tanh(2 * field["vy"])),
        *(y, width, height, log_width, log_height),
        *(near, log_near, field["score"], field["age"] / MAX_AGE_S),
    ]
    order = torch.arange(1, NUM_HARMONICS + 1, device=x.device, dtype=x.dtype)
    around, across = bearing[..., None] * order * (math.pi / 2), x[..., None] * order * math.pi
    waves = [around.sin(), around.cos(), across.sin(), across.cos()]
    return torch.cat([torch.stack(plain, -1), *waves], dim=-1)


def shape_waves(boxes_BTKF: Tensor, octaves: int) -> Tensor:
    """Sines and cosines of a box's proportions, [B, T, K, 2 octaves], from coarse to fine.

    A walker's box is a tenth wider in one phase of its stride than in the next: too little to be
    heard beside the other inputs, plain in the finer waves. As GLIGEN (Li et al. 2023, section
    4.1) does with whole boxes. A mirrored picture keeps them.
    """
    width, height = (boxes_BTKF[..., BOX_FIELDS.index(name)] for name in ("w", "h"))
    slimness = (height.clamp_min(_SMALL_SIDE) / width.clamp_min(_SMALL_SIDE)).log()
    order = 2.0 ** torch.arange(octaves, device=width.device, dtype=width.dtype)
    angle = slimness[..., None] * order * math.pi
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


def _soft_log(fraction: Tensor) -> Tensor:
    """Log of a fraction, from about -1 at 0 to 0 at 1."""
    return torch.log(fraction.clamp_min(0) + 0.01) / math.log(100.0)


def pooling_matrix(grid: tuple[int, int], pooled: tuple[int, int]) -> Tensor:
    """Matrix [P, N] that averages a row-major grid of N cells down to P (symmetric left-right)."""
    if pooled[0] > grid[0] or pooled[1] > grid[1]:
        raise ValueError(f"cannot pool a grid {grid} to the larger {pooled}; choose fewer cells")
    cells = grid[0] * grid[1]
    identity = torch.eye(cells, dtype=torch.float64).view(cells, 1, *grid)
    return F.adaptive_avg_pool2d(identity, pooled).flatten(1).T.contiguous()


def temporal_difference(
    now_BTPD: Tensor, has_BT: Tensor, before_BPD: Tensor | None, had_B: Tensor | None
) -> Tensor:
    """Change since the previous tick; 0 where this tick or the previous one is absent.

    Args:
        now_BTPD: values of this call's ticks (any number of axes after T).
        has_BT: whether the stream is present.
        before_BPD, had_B: last tick of the call before; None at the start of the sequence.
    """
    if before_BPD is None:
        before_BPD, had_B = torch.zeros_like(now_BTPD[:, 0]), torch.zeros_like(has_BT[:, 0])
    previous = torch.cat((before_BPD[:, None], now_BTPD[:, :-1]), dim=1)
    both_BT = has_BT & torch.cat((had_B[:, None], has_BT[:, :-1]), dim=1)
    keep = both_BT.view(*both_BT.shape, *(1,) * (now_BTPD.dim() - 2))
    return torch.where(keep, now_BTPD - previous, 0)


class CueDropout(StrictConfig):
    """Probability that a whole training sequence loses a stream.

    Attributes:
        boxes, depth, dino: each stream on its own.
        spatial: boxes and depth together, the condition that spatial guidance compares with.
        all: every stream, the unconditional one.
    """

    boxes: float = Field(default=0.1, ge=0, le=1)
    depth: float = Field(default=0.15, ge=0, le=1)
    dino: float = Field(default=0.3, ge=0, le=1)
    spatial: float = Field(default=0.05, ge=0, le=1)
    all: float = Field(default=0.1, ge=0, le=1)


def drop_cues(
    features: FrameFeatures, probabilities: CueDropout, *, generator: torch.Generator
) -> FrameFeatures:
    """Clears presence flags of whole sequences at random; with depth goes the boxes' nearness.

    Args:
        features: perception of B sequences.
        probabilities: chance of each kind of loss.
        generator: source of the draws, on the CPU.
    """
    p = probabilities
    draws_5B = torch.rand(5, features.has_dino_BT.shape[0], generator=generator)
    chance = torch.tensor([p.boxes, p.depth, p.dino, p.spatial, p.all])[:, None]
    boxes, depth, dino, spatial, everything = (draws_5B < chance).to(features.has_dino_BT.device)

    def keep(has_BT: Tensor, lost_B: Tensor) -> Tensor:
        return has_BT & ~(lost_B | everything)[:, None]

    has_depth_BT = keep(features.has_depth_BT, depth | spatial)
    lost_BT = features.has_depth_BT & ~has_depth_BT
    boxes_BTKF = features.boxes_BTKF
    return replace(
        features,
        boxes_BTKF=torch.where(lost_BT[..., None, None], without_nearness(boxes_BTKF), boxes_BTKF),
        has_dino_BT=keep(features.has_dino_BT, dino),
        has_depth_BT=has_depth_BT,
        has_boxes_BT=keep(features.has_boxes_BT, boxes | spatial),
    )


class PerceptionShapes(StrictConfig):
    """Shapes of the features that perception hands over.

    Attributes:
        num_patches: DINO patches per frame.
        grid_width: patches per row.
        dino_dim: width of a patch feature.
        depth_grid: rows and columns of the nearness grid.
        max_boxes: box slots.
        num_classes: size of the class vocabulary.
    """

    num_patches: Width
    grid_width: Width
    dino_dim: Width
    depth_grid: tuple[Count, Count]
    max_boxes: Count
    num_classes: Width


class ConditionerConfig(StrictConfig):
    """Size of the fusion.

    Attributes:
        width: width inside the fusion.
        num_heads: attention heads.
        num_layers: fusion blocks; the last one computes the query token only.
        hidden_dim: inner width of the gated feed-forward layers.
        class_dim: width of the class embedding.
        token_dim: width of the frame token.
        dino_tokens: rows and columns that the patch grid is averaged to.
        depth_tokens: rows and columns of depth tokens; the cells below one are its inputs.
        shape_octaves: waves of a box's proportions among its inputs (`frame_tokens.shape_waves`).
        shape_ticks: how many ticks of them, this one included.
        temporal_difference: whether patches and depth come with their change since the last tick.
    """

    width: Width
    num_heads: Count
    num_layers: Count
    hidden_dim: Width
    class_dim: Width = 32
    shape_octaves: int = Field(default=0, ge=0, le=16)
    shape_ticks: Factor = 1
    token_dim: Width
    dino_tokens: tuple[Factor, Factor] = (2, 3)
    depth_tokens: tuple[Factor, Factor] = (1, 4)
    temporal_difference: bool = True

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        check_heads(self.width, self.num_heads)
        return self

    @property
    def num_waves(self) -> int:
        """Waves of one box, all ticks together."""
        return 2 * self.shape_octaves * self.shape_ticks


@dataclass
class ConditionerState:
    """What went before: of the last tick pooled patches, depth, and whether each was present; of
    the last `shape_ticks - 1` = H ticks the waves of every slot's box, 0 where there was none
    (None where no tick before this one is looked at).
    """

    dino_BPD: Tensor
    depth_BPD: Tensor
    has_dino_B: Tensor
    has_depth_B: Tensor
    shape_BHKW: Tensor | None


class FusionBlock(nn.Module):
    """Pre-norm block whose queries may be fewer than the tokens they look at."""

    def __init__(self, config: ConditionerConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.norm = RMSNorm(config.width)
        self.query = nn.Linear(config.width, config.width, bias=False)
        self.key_value = nn.Linear(config.width, 2 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)
        self.feedforward_norm = RMSNorm(config.width)
        self.feedforward = SwiGLU(config.width, hidden_dim=config.hidden_dim)

    def forward(self, tokens_MKD: Tensor, mask_MK: Tensor, *, num_queries: int) -> Tensor:
        """Updates the first `num_queries` tokens, which look at every token of the mask."""
        normed_MKD = self.norm(tokens_MKD)
        heads = (self.num_heads, -1)
        q = self.query(normed_MKD[:, :num_queries]).unflatten(-1, heads).transpose(1, 2)
        k, v = (
            half.unflatten(-1, heads).transpose(1, 2)
            for half in self.key_value(normed_MKD).chunk(2, dim=-1)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_MK[:, None, None])
        out = tokens_MKD[:, :num_queries] + self.out(attended.transpose(1, 2).flatten(2))
        return out + self.feedforward(self.feedforward_norm(out))


class Conditioner(nn.Module):
    """Frame features to frame tokens; its state is a few ticks of its inputs."""

    def __init__(self, config: ConditionerConfig, *, shapes: PerceptionShapes) -> None:
        super().__init__()
        self.config = config
        self.shapes = shapes
        rows, columns = config.depth_tokens
        if shapes.num_patches % shapes.grid_width:
            raise ValueError(
                f"num_patches {shapes.num_patches} is not a multiple of grid_width "
                f"{shapes.grid_width}; the patch grid must be a rectangle"
            )
        patch_grid = (shapes.num_patches // shapes.grid_width, shapes.grid_width)
        # Whole cells per depth token: a grid that does not divide is averaged to one that does.
        fitted = (shapes.depth_grid[0] // rows * rows, shapes.depth_grid[1] // columns * columns)
        if 0 in fitted:
            raise ValueError(f"depth_grid {shapes.depth_grid} has fewer cells than depth_tokens")
        dino_pool = pooling_matrix(patch_grid, config.dino_tokens).float()
        self.register_buffer("dino_pool_PN", dino_pool, persistent=False)
        self.register_buffer(
            "depth_pool_PN", pooling_matrix(shapes.depth_grid, fitted).float(), persistent=False
        )
        self.depth_cells = (fitted[0] // rows, fitted[1] // columns)
        self._build_layers(shapes, len(dino_pool), rows * columns)

    def _build_layers(self, shapes: PerceptionShapes, num_dino: int, num_depth: int) -> None:
        config, width = self.config, self.config.width
        times = 2 if self.config.temporal_difference else 1
        cells = self.depth_cells[0] * self.depth_cells[1]
        self.dino_in = nn.Linear(times * shapes.dino_dim, width)
        self.depth_in = nn.Linear(times * cells, width)
        self.class_embedding = nn.Embedding(shapes.num_classes, config.class_dim)
        num_inputs = NUM_BOX_INPUTS + config.class_dim + config.num_waves
        self.box_in = nn.Sequential(
            nn.Linear(num_inputs, config.hidden_dim),
            nn.SiLU(),
            nn.Linear(config.hidden_dim, width),
        )
        # Straight path: the sum over boxes reaches the frame token without any attention.
        self.box_gate = nn.Linear(num_inputs, 1)
        self.box_direct = nn.Linear(num_inputs, config.token_dim)
        self.null_direct = nn.Parameter(torch.zeros(config.token_dim))

        def learned(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.5 * torch.randn(*shape))

        self.query_token, self.dino_null, self.depth_null = (learned(width) for _ in range(3))
        self.boxes_present, self.boxes_null = learned(width), learned(width)
        self.dino_place_PD = learned(num_dino, width)
        self.depth_place_PD = learned(num_depth, width)
        self.blocks = nn.ModuleList(FusionBlock(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(width)
        self.out = nn.Linear(width, config.token_dim)

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> ConditionerState:
        """All-zero state; `max_chunk` is accepted for the contract and not needed."""

        def zeros(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.zeros(batch_size, *shape, device=device, dtype=kind)

        num_dino = self.config.dino_tokens[0] * self.config.dino_tokens[1]
        return ConditionerState(
            dino_BPD=zeros(num_dino, self.shapes.dino_dim),
            depth_BPD=zeros(*self._depth_shape()),
            has_dino_B=zeros(kind=torch.bool),
            has_depth_B=zeros(kind=torch.bool),
            shape_BHKW=zeros(*self._shape_history()) if self._looks_back else None,
        )

    def forward(
        self,
        features: FrameFeatures,
        state: ConditionerState | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Returns frame tokens [B, T, V].

        Args:
            features: perception of T ticks.
            state: previous tick, written in place; None starts a sequence.
            active: bool [B]; idle rows leave their state untouched.
        """
        dtype = self.query_token.dtype
        dino_BTPD = self.dino_pool_PN.to(dtype) @ features.dino_BTND.to(dtype)
        depth_BTPD = self._depth_cells(features.depth_BTHW.to(dtype))
        has_dino_BT, has_depth_BT = features.has_dino_BT, features.has_depth_BT
        dino_tokens = self.dino_in(
            self._with_difference(
                dino_BTPD, has_dino_BT, state and state.dino_BPD, state and state.has_dino_B
            )
        )
        depth_tokens = self.depth_in(
            self._with_difference(
                depth_BTPD, has_depth_BT, state and state.depth_BPD, state and state.has_depth_B
            )
        )
        if state is not None:
            write_(state.dino_BPD, dino_BTPD[:, -1], active)
            write_(state.depth_BPD, depth_BTPD[:, -1], active)
            write_(state.has_dino_B, has_dino_BT[:, -1], active)
            write_(state.has_depth_B, has_depth_BT[:, -1], active)
        dino = torch.where(has_dino_BT[..., None, None], dino_tokens, self.dino_null)
        depth = torch.where(has_depth_BT[..., None, None], depth_tokens, self.depth_null)
        box_tokens, direct_BTV, mask_BTK = self._boxes(features, dtype, state, active)
        presence = torch.where(
            features.has_boxes_BT[..., None, None], self.boxes_present, self.boxes_null
        )
        query = self.query_token.expand(*presence.shape)
        fixed = [query, presence, dino + self.dino_place_PD, depth + self.depth_place_PD]
        num_fixed = sum(part.shape[2] for part in fixed)
        tokens = torch.cat([*fixed, box_tokens], dim=2)
        mask = torch.cat((mask_BTK.new_ones(*mask_BTK.shape[:2], num_fixed), mask_BTK), dim=2)
        return self._aggregate(tokens, mask) + direct_BTV

    def _aggregate(self, tokens_BTKD: Tensor, mask_BTK: Tensor) -> Tensor:
        num_streams = tokens_BTKD.shape[0]
        tokens_MKD, mask_MK = tokens_BTKD.flatten(0, 1), mask_BTK.flatten(0, 1)
        for block in self.blocks[:-1]:
            tokens_MKD = block(tokens_MKD, mask_MK, num_queries=tokens_MKD.shape[1])
        query_MD = self.blocks[-1](tokens_MKD, mask_MK, num_queries=1)[:, 0]
        return self.out(self.norm(query_MD)).unflatten(0, (num_streams, -1))

    def _boxes(
        self,
        features: FrameFeatures,
        dtype: torch.dtype,
        state: ConditionerState | None,
        active: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Box tokens, the straight path's sum, and which slots count."""
        mask_BTK = features.box_mask_BTK & features.has_boxes_BT[..., None]
        # Unused slots may hold anything, so they are cleared before any arithmetic.
        boxes = torch.where(mask_BTK[..., None], features.boxes_BTKF.to(dtype), 0)
        names = self.class_embedding(torch.where(mask_BTK, features.class_BTK, 0))
        inputs = torch.cat((box_inputs(boxes), names), dim=-1)
        if self.config.num_waves:
            waves_BTKW = shape_waves(boxes, self.config.shape_octaves) * mask_BTK[..., None]
            # They come last, so that weights of a model without them can be grown.
            inputs = torch.cat((inputs, self._with_before(waves_BTKW, state, active)), dim=-1)
        gate = torch.sigmoid(self.box_gate(inputs)) * mask_BTK[..., None]
        direct_BTV = (gate * self.box_direct(inputs)).sum(2)
        direct_BTV = torch.where(features.has_boxes_BT[..., None], direct_BTV, self.null_direct)
        return self.box_in(inputs), direct_BTV, mask_BTK

    def _with_before(
        self, waves_BTKW: Tensor, state: ConditionerState | None, active: Tensor | None
    ) -> Tensor:
        """The waves of each tick with those of the ticks before it, oldest first."""
        if not self._looks_back:
            return waves_BTKW
        num_ticks, num_before = waves_BTKW.shape[1], self.config.shape_ticks - 1
        if state is None:
            line = F.pad(waves_BTKW, (0, 0, 0, 0, num_before, 0))
        else:
            line = torch.cat((state.shape_BHKW, waves_BTKW), dim=1)
            write_(state.shape_BHKW, line[:, -num_before:], active)
        return torch.cat([line[:, i : i + num_ticks] for i in range(num_before + 1)], dim=-1)

    @property
    def _looks_back(self) -> bool:
        return self.config.shape_ticks > 1 and self.config.shape_octaves > 0

    def _shape_history(self) -> tuple[int, int, int]:
        config = self.config
        return config.shape_ticks - 1, self.shapes.max_boxes, 2 * config.shape_octaves

    def _depth_shape(self) -> tuple[int, int]:
        rows, columns = self.config.depth_tokens
        return rows * columns, self.depth_cells[0] * self.depth_cells[1]

    def _depth_cells(self, depth_BTHW: Tensor) -> Tensor:
        """Nearness of the cells below each depth token, [B, T, tokens, cells]."""
        fitted = depth_BTHW.flatten(2) @ self.depth_pool_PN.to(depth_BTHW.dtype).T
        rows, columns = self.config.depth_tokens
        split = (rows, self.depth_cells[0], columns, self.depth_cells[1])
        return fitted.unflatten(2, split).transpose(3, 4).flatten(4, 5).flatten(2, 3)

    def _with_difference(
        self, now: Tensor, has_BT: Tensor, before: Tensor | None, had_B: Tensor | None
    ) -> Tensor:
        if not self.config.temporal_difference:
            return now
        return torch.cat((now, temporal_difference(now, has_BT, before, had_B)), dim=-1)
