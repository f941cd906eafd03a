"""Parts of live sessions alone: queue, concealment, speakers' queue, sinks, what --source names."""

import logging
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spatial_v2a import UserError
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.inference.live import devices
from spatial_v2a.inference.live.clock import Clock
from spatial_v2a.inference.live.conceal import FADE_OUT_SAMPLES, Concealer
from spatial_v2a.inference.live.pictures import CAPACITY, PictureQueue
from spatial_v2a.inference.live.sinks import FileSink, PcmSink, SinkClosed, pcm_bytes
from spatial_v2a.inference.live.sources import SourceOptions, file_source, open_source, pipe_source
from spatial_v2a.inference.live.speakers import MAX_SAMPLES, SampleFifo, Speakers
from spatial_v2a.timing import TIMING
from tests.full_disk import files_up_to
from tests.live_simulation import TONE_STEP, ToneStream, picture

TICK = TIMING.samples_per_tick
GREY = np.full((48, 64, 3), 90, np.uint8)


def tone(num_ticks: int) -> list[np.ndarray]:
    stream = ToneStream(_NoTime())
    return [stream.hear(0).audio_LC for _ in range(num_ticks)]


class _NoTime:
    def sleep(self, seconds: float) -> None:
        pass


def largest_step(parts: list[np.ndarray]) -> float:
    return float(np.abs(np.diff(np.concatenate(parts), axis=0)).max())


def test_a_queue_gives_the_newest_picture_of_each_tick() -> None:
    queue = PictureQueue(Clock(), is_paced=True)
    pictures = [picture(GREY, time_s=Fraction(n, 60)) for n in range(6)]
    for one in pictures:
        queue.put(one)
    shown = [queue.take(tick_time_s=Fraction(n, 30), due_s=5 + n / 30) for n in (0, 1, 1, 9)]
    assert [s.picture for s in shown] == [pictures[n] for n in (0, 2, 2, 5)]
    assert [s.is_new for s in shown] == [True, True, False, True]
    assert np.allclose([s.shown_s for s in shown], [5, 5 + 1 / 30, 5 + 1 / 30, 5 + 5 / 60])
    assert queue.num_pictures == 6 and queue.num_unused == 3


def test_a_full_queue_drops_the_oldest_of_a_camera_and_stops_a_file() -> None:
    camera = PictureQueue(Clock(), is_paced=False)
    images = [picture(GREY) for _ in range(3 * CAPACITY)]
    for one in images:
        assert camera.put(one)
    assert camera.take(tick_time_s=Fraction(0), due_s=1e9).picture is images[-1]
    assert camera.num_unused == 3 * CAPACITY - 1
    paced = PictureQueue(Clock(), is_paced=True)
    done = threading.Event()

    def fill() -> None:
        assert all(paced.put(picture(GREY, time_s=Fraction(n))) for n in range(CAPACITY))
        assert not paced.put(picture(GREY, time_s=Fraction(CAPACITY)))
        done.set()

    threading.Thread(target=fill, daemon=True).start()
    assert not done.wait(0.05), "a file was read on although nobody takes its pictures"
    paced.close()
    assert done.wait(2.0)


@pytest.mark.parametrize("num_missing", [1, 2, 30], ids=["one", "two", "many"])
def test_a_gap_goes_on_from_the_last_sample_and_ends_in_silence(num_missing: int) -> None:
    concealer, sound = Concealer(), tone(8)
    played = [concealer.play(audio_LC) for audio_LC in sound[:4]]
    assert all(np.array_equal(a, b) for a, b in zip(played, sound, strict=False))
    filled = [concealer.fill(TICK) for _ in range(num_missing)]
    assert np.abs(filled[0][0] - played[-1][-1]).max() < 1e-3
    assert np.abs(filled[0][-1]).max() < 1e-3 and not any(part.any() for part in filled[1:])
    back = [concealer.play(audio_LC) for audio_LC in sound[6:]]
    assert largest_step(played + filled + back) < 1.3 * TONE_STEP
    assert np.array_equal(back[1], sound[7]) and not np.array_equal(back[0], sound[6])
    assert concealer.num_gaps == 1 and concealer.num_filled == num_missing * TICK


