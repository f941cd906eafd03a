"""The capture thread: pictures from the source into the queue, losses, returns and the end."""

from fractions import Fraction

from spatial_v2a.inference.live.pictures import Picture, PictureQueue, Source, SourceLost
from spatial_v2a.inference.live.run import Run
from spatial_v2a.timing import TIMING


class Capture:
    """Reads a source to its end.

    Args:
        run: the session.
        source: where pictures come from.
        queue: where they go.

    Attributes:
        lost: why the source is gone; empty while it is there.
    """

    def __init__(self, run: Run, source: Source, queue: PictureQueue) -> None:
        self._run, self._source, self._queue = run, source, queue
        self._last_s, self._picture_s = Fraction(0), TIMING.tick_s
        self.has_ended = False
        self.lost = ""

    def work(self) -> None:
        """Runs until the source has ended for good or nobody wants pictures any more."""
        try:
            while self._read() and self._wait_for_return():
                pass
        finally:
            with self._run.clock.changed:
                self.has_ended = True
                self._run.clock.changed.notify_all()
            self._queue.close()

    def _read(self) -> bool:
        """Reads until the source ends; whether it may come back."""
        source = self._source
        try:
            for picture in source.pictures():
                self._returned()
                self._time(picture)
                if not self._queue.put(picture):
                    return False
        except SourceLost as error:
            self._lose(str(error))
            return source.retry_s is not None
        if source.is_paced:
            last_s = self._last_s + self._picture_s
            self._run.end_at(source.num_ticks or TIMING.num_ticks(last_s))
            return False
        self._lose("it gives no more pictures")
        return source.retry_s is not None

    def _time(self, picture: Picture) -> None:
        if picture.num_damaged:
            with self._run.clock.changed:
                self._run.figures.counts.packets_damaged += picture.num_damaged
        if picture.time_s is not None and picture.time_s > self._last_s:
            self._picture_s, self._last_s = picture.time_s - self._last_s, picture.time_s

    def _lose(self, reason: str) -> None:
        """Ends the run some time after the last picture, or starts to wait for a return."""
        run, source = self._run, self._source
        hold_s = source.hold_s or 0.0
        with run.clock.changed:
            run.figures.counts.source_losses += not self.lost
            if not source.is_paced and not self.lost:
                run.lost_end_s = run.clock.now_s() + hold_s
            self.lost = reason
        if source.is_paced:
            run.end_at(TIMING.num_ticks(self._last_s + self._picture_s + Fraction(hold_s)))

    def _returned(self) -> None:
        if self.lost:
            with self._run.clock.changed:
                self._run.figures.counts.source_returns += 1
                self._run.lost_end_s = None
                self.lost = ""

    def _wait_for_return(self) -> bool:
        """Waits before the next try; False when the hold is over."""
        run = self._run
        with run.clock.changed:
            again_s = run.clock.now_s() + (self._source.retry_s or 0.0)
            assert run.lost_end_s is not None
            is_wanted = run.wait_for(lambda: False, until_s=min(again_s, run.lost_end_s))
            return is_wanted and run.clock.now_s() < run.lost_end_s
