"""An inaudible watermark that says "synthetic sound, made by spatial-v2a": how it is embedded.

Every band of 187.5 Hz is made 0.3 dB louder for 8 ms and softer for the next 8 ms, or the other
way round, as a pseudo-random sign says that depends on the key, the band and the position alone:
    y = x + strength * sum_j v(t - j * cell) * (h_j * x)(t)
with v = +1, then -1, cross-faded, and h_j a short symmetric filter whose gain in band b is the
sign of cell j and band b. This is patchwork (Bender et al., "Techniques for data hiding", 1996;
Arnold, "Audio watermarking: features, applications and algorithms", 2000) as a linear filter:
marked stems add up to the marked mix, silence stays silence, and both channels get one gain.

marker = Watermarker()
for audio_LC in pieces:
    sink.write(marker.push(audio_LC))
sink.write(marker.flush())

Legend: L samples, C audio channels, P cells of the period, B bands, F frequencies, N block.
"""

import hashlib
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spatial_v2a.timing import TIMING

# The key is public: the mark is a label that anybody may look for, not a proof.
KEY = b"spatial-v2a synthetic sound 1"
# Modulation faster than most sounds' own (12..90 Hz) is what a detector tells from them best.
CELL_SAMPLES = 768
HALF_SAMPLES = CELL_SAMPLES // 2
FADE_SAMPLES = 192
NUM_CELLS = 256
PERIOD_SAMPLES = NUM_CELLS * CELL_SAMPLES
# Two bins of the detector's spectrum per band; codecs remove what lies higher.
BIN_SAMPLES = 512
NUM_BANDS = 52
BINS_PER_BAND = 2
FIRST_BIN = 2
# One side of the symmetric filters: 5 ms, well inside the ear's backward masking.
REACH_SAMPLES = 256
# Cross-fades and filter slopes take 3 dB, so marked minus original stays below -31 dB.
STRENGTH_DB = -28.7

_SPAN = CELL_SAMPLES + FADE_SAMPLES
# The next size that FFTs are fast for, 2^2 * 3 * 5^3; asking scipy takes a second of import.
_BLOCK = 1500


