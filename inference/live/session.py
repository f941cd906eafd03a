"""A live session: capture, step and playback beside each other; or a file as fast as it goes.

    figures = run_live(stream, source, sink, delay_s=0.12)

Whatever happens, tick n of the sound is heard at start + n ticks + delay, and the sound is as many
ticks long as were played: a tick the model did not have in time is concealed, never waited for.
"""

import time
from collections.abc import Callable
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.errors import NotSound, UserError
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.inference.engine.stream import Stream
from spatial_v2a.inference.live.capture import Capture
from spatial_v2a.inference.live.clock import Clock, Schedule
from spatial_v2a.inference.live.conceal import Concealer
from spatial_v2a.inference.live.figures import Figures
from spatial_v2a.inference.live.pictures import PictureQueue, Source
from spatial_v2a.inference.live.run import Run
from spatial_v2a.inference.live.sinks import LiveSink, SinkClosed
from spatial_v2a.inference.live.worker import Heard, Worker
from spatial_v2a.timing import TIMING

FIRST_PICTURE_S = 15.0
# The first ticks of a process compile, so they take several times as long as the others.
NUM_WARM_UP = 4
WARM_UP_SIZE = (480, 854, 3)
# By then a device has its cushion of sound; what changes later is drift.
SETTLED_TICKS = 10
STOPPED, ENDED, ALL_DONE = "stopped", "the source ended", "as long as asked for"

OnTick = Callable[[Figures], None]


def run_live(
    stream: Pipeline,
    source: Source,
    sink: LiveSink,
    *,
    delay_s: float,
    clock: Clock | None = None,
    max_ticks: int | None = None,
    on_tick: OnTick | None = None,
) -> Figures:
    """Plays a source's sound until it ends, it is given up, or Ctrl-C.

    Args:
        stream: the model, warmed up.
        source: where pictures come from.
        sink: where sound goes; the caller closes it.
        delay_s: from a tick's being due to its being heard, seconds.
        clock: the time.
        max_ticks: the run ends there at the latest.
        on_tick: called after each tick of sound, on the caller's thread.

    Returns:
        What was counted. Ctrl-C before the first picture is raised, later it is a normal end.

    Raises:
        UserError: no picture comes.
    """
    run = Run(clock or Clock(), max_ticks=max_ticks)
    queue = PictureQueue(
        run.clock,
        is_paced=source.is_paced,
        tolerance_s=source.tolerance_s,
        patience_s=source.patience_s,
    )
    capture = Capture(run, source, queue)
    run.start("capture", capture.work)
    try:
        _wait_for_picture(run, capture, queue, source.name)
        with run.clock.changed:
            tick_s = float(TIMING.tick_s)
            run.schedule = Schedule(run.clock.now_s(), delay_s=delay_s, tick_s=tick_s)
        worker = Worker(run, stream, queue)
        worker.start()
        try:
            _Player(run, worker, queue, sink).play(on_tick)
        except KeyboardInterrupt:
            run.figures.ended = STOPPED
        except SinkClosed as error:
            run.figures.ended, run.figures.is_cut_short = str(error), True
    finally:
        run.stop()
        queue.close()
        run.join()
    try:
        run.check()
    except NotSound as error:
        # What came before it is whole.
        run.figures.ended, run.figures.is_cut_short = str(error), True
    figures = run.figures
    figures.counts.pictures_unused = queue.num_unused
    figures.wall_s = run.clock.now_s() - run.schedule.start_s
    figures.ended = figures.ended or _why(run, capture, max_ticks)
    return figures


def run_fast(
    stream: Pipeline,
    video: VideoSource,
    sink: LiveSink,
    *,
    max_ticks: int | None = None,
    on_tick: OnTick | None = None,
) -> Figures:
    """Plays a file's sound as fast as it can be made; every tick, the same samples each time."""
    figures = Figures(ended=ENDED)
    start_s = time.perf_counter()
    images = islice(video.ticks(max_width=stream.max_width), max_ticks)
    last_HWC, counts = None, figures.counts
    try:
        with closing(stream.run(images)) as ticks:
            for tick in ticks:
                figures.add_tick(tick.seconds)
                sink.write(tick.audio_LC)
                counts.ticks += 1
                counts.ticks_held += tick.seen.image_HWC is last_HWC
                counts.pictures += tick.seen.image_HWC is not last_HWC
                last_HWC = tick.seen.image_HWC
                if on_tick is not None:
                    on_tick(figures)
        if counts.ticks < video.num_ticks:
            figures.ended = ALL_DONE
        else:
            num_shown, counts.pictures = counts.pictures, video.extent.num_frames
            counts.pictures_unused = max(0, video.extent.num_frames - num_shown)
    except KeyboardInterrupt:
        figures.ended = STOPPED
    except (SinkClosed, NotSound) as error:
        figures.ended, figures.is_cut_short = str(error), True
    figures.wall_s = time.perf_counter() - start_s
    return figures


