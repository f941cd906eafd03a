"""From generated sound to the sound of the file: mixed, levelled, marked, its peaks held.

The mix is made twice: once to measure it, once to write it, so that nothing of it is kept.
Legend: L samples, C audio channels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from spatial_v2a.inference.dub.loudness import (
    MAX_TRUE_PEAK_DBTP,
    Limiter,
    Loudness,
    LoudnessMeter,
)
from spatial_v2a.inference.marking.watermark import Watermarker

Pieces = Iterator[np.ndarray]


@dataclass(frozen=True)
class Finish:
    """What is done to a mix, fixed before it is written.

    Attributes:
        gain_db: constant gain that brings it to the wanted loudness.
        is_limited: whether its peaks must be held.
        is_marked: whether the watermark goes in.
    """

    gain_db: float = 0.0
    is_limited: bool = False
    is_marked: bool = True

    def pieces(self, mix: Pieces, *, start_sample: int) -> Pieces:
        """The finished sound, as long as `mix`, in pieces of any length.

        Args:
            mix: float32 [L, 2] pieces.
            start_sample: where they begin, from the start of the picture.
        """
        gain = np.float32(10 ** (self.gain_db / 20))
        pieces = mix if self.gain_db == 0 else (gain * piece_LC for piece_LC in mix)
        if self.is_marked:
            pieces = _through(Watermarker(start_sample=start_sample), pieces)
        return _through(Limiter(), pieces) if self.is_limited else pieces


def plan_finish(
    make_mix: Callable[[], Pieces],
    *,
    start_sample: int,
    loudness: float | None,
    is_marked: bool,
    gain_db: float | None = None,
) -> Finish:
    """Measures a mix and says what it takes to reach a loudness with peaks below -1 dBTP.

    Args:
        make_mix: gives the mix anew, as often as it is called.
        start_sample: as in `Finish.pieces`.
        loudness: programme loudness to reach in LUFS; None leaves it.
        is_marked: whether the watermark goes in.
        gain_db: a gain that is fixed already, instead of `loudness`.
    """
    measured = measure(Finish(is_marked=is_marked).pieces(make_mix(), start_sample=start_sample))
    if gain_db is None:
        gain_db = 0.0
        if loudness is not None and not measured.is_silent:
            gain_db = loudness - measured.integrated_lufs
    is_limited = measured.true_peak_dbtp + gain_db > MAX_TRUE_PEAK_DBTP
    return Finish(gain_db=gain_db, is_limited=is_limited, is_marked=is_marked)


def measure(pieces: Pieces) -> Loudness:
    """Loudness and true peak of a whole sound."""
    meter = LoudnessMeter()
    for piece_LC in pieces:
        meter.add(piece_LC)
    return meter.finish()


def _through(stage: Limiter | Watermarker, pieces: Pieces) -> Pieces:
    for piece_LC in pieces:
        yield stage.push(piece_LC)
    yield stage.flush()
