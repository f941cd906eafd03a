"""What is heard where sound is missing: the last sound backwards, fading out; then a fade back in.

Played backwards, the last sound goes on from the very sample it stopped at, so nothing jumps.
Legend: L samples, C audio channels.
"""

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.timing import TIMING

# A tick to fade out, 10 ms to come back.
FADE_OUT_SAMPLES = TIMING.samples_per_tick
FADE_IN_SAMPLES = TIMING.sample_rate_hz // 100


class Concealer:
    """Passes sound on unchanged and fills gaps; every sample that is played goes through it.

    Attributes:
        is_gap: whether the last samples were a filling.
        num_gaps, num_filled: gaps, and samples filled.
    """

    def __init__(self) -> None:
        # The newest samples heard, and what is left to hear of them backwards in a gap.
        self._last_LC = np.zeros((0, TIMING.num_channels), np.float32)
        self._backwards_LC = self._last_LC
        # A fade-in may reach over several calls.
        self._num_risen = FADE_IN_SAMPLES
        self.is_gap = False
        self.num_gaps = self.num_filled = 0

    def play(self, audio_LC: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sound as it is to be played: as it came, or fading in after a gap."""
        if self.is_gap:
            self.is_gap, self._num_risen = False, 0
        num = min(FADE_IN_SAMPLES - self._num_risen, len(audio_LC))
        if num > 0:
            fade_L1 = rise(FADE_IN_SAMPLES)[self._num_risen :][:num, None]
            audio_LC = audio_LC.copy()
            audio_LC[:num] = fade_L1 * audio_LC[:num] + (1 - fade_L1) * self._backwards(num)
            self._num_risen += num
        self._remember(audio_LC)
        return audio_LC

    def fill(self, num_samples: int) -> NDArray[np.float32]:
        """Float32 [num_samples, 2] to be heard where there is nothing to play."""
        if not self.is_gap:
            self.is_gap = True
            self.num_gaps += 1
            self._backwards_LC = (self._last_LC * rise(len(self._last_LC))[:, None])[::-1]
        self.num_filled += num_samples
        filling_LC = self._backwards(num_samples)
        self._remember(filling_LC)
        return filling_LC

    def _remember(self, audio_LC: NDArray[np.float32]) -> None:
        self._last_LC = np.concatenate([self._last_LC, audio_LC])[-FADE_OUT_SAMPLES:]

    def _backwards(self, num_samples: int) -> NDArray[np.float32]:
        """The next samples of the fade-out, silence after its end."""
        part_LC = self._backwards_LC[:num_samples]
        self._backwards_LC = self._backwards_LC[num_samples:]
        return np.pad(part_LC, ((0, num_samples - len(part_LC)), (0, 0)))


def rise(num_samples: int) -> NDArray[np.float32]:
    """A raised-cosine ramp [num_samples] from 0 to 1, both ends left out."""
    steps_L = (np.arange(num_samples) + 0.5) / num_samples
    return (0.5 - 0.5 * np.cos(np.pi * steps_L)).astype(np.float32)
