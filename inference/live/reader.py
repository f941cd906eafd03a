"""Pictures of whatever FFmpeg opens, as they come: files, pipes, addresses, cameras, screens."""

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from fractions import Fraction

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from spatial_v2a.conditioning.media import packets
from spatial_v2a.conditioning.video import display_matrix, picture_stream, to_rgb
from spatial_v2a.errors import UserError
from spatial_v2a.inference.live.clock import Clock
from spatial_v2a.inference.live.pictures import Picture, SourceLost
from spatial_v2a.timing import TIMING

log = logging.getLogger(__name__)

# A source that is not open by then is waited for with a word.
SILENT_WAIT_S = 2.0
# How often a pipe without data looks whether it is still wanted.
PIPE_POLL_MS = 100
# A step in the times of a running stream beyond this, or backwards, is a new beginning of them.
MAX_STEP_S = 10
# A camera that has no picture yet is asked again after this time.
POLL_S = 0.002


class PipeInput:
    """An open pipe as FFmpeg reads a file of Python's, since its own reading cannot be ended.

    A FIFO that nobody writes into yet is waited for; it ends when its last writer goes.

    Args:
        descriptor: open for reading; closed by `close`.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._data = select.poll()
        self._data.register(descriptor, select.POLLIN)
        self._lock = threading.Lock()
        self._is_closed = False

    def read(self, num_bytes: int) -> bytes:
        """At most so many bytes as soon as some are there; none at the end."""
        while not self._is_closed:
            with self._lock:
                if not self._is_closed and self._data.poll(PIPE_POLL_MS):
                    return os.read(self._descriptor, num_bytes)
        return b""

    def close(self) -> None:
        """Ends whoever reads; closing twice is harmless."""
        self._is_closed = True
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


class AvSource:
    """A source behind FFmpeg; a `Source`, whose attributes it has.

    Args:
        name: what the user calls it.
        open_container: opens it; raises UserError. Called at once, and again after a loss.
        start_s: time of the first picture on a file's own clock; None takes the first one's and
            follows the times when they jump.
        pipe: what `open_container` reads, if it is a pipe; the source closes it.
    """

    def __init__(
        self,
        name: str,
        open_container: Callable[[], InputContainer],
        *,
        is_paced: bool,
        start_s: Fraction | None = None,
        num_ticks: int | None = None,
        tolerance_s: Fraction = Fraction(0),
        patience_s: float = 0.0,
        hold_s: float | None = None,
        retry_s: float | None = None,
        pipe: PipeInput | None = None,
    ) -> None:
        self.name, self.is_paced, self.num_ticks = name, is_paced, num_ticks
        self.tolerance_s, self.patience_s = tolerance_s, patience_s
        self.hold_s, self.retry_s = hold_s, retry_s
        self._start_s = start_s
        self._open_container, self._pipe = open_container, pipe
        self._opened: InputContainer | None = None
        try:
            self._opened = _checked(_opened_aside(open_container, name), name)
        except BaseException:
            self.close()
            raise

    def pictures(self) -> Iterator[Picture]:
        """As in `Source`."""
        with closing(self._container()) as container:
            stream = picture_stream(container, self.name)
            # Frame threads would hold pictures back: nothing a file minds, but a camera does.
            stream.thread_type = "AUTO" if self.is_paced else "SLICE"
            times = _Times(stream, start_s=self._start_s)
            num_damaged, matrix, is_first = 0, None, True
            for frame in self._frames(container, stream):
                if frame is None:
                    num_damaged += 1
                    continue
                if is_first:
                    matrix, is_first = display_matrix(frame), False
                time_s = times.next(frame)
                rgb = _rgb(frame, matrix)
                yield Picture(time_s if self.is_paced else None, rgb, num_damaged)
                num_damaged = 0

    def close(self) -> None:
        """Closes what was opened and never read, and ends whoever reads a pipe."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        if self._pipe is not None:
            self._pipe.close()

    def _container(self) -> InputContainer:
        container, self._opened = self._opened, None
        if container is not None:
            return container
        try:
            return _checked(self._open_container(), self.name)
        except UserError as error:
            raise SourceLost(str(error)) from error

    def _frames(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[av.VideoFrame | None]:
        """Decoded frames; None for each packet that cannot be decoded."""
        stored = packets(container, stream)
        while True:
            try:
                packet = next(stored, None)
            except av.error.BlockingIOError:
                time.sleep(POLL_S)
                stored = packets(container, stream)
                continue
            except (av.error.FFmpegError, OSError) as error:
                raise SourceLost(reason_of(error)) from error
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                yield None


class _Times:
    """Times of frames from the first one, in seconds, exact; `start_s` as in `AvSource`."""

    def __init__(self, stream: VideoStream, *, start_s: Fraction | None) -> None:
        rate = stream.guessed_rate or stream.average_rate
        self._frame_s = 1 / Fraction(rate) if rate else TIMING.tick_s
        self._offset_s, self._is_fixed = start_s, start_s is not None
        self._last_s: Fraction | None = None

    def next(self, frame: av.VideoFrame) -> Fraction:
        expected_s = Fraction(0) if self._last_s is None else self._last_s + self._frame_s
        stamp = frame.pts if frame.pts is not None else frame.dts
        time_s = expected_s
        if stamp is not None:
            stamp_s = stamp * Fraction(frame.time_base)
            if self._offset_s is None or self._has_jumped(stamp_s - self._offset_s):
                self._offset_s = stamp_s - expected_s
            time_s = stamp_s - self._offset_s
        self._last_s = time_s
        return time_s

    def _has_jumped(self, time_s: Fraction) -> bool:
        if self._is_fixed or self._last_s is None:
            return False
        return not self._last_s <= time_s <= self._last_s + MAX_STEP_S


def reason_of(error: BaseException) -> str:
    """What went wrong, in FFmpeg's or the system's words, one line."""
    if isinstance(error, av.error.ExitError):
        return "nothing came in time"
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _opened_aside(open_container: Callable[[], InputContainer], name: str) -> InputContainer:
    """Opens on a thread of its own: FFmpeg may wait for data, and does not hear Ctrl-C."""
    opened: Future[InputContainer] = Future()
    clock = Clock()

    def work() -> None:
        try:
            opened.set_result(open_container())
        except BaseException as error:  # handed over whole: the caller's thread is the one to fail
            opened.set_exception(error)
        with clock.changed:
            clock.changed.notify_all()

    threading.Thread(target=work, name="open", daemon=True).start()
    with clock.changed:
        if not clock.wait_for(opened.done, until_s=clock.now_s() + SILENT_WAIT_S):
            log.warning("waiting for a picture from %s; Ctrl-C ends it", name)
            clock.wait_for(opened.done)
    return opened.result()


def _checked(container: InputContainer, name: str) -> InputContainer:
    """The container, if it has a picture."""
    try:
        picture_stream(container, name)
    except UserError:
        container.close()
        raise
    return container


def _rgb(frame: av.VideoFrame, matrix: bytes | None) -> Callable:
    return lambda max_width: to_rgb(frame, matrix=matrix, max_width=max_width)
