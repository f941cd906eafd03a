"""Files of sound alone, without loss.

Legend: L samples, C audio channels.
"""

from pathlib import Path
from typing import Self

import numpy as np
import soundfile

from spatial_v2a.audio.stereo import checked_sound
from spatial_v2a.conditioning.video import VideoSource

SOUND_FORMATS = {".wav": ("WAV", "PCM_24"), ".flac": ("FLAC", "PCM_24")}
# A RIFF file counts its bytes in 32 bits; longer sound needs its 64-bit form.
MAX_RIFF_BYTES = 2**32 - 2**16


class SoundFile:
    """Sound alone, 24 bits, exactly as long as the picture."""

    def __init__(self, path: Path, source: VideoSource) -> None:
        kind, subtype = SOUND_FORMATS[path.suffix.lower()]
        timing = source.timing
        if kind == "WAV" and source.num_samples * timing.num_channels * 3 > MAX_RIFF_BYTES:
            kind = "RF64"
        self._left = source.num_samples
        self._file = soundfile.SoundFile(
            path, "w", timing.sample_rate_hz, timing.num_channels, subtype, format=kind
        )

    def write(self, audio_LC: np.ndarray) -> None:
        """Appends float sound [L, 2]; what reaches past the picture's end is cut."""
        audio_LC = checked_sound(audio_LC[: self._left], where="the mix")
        self._left -= len(audio_LC)
        self._file.write(np.clip(audio_LC, -1.0, 1.0))

    def close(self) -> None:
        """Completes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
