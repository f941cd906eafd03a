"""The bank's own audio: what a concept sounds like, made anew each time.

    sound = ProceduralBank().generate("footsteps", rng, 4.0, events_s=[0.5, 1.1])

The sounds are this project's own work (Apache-2.0; rendered ones also CC0). Legend: L samples,
N events, T ticks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from spatial_v2a.errors import UserError
from spatial_v2a.training.sounds.makers import MAKERS, Ask
from spatial_v2a.training.sounds.synthesis import RATE_HZ, Samples, num_of

# RMS of the loudest tenth of a second of every sound, and its peak over that.
LEVEL_DBFS = -20.0
MAX_CREST = 5.0
LEVEL_WINDOW_S = 0.1
MAX_TILT_DB = 3.0


@dataclass(frozen=True)
class Sound:
    """One rendered sound.

    Attributes:
        audio_L: mono, 48 kHz, float32; its loudest tenth of a second is at LEVEL_DBFS.
        onsets_s: where its events begin, seconds [N]; empty where it has none.
    """

    audio_L: Samples
    onsets_s: NDArray[np.float64]


class Bank(Protocol):
    """What gives each concept a sound: procedures, or a folder of recordings."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts that it has sounds for."""

    def generate(
        self,
        concept: str,
        rng: np.random.Generator,
        duration_s: float,
        *,
        events_s: Sequence[float] | None = None,
        drive_T: NDArray | None = None,
    ) -> Sound:
        """A sound of that concept, see `ProceduralBank.generate`."""


class ProceduralBank:
    """Procedures alone: no files, no limits, nobody's rights."""

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts that it has sounds for."""
        return tuple(MAKERS)

    def generate(
        self,
        concept: str,
        rng: np.random.Generator,
        duration_s: float,
        *,
        events_s: Sequence[float] | None = None,
        drive_T: NDArray | None = None,
    ) -> Sound:
        """A sound of a concept; every call draws a pitch, a timbre and a pattern of its own.

        Args:
            concept: name in CONCEPTS.
            rng: source of all chance: the same state makes the same sound, to the bit.
            duration_s: length.
            events_s: when its events are to begin (steps, strokes, calls, bangs); none at all is
                silence. None: a pattern of its own. Sounds without events do not look at it.
            drive_T: how fast its clock runs at equally spaced moments, 0..1 (the revolutions of an
                engine); None is a speed by chance.

        Raises:
            UserError: no such concept.
        """
        maker = MAKERS.get(concept)
        if maker is None:
            raise UserError(f"no sound for {concept!r}; `spatial-v2a sounds` lists the concepts")
        num = num_of(duration_s)
        drive_T = np.full(1, rng.uniform(0.1, 0.9)) if drive_T is None else np.asarray(drive_T)
        at = np.linspace(0, len(drive_T) - 1, num)
        drive_L = np.interp(at, np.arange(len(drive_T)), np.clip(drive_T, 0, 1))
        times = None if events_s is None else np.sort(np.asarray(events_s, np.float64))
        tilt_db = rng.uniform(-MAX_TILT_DB, MAX_TILT_DB)
        audio_L, onsets_s = maker(Ask(rng, num, times, drive_L.astype(np.float32)))
        onsets_s = np.sort(onsets_s[(onsets_s >= 0) & (onsets_s < duration_s)])
        return Sound(levelled(_tilted(audio_L, tilt_db)), onsets_s)


def levelled(audio_L: NDArray) -> Samples:
    """A sound [L] whose loudest tenth of a second is at LEVEL_DBFS; its peaks are softly clipped.

    Digital silence stays.
    """
    window = min(num_of(LEVEL_WINDOW_S), len(audio_L))
    if window == 0:
        return np.asarray(audio_L, np.float32)
    energy = np.concatenate([[0.0], np.cumsum(np.square(audio_L, dtype=np.float64))])
    loudest = np.sqrt(max(float((energy[window:] - energy[:-window]).max()), 0.0) / window)
    if loudest < 1e-9:
        return np.zeros(len(audio_L), np.float32)
    target = 10 ** (LEVEL_DBFS / 20)
    limit = MAX_CREST * target
    return (limit * np.tanh(np.asarray(audio_L) * (target / loudest / limit))).astype(np.float32)


def _tilted(audio_L: NDArray, db: float) -> NDArray:
    """A gentle step between lows and highs, around 1 kHz: another room, another microphone.

    Causal, so that nothing rings before an event.
    """
    share = 1 - np.exp(-2 * np.pi * 1_000 / RATE_HZ)
    low_L = lfilter([share], [1, share - 1], audio_L)
    return 10 ** (db / 20) * (audio_L - low_L) + 10 ** (-db / 20) * low_L
