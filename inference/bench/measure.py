"""One measurement: a system at B streams over a video, warm-up left out; and the sweep over B."""

import time
from collections.abc import Callable

import torch

from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.inference.bench.feed import Feed
from spatial_v2a.inference.bench.figures import Report, make_report
from spatial_v2a.inference.bench.machine import (
    ProcessorTime,
    measure_rates,
    read_memory,
    synchronizer,
)
from spatial_v2a.inference.bench.parts import Work, bytes_of_parts
from spatial_v2a.inference.bench.ticks import Runner
from spatial_v2a.inference.engine.engine import engine_threads
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.timing import TIMING

WARMUP_TICKS = TIMING.tick_hz
# The sweep ends at the first number of streams that misses more than this.
MAX_MISSES_PER_1000 = 1.0
MAX_STREAMS = 4096


def measure(
    pipeline: Pipeline,
    source: VideoSource,
    *,
    num_streams: int,
    num_threads: int,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> Report:
    """Runs a second to warm up, then `seconds` of video, and reports.

    Args:
        pipeline: what runs.
        source: what it sees.
        num_streams: videos in one batch, each with its own decoder.
        num_threads: threads of PyTorch on the CPU; the video decoder has its own.
        seconds: length of the measured video; at least one tick is run.
        clock: seconds, for tests.
    """
    num_ticks = max(1, round(seconds * TIMING.tick_hz))
    device = torch.device(pipeline.device)
    feed = Feed(source, num_streams=num_streams, max_width=pipeline.max_width)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        with engine_threads(device, num_threads=num_threads):
            runner = Runner(pipeline, feed, num_videos=num_streams, is_ahead=device.type == "cpu")
            engine = runner.engine
            runner.run(WARMUP_TICKS)
            processor = ProcessorTime()
            ticks = runner.run(num_ticks, clock=clock)
            stolen_share = processor.stolen_share()
            # Before the rates, whose matrices are no memory of the product.
            memory = read_memory(device)
            flops = runner.count_flops()
            num_bytes = bytes_of_parts(pipeline.perception, engine)
            rates = measure_rates(device, engine.dtype, synchronize=synchronizer(device))
    finally:
        feed.close()
    work = {name: Work(flops[name], size) for name, size in num_bytes.items()}
    return make_report(
        ticks,
        num_streams=num_streams,
        num_warmup_ticks=WARMUP_TICKS,
        is_ahead=runner.is_ahead,
        work=work,
        memory=memory,
        rates=rates,
        stolen_share=stolen_share,
    )


def sweep(
    measure_streams: Callable[[int], Report], *, max_streams: int = MAX_STREAMS
) -> list[Report]:
    """Measures 1, 2, 4 ... streams up to the first number that misses deadlines, which it keeps.

    Args:
        measure_streams: the report of a number of streams.
        max_streams: stops there in any case.
    """
    reports, num_streams = [], 1
    while num_streams <= max_streams:
        reports.append(measure_streams(num_streams))
        if reports[-1].misses_per_1000 > MAX_MISSES_PER_1000:
            break
        num_streams *= 2
    return reports
