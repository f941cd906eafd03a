"""Where live sound goes: a WAV or FLAC file, or raw samples on a pipe. Legend: L samples."""

import array
import fcntl
import os
import select
import stat
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import soundfile
from numpy.typing import NDArray

from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs
from spatial_v2a.inference.dub.sound_file import MAX_RIFF_BYTES, SOUND_FORMATS
from spatial_v2a.inference.live.conceal import Concealer
from spatial_v2a.inference.marking.watermark import Watermarker
from spatial_v2a.timing import TIMING

if TYPE_CHECKING:
    from spatial_v2a.conditioning.video import VideoSource
    from spatial_v2a.inference.engine.pipeline import Pipeline

PcmFormat = Literal["s16le", "f32le"]
BYTES_PER_SAMPLE = 3
# A reader of raw samples that is this much behind the clock gets no more until it has caught up.
MAX_WAITING_S = 0.25
# Where STREAMINFO (RFC 9639, section 8.2) stands in a FLAC file, and what it states there.
FLAC_BLOCK_SIZE, FLAC_NUM_SAMPLES, FLAC_MD5 = slice(10, 12), slice(18, 26), slice(26, 42)
FLAC_NUM_SAMPLES_BITS = 36
# How each frame of a FLAC file of fixed block size begins (section 9.1).
FLAC_SYNC = b"\xff\xf8"


class SinkClosed(Exception):
    """Whatever took the sound takes no more; the text says why."""


class LiveSink(Protocol):
    """Takes sound tick by tick.

    Attributes:
        delay_s: from writing to hearing, seconds, now.
        num_gaps: times it ran out of sound.
        num_dropped: ticks that it did not take in time, which are left out.
    """

    @property
    def delay_s(self) -> float: ...

    @property
    def num_gaps(self) -> int: ...

    @property
    def num_dropped(self) -> int: ...

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """Appends float sound [L, 2].

        Raises:
            SinkClosed: it takes no more.
        """
        ...

    def close(self) -> None: ...


class FileSink:
    """A sound file of 24 bits, whole after `close` at whatever moment it comes.

    On a full disk it ends with the last samples that had room, and is whole too.

    Args:
        path: its suffix is .wav or .flac.
        max_bytes: size at which a WAV file is full.
        is_marked: whether the samples get the watermark.

    Attributes:
        num_samples: samples a channel in the file, known after `close`.

    Raises:
        OSError: it cannot be begun.
    """

    delay_s, num_gaps, num_dropped = 0.0, 0, 0

    def __init__(
        self, path: Path, *, max_bytes: int = MAX_RIFF_BYTES, is_marked: bool = False
    ) -> None:
        self._kind, subtype = SOUND_FORMATS[path.suffix.lower()]
        bytes_left = max_bytes if self._kind == "WAV" else 2**62
        self._marker = Watermarker() if is_marked else None
        self._num_left = bytes_left // (TIMING.num_channels * BYTES_PER_SAMPLE)
        self._storage = _Storage(path)
        self._file = soundfile.SoundFile(
            self._storage,
            "w",
            TIMING.sample_rate_hz,
            TIMING.num_channels,
            subtype,
            format=self._kind,
        )
        if self.failure is not None:
            self._file.close()
            self._storage.close()
            raise self.failure
        self._header_bytes, self.num_samples = self._storage.num_bytes, 0

    @property
    def failure(self) -> OSError | None:
        """Why it could not grow; None while it can."""
        return self._storage.failure

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """As in `LiveSink`; a file that is full is closed to more."""
        if len(audio_LC) > self._num_left:
            raise SinkClosed("a WAV file is full at 4 GB; use .flac for longer sound")
        self._append(audio_LC if self._marker is None else self._marker.push(audio_LC))
        self._num_left -= len(audio_LC)
        if self.failure is not None:
            raise SinkClosed(no_room(self.failure))

    def close(self) -> None:
        """Completes the header; closing twice is harmless."""
        if self._file.closed:
            return
        if self._marker is not None:
            self._append(self._marker.flush())
        self._file.close()
        if self._storage.failure is not None:
            if self._kind == "FLAC":
                self.num_samples = self._storage.count_flac_samples()
            else:
                num_bytes = self._storage.num_bytes - self._header_bytes
                self.num_samples = num_bytes // (TIMING.num_channels * BYTES_PER_SAMPLE)
        self._storage.close()

    def _append(self, audio_LC: NDArray[np.float32]) -> None:
        self._file.write(np.clip(audio_LC, -1.0, 1.0))
        self.num_samples += len(audio_LC)


def no_room(error: OSError) -> str:
    """What a failure to grow is called."""
    return f"the file cannot grow: {error.strerror or error}"


