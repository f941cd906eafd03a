"""Looks for the watermark of `watermark.py` in any sound, cut, coded or resampled.

The log-spectrum is whitened against the sound's own habits (its modulation spectrum, estimated
from the window itself) and summed cell by cell with the mark's shape: u[cell, band]. With signs s
the score is z = sum(s * u) / sqrt(sum(u^2)), highest over all offsets of the period. In unmarked
sound the signs are independent of u, so each offset's z is a Rademacher sum of unit variance, and
its tail is that of a Gaussian whatever the sound (Hoeffding 1963).

Legend: L samples, C channels, N spectrum frames, K bins, B bands, P cells, H hops of a cell.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path

import av
import numpy as np
import scipy.fft
import scipy.signal
import scipy.stats
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import uniform_filter

from spatial_v2a.conditioning.media import decoded, open_input, with_left_right
from spatial_v2a.errors import UserError
from spatial_v2a.inference.marking.watermark import (
    BIN_SAMPLES,
    BINS_PER_BAND,
    CELL_SAMPLES,
    FIRST_BIN,
    NUM_BANDS,
    NUM_CELLS,
    cell_shape,
    signs,
)
from spatial_v2a.timing import TIMING

# Chance that a whole unmarked file is called marked; the promise is 1 in 1000.
MAX_FALSE_ALARM = 1e-4
HOP_SAMPLES = 128
HOPS_PER_CELL = CELL_SAMPLES // HOP_SAMPLES
NUM_OFFSETS = NUM_CELLS * HOPS_PER_CELL
WINDOW_SAMPLES = 10 * TIMING.sample_rate_hz
# Scores are taken over two blocks that follow each other, so that a marked part is found too.
HOPS_PER_BLOCK = 5 * TIMING.sample_rate_hz // HOP_SAMPLES
# The mark repeats after 4.1 s: in a file shorter than this it may go unnoticed.
MIN_LENGTH_S = 5.0
MIN_SOUND_S = 1.0
# A frame counts as sound above this level, and within this range of the window's loudest.
MIN_LEVEL_DB = -80.0
ACTIVE_RANGE_DB = 60.0
# Bins this far below the window's loudest one carry no mark that a file could keep.
FLOOR_DB = -90.0


@dataclass(frozen=True)
class WatermarkFinding:
    """What a search found.

    Attributes:
        is_marked: the watermark is there.
        has_enough_sound: False when the file is too short, or holds too little sound, to tell
            (never with `is_marked`).
        score: highest score over all parts and offsets, in standard deviations.
        threshold: score from which the watermark counts as found, for this length.
        p_value: bound on the chance that an unmarked sound scores as high.
        num_seconds: seconds that hold sound.
        length_s: length of the file, seconds.
    """

    is_marked: bool
    has_enough_sound: bool
    score: float
    threshold: float
    p_value: float
    num_seconds: float
    length_s: float


def detect_watermark(audio_LC: ArrayLike, sample_rate_hz: int) -> WatermarkFinding:
    """Looks for the watermark in a sound.

    Args:
        audio_LC: float in -1..1, [L, C] or [L].
        sample_rate_hz: its rate; another than the project's is resampled.
    """
    audio_LC = np.asarray(audio_LC, np.float32)
    audio_LC = audio_LC[:, None] if audio_LC.ndim == 1 else audio_LC
    if sample_rate_hz != TIMING.sample_rate_hz and len(audio_LC):
        common = gcd(sample_rate_hz, TIMING.sample_rate_hz)
        up, down = TIMING.sample_rate_hz // common, sample_rate_hz // common
        audio_LC = scipy.signal.resample_poly(audio_LC, up, down, axis=0)
    return _search([audio_LC])


def detect_file(path: str | Path) -> WatermarkFinding:
    """Looks for the watermark in the first sound track of a sound or video file.

    Memory does not grow with the length: windows of 10 s are searched one by one.

    Raises:
        UserError: no such file, no sound in it, or not readable.
    """
    return _search(_decoded(Path(path)))


def _decoded(path: Path) -> Iterator[NDArray[np.float32]]:
    """Pieces [L, 2] of the first sound track at the project's rate."""
    with open_input(path, kind="sound or video file") as container:
        if not container.streams.audio:
            raise UserError(f"{path} holds no sound; give a file with a sound track")
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise UserError(f"{path}: its sound has an unknown codec; convert it to WAV first")
        resampler = av.AudioResampler("flt", "stereo", TIMING.sample_rate_hz)
        for frame in decoded(container, track):
            if frame is None:
                raise UserError(f"the sound of {path} is damaged; copy it again")
            for piece in resampler.resample(with_left_right(frame)):
                yield piece.to_ndarray().reshape(-1, 2)
        for piece in resampler.resample(None):
            yield piece.to_ndarray().reshape(-1, 2)


