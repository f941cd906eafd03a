"""Which objects a dub saw, for how long, and how loud the sound was while they were in the picture.

Legend: L samples, C audio channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spatial_v2a.audio.stereo import NOTHING_DBFS
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.timing import TIMING

# With fewer ticks than this share that show an object, the sound has next to nothing to follow.
LEAST_SHARE = 0.02
# More classes than this would push everything else off the screen.
MAX_NAMED = 6


@dataclass(frozen=True)
class HeardClass:
    """One class of objects over the whole video.

    Attributes:
        class_name: as the detector's vocabulary names it.
        seconds: how long at least one of them was in the picture.
        loudest_dbfs: level of the generated sound in the loudest tick of that time, RMS over both
            channels; NOTHING_DBFS for silence.
    """

    class_name: str
    seconds: float
    loudest_dbfs: float


@dataclass(frozen=True)
class HeardObjects:
    """What was in the picture of a dub.

    Attributes:
        share: ticks with at least one object in the picture, of all ticks, 0..1.
        classes: those in the picture, longest first.
    """

    share: float
    classes: tuple[HeardClass, ...]

    @property
    def is_next_to_nothing(self) -> bool:
        """Whether the sound had hardly an object to follow."""
        return self.share < LEAST_SHARE

    @property
    def names(self) -> str:
        """The classes, longest first, or "nothing"."""
        shown = [one.class_name for one in self.classes[:MAX_NAMED]]
        more = len(self.classes) - len(shown)
        return ", ".join(shown + ([f"{more} more"] if more else [])) or "nothing"

    @property
    def line(self) -> str:
        """All of it in words, one line."""
        parts = [
            f"{one.class_name} {one.seconds:.1f} s (loudest {one.loudest_dbfs:.1f} dBFS)"
            for one in self.classes[:MAX_NAMED]
        ]
        more = len(self.classes) - len(parts)
        parts += [f"{more} more"] if more else []
        heard = ", ".join(parts) or "nothing it knows"
        return f"objects in {self.share:.0%} of the picture's ticks: {heard}"


@dataclass
class _Seen:
    num_ticks: int = 0
    loudest: float = 0.0


@dataclass
class ObjectNotes:
    """Notes the objects of one tick after another; boxes that are only held do not count.

    Args:
        names: class names by index.
    """

    names: Sequence[str]
    _seen: dict[int, _Seen] = field(default_factory=dict)
    _num_ticks: int = 0
    _num_with_objects: int = 0

    def add(self, boxes: Sequence[Box], audio_LC: np.ndarray) -> None:
        """Notes a tick: its boxes, and its generated sound [L, 2]."""
        there = {box.class_index for box in boxes if not box.is_persisted}
        power = float(np.mean(np.square(audio_LC, dtype=np.float64)))
        self._num_ticks += 1
        self._num_with_objects += bool(there)
        for class_index in there:
            seen = self._seen.setdefault(class_index, _Seen())
            seen.num_ticks += 1
            seen.loudest = max(seen.loudest, power)

    def summary(self) -> HeardObjects:
        """What was noted so far."""
        ranked = sorted(self._seen.items(), key=lambda item: (-item[1].num_ticks, item[0]))
        floor = 10 ** (NOTHING_DBFS / 10)
        classes = tuple(
            HeardClass(
                class_name=self.names[class_index],
                seconds=seen.num_ticks / TIMING.tick_hz,
                loudest_dbfs=float(10 * np.log10(max(seen.loudest, floor))),
            )
            for class_index, seen in ranked
        )
        return HeardObjects(self._num_with_objects / max(self._num_ticks, 1), classes)
