"""Small pictures, for what looks at a whole picture and needs no detail."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

# Rows and columns are skipped down to about this height before the picture is averaged.
SKIP_TO_HEIGHT = 96


def small_picture(frame_HWC: Tensor | NDArray, size_HW: tuple[int, int]) -> NDArray:
    """A picture of any size as float32 [3, H, W] of few rows and columns, 0 to 255.

    Args:
        frame_HWC: uint8 RGB.
        size_HW: rows and columns.
    """
    step = max(1, frame_HWC.shape[0] // SKIP_TO_HEIGHT)
    sparse_HWC = np.asarray(frame_HWC)[::step, ::step].astype(np.float32)
    return F.adaptive_avg_pool2d(torch.from_numpy(sparse_HWC).permute(2, 0, 1), size_HW).numpy()
