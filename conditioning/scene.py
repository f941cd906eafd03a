"""What happens to the whole picture: hard cuts, and turns of the camera.

What was seen and heard before one says nothing about what comes after.

A cut changes the whole picture at once. So does a fast turn of the camera, but that slides the
picture sideways and goes on for several ticks, and a flicker comes again.
A turn is where the phase correlation of two pictures peaks (Kuglin and Hines 1975), between two
columns by a parabola; who walks on turns by about zero.
Legend: C colours, H W rows and columns of the small picture that is looked at.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

CUT_SIZE_HW = (24, 32)
# A turn may slide the picture by so many of the small picture's columns from tick to tick.
MAX_SLIDE = 14
NUM_LEVELS = 32
# The changes of the last second or so count against a new one: so much less every tick.
CHANGE_DECAY = 0.9
# What is as dark as this has no colour to speak of.
DARK = 8.0


class SceneCuts:
    """Per-stream memory that says whether a picture begins another scene; call once per tick.

    The change of brightness and saturation since the last picture, less what has changed in the
    ticks before, counts by how little the two pictures fit when one is slid over the other, and by
    how different their histograms are.

    Args:
        threshold: of that product, in grey levels of 255; 0 sees no cut anywhere.
    """

    def __init__(self, *, threshold: float) -> None:
        self.threshold = threshold
        self._last_2HW: NDArray | None = None
        self._recent_change = 0.0

    def reset(self) -> None:
        """Forgets the last picture: the next one is no cut."""
        self._last_2HW = None
        self._recent_change = 0.0

    def step(self, frame_HWC: Tensor | NDArray) -> bool:
        """Whether a picture begins another scene than the one before it.

        Args:
            frame_HWC: uint8 RGB, any size.
        """
        if self.threshold == 0.0:
            return False
        last_2HW, now_2HW = self._last_2HW, _colours(frame_HWC)
        self._last_2HW = now_2HW
        if last_2HW is None:
            return False
        change = float(np.abs(now_2HW - last_2HW).mean())
        is_cut = self._is_cut(change - self._recent_change, last_2HW[0], now_2HW[0])
        self._recent_change = max(change, CHANGE_DECAY * self._recent_change)
        return is_cut

    def _is_cut(self, sudden: float, before_HW: NDArray, after_HW: NDArray) -> bool:
        """Whether a sudden change of the brightness is one to another scene."""
        # Nothing fits less than pictures that are opposite, and histograms without overlap.
        if sudden * 2.0 * 1.1 <= self.threshold:
            return False
        misfit = 1.0 - _best_fit(before_HW, after_HW)
        return sudden * misfit * (1.1 - _common(before_HW, after_HW)) > self.threshold


def _colours(frame_HWC: Tensor | NDArray) -> NDArray:
    """Brightness and saturation [2, H, W] of a picture, 0 to 255."""
    rgb_CHW = small_picture(frame_HWC, CUT_SIZE_HW)
    brightest_HW = rgb_CHW.max(axis=0)
    saturation_HW = (brightest_HW - rgb_CHW.min(axis=0)) / (brightest_HW + DARK)
    return np.stack((rgb_CHW.mean(axis=0), 255.0 * saturation_HW))


def _best_fit(a_HW: NDArray, b_HW: NDArray) -> float:
    """Largest correlation of two pictures, one slid sideways over the other, -1..1."""
    width = a_HW.shape[1]
    best = -1.0
    for slide in range(-MAX_SLIDE, MAX_SLIDE + 1):
        low, high = max(0, slide), min(width, width + slide)
        a, b = a_HW[:, low:high], b_HW[:, low - slide : high - slide]
        a, b = a - a.mean(), b - b.mean()
        # One square of a grey level: pictures of one colour fit nothing.
        best = max(best, float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1.0)))
    return best


def _common(a_HW: NDArray, b_HW: NDArray) -> float:
    """Overlap of the histograms of two pictures, 0..1."""
    shares = [np.histogram(x, NUM_LEVELS, (0, 256))[0] / x.size for x in (a_HW, b_HW)]
    return float(np.minimum(*shares).sum())


TURN_SIZE_HW = (48, 96)
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
        height, width = TURN_SIZE_HW
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
        brightness_HW = small_picture(frame_HWC, TURN_SIZE_HW).mean(axis=0)
        centred_HW = brightness_HW - brightness_HW.mean()
        last, now = self._last, np.fft.rfft2(centred_HW * self._window_HW)
        self._last = now
        return 0.0 if last is None else _slide(last, now)


def _slide(last: NDArray, now: NDArray) -> float:
    """The slide between two pictures, given as their spectra."""
    cross = now * np.conj(last)
    amplitude = np.abs(cross)
    scale = 1.0 / (amplitude + FLOOR * amplitude.mean() + 1e-9)
    correlation_HW = np.fft.irfft2(cross * scale, TURN_SIZE_HW)
    near_HW = np.concatenate((correlation_HW[:MAX_RISE], correlation_HW[1 - MAX_RISE :]))
    row, column = np.unravel_index(near_HW.argmax(), near_HW.shape)
    peak = near_HW[row, column]
    if peak <= MIN_PEAK * (amplitude * scale).mean():
        return 0.0
    width = TURN_SIZE_HW[1]
    before, after = near_HW[row, column - 1], near_HW[row, (column + 1) % width]
    place = column + 0.5 * (before - after) / (before - 2.0 * peak + after)
    return float((place if place < width / 2 else place - width) / width)


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
