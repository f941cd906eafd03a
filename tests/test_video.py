"""Frames in: exact lengths at every rate, causal ticks, rotation, cut-off files."""

import gc
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from spatial_v2a.conditioning.video import (
    apply_display_matrix,
    causal_ticks,
    open_video,
    write_video,
)
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING

FLASH_S = 7
SIZE = (32, 48)
NTSC = Fraction(30_000, 1001)


def dark(brightness: int = 30) -> np.ndarray:
    return np.full((*SIZE, 3), brightness, np.uint8)


def frames_with_flash(times_s: list[Fraction]):
    """Dark frames, bright from FLASH_S on for a tenth of a second."""
    for time_s in times_s:
        yield dark(220 if 0 <= time_s - FLASH_S < Fraction(1, 10) else 30)


def irregular_times(end_s: int) -> list[Fraction]:
    random = np.random.default_rng(0)
    times = [Fraction(0)]
    while times[-1] < end_s:
        times.append(times[-1] + Fraction(int(random.integers(4, 90)), 1000))
    return times


def write_flash(path: Path, fps: Fraction | int | None) -> Fraction:
    """Writes about 8 s with a flash at 7.0 s; returns the exact length."""
    if fps is None:
        times = irregular_times(8)
        end_s = times[-1] + Fraction(1, 40)
        write_video(path, frames_with_flash(times), times_s=times, end_s=end_s)
        return end_s
    times = [n / Fraction(fps) for n in range(round(8 * fps))]
    write_video(path, frames_with_flash(times), fps)
    return len(times) / Fraction(fps)


RATES = pytest.mark.parametrize(
    "fps", [16, 24, NTSC, 60, None], ids=["16", "24", "29.97", "60", "variable"]
)


@RATES
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_length_is_exact_and_an_event_shows_at_its_time(tmp_path: Path, fps, suffix) -> None:
    path = tmp_path / f"flash{suffix}"
    length_s = write_flash(path, fps)
    source = open_video(path)
    # Matroska rounds the last frame's time and duration to its 1 ms clock.
    slack_s = Fraction(0) if suffix == ".mp4" else Fraction(1, 1000)
    assert abs(source.duration - length_s) <= slack_s, (source.duration, length_s)
    assert source.num_samples == TIMING.num_samples(source.duration)
    brightness = [image[0, 0, 0] for image in source.ticks()]
    assert len(brightness) == source.num_ticks
    first = next(n for n, value in enumerate(brightness) if value > 120)
    # At 29.97 fps the first bright frame itself is stamped 7.007 s; no tick may be early.
    assert FLASH_S * TIMING.tick_hz <= first <= FLASH_S * TIMING.tick_hz + 1


def test_ticks_never_see_the_future() -> None:
    times = irregular_times(3)
    shown = list(causal_ticks(((t, t) for t in times), num_ticks=90, timing=TIMING))
    for tick, time_s in enumerate(shown):
        newest = max(t for t in times if t <= TIMING.tick_time_s(tick))
        assert time_s == newest, (tick, time_s)


def test_ticks_read_only_one_item_ahead() -> None:
    read = itertools.count()
    endless = ((Fraction(n, 30), next(read)) for n in itertools.count())
    ticks = causal_ticks(endless, num_ticks=10**9, timing=TIMING)
    for expected in range(50):
        assert next(ticks) == expected
    assert next(read) <= 53


def test_ticks_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no item"):
        list(causal_ticks(iter(()), num_ticks=3, timing=TIMING))


def test_rounded_stamps_of_matroska_give_every_frame_its_tick(tmp_path: Path) -> None:
    """30 fps in a 1 ms clock: 66.67 ms is stored as 67, which must not delay frame 2 to tick 3."""
    path = tmp_path / "ramp.mkv"
    write_video(path, (dark(20 + 4 * n) for n in range(40)), 30)
    values = [int(image[0, 0, 0]) for image in open_video(path).ticks()]
    assert len(values) == 40
    assert min(np.diff(values)) >= 2, values


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_honoured(tmp_path: Path, degrees: int) -> None:
    image = dark()
    image[:16, :24] = 220  # top left
    path = tmp_path / "turned.mp4"
    write_video(path, [image] * 3, 30, rotation_deg=degrees)
    seen = next(open_video(path).ticks())
    expected = np.rot90(image, degrees // 90)
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).mean() < 12


def test_a_mirroring_display_matrix_is_honoured() -> None:
    """Front cameras store the mirrored picture with a negative scale."""
    image = np.arange(12).reshape(2, 2, 3)
    one = 1 << 16
    matrix = np.array([-one, 0, 0, 0, one, 0, 0, 0, 1 << 30], np.int32).tobytes()
    assert np.array_equal(apply_display_matrix(image, matrix), image[:, ::-1])


def test_wide_pictures_are_scaled_down_only(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    write_video(path, [np.zeros((90, 160, 3), np.uint8)] * 2, 30)
    source = open_video(path)
    assert next(source.ticks(max_width=64)).shape == (36, 64, 3)
    assert next(source.ticks(max_width=320)).shape == (90, 160, 3)


def test_a_later_start_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    times = [Fraction(1, 2) + Fraction(n, 25) for n in range(25)]
    write_video(path, [dark()] * 25, times_s=times, end_s=Fraction(3, 2))
    extent = open_video(path).extent
    assert extent.start_s == Fraction(1, 2) and extent.duration_s == 1


def test_frames_are_decoded_lazily(tmp_path: Path) -> None:
    """The first tick of a long file must not wait for the rest, nor keep what it has passed."""
    path = tmp_path / "long.mp4"
    write_video(path, (dark(n % 200) for n in range(900)), 30)
    ticks = open_video(path).ticks()
    kept = [next(ticks) for _ in range(3)]
    assert len({id(image) for image in kept}) == 3
    ticks.close()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
def test_a_file_cut_in_its_data_is_refused(tmp_path: Path, share: float) -> None:
    """The index is at the front, so the file opens; only its packets end too early."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (90, *SIZE, 3), dtype=np.uint8)
    write_video(tmp_path / "plain.mp4", noise, 30)
    with av.open(str(tmp_path / "plain.mp4")) as source:
        with av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    data = whole.read_bytes()
    assert open_video(whole).duration == 3
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="cut off"):
        open_video(cut)


def test_a_matroska_file_cut_off_is_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    noise = np.random.default_rng(0).integers(0, 255, (90, *SIZE, 3), dtype=np.uint8)
    write_video(whole, noise, 30)
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    with pytest.raises(UserError, match="cut off"):
        open_video(cut)


def test_damaged_packets_hold_the_last_picture(tmp_path: Path) -> None:
    """Rubbish inside the data keeps the length; the rest still plays."""
    path = tmp_path / "hurt.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (60, *SIZE, 3), dtype=np.uint8)
    write_video(path, noise, 30)
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(bytes(data))
    source = open_video(path)
    assert len(list(source.ticks())) == 60


def test_frames_are_freed_without_the_collector(tmp_path: Path) -> None:
    """A frame in a reference cycle lives until a full collection: a long video must not leak."""
    path = tmp_path / "frames.mp4"
    write_video(path, (dark(n) for n in range(90)), 30)
    gc.collect()
    gc.disable()
    try:
        assert sum(1 for _ in open_video(path).ticks()) == 90
        alive = [thing.width for thing in gc.get_objects() if type(thing) is av.VideoFrame]
    finally:
        gc.enable()
    assert all(width <= 16 for width in alive)
