"""The generated sound with the original one: dropped, kept, or kept with the generated one ducked.

Legend: L samples, C audio channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import Field

from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.inference.dub.filters import SoundFilter, Step
from spatial_v2a.inference.dub.original_sound import OriginalTrack, track_pieces
from spatial_v2a.strict import StrictConfig
from spatial_v2a.timing import TIMING

Original = Literal["drop", "keep", "duck"]

# The side chain: speech of -20 dBFS turns the generated sound down by about 12 dB, at once enough
# for the first syllable to be heard, and slowly enough afterwards not to pump between words.
DUCKING: Step = (
    "sidechaincompress",
    "threshold=0.015:ratio=2:attack=15:release=400:knee=4:detection=rms:link=maximum",
)


class MixSettings(StrictConfig):
    """How the generated sound and the original one become one.

    Attributes:
        original: leave the original sound out, keep it, or keep it and turn the generated sound
            down under it.
        original_gain, gain: of the original and of the generated sound, dB.
        loudness: EBU R 128 programme loudness of the result in LUFS; None leaves it as it is.
    """

    original: Original = "drop"
    original_gain: float = Field(default=0.0, ge=-60, le=24)
    gain: float = Field(default=0.0, ge=-60, le=40)
    loudness: float | None = Field(default=None, ge=-50, le=-5)


@dataclass(frozen=True)
class Extent:
    """Where the finished sound lies, in samples from the start of the picture.

    Attributes:
        start: its first sample; negative when the original sound begins before the picture.
        stop: one past its last sample.
    """

    start: int
    stop: int

    @property
    def num_samples(self) -> int:
        """Length of the sound."""
        return self.stop - self.start


def mix_extent(source: VideoSource, track: OriginalTrack | None) -> Extent:
    """The picture's extent, and that of the original sound where it is kept: none of it is lost."""
    if track is None:
        return Extent(0, source.num_samples)
    rate_hz = TIMING.sample_rate_hz
    starts, ends = ((t - source.extent.start_s) * rate_hz for t in (track.start_s, track.end_s))
    return Extent(min(0, round(starts)), max(source.num_samples, round(ends)))


def mixed_pieces(
    generated: Iterator[np.ndarray],
    settings: MixSettings,
    *,
    source: VideoSource,
    track: OriginalTrack | None,
    extent: Extent,
    generated_start: int = 0,
) -> Iterator[np.ndarray]:
    """The mix over `extent`, piece by piece.

    Args:
        generated: the generated sound in pieces of any length; what reaches past `extent` is cut,
            what is missing is silence.
        settings: gains and what happens to the original.
        source: the video.
        track: the original sound to mix in; None leaves it out.
        extent: from `mix_extent`, or the picture's alone.
        generated_start: sample at which the generated sound begins, not before `extent`.

    Yields:
        float32 [L, 2], at most a tick long.
    """
    gain = 10 ** (settings.gain / 20)
    ours = ticks_of(generated, extent, first=generated_start)
    if track is None:
        yield from (piece_LC if gain == 1 else gain * piece_LC for piece_LC in ours)
        return
    start_s = source.extent.start_s + Fraction(extent.start, TIMING.sample_rate_hz)
    theirs = track_pieces(track, start_s=start_s, num_samples=extent.num_samples)
    loud = np.float32(10 ** (settings.original_gain / 20))
    if settings.original == "keep":
        for our_LC, their_LC in zip(ours, theirs, strict=True):
            yield np.float32(gain) * our_LC + loud * their_LC
        return
    yield from _ducked(ours, theirs, np.float32(gain), loud)


def ticks_of(
    pieces: Iterator[np.ndarray], extent: Extent, *, first: int = 0
) -> Iterator[np.ndarray]:
    """Sound that begins at sample `first` in pieces of a tick over `extent`, else silence."""
    assert first >= extent.start, f"sound from {first} begins before {extent}"
    step, num_left = TIMING.samples_per_tick, extent.num_samples
    waiting_LC = np.zeros((first - extent.start, TIMING.num_channels), np.float32)
    while num_left > 0:
        while len(waiting_LC) < min(step, num_left):
            piece_LC = next(pieces, None)
            if piece_LC is None:
                piece_LC = np.zeros((step, TIMING.num_channels), np.float32)
            waiting_LC = np.concatenate([waiting_LC, piece_LC])
        length = min(step, num_left)
        yield waiting_LC[:length]
        waiting_LC = waiting_LC[length:]
        num_left -= length


def _ducked(
    ours: Iterator[np.ndarray], theirs: Iterator[np.ndarray], gain: np.float32, loud: np.float32
) -> Iterator[np.ndarray]:
    """Both summed, ours turned down where theirs is loud."""
    chain = SoundFilter(DUCKING, num_inputs=2)
    waiting_LC = np.zeros((0, TIMING.num_channels), np.float32)
    for our_LC, their_LC in zip(ours, theirs, strict=True):
        their_LC = loud * their_LC
        waiting_LC = np.concatenate([waiting_LC, their_LC])
        turned_LC = chain.push(gain * our_LC, their_LC)
        yield turned_LC + waiting_LC[: len(turned_LC)]
        waiting_LC = waiting_LC[len(turned_LC) :]
    rest_LC = chain.flush()[: len(waiting_LC)]
    missing = len(waiting_LC) - len(rest_LC)
    yield np.pad(rest_LC, ((0, missing), (0, 0))) + waiting_LC
