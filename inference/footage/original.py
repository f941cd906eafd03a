"""The sound that footage came with: how stereo it is, and its samples on the picture's clock.

Legend: L samples, C audio channels.
"""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torchaudio

from spatial_v2a.errors import UserError
from spatial_v2a.inference.footage.item import Item
from spatial_v2a.inference.inspect.measure import (
    EXACT,
    MONO,
    NEAR,
    SILENT,
    StereoFigures,
    measure,
)
from spatial_v2a.inference.inspect.sound import MAX_JUMP_S, SoundReader, Track, describe_track
from spatial_v2a.timing import TIMING

NO_SOUND, UNREADABLE = "no sound track", "unreadable sound"
MONO_KINDS = (MONO, EXACT, NEAR)


@dataclass(frozen=True)
class Original:
    """What is known of an item's own sound.

    Attributes:
        kind: as `spatial-v2a inspect` names it, or NO_SOUND or UNREADABLE.
        reason: why it is unreadable.
        track, stereo: its header and figures; None where there are none.
    """

    kind: str
    reason: str = ""
    track: Track | None = None
    stereo: StereoFigures | None = None

    @property
    def is_sound(self) -> bool:
        """Whether an envelope can be compared with it: it has one, in a layout that is known."""
        has_channels = self.stereo is not None or self.kind == MONO
        return has_channels and self.kind != SILENT

    @property
    def has_sides(self) -> bool:
        """Whether left and right can be compared with it."""
        return self.stereo is not None and self.kind not in (*MONO_KINDS, SILENT)

    @property
    def side_over_mid_db(self) -> float:
        """Side level minus mid level; NaN without sides."""
        return self.stereo.summary.side_over_mid_db if self.has_sides else float("nan")

    @property
    def pan_std_db(self) -> float:
        """Standard deviation of its level difference over audible ticks; NaN without sides."""
        return self.stereo.difference_std_db if self.has_sides else float("nan")


def inspect_original(item: Item) -> Original:
    """Measures an item's own sound in one pass; damage is told, not raised."""
    if item.sound is None:
        return Original(NO_SOUND)
    try:
        track = describe_track(item.sound)
        measured = measure(item.sound, track)
    except UserError as error:
        return Original(UNREADABLE, reason=str(error))
    return Original(measured.kind, track=track, stereo=measured.stereo)


def read_original(item: Item, original: Original) -> np.ndarray:
    """An item's own sound at 48 kHz from the picture's first moment to its last, [L, 2] float32.

    One channel is given to both sides at its own level; of more than two, left and right are kept.
    """
    track = original.track
    rate_hz = track.sample_rate_hz
    audio_LC = _placed(item.sound, track, item.sound_start_s, item.duration_s)
    if rate_hz != TIMING.sample_rate_hz:
        audio_CL = torch.from_numpy(np.ascontiguousarray(audio_LC.T))
        audio_CL = torchaudio.functional.resample(audio_CL, rate_hz, TIMING.sample_rate_hz)
        audio_LC = audio_CL.T.numpy()
    missing = max(0, item.num_samples - len(audio_LC))
    return np.pad(audio_LC[: item.num_samples], ((0, missing), (0, 0)))


def _placed(path: Path, track: Track, start_s: Fraction, duration_s: Fraction) -> np.ndarray:
    """Left and right at the file's own rate, on the picture's clock.

    Stamps that jitter by less than MAX_JUMP_S are rounding: moving sound by them would click.
    """
    rate_hz = track.sample_rate_hz
    audio_LC = np.zeros((-(-duration_s * rate_hz // 1), 2), np.float32)
    pair = list(track.pair or (0, 0))
    expected: int | None = None
    for window in SoundReader(path, track).windows():
        first = round((window.time_s - float(start_s)) * rate_hz)
        if expected is None or abs(first - expected) > MAX_JUMP_S * rate_hz:
            expected = first
        begin, end = expected, expected + len(window.samples_LC)
        expected = end
        if begin >= len(audio_LC):
            break
        if end > 0:
            skip = max(0, -begin)
            stop = min(end, len(audio_LC))
            audio_LC[begin + skip : stop] = window.samples_LC[skip : stop - begin, pair]
    return np.nan_to_num(audio_LC, nan=0.0, posinf=0.0, neginf=0.0)
