"""Hand-made inputs of the frame token: what a box, a patch grid and a depth grid say as numbers.

Legend: B streams, T ticks, K boxes, F box fields, N patches, P pooled cells, D width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_v2a.features import BOX_FIELDS, MAX_AGE_S

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
