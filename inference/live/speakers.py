"""Sound out of the speakers, through the optional package sounddevice.

The device asks for sound at a clock of its own. Between it and ours stands a short queue whose
level tells the drift: when it is empty the gap is concealed and counted, when it is too full a tick
is cut out with a crossfade. Legend: L samples, C audio channels.
"""

import logging
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.errors import UserError, install_command
from spatial_v2a.inference.live.conceal import FADE_IN_SAMPLES, Concealer, rise
from spatial_v2a.inference.live.sinks import SinkClosed
from spatial_v2a.timing import TIMING

log = logging.getLogger(__name__)

# Sound that waits before the first sample is heard, and the most that may wait.
CUSHION_SAMPLES = 2 * TIMING.samples_per_tick
MAX_SAMPLES = 6 * TIMING.samples_per_tick
# A device asks for sound many times a second; one that has not for so many ticks is gone.
MAX_UNASKED_TICKS = 2 * TIMING.tick_hz


class SampleFifo:
    """Ticks in, any number of samples out; both sides may be threads of their own.

    Attributes:
        num_cuts: ticks cut out because the reader was too slow.
        num_unasked: writes since it was last asked for sound.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[NDArray[np.float32]] = deque()
        self._concealer = Concealer()
        self._is_running = False
        self._has_begun = False
        self.num_cuts = self.num_unasked = 0

    @property
    def level(self) -> int:
        """Samples that wait."""
        return sum(len(audio_LC) for audio_LC in list(self._waiting))

    @property
    def num_gaps(self) -> int:
        """Times it was empty when asked."""
        return self._concealer.num_gaps

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """Appends sound [L, 2], L at least 480."""
        with self._lock:
            self.num_unasked += 1
            if self.level + len(audio_LC) > MAX_SAMPLES:
                self._waiting.append(_joined(self._waiting.pop(), audio_LC))
                self.num_cuts += 1
            else:
                self._waiting.append(audio_LC)
            if self.level >= CUSHION_SAMPLES:
                self._is_running = self._has_begun = True

    def read(self, num_samples: int) -> NDArray[np.float32]:
        """The next samples [num_samples, 2]; before the first cushion is there, silence."""
        with self._lock:
            self.num_unasked = 0
            if not self._has_begun:
                return np.zeros((num_samples, TIMING.num_channels), np.float32)
            parts, num_missing = [], num_samples
            while self._is_running and num_missing:
                if not self._waiting:
                    self._is_running = False
                    break
                head_LC = self._waiting.popleft()
                if len(head_LC) > num_missing:
                    self._waiting.appendleft(head_LC[num_missing:])
                parts.append(self._concealer.play(head_LC[:num_missing]))
                num_missing -= len(parts[-1])
            if num_missing:
                parts.append(self._concealer.fill(num_missing))
            return np.concatenate(parts)


class Speakers:
    """A `LiveSink` that is heard.

    Raises:
        UserError: sounddevice, PortAudio or a sound device is missing.
    """

    def __init__(self) -> None:
        self.fifo = SampleFifo()
        sounddevice = _import_sounddevice()
        self._error: type[Exception] = sounddevice.PortAudioError
        try:
            self._device = sounddevice.OutputStream(
                samplerate=TIMING.sample_rate_hz,
                channels=TIMING.num_channels,
                dtype="float32",
                latency="low",
                callback=self._give,
            )
            self._device.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise UserError(
                f"--sink speakers: no sound device plays {TIMING.sample_rate_hz} Hz stereo"
                f" ({str(error).splitlines()[0]}); connect one, or use a file or - as --sink"
            ) from error

    @property
    def delay_s(self) -> float:
        """Sound that waits here and in the device, seconds."""
        return self.fifo.level / TIMING.sample_rate_hz + float(self._device.latency)

    @property
    def num_gaps(self) -> int:
        """Times the device found no sound."""
        return self.fifo.num_gaps

    @property
    def num_dropped(self) -> int:
        """Ticks that the device was too slow for."""
        return self.fifo.num_cuts

    def write(self, audio_LC: NDArray[np.float32]) -> None:
        """Hands sound [L, 2] to the device; does not wait.

        Raises:
            SinkClosed: the device is gone.
        """
        if not self._device.active or self.fifo.num_unasked > MAX_UNASKED_TICKS:
            raise SinkClosed("the sound device plays no more")
        self.fifo.write(audio_LC)

    def close(self) -> None:
        """Stops the device."""
        try:
            self._device.stop()
            self._device.close()
        except self._error as error:  # one that was unplugged
            log.warning("the sound device does not stop: %s", error)

    def _give(self, out_LC: NDArray[np.float32], num_samples: int, *_: Any) -> None:
        out_LC[:] = np.clip(self.fifo.read(num_samples), -1.0, 1.0)


def _import_sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise UserError(
            "--sink speakers needs the package sounddevice; install it with:"
            f" {install_command('live')}"
        ) from error
    except OSError as error:
        raise UserError(
            f"--sink speakers needs the PortAudio library ({error}); install it, e.g. apt install"
            " libportaudio2"
        ) from error
    return sounddevice


def _joined(before_LC: NDArray[np.float32], after_LC: NDArray[np.float32]) -> NDArray[np.float32]:
    """`before_LC` ending as `after_LC` ends: what follows that one follows smoothly."""
    num = min(FADE_IN_SAMPLES, len(before_LC), len(after_LC))
    fade_L1 = rise(num)[:, None]
    joined_LC = before_LC.copy()
    joined_LC[-num:] = (1 - fade_L1) * before_LC[-num:] + fade_L1 * after_LC[-num:]
    return joined_LC
