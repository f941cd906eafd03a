"""Puts a new range of sound into an old one: crossfades within the range, nothing changed outside.

In AAC a packet bears on two blocks of samples: only packets whose blocks lie in the range are new.
Legend: L samples, C audio channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from spatial_v2a.conditioning.media import num_channels, open_input, packets
from spatial_v2a.errors import UserError
from spatial_v2a.inference.dub.original_sound import OriginalTrack
from spatial_v2a.timing import TIMING

FADE_IN_MS = 20.0
FADE_OUT_MS = 60.0
# ISO/IEC 14496-3: a packet of AAC-LC codes two overlapping blocks.
AAC_BLOCK = 1024
MIN_RANGE_MS = 200.0


@dataclass(frozen=True)
class Splice:
    """A range of samples, counted from the picture's start.

    Attributes:
        start, stop: outside [start, stop) nothing changes.
        extent_start: where the file's sound begins; AAC counts its blocks from there.
        is_aac: whether the range is stored as AAC among packets that stay.
    """

    start: int
    stop: int
    extent_start: int = 0
    is_aac: bool = False

    @property
    def changed(self) -> range:
        """Samples that are really new: in AAC a block less at each end, where old and new meet."""
        if not self.is_aac:
            return range(self.start, self.stop)
        packets = self.packets
        return range(
            self.extent_start + AAC_BLOCK * packets.start,
            self.extent_start + AAC_BLOCK * (packets.stop - 1),
        )

    @property
    def packets(self) -> range:
        """AAC packets that are new: packet k bears on samples [1024 (k - 1), 1024 (k + 1))."""
        first = -(-(self.start - self.extent_start) // AAC_BLOCK) + 1
        last = (self.stop - self.extent_start) // AAC_BLOCK - 1
        return range(first, last + 1)

    def apply(
        self, old: Iterator[np.ndarray], new_LC: np.ndarray, *, start: int
    ) -> Iterator[np.ndarray]:
        """The old sound with the new range in it, in the pieces of the old.

        Args:
            old: float32 [L, 2] pieces.
            new_LC: the new sound from the tick in which the range begins.
            start: where `old` begins, from the picture's start.
        """
        step, place = TIMING.samples_per_tick, start
        first = self.start // step * step
        for old_LC in old:
            at_L = np.arange(place, place + len(old_LC))
            place += len(old_LC)
            weight_L = self._weight(at_L)
            if not weight_L.any():
                yield old_LC
                continue
            inside_L = np.clip(at_L - first, 0, len(new_LC) - 1)
            # Equal power: old and new are different sounds, whose powers add.
            angle_L1 = (np.pi / 2 * weight_L)[:, None]
            faded_LC = np.cos(angle_L1) * old_LC + np.sin(angle_L1) * new_LC[inside_L]
            changed_L1 = (weight_L > 0)[:, None]
            yield np.where(changed_L1, faded_LC, old_LC).astype(np.float32)

    def _weight(self, at_L: np.ndarray) -> np.ndarray:
        """Share of the new sound: 0 outside, 1 within, rising and falling between."""
        changed = self.changed
        fade_in, fade_out = (
            round(ms * 1e-3 * TIMING.sample_rate_hz) for ms in (FADE_IN_MS, FADE_OUT_MS)
        )
        rise_L = (at_L - changed.start + 1) / fade_in
        fall_L = (changed.stop - at_L) / fade_out
        return np.clip(np.minimum(rise_L, fall_L), 0.0, 1.0)


def check_range(splice: Splice, text: str, *, previous: OriginalTrack, out: Path) -> None:
    """Refuses a range too short for its crossfades, or an old sound whose packets cannot stay.

    Raises:
        UserError: with the remedy.
    """
    length_ms = 1e3 * len(splice.changed) / TIMING.sample_rate_hz
    if 1e3 * (splice.stop - splice.start) / TIMING.sample_rate_hz < MIN_RANGE_MS or length_ms < 100:
        raise UserError(f"--redo {text} is shorter than {MIN_RANGE_MS / 1e3:g} s; widen it")
    if out.suffix.lower() == ".webm":
        raise UserError(
            f"{out} would store all of the sound with loss again; use -o with .mkv, .wav or .flac"
        )
    if splice.is_aac and not _is_ours(previous):
        raise UserError(
            f"the sound of {previous.path} is not AAC as dub writes it, so its packets cannot stay"
            f" in {out}; use -o with .mkv, .wav or .flac"
        )


class AacPackets:
    """The packets of an earlier file, handed out where they stay.

    Args:
        track: the earlier sound.
        splice: says which packets are new.
    """

    def __init__(self, track: OriginalTrack, splice: Splice) -> None:
        self._new = splice.packets
        self._number = 0
        self._old = _packets(track)

    def choose(self, packet: av.Packet) -> av.Packet:
        """The old packet of the same place, or `packet` where it is new or there is no old one."""
        old, number = next(self._old, None), self._number
        self._number += 1
        return packet if old is None or number in self._new else old


def _packets(track: OriginalTrack) -> Iterator[av.Packet]:
    with open_input(track.path) as container:
        for packet in packets(container, container.streams[track.index]):
            if packet.size:
                yield packet


def _is_ours(track: OriginalTrack) -> bool:
    with open_input(track.path) as container:
        stream = container.streams[track.index]
        context = stream.codec_context
        return (
            context.name == "aac"
            and context.sample_rate == TIMING.sample_rate_hz
            and num_channels(stream) == TIMING.num_channels
        )