def test_gaps_of_any_length_in_pieces_of_any_length_do_not_click() -> None:
    """Speakers ask for odd numbers of samples, and a gap may end before it has faded out."""
    random = np.random.default_rng(0)
    concealer, sound, position = Concealer(), np.concatenate(tone(90)), TICK
    parts = [concealer.play(sound[:position])]
    while position < len(sound) - 2000:
        num = int(random.integers(1, 700))
        if random.random() < 0.1:
            parts.append(concealer.fill(num))
        parts.append(concealer.play(sound[position : position + num]))
        position += num
    assert concealer.num_gaps > 10
    assert largest_step(parts) < 1.3 * TONE_STEP, largest_step(parts)


def test_nothing_played_yet_is_silence() -> None:
    assert not Concealer().fill(FADE_OUT_SAMPLES).any()


def read_all(fifo: SampleFifo, num_samples: int, piece: int = 256) -> list[np.ndarray]:
    return [fifo.read(piece) for _ in range(num_samples // piece)]


def test_the_speakers_queue_gives_what_was_written() -> None:
    fifo, sound = SampleFifo(), tone(3)
    assert not fifo.read(100).any() and fifo.num_gaps == 0
    for audio_LC in sound:
        fifo.write(audio_LC)
    assert fifo.level == 3 * TICK
    assert np.array_equal(np.concatenate(read_all(fifo, 4608)), np.concatenate(sound)[:4608])


@pytest.mark.parametrize("speed", [0.97, 1.03], ids=["slow_device", "fast_device"])
def test_a_device_that_runs_at_another_speed_does_not_click(speed: float) -> None:
    """It is cut or concealed and counted, and what waits stays within bounds."""
    fifo, parts, credit = SampleFifo(), [], 0.0
    for audio_LC in tone(300):
        fifo.write(audio_LC)
        credit += speed * TICK
        while credit >= 128:
            parts.append(fifo.read(128))
            credit -= 128
        assert fifo.level <= MAX_SAMPLES
    assert (fifo.num_cuts > 0) == (speed < 1) and (fifo.num_gaps > 0) == (speed > 1)
    started = parts[int(4 * TICK / 128) :]
    # A cut may cross two halves of the tone, whatever their phases.
    assert largest_step(started) < 2 * TONE_STEP


def test_speakers_without_package_library_or_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match="pip install .*sounddevice>=0.5"):
        Speakers()

    class PortAudioError(Exception):
        pass

    def no_device(**options: object) -> None:
        raise PortAudioError("Error querying device -1")

    fake = types.SimpleNamespace(PortAudioError=PortAudioError, OutputStream=no_device)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    with pytest.raises(UserError, match="no sound device plays 48000 Hz stereo.*connect one"):
        Speakers()


def test_a_device_that_is_unplugged_closes_the_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, or it just asks for no more sound; then it does not stop politely either."""

    class PortAudioError(Exception):
        pass

    class Device:
        latency, active = 0.01, True

        def __init__(self, **options: object) -> None:
            pass

        def start(self) -> None:
            pass

        def stop(self) -> None:
            raise PortAudioError("Device unavailable")

    fake = types.SimpleNamespace(PortAudioError=PortAudioError, OutputStream=Device)
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    says_so, falls_silent, sound = Speakers(), Speakers(), tone(1)[0]
    says_so.write(sound)
    says_so._device.active = False
    with pytest.raises(SinkClosed, match="plays no more"):
        says_so.write(sound)
    with pytest.raises(SinkClosed, match="plays no more"):
        for _ in range(3 * TIMING.tick_hz):
            falls_silent.write(sound)
    says_so.close()


def test_raw_samples_are_little_endian_and_clipped_as_integers() -> None:
    audio_LC = np.array([[0.5, -0.5], [2.0, -2.0]], np.float32)
    assert pcm_bytes(audio_LC, "f32le") == audio_LC.astype("<f4").tobytes()
    assert np.frombuffer(pcm_bytes(audio_LC, "s16le"), "<i2").tolist() == [
        *(16384, -16384),
        *(32767, -32767),
    ]


def test_a_pipe_whose_reader_is_gone_closes_the_sink() -> None:
    reader, writer = os.pipe()
    sink, sound = PcmSink(writer, "s16le"), tone(1)[0]
    sink.write(sound)
    assert os.read(reader, 1 << 16) == pcm_bytes(sound, "s16le")
    os.close(reader)
    with pytest.raises(SinkClosed, match="reader of the pipe"):
        sink.write(sound)
    os.close(writer)


def test_a_wav_file_that_is_full_is_whole(tmp_path: Path) -> None:
    path, sound = tmp_path / "full.wav", tone(3)
    with closing(FileSink(path, max_bytes=2 * TICK * 6)) as sink:
        sink.write(sound[0])
        sink.write(sound[1])
        with pytest.raises(SinkClosed, match="full at 4 GB; use .flac"):
            sink.write(sound[2])
    assert len(soundfile.read(path)[0]) == 2 * TICK


@pytest.mark.parametrize("is_marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_file_on_a_full_disk_is_whole_until_then(tmp_path, suffix, is_marked: bool) -> None:
    """It was a traceback, and closing the file failed as well."""
    random = np.random.default_rng(0)
    sound = [random.uniform(-0.1, 0.1, (TICK, 2)).astype(np.float32) for _ in range(40)]
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    with closing(FileSink(whole, is_marked=is_marked)) as sink:
        for audio_LC in sound:
            sink.write(audio_LC)
    with files_up_to(150_000), closing(FileSink(path, is_marked=is_marked)) as sink:
        with pytest.raises(SinkClosed, match="cannot grow: File too large"):
            for audio_LC in sound:
                sink.write(audio_LC)
        num_bytes = path.stat().st_size
    assert path.stat().st_size <= num_bytes <= 150_000
    audio_LC, _ = soundfile.read(path)
    assert len(audio_LC) == sink.num_samples > 10 * TICK
    assert np.array_equal(audio_LC, soundfile.read(whole)[0][: len(audio_LC)])
    # Another reader finds no more and no less.
    with av.open(str(path)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) == len(audio_LC)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_disk_that_fills_up_when_the_file_is_closed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    sink = FileSink(path, is_marked=True)
    for audio_LC in tone(5):
        sink.write(audio_LC)
    with files_up_to(path.stat().st_size):
        sink.close()
    assert sink.failure is not None
    assert (len(soundfile.read(path)[0]) if sink.num_samples else 0) == sink.num_samples


def test_a_disk_without_room_for_a_header_refuses_the_file(tmp_path: Path) -> None:
    with files_up_to(20), pytest.raises(OSError, match="File too large"):
        FileSink(tmp_path / "x.wav")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mkv"
    random = np.random.default_rng(0)
    write_video(path, random.integers(0, 255, (24, 48, 64, 3), dtype=np.uint8), 24)
    return path


def brightness(pictures) -> list[float]:
    return [float(one.rgb(64).mean()) for one in pictures]


def test_a_pipe_gives_the_pictures_and_times_of_the_file(clip: Path) -> None:
    reader, writer = os.pipe()

    def send() -> None:
        with open(writer, "wb") as file:
            file.write(clip.read_bytes())

    threading.Thread(target=send, daemon=True).start()
    source = pipe_source(reader, SourceOptions())
    piped = list(source.pictures())
    filed = list(file_source(open_video(clip)).pictures())
    os.close(reader)
    assert source.is_paced and [p.time_s for p in piped] == [p.time_s for p in filed]
    assert brightness(piped) == brightness(filed) and len(piped) == 24


@pytest.mark.parametrize("kind", ["named", "descriptor"])
def test_a_fifo_is_read_as_it_comes(tmp_path: Path, clip: Path, kind: str) -> None:
    """Its bytes were read for the length, and then nothing was left to play."""
    path = tmp_path / "fifo"
    os.mkfifo(path)

    def send() -> None:
        path.write_bytes(clip.read_bytes())

    threading.Thread(target=send, daemon=True).start()
    reader = None if kind == "named" else os.open(path, os.O_RDONLY)
    source = open_source(str(path) if reader is None else f"/dev/fd/{reader}", SourceOptions())
    with closing(source):
        assert source.is_paced and len(list(source.pictures())) == 24


def test_a_fifo_without_a_writer_waits_with_a_word_until_ctrl_c(tmp_path, caplog) -> None:
    """It could not be ended but with SIGKILL."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
            open_source(str(path), SourceOptions())
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"waiting for a picture from {path}; Ctrl-C ends it" in caplog.text
    until_s = time.monotonic() + 10
    while any(thread.name == "open" for thread in threading.enumerate()):
        assert time.monotonic() < until_s, "a thread still waits for a writer"


def test_a_pipe_that_ends_before_a_picture_is_refused(clip: Path) -> None:
    for data in (b"", b"These are words, not a film.\n" * 400):
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        with pytest.raises(UserError, match="cannot open --source -.*send MKV"):
            pipe_source(reader, SourceOptions())
        os.close(reader)


def test_raw_pictures_need_their_format(clip: Path) -> None:
    images = np.arange(3 * 48 * 64 * 3, dtype=np.uint8).reshape(3, 48, 64, 3)
    options = {"video_size": "64x48", "pixel_format": "rgb24", "framerate": "30"}
    reader, writer = os.pipe()
    with open(writer, "wb") as file:
        file.write(images.tobytes())
    source = pipe_source(reader, SourceOptions(input_format="rawvideo", input_options=options))
    pictures = list(source.pictures())
    os.close(reader)
    assert np.array_equal([one.rgb(64) for one in pictures], images)
    assert [one.time_s for one in pictures] == [Fraction(n, 30) for n in range(3)]


@pytest.fixture
def address(clip: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(clip.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/{clip.name}"
    server.shutdown()
    server.server_close()


def test_an_address_is_paced_unless_it_is_a_live_sender(address: str) -> None:
    source = open_source(address, SourceOptions(hold_s=3.0))
    assert (source.is_paced, source.hold_s, source.retry_s) == (True, 3.0, None)
    assert len(list(source.pictures())) == 24
    sender = open_source(address, SourceOptions(newest=True))
    assert not sender.is_paced and sender.retry_s is not None
    assert all(one.time_s is None for one in sender.pictures())


def test_a_camera_is_opened_by_name_and_scaled_down() -> None:
    """FFmpeg's test picture in a camera's place."""
    if not _has("v4l2"):
        pytest.skip("this build of PyAV has no v4l2, whose place the test picture takes")
    options = SourceOptions(
        device_name="testsrc=size=320x240:rate=30:duration=0.2", input_format="lavfi", hold_s=1.0
    )
    source = open_source("camera", options)
    assert (source.is_paced, source.hold_s) == (False, 1.0)
    assert [one.rgb(64).shape for one in source.pictures()] == [(48, 64, 3)] * 6


def _has(name: str) -> bool:
    try:
        return av.format.ContainerFormat(name, "r") is not None
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("find", "platform", "name", "words"),
    [
        (devices.screen, "linux", None, "DISPLAY is not set; name one with --device-name"),
        (devices.camera, "win32", None, "needs --device-name NAME on Windows"),
        (devices.camera, "darwin", None, "has no avfoundation; pipe the camera in"),
        (devices.screen, "win32", None, "has no gdigrab; pipe the screen in"),
        (devices.camera, "plan9", None, "no camera is known on plan9"),
        (devices.screen, "plan9", None, "no screen is known on plan9"),
    ],
)
def test_devices_of_another_platform_are_refused(
    monkeypatch: pytest.MonkeyPatch, find, platform: str, name, words: str
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    if any(_has(format) and format in words for format in ("avfoundation", "gdigrab")):
        pytest.skip("this build of PyAV has that device")
    with pytest.raises(UserError, match=words):
        find(name, platform=platform)