def warm_up(stream: Stream) -> None:
    """Runs a few ticks on a black picture and forgets them."""
    for _ in range(NUM_WARM_UP):
        stream.push(np.zeros(WARM_UP_SIZE, np.uint8))
    stream.reset()


class _Player:
    """Writes one tick of sound after the other, each at its time."""

    def __init__(self, run: Run, worker: Worker, queue: PictureQueue, sink: LiveSink) -> None:
        self._run, self._worker, self._queue, self._sink = run, worker, queue, sink
        self._concealer = Concealer()
        assert run.schedule is not None
        self._schedule = run.schedule
        self._settled_s = 0.0

    def play(self, on_tick: OnTick | None) -> None:
        """Plays to the end of the run."""
        tick = 0
        while self._wait_for(tick):
            with self._run.clock.changed:
                heard = self._worker.take(tick)
            self._time(tick, heard)
            self._sink.write(self._sound(heard))
            tick += 1
            self._count(tick)
            if on_tick is not None:
                on_tick(self._run.figures)

    def _wait_for(self, tick: int) -> bool:
        """Waits until a tick is to be heard; False at the end of the run."""
        run = self._run
        with run.clock.changed:
            run.wait_for(lambda: run.is_past_end(tick), until_s=self._schedule.heard_s(tick))
            return not (run.is_over or run.is_past_end(tick) or run.is_given_up(tick))

    def _sound(self, heard: Heard | None) -> NDArray[np.float32]:
        if heard is None:
            return self._concealer.fill(TIMING.samples_per_tick)
        return self._concealer.play(heard.audio_LC)

    def _time(self, tick: int, heard: Heard | None) -> None:
        """Delay and drift, just before the tick is written."""
        figures, now_s = self._run.figures, self._run.clock.now_s()
        if heard is not None and heard.shown.is_new:
            figures.add_delay(now_s + self._sink.delay_s - heard.shown.shown_s)
        if tick == SETTLED_TICKS:
            self._settled_s = self._sink.delay_s
        if tick >= SETTLED_TICKS:
            waiting_s = self._sink.delay_s - self._settled_s
            heard_s = tick * self._schedule.tick_s - waiting_s
            figures.drift_ms = 1e3 * (heard_s - (now_s - self._schedule.heard_s(0)))

    def _count(self, num_ticks: int) -> None:
        with self._run.clock.changed:
            counts = self._run.figures.counts
            counts.ticks = num_ticks
            counts.pictures = self._queue.num_pictures
            counts.pictures_unused = self._queue.num_unused
            counts.ticks_concealed = self._concealer.num_filled // TIMING.samples_per_tick
            counts.ticks_dropped = self._sink.num_dropped
            counts.underruns = self._concealer.num_gaps + self._sink.num_gaps


def _wait_for_picture(run: Run, capture: Capture, queue: PictureQueue, name: str) -> None:
    with run.clock.changed:
        until_s = run.clock.now_s() + FIRST_PICTURE_S
        run.wait_for(lambda: queue.has_picture or capture.has_ended, until_s=until_s)
        has_picture = queue.has_picture
    run.check()
    if not has_picture and capture.has_ended:
        reason = f" ({capture.lost})" if capture.lost else ""
        raise UserError(f"none of the pictures of {name} can be decoded{reason}; try another")
    if not has_picture:
        raise UserError(f"no picture came from {name} in {FIRST_PICTURE_S:g} s; is it running?")


def _why(run: Run, capture: Capture, max_ticks: int | None) -> str:
    if capture.lost:
        return f"the source was lost: {capture.lost}"
    return ALL_DONE if run.figures.counts.ticks == max_ticks else ENDED