@cache
def signs() -> NDArray[np.float32]:
    """The key's pattern: +1 or -1 for every cell of the period and band, [P, B]."""
    num = NUM_CELLS * NUM_BANDS
    data = hashlib.shake_256(KEY).digest(-(-num // 8))
    bits = np.unpackbits(np.frombuffer(data, np.uint8))[:num]
    return (2.0 * bits - 1.0).astype(np.float32).reshape(NUM_CELLS, NUM_BANDS)


@cache
def cell_shape() -> NDArray[np.float32]:
    """Course of one cell's gain over CELL_SAMPLES + FADE_SAMPLES: up, then down, cross-faded."""
    ramp = np.sin(np.pi / 2 * (np.arange(FADE_SAMPLES) + 0.5) / FADE_SAMPLES) ** 2
    half = np.ones(HALF_SAMPLES + FADE_SAMPLES)
    half[:FADE_SAMPLES], half[HALF_SAMPLES:] = ramp, ramp[::-1]
    shape = np.zeros(_SPAN)
    shape[: len(half)] += half
    shape[HALF_SAMPLES:] -= half
    return shape.astype(np.float32)


@cache
def _responses() -> NDArray[np.float32]:
    """Gains of the filters h_j times the strength, at the frequencies of a block, [P, F]."""
    size = 8 * REACH_SAMPLES
    hz = np.fft.rfftfreq(size, 1 / TIMING.sample_rate_hz)
    first_hz = (FIRST_BIN - 0.5) * TIMING.sample_rate_hz / BIN_SAMPLES
    width_hz = BINS_PER_BAND * TIMING.sample_rate_hz / BIN_SAMPLES
    band = np.floor((hz - first_hz) / width_hz).astype(int)
    is_inside = (band >= 0) & (band < NUM_BANDS)
    gains_PF = np.where(is_inside, signs()[:, np.clip(band, 0, NUM_BANDS - 1)], 0.0)
    taps_PN = np.fft.irfft(gains_PF, size, axis=1)
    lags = np.arange(-REACH_SAMPLES, REACH_SAMPLES + 1)
    window = 0.5 + 0.5 * np.cos(np.pi * lags / (REACH_SAMPLES + 1))
    short_PN = np.zeros((NUM_CELLS, _BLOCK))
    short_PN[:, lags] = taps_PN[:, lags] * window
    # Symmetric around zero: the spectrum is real, the mark shifts nothing.
    gains_PF = np.fft.rfft(short_PN, axis=1).real * 10 ** (STRENGTH_DB / 20)
    return gains_PF.astype(np.float32)


class Watermarker:
    """Marks a stream of sound piece by piece, with exact length and no shift.

    The same position of the same sound is marked bit for bit alike, however the stream is cut
    into pieces and wherever it begins (but for 10 ms at its ends, which hear zeros beyond).

    Attributes:
        position: absolute sample of the next sample to come out.
    """

    def __init__(self, start_sample: int = 0) -> None:
        """Starts a stream.

        Args:
            start_sample: position of the first sample on the clock that the pattern follows.
        """
        self.position = start_sample
        # The first cell that reaches into the stream, and what it hears before the start.
        self._cell = (start_sample + FADE_SAMPLES // 2) // CELL_SAMPLES - 1
        self._padding = start_sample - self._block_start(self._cell)
        self._heard_CL: NDArray[np.float32] | None = None
        self._tail_CL: NDArray[np.float32] | None = None
        self._num_pending = 0

    def push(self, audio_LC: ArrayLike) -> NDArray[np.float32]:
        """Takes the next samples and returns the marked ones that are ready.

        Args:
            audio_LC: [L, C], any L; C stays the same from call to call.

        Returns:
            Marked sound float32 [L', C]; at most 1215 samples (25 ms) are held back.
        """
        audio_CL = np.asarray(audio_LC, np.float32).T
        if self._heard_CL is None:
            self._heard_CL = np.zeros((len(audio_CL), self._padding), np.float32)
            self._tail_CL = np.zeros((len(audio_CL), FADE_SAMPLES), np.float32)
        self._heard_CL = np.concatenate([self._heard_CL, audio_CL], axis=1)
        self._num_pending += audio_CL.shape[1]
        done = []
        used = 0
        while used + _SPAN + 2 * REACH_SAMPLES <= self._heard_CL.shape[1]:
            done.append(self._mark_cell(used))
            used += CELL_SAMPLES
        self._heard_CL = self._heard_CL[:, used:]
        if not done:
            return np.zeros((0, len(audio_CL)), np.float32)
        return np.ascontiguousarray(np.concatenate(done, axis=1).T)

    def flush(self) -> NDArray[np.float32]:
        """The rest of the stream, float32 [L', C], as if silence followed; ends the stream."""
        if self._heard_CL is None:
            return np.zeros((0, TIMING.num_channels), np.float32)
        num, channels = self._num_pending, len(self._heard_CL)
        silence_LC = np.zeros((2 * _SPAN + 2 * REACH_SAMPLES, channels), np.float32)
        end = self.position + num
        rest_LC = self.push(silence_LC)[:num]
        self.position, self._num_pending = end, 0
        return rest_LC

    @staticmethod
    def _block_start(cell: int) -> int:
        """First absolute sample that a cell hears."""
        return cell * CELL_SAMPLES - FADE_SAMPLES // 2 - REACH_SAMPLES

    def _mark_cell(self, used: int) -> NDArray[np.float32]:
        """Marks the samples that are complete with the next cell, [C, L <= CELL_SAMPLES]."""
        size = _SPAN + 2 * REACH_SAMPLES
        block_CN = np.zeros((len(self._heard_CL), _BLOCK), np.float32)
        block_CN[:, :size] = self._heard_CL[:, used : used + size]
        # The block may wrap around: only the first and last REACH_SAMPLES, which are cut, hear it.
        heard_CF = np.fft.rfft(block_CN, axis=1)
        filtered_CN = np.fft.irfft(heard_CF * _responses()[self._cell % NUM_CELLS], _BLOCK)
        mark_CL = filtered_CN[:, REACH_SAMPLES : REACH_SAMPLES + _SPAN] * cell_shape()
        mark_CL[:, :FADE_SAMPLES] += self._tail_CL
        self._tail_CL = mark_CL[:, CELL_SAMPLES:]
        original_CL = block_CN[:, REACH_SAMPLES : REACH_SAMPLES + CELL_SAMPLES]
        marked_CL = original_CL + mark_CL[:, :CELL_SAMPLES]
        before = max(0, self.position - (self._block_start(self._cell) + REACH_SAMPLES))
        self._cell += 1
        marked_CL = marked_CL[:, before:]
        self.position += marked_CL.shape[1]
        self._num_pending -= marked_CL.shape[1]
        return marked_CL


def mark(audio_LC: ArrayLike, start_sample: int = 0) -> NDArray[np.float32]:
    """Marks a whole sound.

    Args:
        audio_LC: [L, C].
        start_sample: position of its first sample on the clock that the pattern follows.

    Returns:
        float32 [L, C]; marked minus original is about 32 dB below the original.
    """
    marker = Watermarker(start_sample)
    return np.concatenate([marker.push(audio_LC), marker.flush()])
