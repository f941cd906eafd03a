"""Loudness and true peak of sound as it streams by, and a limiter for its peaks.

EBU R 128: integrated loudness by ITU-R BS.1770-4, true peak of the oversampled signal; both by
FFmpeg's `ebur128`. Legend: L samples, C audio channels.
"""

import math
from dataclasses import dataclass

import numpy as np

from spatial_v2a.inference.dub.filters import SoundFilter
from spatial_v2a.timing import TIMING

# EBU R 128, recommendation (h): no programme above -1 dBTP.
MAX_TRUE_PEAK_DBTP = -1.0
# What the limiter aims at: resampling back from its rate overshoots a little.
LIMIT_DBTP = -2.0
OVERSAMPLING = 4
# `ebur128` measures in blocks of 100 ms.
BLOCK_SAMPLES = TIMING.sample_rate_hz // 10
# What `ebur128` says of silence.
SILENT_LUFS = -70.0


@dataclass(frozen=True)
class Loudness:
    """EBU R 128 figures of a whole sound.

    Attributes:
        integrated_lufs: gated loudness; -70 for silence.
        true_peak_dbtp: highest oversampled peak, dB relative to full scale.
    """

    integrated_lufs: float
    true_peak_dbtp: float

    @property
    def is_silent(self) -> bool:
        """Whether nothing passed the gate of -70 LUFS."""
        return self.integrated_lufs <= SILENT_LUFS


class LoudnessMeter:
    """Measures what streams by; memory does not grow."""

    def __init__(self) -> None:
        self._filter = SoundFilter(("ebur128", "peak=true:metadata=1:framelog=quiet"))
        self._loudest = 0.0
        self._num_samples = 0

    def add(self, audio_LC: np.ndarray) -> None:
        """Takes the next piece [L, 2]."""
        if len(audio_LC):
            self._loudest = max(self._loudest, float(np.abs(audio_LC).max()))
            self._num_samples += len(audio_LC)
            self._filter.push(audio_LC)

    def finish(self) -> Loudness:
        """Figures of all that was added."""
        # Silence completes the last block, or its peaks between samples would not be seen.
        missing = -self._num_samples % BLOCK_SAMPLES
        if missing:
            self._filter.push(np.zeros((missing, TIMING.num_channels), np.float32))
        self._filter.flush()
        told = self._filter.metadata
        peak = max(float(told.get("lavfi.r128.true_peak", 0.0)), self._loudest)
        return Loudness(
            integrated_lufs=max(float(told.get("lavfi.r128.I", SILENT_LUFS)), SILENT_LUFS),
            true_peak_dbtp=20 * math.log10(max(peak, 1e-6)),
        )


class Limiter:
    """Holds true peaks below -1 dBTP by turning down for some milliseconds around them.

    FFmpeg's look-ahead limiter at four times the rate, where the peaks between samples are seen;
    length and times stay.
    """

    def __init__(self) -> None:
        rate_hz = OVERSAMPLING * TIMING.sample_rate_hz
        limit = 10 ** (LIMIT_DBTP / 20)
        self._filter = SoundFilter(
            ("aresample", str(rate_hz)),
            ("alimiter", f"level=0:limit={limit:.6f}:attack=5:release=50:latency=1"),
            ("aresample", str(TIMING.sample_rate_hz)),
        )
        self._num_in = self._num_out = 0

    def push(self, audio_LC: np.ndarray) -> np.ndarray:
        """Takes a piece [L, 2] and returns what is ready [L', 2]."""
        self._num_in += len(audio_LC)
        return self._counted(self._filter.push(audio_LC))

    def flush(self) -> np.ndarray:
        """The rest; after it as many samples have come out as went in."""
        rest_LC = self._filter.flush()[: self._num_in - self._num_out]
        missing = self._num_in - self._num_out - len(rest_LC)
        return self._counted(np.pad(rest_LC, ((0, missing), (0, 0))))

    def _counted(self, audio_LC: np.ndarray) -> np.ndarray:
        self._num_out += len(audio_LC)
        return audio_LC
