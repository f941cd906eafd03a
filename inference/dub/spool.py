"""Generated sound on its way: on the disk of the file to be, so that hours need no memory.

Loudness and peaks of a whole sound are known at its end only; what is written is made from this.
Legend: L samples, C audio channels.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile

from spatial_v2a.audio.stereo import checked_sound
from spatial_v2a.files import Outputs
from spatial_v2a.timing import TIMING


class Spool:
    """Float sound in a hidden file that goes when the `with` block ends.

    Args:
        outputs: where files on their way lie.
        beside: the file to be; the sound lies on its disk.
    """

    def __init__(self, outputs: Outputs, beside: Path) -> None:
        self.path = outputs.temporary(beside, suffix=".w64")
        self._file = soundfile.SoundFile(
            self.path, "w", TIMING.sample_rate_hz, TIMING.num_channels, "FLOAT", format="W64"
        )
        self.num_samples = 0

    def write(self, audio_LC: np.ndarray) -> None:
        """Appends float32 sound [L, 2].

        Raises:
            NotSound: samples that are not finite.
        """
        self._file.write(checked_sound(audio_LC, where="generated sound"))
        self.num_samples += len(audio_LC)

    def complete(self) -> None:
        """Ends writing; from here on `pieces` can be read."""
        self._file.close()

    def pieces(self) -> Iterator[np.ndarray]:
        """The sound from its start in pieces of a tick, float32 [1600, 2]; as often as wanted."""
        with soundfile.SoundFile(self.path) as file:
            yield from file.blocks(TIMING.samples_per_tick, dtype="float32", always_2d=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        finally:
            self.path.unlink(missing_ok=True)