class _Storage:
    """A file that libsndfile writes to, which ends before the first piece that has no room.

    libsndfile cannot complete a file after a failure, so it never hears of one: the pieces that
    come after it are left out. Each is whole frames of WAV, or one frame of FLAC.

    Attributes:
        failure: of the disk, or None.
        num_bytes: its length.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b", buffering=0)
        self.failure: OSError | None = None
        self.num_bytes = self._num_flac_frames = 0

    def write(self, data: bytes) -> int:
        start, rest = self._file.tell(), memoryview(data)
        is_appended = start >= self.num_bytes
        if is_appended and self.failure is not None:
            return len(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.failure = error
            self._file.truncate(self.num_bytes)
            self._file.seek(start)
            return len(data)
        if is_appended:
            self.num_bytes = self._file.tell()
            self._num_flac_frames += data.startswith(FLAC_SYNC)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, num_bytes: int) -> bytes:
        return self._file.read(num_bytes)

    def count_flac_samples(self) -> int:
        """States in a FLAC file that ends early how long it is; its check sum becomes unknown."""
        self._file.seek(0)
        header = bytearray(self._file.read(FLAC_MD5.stop))
        if self._num_flac_frames == 0:
            return 0
        num_samples = self._num_flac_frames * int.from_bytes(header[FLAC_BLOCK_SIZE])
        other_bits = int.from_bytes(header[FLAC_NUM_SAMPLES]) >> FLAC_NUM_SAMPLES_BITS
        stated = other_bits << FLAC_NUM_SAMPLES_BITS | num_samples
        header[FLAC_NUM_SAMPLES], header[FLAC_MD5] = stated.to_bytes(8), bytes(16)
        self._file.seek(0)
        self._file.write(header)
        return num_samples

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:  # a file system of a network may tell of a full disk only now
            self.failure = self.failure or error


class PcmSink:
    """Raw samples, left and right in turn, on an open descriptor; stays open after `close`.

    Args:
        descriptor: file descriptor, 1 for stdout.
        pcm: `s16le`, 16-bit integers, or `f32le`, 32-bit floats about -1..1 that are not clipped.
        keeps_time: leaves a tick out when the reader of a pipe is slow, and fades in after it;
            else the reader is waited for.
    """

    def __init__(self, descriptor: int, pcm: PcmFormat, *, keeps_time: bool = True) -> None:
        self._descriptor, self._pcm, self._keeps_time = descriptor, pcm, keeps_time
        self._is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
        self._bytes_per_s = len(pcm_bytes(np.zeros((TIMING.sample_rate_hz, 2), np.float32), pcm))
        self._room = select.poll()
        self._room.register(descriptor, select.POLLOUT)
        self._concealer = Concealer()
        self._rest = memoryview(b"")
        self.num_dropped = 0

    @property
    def delay_s(self) -> float:
        """Sound that waits for the reader of a pipe, seconds."""
        if not self._is_pipe:
            return 0.0
        num_bytes = array.array("i", [0])
        fcntl.ioctl(self._descriptor, termios.FIONREAD, num_bytes)
        return (num_bytes[0] + len(self._rest)) / self._bytes_per_s

    @property
    def num_gaps(self) -> int:
        """Times ticks were left out."""
        return self._concealer.num_gaps

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """As in `LiveSink`; a tick goes out whole or not at all."""
        self._send()
        if self._rest or (self._keeps_time and self.delay_s > MAX_WAITING_S):
            self._concealer.fill(0)
            self.num_dropped += 1
            return
        self._rest = memoryview(pcm_bytes(self._concealer.play(audio_LC), self._pcm))
        self._send()

    def close(self) -> None:
        """Sends the end of the last tick, if there is room for it."""
        try:
            self._send()
        except SinkClosed:
            self._rest = memoryview(b"")

    def _send(self) -> None:
        """Sends what is left of a tick, as far as the reader has room or is waited for."""
        timeout_ms = 0 if self._keeps_time else None
        try:
            while self._rest and self._room.poll(timeout_ms):
                # So much never blocks on a pipe that has room.
                num_bytes = os.write(self._descriptor, self._rest[: select.PIPE_BUF])
                self._rest = self._rest[num_bytes:]
        except BrokenPipeError as error:
            raise SinkClosed("the reader of the pipe went away") from error
        except OSError as error:
            raise SinkClosed(f"stdout takes no more ({error.strerror or error})") from error


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


@dataclass
class FileMarks:
    """What marks a file of live sound as synthetic.

    Attributes:
        watermark: whether the samples get the mark.
        provenance: whether a statement of origin is signed.
        command: the command line, for the statement.
        pipeline: what made the sound; known after the file was opened.
        source: the video it heard, if one.
        failure: why the statement is missing, or empty.
    """

    watermark: bool
    provenance: bool
    command: str
    pipeline: "Pipeline | None" = None
    source: "VideoSource | None" = None
    failure: str = ""

    def sign(self, path: Path, *, out: Path, outputs: Outputs) -> None:
        """Puts the statement of origin into `path`, which becomes `out`, one of `outputs`.

        A recording cannot be made again: where that fails it stays as it is, and `failure` says so.
        """
        if not self.provenance or self.pipeline is None:
            return
        # What signs takes long to load.
        from spatial_v2a.inference.marking.manifest import Provenance
        from spatial_v2a.inference.marking.provenance import attach, checkpoint_digest

        model = self.pipeline.model
        assert model.folder is not None
        settings = self.pipeline.used_settings(self.source)
        origin = Provenance(
            model=model.config.name,
            checkpoint_sha256=checkpoint_digest(model.folder),
            seed=self.pipeline.settings.seed,
            command=self.command,
            settings=settings | {"is_marked": self.watermark},
        )
        try:
            attach(path, origin, out=out, outputs=outputs)
        except UserError as error:
            self.failure = f"{out} is kept without a statement of origin: {error}"