def _windows(pieces: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Joins pieces to windows of WINDOW_SAMPLES; the last is half to one and a half as long."""
    waiting: list[NDArray[np.float32]] = []
    num_waiting = 0
    for piece_LC in pieces:
        waiting.append(piece_LC)
        num_waiting += len(piece_LC)
        if 2 * num_waiting >= 3 * WINDOW_SAMPLES:
            joined_LC = np.concatenate(waiting)
            while 2 * len(joined_LC) >= 3 * WINDOW_SAMPLES:
                yield joined_LC[:WINDOW_SAMPLES]
                joined_LC = joined_LC[WINDOW_SAMPLES:]
            waiting, num_waiting = [joined_LC], len(joined_LC)
    if num_waiting:
        yield np.concatenate(waiting)


def _search(pieces: Iterable[NDArray[np.float32]]) -> WatermarkFinding:
    """The best of every two neighbouring blocks and of all blocks together."""
    last_PHB = together_PHB = np.zeros((NUM_CELLS, HOPS_PER_CELL, NUM_BANDS), np.float32)
    scores, num_blocks, num_seconds, first_hop, num_samples = [0.0], 0, 0.0, 0, 0
    for audio_LC in _windows(pieces):
        power_NK = _power(np.nan_to_num(audio_LC, posinf=0.0, neginf=0.0))
        active_s = _active_s(power_NK)
        num_samples += len(audio_LC)
        num_seconds += active_s
        white_NK = _whiten(power_NK) if active_s > 0 else np.zeros_like(power_NK)
        for start in range(0, len(white_NK), HOPS_PER_BLOCK):
            folded_PHB = _fold(white_NK[start : start + HOPS_PER_BLOCK], first_hop + start)
            if num_blocks > 0:
                scores.append(_best(last_PHB + folded_PHB))
            last_PHB, together_PHB = folded_PHB, together_PHB + folded_PHB
            num_blocks += 1
        first_hop += len(audio_LC) // HOP_SAMPLES
    if num_blocks != 2:
        scores.append(_best(together_PHB))
    score, num_trials = max(scores), NUM_OFFSETS * (len(scores) - 1)
    threshold = float(scipy.stats.norm.isf(MAX_FALSE_ALARM / num_trials))
    is_marked, length_s = score > threshold, num_samples / TIMING.sample_rate_hz
    return WatermarkFinding(
        is_marked=is_marked,
        has_enough_sound=is_marked or (length_s >= MIN_LENGTH_S and num_seconds >= MIN_SOUND_S),
        score=score,
        threshold=threshold,
        p_value=min(1.0, num_trials * float(scipy.stats.norm.sf(score))),
        num_seconds=num_seconds,
        length_s=length_s,
    )


def _power(audio_LC: NDArray[np.float32]) -> NDArray[np.float32]:
    """Power of the mark's bins, summed over channels, 1 for a full-scale sine, [N, K]."""
    num_bins = NUM_BANDS * BINS_PER_BAND
    if len(audio_LC) < BIN_SAMPLES:
        return np.zeros((0, num_bins), np.float32)
    window = scipy.signal.get_window("hann", BIN_SAMPLES).astype(np.float32)
    power_NK = 0.0
    for audio_L in audio_LC.T:
        frames = sliding_window_view(audio_L, BIN_SAMPLES)[::HOP_SAMPLES]
        bins_NK = scipy.fft.rfft(frames * (2 * window / window.sum()), axis=1)
        bins_NK = bins_NK[:, FIRST_BIN : FIRST_BIN + num_bins]
        power_NK = power_NK + bins_NK.real**2 + bins_NK.imag**2
    return power_NK


def _active_s(power_NK: NDArray[np.float32]) -> float:
    """Seconds that hold sound in the mark's bands."""
    power_N = power_NK.sum(axis=1)
    least = max(power_N.max(initial=0.0) * 10 ** (-ACTIVE_RANGE_DB / 10), 10 ** (MIN_LEVEL_DB / 10))
    return float(np.count_nonzero(power_N > least)) * HOP_SAMPLES / TIMING.sample_rate_hz


def _whiten(power_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Log-spectrum filtered for the mark against the sound's own modulations, [N, K].

    The filter is response / sound's modulation spectrum (a matched filter in coloured noise),
    applied in two halves with outliers clipped between them.
    """
    log_NK = np.log(power_NK + power_NK.max() * 10 ** (FLOOR_DB / 10))
    log_NK -= uniform_filter(log_NK, (17, 5), mode="nearest")
    np.clip(log_NK, -2.5, 2.5, out=log_NK)
    shape = tuple(scipy.fft.next_fast_len(n + 16, real=True) for n in log_NK.shape)
    modulation = scipy.fft.rfft2(log_NK - log_NK.mean(), shape)
    sound = modulation.real**2 + modulation.imag**2
    # A patch of 7 modulation rates and 3 quefrencies still resolves a pulse train's harmonics.
    sound = uniform_filter(sound, (7, 3), mode=("wrap", "nearest"))
    root = np.sqrt(sound + 1e-3 * sound.mean() + np.finfo(np.float32).tiny)
    half_NK = _inverse(modulation * _response(shape) / root, shape, log_NK.shape)
    limit = 3 * half_NK.std()
    half_NK = np.clip(half_NK, -limit, limit)
    return _inverse(scipy.fft.rfft2(half_NK, shape) / root, shape, log_NK.shape)


def _inverse(
    spectrum: NDArray[np.complex64], shape: tuple[int, ...], kept: tuple[int, ...]
) -> NDArray[np.float32]:
    return scipy.fft.irfft2(spectrum, shape)[: kept[0], : kept[1]]


def _response(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """How much of a gain's modulation the log-spectrum shows, by rate and quefrency."""
    window = scipy.signal.get_window("hann", BIN_SAMPLES)
    size = 64 * BIN_SAMPLES
    by_rate = np.abs(scipy.fft.rfft(window**2, size))
    rate = np.abs(scipy.fft.fftfreq(shape[0], HOP_SAMPLES)) * size
    overlap = np.correlate(window, window, "full")[BIN_SAMPLES - 1 :]
    quefrency = scipy.fft.rfftfreq(shape[1], 1 / BIN_SAMPLES)
    rates = np.interp(rate, np.arange(len(by_rate)), by_rate / by_rate[0])
    quefrencies = np.interp(quefrency, np.arange(BIN_SAMPLES), overlap / overlap[0])
    return (rates[:, None] * quefrencies).astype(np.float32)


def _fold(white_NK: NDArray[np.float32], first_hop: int) -> NDArray[np.float32]:
    """Sums u with the shape of a cell begun at each hop, folded over the period, [P, H, B].

    Args:
        white_NK: from `_whiten`.
        first_hop: hops from the start of the file to the first frame.
    """
    bands_NB = white_NK.reshape(len(white_NK), NUM_BANDS, BINS_PER_BAND).sum(axis=2)
    shape = cell_shape()[::HOP_SAMPLES]
    begun_NB = scipy.signal.oaconvolve(bands_NB, shape[::-1, None], axes=0)
    before = first_hop % NUM_OFFSETS
    after = -(before + len(begun_NB)) % NUM_OFFSETS
    begun_NB = np.pad(begun_NB, ((before, after), (0, 0)))
    return begun_NB.reshape(-1, NUM_CELLS, HOPS_PER_CELL, NUM_BANDS).sum(axis=0)


def _best(folded_PHB: NDArray[np.float32]) -> float:
    """Highest score over all offsets of the period."""
    folded = scipy.fft.rfft(folded_PHB, axis=0)
    pattern = scipy.fft.rfft(signs(), axis=0).conj()
    sums_PH = scipy.fft.irfft(np.einsum("phb,pb->ph", folded, pattern), NUM_CELLS, axis=0)
    variance_H = (folded_PHB.astype(np.float64) ** 2).sum(axis=(0, 2))
    return float((sums_PH / np.sqrt(variance_H + np.finfo(np.float64).tiny)).max())
