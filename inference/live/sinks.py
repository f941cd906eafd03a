"""Where live sound goes: a WAV or FLAC file, or raw samples on a pipe. Legend: L samples."""

import os
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from spatial_v2a.errors import UserError
from spatial_v2a.inference.marking.watermark import Watermarker
from spatial_v2a.inference.sound_file import MAX_RIFF_BYTES, SOUND_FORMATS
from spatial_v2a.timing import TIMING

PcmFormat = Literal["s16le", "f32le"]
BYTES_PER_SAMPLE = 3


class SinkClosed(Exception):
    """Whatever took the sound takes no more; the text says why."""


class LiveSink(Protocol):
    """Takes sound tick by tick.

    Attributes:
        delay_s: from writing to hearing, seconds, now.
        num_gaps: times it ran out of sound.
    """

    @property
    def delay_s(self) -> float: ...

    @property
    def num_gaps(self) -> int: ...

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """Appends float sound [L, 2].

        Raises:
            SinkClosed: it takes no more.
        """
        ...

    def close(self) -> None: ...


class FileSink:
    """A sound file of 24 bits, whole after `close` at whatever moment it comes.

    Args:
        path: its suffix is .wav or .flac.
        max_bytes: size at which a WAV file is full.
        is_marked: whether the samples get the watermark.
    """

    delay_s, num_gaps = 0.0, 0

    def __init__(
        self, path: Path, *, max_bytes: int = MAX_RIFF_BYTES, is_marked: bool = False
    ) -> None:
        kind, subtype = SOUND_FORMATS[path.suffix.lower()]
        bytes_left = max_bytes if kind == "WAV" else 2**62
        self._marker = Watermarker() if is_marked else None
        self._num_left = bytes_left // (TIMING.num_channels * BYTES_PER_SAMPLE)
        self._file = soundfile.SoundFile(
            path, "w", TIMING.sample_rate_hz, TIMING.num_channels, subtype, format=kind
        )

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """As in `LiveSink`; a file that is full is closed to more."""
        if len(audio_LC) > self._num_left:
            raise SinkClosed("a WAV file is full at 4 GB; use .flac for longer sound")
        self._append(audio_LC if self._marker is None else self._marker.push(audio_LC))
        self._num_left -= len(audio_LC)

    def close(self) -> None:
        """Completes the header."""
        try:
            if self._marker is not None:
                self._append(self._marker.flush())
        finally:
            self._file.close()

    def _append(self, audio_LC: NDArray[np.float32]) -> None:
        try:
            self._file.write(np.clip(audio_LC, -1.0, 1.0))
        except soundfile.SoundFileError as error:
            raise SinkClosed(f"the file cannot grow: {error}") from error


class PcmSink:
    """Raw samples, left and right in turn, on an open descriptor; stays open after `close`.

    Args:
        descriptor: file descriptor, 1 for stdout.
        pcm: `s16le`, 16-bit integers, or `f32le`, 32-bit floats about -1..1 that are not clipped.
    """

    delay_s, num_gaps = 0.0, 0

    def __init__(self, descriptor: int, pcm: PcmFormat) -> None:
        self._descriptor, self._pcm = descriptor, pcm

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """As in `LiveSink`; waits for a reader that is slow."""
        rest = memoryview(pcm_bytes(audio_LC, self._pcm))
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            raise SinkClosed("the reader of the pipe went away") from error

    def close(self) -> None:
        """Nothing is buffered here."""


def pcm_bytes(audio_LC: NDArray[np.float32], pcm: PcmFormat) -> bytes:
    """Float sound [L, 2] as raw little-endian samples."""
    if pcm == "f32le":
        return audio_LC.astype("<f4").tobytes()
    return np.rint(np.clip(audio_LC, -1.0, 1.0) * (2**15 - 1)).astype("<i2").tobytes()


def check_sound_suffix(path: Path) -> None:
    """Refuses a sink file that is no sound file.

    Raises:
        UserError: the suffix is none of SOUND_FORMATS.
    """
    if path.suffix.lower() not in SOUND_FORMATS:
        known = " or ".join(SOUND_FORMATS)
        raise UserError(
            f"--sink {path}: live sound goes to speakers, to - or to a {known} file; to put it"
            " beside a picture use spatial-v2a dub"
        )
