"""Live sessions in simulated time: the clock never slips, gaps do not click, sources may misbehave.

The command itself is in test_live_command.py, the parts alone in test_live_parts.py.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from spatial_v2a import Config, SpatialV2A, UserError
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.inference.engine.stream import Stream
from spatial_v2a.inference.live.clock import Schedule
from spatial_v2a.inference.live.conceal import FADE_IN_SAMPLES
from spatial_v2a.inference.live.figures import Figures
from spatial_v2a.inference.live.session import run_fast, run_live
from spatial_v2a.inference.live.sinks import PcmSink
from spatial_v2a.inference.live.sources import file_source
from spatial_v2a.timing import TIMING
from tests.live_simulation import (
    TICK_S,
    TONE_LEVEL,
    TONE_STEP,
    CameraSource,
    ListSink,
    SimulatedClock,
    TimedSource,
    ToneStream,
    picture,
)
from tests.tiny_checkpoint import write_tiny_checkpoint

DELAY_S = 0.12
GREY = np.full((48, 64, 3), 90, np.uint8)
# A raised cosine of 10 ms over two sounds at full level, beside the tone's own steps.
NO_CLICK = TONE_STEP + 2 * TONE_LEVEL * np.pi / 2 / FADE_IN_SAMPLES


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture(scope="module")
def opened(tmp_path_factory, tiny_config: Config) -> Iterator[Stream]:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)
    with SpatialV2A.from_pretrained(folder).stream(seed=2, nfe=1) as stream:
        yield stream


@pytest.fixture
def stream(opened: Stream) -> Stream:
    opened.reset()
    return opened


def still(num_ticks: int) -> TimedSource:
    return TimedSource([picture(GREY, time_s=Fraction(n, 30)) for n in range(num_ticks)], num_ticks)


def between_ticks(num_pictures: int) -> list[tuple[float, np.ndarray]]:
    """Pictures of a camera that come half a tick after a tick was due, but for the first."""
    waits_s = [TICK_S, 1.5 * TICK_S] + [TICK_S] * (num_pictures - 2)
    return [(wait_s, GREY) for wait_s in waits_s]


def write_noise(path: Path, num_pictures: int = 30, fps: int = 30) -> Path:
    random = np.random.default_rng(0)
    write_video(path, random.integers(0, 255, (num_pictures, 48, 64, 3), dtype=np.uint8), fps)
    return path


def check_clock(figures, sink: ListSink, num_ticks: int) -> None:
    """Every tick is there, in full, and was written at its time."""
    assert figures.counts.ticks == len(sink.ticks) == num_ticks, figures.summary()
    assert {len(audio_LC) for audio_LC in sink.ticks} == {TIMING.samples_per_tick}
    late_s = np.array(sink.times_s) - sink.times_s[0] - np.arange(num_ticks) * TICK_S
    assert np.abs(late_s).max() < 1e-6, f"the clock slipped by {late_s}"
    assert abs(figures.drift_ms) < 1e-3


@pytest.mark.parametrize("fps", [24, 30, 120])
def test_a_paced_file_gives_the_samples_of_the_fast_one(tmp_path, clock, stream, fps: int) -> None:
    """No tick is skipped when the model is in time, and each sees the picture dub would show it."""
    video = open_video(write_noise(tmp_path / "clip.mp4", fps, fps))
    paced, fast = ListSink(clock), ListSink(clock)
    run_fast(stream, video, fast)
    stream.reset()
    figures = run_live(stream, file_source(video), paced, delay_s=DELAY_S, clock=clock)
    check_clock(figures, paced, video.num_ticks)
    assert np.array_equal(paced.sound_LC, fast.sound_LC)
    counts = figures.counts
    assert counts.pictures == fps and counts.pictures_unused == max(0, fps - 30)
    assert counts.ticks_held == max(0, 30 - fps)
    assert counts.underruns == counts.ticks_skipped == counts.ticks_late == 0
    assert figures.ended == "the source ended"


def test_a_stall_is_concealed_without_a_click(clock: SimulatedClock) -> None:
    stream = ToneStream(clock, hear_s=lambda tick: 0.4 if tick == 20 else 0.01)
    sink = ListSink(clock)
    figures = run_live(stream, still(60), sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 60)
    counts = figures.counts
    assert counts.underruns == 1
    # 0.4 s less what the delay covers, and less than a tick on either side.
    assert 8 <= counts.ticks_concealed <= 10
    assert counts.ticks_concealed == counts.ticks_skipped + counts.ticks_late
    assert sink.largest_step < NO_CLICK, sink.largest_step
    assert np.abs(sink.sound_LC[-TIMING.samples_per_tick :]).max() > 0.9 * TONE_LEVEL


def test_short_hiccups_cost_nothing(clock: SimulatedClock) -> None:
    """The delay is there to take them: nothing is skipped, the tone is whole."""
    stream = ToneStream(clock, hear_s=lambda tick: 0.09 if tick % 10 == 5 else 0.02)
    sink = ListSink(clock)
    figures = run_live(stream, still(60), sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 60)
    assert figures.counts.underruns == figures.counts.ticks_skipped == 0
    assert sink.largest_step <= TONE_STEP * 1.001


def test_a_model_too_slow_skips_ticks_and_is_never_late(clock: SimulatedClock) -> None:
    """45 ms for the slower half: three ticks of four are made, and all of those are heard."""
    stream = ToneStream(clock, perceive_s=lambda tick: 0.03, hear_s=lambda tick: 0.045)
    sink = ListSink(clock)
    figures = run_live(stream, still(300), sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 300)
    assert figures.counts.ticks_late <= 1, figures.summary()
    made = len(figures.tick_ms) / 300
    assert abs(made - TICK_S / 0.045) < 0.03, made
    assert sink.largest_step < NO_CLICK


def test_a_hopeless_model_is_silent_and_on_time(clock: SimulatedClock) -> None:
    stream = ToneStream(clock, perceive_s=lambda tick: 0.2, hear_s=lambda tick: 0.2)
    sink = ListSink(clock)
    figures = run_live(stream, still(60), sink, delay_s=0.05, clock=clock)
    check_clock(figures, sink, 60)
    assert figures.counts.ticks_concealed == 60 and figures.counts.underruns == 1
    assert not figures.is_heard
    assert np.abs(sink.sound_LC).max() == 0


def test_the_halves_run_beside_each_other(clock: SimulatedClock) -> None:
    """20 + 25 ms are more than a tick, and yet nothing is skipped."""
    stream = ToneStream(clock, perceive_s=lambda tick: 0.02, hear_s=lambda tick: 0.025)
    sink = ListSink(clock)
    figures = run_live(stream, still(90), sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 90)
    assert figures.counts.ticks_concealed == 0
    assert np.allclose(figures.tick_ms, 45.0, atol=0.1)
    assert np.allclose(figures.av_delay_ms, 1e3 * DELAY_S, atol=0.1)


def test_a_sink_that_blocks_gets_every_tick_in_the_end(clock: SimulatedClock) -> None:
    """Half a second of a full pipe: what could not be kept meanwhile is concealed, not left out."""
    stream, sink = ToneStream(clock), ListSink(clock, stalls={20: 0.5})
    figures = run_live(stream, still(90), sink, delay_s=DELAY_S, clock=clock)
    assert len(sink.ticks) == figures.counts.ticks == 90
    assert abs(sink.times_s[-1] - sink.times_s[0] - 89 * TICK_S) < 1e-6
    assert sink.largest_step < NO_CLICK and abs(figures.drift_ms) < 1e-3


def test_a_slow_reader_loses_whole_ticks_and_not_the_clock(clock: SimulatedClock) -> None:
    """It takes four fifths of the sound: it was written to the end, later and later."""
    reader, writer = os.pipe()
    sink, heard, waiting_s = PcmSink(writer, "f32le"), [], []
    tick_bytes = 8 * TIMING.samples_per_tick

    def take(figures: Figures) -> None:
        heard.append(os.read(reader, 4 * tick_bytes // 5))
        waiting_s.append(sink.delay_s)

    figures = run_live(
        ToneStream(clock), still(300), sink, delay_s=DELAY_S, clock=clock, on_tick=take
    )
    assert figures.counts.ticks == 300 and figures.wall_s < 300 * TICK_S + DELAY_S + TICK_S
    assert max(waiting_s) < 0.25 + 2 * TICK_S, max(waiting_s)
    os.set_blocking(reader, False)
    heard.append(os.read(reader, 1 << 20))
    sink.close()
    heard.append(os.read(reader, 1 << 20) if sink.delay_s else b"")
    data, counts = b"".join(heard), figures.counts
    assert len(data) == (300 - counts.ticks_dropped) * tick_bytes
    assert 45 < counts.ticks_dropped < 60 and counts.ticks_concealed == 0
    assert figures.as_json()["samples"] == len(data) // 8
    sound_LC = np.frombuffer(data, "<f4").reshape(-1, 2)
    assert np.abs(np.diff(sound_LC, axis=0)).max() < NO_CLICK
    for descriptor in (reader, writer):
        os.close(descriptor)


def test_a_reader_that_never_reads_does_not_stop_the_session(clock: SimulatedClock) -> None:
    reader, writer = os.pipe()
    figures = run_live(
        ToneStream(clock), still(90), PcmSink(writer, "s16le"), delay_s=DELAY_S, clock=clock
    )
    assert figures.counts.ticks == 90 and figures.counts.ticks_dropped > 70
    assert not figures.is_cut_short
    os.close(reader)
    os.close(writer)


def test_frames_dropped_doubled_late_and_frozen(clock: SimulatedClock) -> None:
    """Of a camera each tick takes the newest picture there, and the last one when there is none."""
    images = [np.full((48, 64, 3), n, np.uint8) for n in range(60)]
    waits_s = [TICK_S, 1.5 * TICK_S] + [TICK_S] * 58
    waits_s[10] = 5 * TICK_S  # dropped: four ticks without a picture
    waits_s[20] = 0.0  # doubled: two at once
    waits_s[30], waits_s[31] = 1.6 * TICK_S, 0.4 * TICK_S  # late, then on time again
    waits_s[40] = 1.0  # frozen
    camera = CameraSource(clock, [list(zip(waits_s, images, strict=True))])
    stream, sink = ToneStream(clock, hear_s=lambda tick: 0.001), ListSink(clock)
    figures = run_live(stream, camera, sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, figures.counts.ticks)
    shown = [int(image_HWC[0, 0, 0]) for image_HWC in stream.images]
    assert shown == sorted(shown), "a tick went back to an older picture"
    assert figures.counts.pictures == 60
    assert figures.counts.pictures_unused == 60 - len(set(shown)) >= 1
    assert figures.counts.ticks_held == len(shown) - len(set(shown))
    assert shown.count(39) >= 29 and shown.count(9) >= 4
    assert figures.counts.underruns == 0 and sink.largest_step <= TONE_STEP * 1.001


def test_a_picture_may_change_its_size(clock: SimulatedClock, stream: Stream) -> None:
    sizes = [(48, 64)] * 5 + [(30, 100)] * 5 + [(200, 40)] * 5
    images = [np.random.default_rng(0).integers(0, 255, (*s, 3), dtype=np.uint8) for s in sizes]
    source = TimedSource([picture(x, time_s=Fraction(n, 30)) for n, x in enumerate(images)], 15)
    sink = ListSink(clock)
    figures = run_live(stream, source, sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 15)
    assert figures.counts.resolution_changes == 2 and np.isfinite(sink.sound_LC).all()


def test_corrupted_packets_are_skipped(tmp_path: Path, clock: SimulatedClock, stream) -> None:
    path = write_noise(tmp_path / "clip.mp4")
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for packet in list(container.demux(video=0))[10:13]:
            data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    sink = ListSink(clock)
    figures = run_live(stream, file_source(open_video(path)), sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 30)
    assert 1 <= figures.counts.packets_damaged <= 3 and figures.counts.underruns == 0
    assert figures.counts.pictures == 30 - figures.counts.packets_damaged


def test_a_lost_camera_is_held_and_then_given_up(clock: SimulatedClock) -> None:
    camera = CameraSource(clock, [between_ticks(31)], hold_s=2.0)
    stream, sink = ToneStream(clock), ListSink(clock)
    figures = run_live(stream, camera, sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 31 + 60)
    assert figures.counts.source_losses == 1 and figures.counts.source_returns == 0
    assert figures.counts.ticks_held == 60 and figures.counts.underruns == 0
    assert figures.ended == "the source was lost: unplugged"


def test_a_camera_that_comes_back_goes_on(clock: SimulatedClock) -> None:
    takes = [between_ticks(31), [], [(TICK_S, GREY)] * 30]
    camera = CameraSource(clock, takes, hold_s=1.0)
    stream, sink = ToneStream(clock), ListSink(clock)
    figures = run_live(stream, camera, sink, delay_s=DELAY_S, clock=clock)
    # 31 ticks, two tries after 0.1 s each, 30 ticks, and the hold.
    check_clock(figures, sink, 31 + 6 + 30 + 30)
    assert figures.counts.source_losses == 2 and figures.counts.source_returns == 1


@pytest.mark.parametrize(("hold_s", "num_ticks"), [(None, 10), (1.0, 40)], ids=["file", "url"])
def test_a_source_with_times_that_breaks_off(clock, hold_s, num_ticks: int) -> None:
    """A file ends with its last picture; an address holds it for a while."""
    source = still(10)
    source.num_ticks, source.hold_s, source.is_lost_after = 90, hold_s, True
    sink = ListSink(clock)
    figures = run_live(ToneStream(clock), source, sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, num_ticks)
    assert figures.ended == "the source was lost: torn out"


def test_a_source_of_unknown_length_ends_with_its_last_picture(clock: SimulatedClock) -> None:
    times_s = [Fraction(n, 24) for n in range(24)]
    source = TimedSource([picture(GREY, time_s=time_s) for time_s in times_s])
    sink = ListSink(clock)
    figures = run_live(ToneStream(clock), source, sink, delay_s=DELAY_S, clock=clock)
    check_clock(figures, sink, 30)


def test_no_picture_and_a_failing_model_are_told(clock: SimulatedClock) -> None:
    sink = ListSink(clock)
    for source, words in [
        (TimedSource([], 30), "none of the pictures of scripted"),
        (CameraSource(clock, [], hold_s=0.5), "unplugged"),
        (CameraSource(clock, [[(60.0, GREY)]]), "no picture came from scripted camera in 15 s"),
    ]:
        with pytest.raises(UserError, match=words):
            run_live(ToneStream(clock), source, sink, delay_s=DELAY_S, clock=clock)

    def fail(tick: int) -> float:
        if tick == 5:
            raise RuntimeError("out of memory")
        return 0.0

    with pytest.raises(RuntimeError, match="out of memory"):
        run_live(ToneStream(clock, hear_s=fail), still(30), sink, delay_s=DELAY_S, clock=clock)


def test_the_schedule_takes_the_oldest_tick_that_can_be_in_time() -> None:
    schedule = Schedule(start_s=10.0, delay_s=0.12, tick_s=TICK_S)
    cases = [
        (3, 10.0, 0.0, 3, "not due yet: it is waited for"),
        (3, 10.0 + 5 * TICK_S, 0.05, 3, "two late, 53 ms left: in time"),
        (3, 10.0 + 5 * TICK_S, 0.06, 4, "two late, 60 ms needed: one is skipped"),
        (3, 10.0 + 5.9 * TICK_S, 0.119, 6, "the newest is too old: the next is waited for"),
        (3, 10.0 + 9.5 * TICK_S, 0.5, 9, "none can ever be in time: the newest"),
        (3, 10.0 + 60.0, 0.04, 1800 - 2, "after a minute the past is left out"),
    ]
    for following, now_s, cost_s, tick, why in cases:
        assert schedule.choose(following, now_s=now_s, cost_s=cost_s) == tick, why
