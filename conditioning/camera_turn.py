"""How far the camera has turned, from one picture to the next.

A turn slides the whole picture sideways. How far is where the phase correlation of two pictures
peaks (Kuglin and Hines 1975), between two columns by a parabola. Walking on, it stays about zero.
Legend: H W rows and columns of the small picture.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.conditioning.small_picture import small_picture

SIZE_HW = (48, 96)
# Up and down it slides less than this, in rows.
MAX_RISE = 4
# Of pictures that have nothing in common the correlation peaks lower than this share of what it
# could.
MIN_PEAK = 0.1
# As a share of the mean amplitude: frequencies without anything in them have no phase.
FLOOR = 0.1


class CameraTurn:
    """Per-stream memory that says how far the picture slid; call once per tick, in order."""

    def __init__(self) -> None:
        height, width = SIZE_HW
        # The edges, where what slides in meets what slides out, fade away.
        self._window_HW = np.hanning(height)[:, None] * np.hanning(width)
        self.reset()

    def reset(self) -> None:
        """Forgets the last picture: up to the next one nothing slides."""
        self._last: NDArray | None = None

    def step(self, frame_HWC: Tensor | NDArray) -> float:
        """How far the picture slid to the right since the last one, as a share of its width.

        Args:
            frame_HWC: uint8 RGB, any size.
        """
        brightness_HW = small_picture(frame_HWC, SIZE_HW).mean(axis=0)
        centred_HW = brightness_HW - brightness_HW.mean()
        last, now = self._last, np.fft.rfft2(centred_HW * self._window_HW)
        self._last = now
        return 0.0 if last is None else _slide(last, now)


def _slide(last: NDArray, now: NDArray) -> float:
    """The slide between two pictures, given as their spectra."""
    cross = now * np.conj(last)
    amplitude = np.abs(cross)
    scale = 1.0 / (amplitude + FLOOR * amplitude.mean() + 1e-9)
    correlation_HW = np.fft.irfft2(cross * scale, SIZE_HW)
    near_HW = np.concatenate((correlation_HW[:MAX_RISE], correlation_HW[1 - MAX_RISE :]))
    row, column = np.unravel_index(near_HW.argmax(), near_HW.shape)
    peak = near_HW[row, column]
    if peak <= MIN_PEAK * (amplitude * scale).mean():
        return 0.0
    width = SIZE_HW[1]
    before, after = near_HW[row, column - 1], near_HW[row, (column + 1) % width]
    place = column + 0.5 * (before - after) / (before - 2.0 * peak + after)
    return float((place if place < width / 2 else place - width) / width)
