"""NanoDet: 80 everyday objects found by 3.8 M weights, in plain PyTorch.

An anchor-free detector (RangiLyu's NanoDet, Apache-2.0): each cell of three grids says what it is
in, and how far that reaches to the four sides as distributions over distances (Li et al. 2020,
arXiv 2006.04388).
Legend: B pictures, N cells of all grids, K distances a side.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from spatial_v2a.conditioning.detections import FullyConvolutionalDetector
from spatial_v2a.conditioning.frozen import Deferred
from spatial_v2a.conditioning.vocabulary import vocabulary_names
from spatial_v2a.perception_config import BoxSettings

STRIDES = (8, 16, 32)
NUM_DISTANCES = 11
# Of the pictures it was trained on: 0..255, blue first.
MEAN_BGR = (103.53, 116.28, 123.675)
DEVIATION_BGR = (57.375, 57.12, 58.395)
WIDTH = 128


class Conv(nn.Sequential):
    """Convolution of 3 x 3 with its activation."""

    def __init__(self, num_in: int, num_out: int, *, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(num_in, num_out, 3, stride=stride, padding=1), nn.LeakyReLU(0.1))


class HalfBlock(nn.Module):
    """Two convolutions of half the width each, the second of the first; both are its output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv(width, width // 2)
        self.second = Conv(width // 2, width // 2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        first_BCHW = self.first(x_BCHW)
        return torch.cat([self.second(first_BCHW), first_BCHW], dim=1)


class Stage(nn.Module):
    """A stage of the backbone: its blocks' output beside its input, twice the width."""

    def __init__(self, width: int, *, num_blocks: int, stride: int) -> None:
        super().__init__()
        self.enter = Conv(width, width, stride=stride)
        self.blocks = nn.Sequential(*[HalfBlock(width) for _ in range(num_blocks)])
        self.leave = Conv(width, width)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        entered_BCHW = self.enter(x_BCHW)
        return torch.cat([self.leave(self.blocks(entered_BCHW)), entered_BCHW], dim=1)


class NanoDet(nn.Module):
    """Normalised pictures [B, 3, H, W] to class and distance logits, a map for each stride.

    H and W are multiples of 32.

    Args:
        num_classes: of its vocabulary.
    """

    def __init__(self, *, num_classes: int = 80) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 32, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        self.stages = nn.ModuleList(
            [
                Stage(32, num_blocks=1, stride=1),
                Stage(64, num_blocks=2, stride=2),
                Stage(128, num_blocks=2, stride=2),
                Stage(256, num_blocks=3, stride=2),
            ]
        )
        self.laterals = nn.ModuleList([nn.Conv2d(num_in, WIDTH, 1) for num_in in (128, 256, 512)])
        num_out = num_classes + 4 * NUM_DISTANCES
        self.heads = nn.ModuleList(
            [nn.Sequential(Conv(WIDTH, WIDTH), nn.Conv2d(WIDTH, num_out, 1)) for _ in STRIDES]
        )

    def forward(self, x_BCHW: Tensor) -> list[Tensor]:
        """Logits [B, classes + 4 K, H / stride, W / stride] of each stride."""
        x_BCHW = self.stages[0](self.stem(x_BCHW))
        maps = []
        for stage, lateral in zip(self.stages[1:], self.laterals, strict=True):
            x_BCHW = stage(x_BCHW)
            maps.append(lateral(x_BCHW))
        fine, middle, coarse = maps
        middle = middle + _twice(coarse)
        fine = fine + _twice(middle)
        middle = middle + functional.avg_pool2d(fine, 2)
        coarse = coarse + functional.avg_pool2d(middle, 2)
        pairs = zip(self.heads, (fine, middle, coarse), strict=True)
        return [head(map_BCHW) for head, map_BCHW in pairs]


def _twice(x_BCHW: Tensor) -> Tensor:
    return functional.interpolate(x_BCHW, scale_factor=2.0, mode="bilinear", align_corners=False)


def decode(logits: list[Tensor], *, num_classes: int) -> Tensor:
    """Boxes and class scores [B, 4 + classes, N], boxes as centre and size in input pixels.

    Args:
        logits: a map [B, classes + 4 K, H / stride, W / stride] of each of STRIDES.
        num_classes: how many of a map's channels are classes.
    """
    return torch.cat(
        [
            _decode_stride(map_BCHW, stride, num_classes)
            for map_BCHW, stride in zip(logits, STRIDES, strict=True)
        ],
        dim=2,
    )


def _decode_stride(map_BCHW: Tensor, stride: int, num_classes: int) -> Tensor:
    rows, columns = map_BCHW.shape[-2:]
    scores_BCN = map_BCHW[:, :num_classes].flatten(2).sigmoid()
    shares_B4KN = map_BCHW[:, num_classes:].flatten(2).unflatten(1, (4, NUM_DISTANCES)).softmax(2)
    distance_K1 = torch.arange(NUM_DISTANCES, device=map_BCHW.device).float()[:, None]
    # The expected distance to the left, top, right and bottom, in pixels.
    reach_B4N = (shares_B4KN * distance_K1).sum(dim=2) * stride
    y_HW, x_HW = torch.meshgrid(
        *(stride * (torch.arange(n, device=map_BCHW.device) + 0.5) for n in (rows, columns)),
        indexing="ij",
    )
    cell_2N = torch.stack([x_HW.flatten(), y_HW.flatten()])
    to_start_B2N, to_end_B2N = reach_B4N.split(2, dim=1)
    centre_B2N = cell_2N + (to_end_B2N - to_start_B2N) / 2
    return torch.cat([centre_B2N, to_start_B2N + to_end_B2N, scores_BCN], dim=1)


class NanoDetDetector(FullyConvolutionalDetector):
    """Frozen NanoDet, which knows the 80 classes of COCO.

    Args:
        settings: input size and thresholds.
        model: NanoDet with its weights.
        is_symmetric: looks at the mirrored picture as well and takes the mean of both, so that
            mirrored pictures give mirrored boxes. Trained on crops, it does not do so by itself.
    """

    def __init__(
        self, settings: BoxSettings, model: NanoDet | Deferred, *, is_symmetric: bool = False
    ) -> None:
        self.settings, self.names = settings, vocabulary_names("coco")
        self._is_symmetric = is_symmetric
        super().__init__(model)
        self.register_buffer("mean_3HW", torch.tensor(MEAN_BGR).view(3, 1, 1))
        self.register_buffer("deviation_3HW", torch.tensor(DEVIATION_BGR).view(3, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Boxes and class scores [B, 4 + classes, N] of pictures in 0..1, boxes in input pixels."""
        bgr_BCHW = (255.0 * x_BCHW.flip(1) - self.mean_3HW) / self.deviation_3HW
        logits = self.model(bgr_BCHW)
        if self._is_symmetric:
            of_mirrored = self.model(bgr_BCHW.flip(3))
            pairs = zip(logits, of_mirrored, strict=True)
            logits = [(plain + self._mirror(other)) / 2 for plain, other in pairs]
        return decode(logits, num_classes=len(self.names))

    def _mirror(self, map_BCHW: Tensor) -> Tensor:
        """The map of the mirrored picture: cells and the distances to left and right change places.

        Cells lie in the middle of their strides and the width is a multiple of these, so that a
        mirrored cell is a cell.
        """
        num_classes = len(self.names)
        class_BCHW, distance_BCHW = map_BCHW.flip(3).split([num_classes, 4 * NUM_DISTANCES], dim=1)
        left, top, right, bottom = distance_BCHW.chunk(4, dim=1)
        return torch.cat([class_BCHW, right, top, left, bottom], dim=1)
