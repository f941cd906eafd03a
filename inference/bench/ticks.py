"""Runs a pipeline tick by tick, from packet to samples, and keeps what each tick took.

Legend: B streams, T ticks.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.bench.feed import Feed
from spatial_v2a.inference.bench.machine import synchronizer
from spatial_v2a.inference.bench.parts import (
    BETWEEN,
    DECODE,
    PARTS,
    flop_counter,
    hearing_places,
    seeing_places,
)
from spatial_v2a.inference.bench.stopwatch import Stopwatch, timed
from spatial_v2a.inference.engine.ahead import ahead
from spatial_v2a.inference.engine.engine import Engine
from spatial_v2a.inference.engine.pipeline import Pipeline, Seen

OTHER = "other"


@dataclass(frozen=True)
class TickLog:
    """Times of T ticks in milliseconds.

    Attributes:
        tick_ms_T: what must fit into a tick: decoding, perception, engine and its pass between
            frames one after the other; where perception runs ahead on a thread of its own, the
            slower of the two threads.
        ready_ms_T: from the packets of a picture to the samples of every stream, without that
            pass and without waiting for the other thread.
        parts_ms: name to [T]; with `other` their sum is the work of both threads.
        num_boxes: boxes per stream and tick, on average.
    """

    tick_ms_T: NDArray
    ready_ms_T: NDArray
    parts_ms: dict[str, NDArray]
    num_boxes: float


class Runner:
    """A pipeline over B videos at once; its states live on from one call to the next.

    One video is heard as the pipeline hears it, several in one batch, each by one stream.

    Args:
        pipeline: what runs.
        feed: pictures of B videos.
        num_videos: B.
        is_ahead: whether perception runs ahead on a thread of its own, as when dubbing on a CPU.

    Attributes:
        engine: the engine that runs.
    """

    def __init__(
        self, pipeline: Pipeline, feed: Feed, *, num_videos: int = 1, is_ahead: bool = False
    ) -> None:
        self.pipeline, self.feed, self.is_ahead = pipeline, feed, is_ahead
        self.num_videos = num_videos
        pipeline.begin()
        self.engine = pipeline.mix.engine
        if num_videos > 1:
            self.engine = pipeline.engine(num_videos)
            pipeline.perception.init_state(num_videos)
        self._device = self.engine.device
        self._seeing = seeing_places(pipeline.perception)
        self._hearing = hearing_places(self.engine)

    def run(self, num_ticks: int, *, clock: Callable[[], float] = time.perf_counter) -> TickLog:
        """Runs ticks and times them.

        On a GPU the parts come from a second pass of as many ticks, since a part ends only when
        the GPU is waited for; the ticks themselves are timed without such waits.

        Args:
            num_ticks: T, at least 1.
            clock: seconds.
        """
        log = self._timed_pass(num_ticks, clock)
        if synchronizer(self._device) is None:
            return log
        tick_ms_T = 1e3 * np.array([self._plain_tick(clock) for _ in range(num_ticks)])
        return replace(log, tick_ms_T=tick_ms_T)

    def count_flops(self) -> dict[str, float]:
        """Floating-point operations of each part in a tick in which it runs.

        Of the arithmetic as it is written: what a compiler runs, PyTorch's counter cannot see.
        """
        plain = Engine(
            self.pipeline.model,
            num_streams=self.engine.num_streams,
            settings=self.engine.settings.model_copy(update={"weights": "float32"}),
        )
        counter = flop_counter()
        # A stopwatch whose clock is the operations so far.
        stopwatch = Stopwatch(lambda: float(counter.get_total_flops()))
        config = self.pipeline.perception.config
        num_ticks = max(config.boxes.every_ticks, config.depth.every_ticks)
        most = dict.fromkeys(PARTS, 0.0)
        places = [*self._seeing, *hearing_places(plain)]
        with counter, timed(stopwatch, places), self.pipeline.perception.uncompiled():
            for seen, _, lap in self._seen(num_ticks, stopwatch):
                features = _features(seen)
                plain.step(features.expand(plain.num_streams) if self.num_videos == 1 else features)
                spent = lap | stopwatch.lap()
                most = {name: max(most[name], spent.get(name, 0.0)) for name in PARTS}
        return most

    def _timed_pass(self, num_ticks: int, clock: Callable[[], float]) -> TickLog:
        wait = synchronizer(self._device)
        # A watch for each thread: a lap of one must not take what the other is measuring.
        seeing, hearing = (Stopwatch(clock, synchronize=wait) for _ in range(2))
        seen_s, heard_s, laps, num_boxes = [], [], [], 0
        seen = self._seen(num_ticks, seeing)
        with timed(seeing, self._seeing), timed(hearing, self._hearing):
            for one, elapsed_s, lap in ahead(seen) if self.is_ahead else seen:
                seen_s.append(elapsed_s)
                begin = hearing.read()
                self._hear(one)
                heard_s.append(hearing.read() - begin)
                laps.append(lap | hearing.lap())
                num_boxes += int(_features(one).box_mask_BTK.sum())
        seen_ms_T, heard_ms_T = 1e3 * np.array(seen_s), 1e3 * np.array(heard_s)
        names = [name for name in PARTS if any(name in lap for lap in laps)]
        parts_ms = {name: 1e3 * np.array([lap.get(name, 0.0) for lap in laps]) for name in names}
        parts_ms[OTHER] = seen_ms_T + heard_ms_T - sum(parts_ms.values())
        least_ms = parts_ms[OTHER].min()
        assert least_ms > -1e-3, f"parts overlap: together {-least_ms:.3f} ms above their tick"
        between_ms_T = 1e3 * np.array([lap[BETWEEN] for lap in laps])
        both = np.maximum if self.is_ahead else np.add
        return TickLog(
            tick_ms_T=both(seen_ms_T, heard_ms_T),
            ready_ms_T=seen_ms_T + heard_ms_T - between_ms_T,
            parts_ms=parts_ms,
            num_boxes=num_boxes / (num_ticks * self.num_videos),
        )

    def _seen(
        self, num_ticks: int, stopwatch: Stopwatch
    ) -> Iterator[tuple[Seen | FrameFeatures, float, dict[str, float]]]:
        """Perception of each tick, how long it took from the packets on, and its parts."""
        for _ in range(num_ticks):
            self.feed.prepare()
            stopwatch.lap()
            begin = stopwatch.read()
            with stopwatch.part(DECODE):
                frames_BHWC = self.feed.read()
            seen = self._look(frames_BHWC)
            elapsed_s = stopwatch.read() - begin
            yield seen, elapsed_s, stopwatch.lap()

    def _plain_tick(self, clock: Callable[[], float]) -> float:
        """Seconds of one tick with nothing wrapped."""
        self.feed.prepare()
        stopwatch = Stopwatch(clock, synchronize=synchronizer(self._device))
        begin = stopwatch.read()
        self._hear(self._look(self.feed.read()))
        return stopwatch.read() - begin

    def _look(self, frames_BHWC: Tensor) -> Seen | FrameFeatures:
        if self.num_videos == 1:
            return self.pipeline.look(frames_BHWC[0].numpy())
        return self.pipeline.perception.step(frames_BHWC, fov_deg=self.pipeline.fov_deg)

    def _hear(self, seen: Seen | FrameFeatures) -> None:
        if isinstance(seen, Seen):
            self.pipeline.hear(seen)
        else:
            self.engine.step(seen)


def _features(seen: Seen | FrameFeatures) -> FrameFeatures:
    return seen.features if isinstance(seen, Seen) else seen
