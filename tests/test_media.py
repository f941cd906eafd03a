"""How files are opened: names are only names, lists open nothing, odd clocks and channels."""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spatial_v2a.conditioning.media import open_input, open_output, packets
from spatial_v2a.conditioning.video import MAX_LENGTH_S, open_video, write_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.jobs import DubOptions, check_size, default_out, plan_jobs
from spatial_v2a.inference.dub.mixing import MixSettings
from spatial_v2a.inference.dub.original_sound import original_tracks, track_pieces
from spatial_v2a.inference.evaluation.store import read_rival_wav
from spatial_v2a.inference.inspect.sound import SoundReader, describe_track
from spatial_v2a.inference.live.sources import SourceOptions, open_source
from spatial_v2a.inference.marking.watermark_detect import detect_file
from tests.media_files import RATE_HZ, shades, write_surround_mov, write_ts

NAMES = [
    "2026-12-01T12:30:05.mp4", "tcp:x.mp4", "http:x.mp4", "concat:a.mp4", "pipe:0", "file:x.mp4",
    "a%03d.gif", "%d.mp4", "a|b.mp4", "a\nb.mp4", "[red].mp4", "a*.mp4", os.fsdecode(b"\xff.mp4"),
    "n" * 251 + ".mp4", "~.mp4", "-x.mp4", "a::b?c#d.mp4", "dash",
]  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, shades(6), 30)
    return path


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_is_only_a_name(tmp_path: Path, clip: Path, monkeypatch, name: str) -> None:
    """Relative, for that is when FFmpeg takes `tcp:x.mp4` for an address."""
    shutil.copy(clip, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert open_video(Path(name)).num_ticks == 6
    assert len(list(open_source(name, SourceOptions()).pictures())) == 6
    out = Path(f"{name[:200]}:out.mp4")
    with open_input(name) as source, open_output(out) as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                target.mux(packet)
    assert open_video(out).num_ticks == 6


LISTS = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.2,\n{clip}\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile '{clip}'\n",
    "call.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash.mp4": '<?xml version="1.0"?>\n<MPD><BaseURL>{clip}</BaseURL></MPD>\n',
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("lead", ["", "\ufeff", "\n \n"], ids=["plain", "bom", "space"])
def test_a_list_of_files_is_refused(tmp_path: Path, clip: Path, name: str, lead: str) -> None:
    """Content decides, whatever the suffix."""
    path = tmp_path / name
    path.write_text(lead + LISTS[name].format(clip=clip), encoding="utf-8")
    with pytest.raises(UserError, match="files that it names are not opened") as refusal:
        open_video(path)
    assert "udp,rtp" in str(refusal.value), "FFmpeg opens no SDP without"


@pytest.mark.parametrize("data", [b"P6 2 2 255\n" + bytes(12), b"words\n" * 90, bytes(5000)])
def test_what_no_camera_writes_is_not_guessed_at(tmp_path: Path, data: bytes) -> None:
    for name in ("x.mp4", "x.txt", "x.ppm", "x%d.ppm", "x.yuv", "x"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="not a readable video"):
            open_video(tmp_path / name)


def test_pipes_sockets_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    cases = {
        tmp_path / "pipe": "is a pipe",
        tmp_path / "socket": "is a socket",
        Path("/dev/zero"): "is a device",
        Path("-"): "stdin",
        Path("https://host/x.mp4"): "download it first",
        tmp_path / ("n" * 300): "cannot be read",
        tmp_path / "a\0b": "cannot be read",
        tmp_path / "pipe" / "x.mp4": "no such file",
    }
    for path, words in cases.items():
        for look in (open_video, describe_track, detect_file):
            with pytest.raises(UserError, match=words) as refusal:
                look(path)
            # Once at most; a dash alone stands in the name of an option, too.
            assert str(path) == "-" or str(refusal.value).count(str(path)) <= 1, refusal.value
    listener.close()


@pytest.mark.parametrize("command", ["dub", "inspect", "tracks"])
def test_a_piped_video_is_refused_in_one_line(tmp_path: Path, clip: Path, command: str) -> None:
    code = "import sys; from spatial_v2a.inference.cli.main import run; sys.exit(run(sys.argv[1:]))"
    arguments = [sys.executable, "-c", code, command, "/dev/stdin"]
    done = subprocess.run(
        arguments, input=clip.read_bytes(), capture_output=True, cwd=tmp_path, timeout=120
    )
    errors = [line for line in done.stderr.splitlines() if not line.startswith(b"loading")]
    assert done.returncode == 2 and len(errors) == 1, done.stderr
    assert errors[0].startswith(b"error: /dev/stdin is a pipe") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_metadata_that_is_no_utf8_is_kept(tmp_path: Path, clip: Path, suffix: str) -> None:
    """A Latin-1 title was a traceback in every command."""
    latin, copy = tmp_path / f"latin{suffix}", tmp_path / f"copy{suffix}"
    for source_path, target_path in ((clip, latin), (latin, copy)):
        with open_input(source_path) as source, open_output(target_path) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            title = source.metadata.get("title", os.fsdecode("Fête".encode("latin-1")))
            target.metadata["title"] = title
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
        assert "Fête".encode("latin-1") in target_path.read_bytes()
    assert open_video(copy).num_ticks == 6


def test_quicktimes_own_order_of_channels_is_read(tmp_path: Path) -> None:
    """PyAV frees the list of such channels twice, which ended the process."""
    path = write_surround_mov(tmp_path / "surround.mov")
    track = describe_track(path)
    assert track.channel_names == ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR")
    sound_LC = np.concatenate([window.samples_LC for window in SoundReader(path, track).windows()])
    assert len(sound_LC) == RATE_HZ // 2
    loudest_hz = [int(np.abs(np.fft.rfft(sound_L)).argmax()) * 2 for sound_L in sound_LC.T]
    # Channel n is a tone of n 100 Hz; the back pair comes last in the file.
    assert loudest_hz == [100, 200, 300, 400, 700, 800, 500, 600]
    (original,) = original_tracks(path)
    assert original.num_channels == 8
    pieces = list(track_pieces(original, start_s=Fraction(0), num_samples=RATE_HZ // 2))
    left_L, right_L = np.concatenate(pieces).T
    spectrum_left, spectrum_right = np.abs(np.fft.rfft(left_L)), np.abs(np.fft.rfft(right_L))
    for left_hz, right_hz in ((100, 200), (700, 800), (500, 600)):
        assert spectrum_left[left_hz // 2] > 100 * spectrum_left[right_hz // 2]
        assert spectrum_right[right_hz // 2] > 100 * spectrum_right[left_hz // 2]
    assert not detect_file(path).is_marked


def test_unknown_channels_are_left_and_right(tmp_path: Path) -> None:
    """AAC of four channels says nothing of their places; it could not be mixed."""
    path = tmp_path / "four.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE_HZ, layout="quad(side)")
        tone_L = np.sin(np.arange(RATE_HZ, dtype=np.float32) / 10)
        values = np.stack([tone_L, 0 * tone_L, 0 * tone_L, 0 * tone_L])
        frame = av.AudioFrame.from_ndarray(values, format="fltp", layout="quad(side)")
        frame.sample_rate = RATE_HZ
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (track,) = original_tracks(path, kind="sound file")
    sound_LC = np.concatenate(list(track_pieces(track, start_s=Fraction(0), num_samples=RATE_HZ)))
    assert np.abs(sound_LC[:, 0]).max() > 0.5 and np.abs(sound_LC[:, 1]).max() < 0.1


@pytest.mark.parametrize("num_parts", [2, 3])
def test_a_clock_that_begins_again_goes_on(tmp_path: Path, num_parts: int) -> None:
    part, joined = write_ts(tmp_path / "part.ts"), tmp_path / "joined.ts"
    joined.write_bytes(part.read_bytes() * num_parts)
    video = open_video(joined)
    one = open_video(part)
    assert abs(video.duration - num_parts * one.duration) < Fraction(1, 10)
    brightness = [int(image[0, 0, 0]) for image in video.ticks()]
    assert 0 <= len(brightness) - num_parts * 30 <= num_parts
    steps = np.diff(brightness)
    assert (
        np.count_nonzero(steps < 0) == num_parts - 1 and np.count_nonzero(steps == 0) <= num_parts
    )
    (track,) = original_tracks(joined)
    assert abs(float(track.end_s - track.start_s) - num_parts) < 0.2
    reader = SoundReader(joined, describe_track(joined))
    num_samples = sum(len(window.samples_LC) for window in reader.windows())
    assert 0 <= num_samples - num_parts * RATE_HZ < num_parts * 2048
    assert reader.num_gaps == 0


def test_times_of_a_stream_are_in_order(tmp_path: Path) -> None:
    """What is copied must never step back: a muxer refuses that after all the work."""
    joined = tmp_path / "joined.ts"
    joined.write_bytes(write_ts(tmp_path / "part.ts").read_bytes() * 2)
    last: dict[int, int] = {}
    with open_input(joined) as container:
        for packet in packets(container):
            if packet.size:
                assert packet.dts > last.get(packet.stream_index, -(2**62))
                last[packet.stream_index] = packet.dts


def timed(path: Path, times: list[Fraction | int]) -> Path:
    end_s = times[-1] + Fraction(1, 30)
    write_video(path, shades(len(times)), None, times_s=times, end_s=end_s)
    return path


def test_times_that_mean_work_without_end_are_refused(tmp_path: Path) -> None:
    frames = [Fraction(n, 30) for n in range(8)]
    cases = {
        "late.mp4": (frames + [Fraction(3600)], "holds one picture for 3,600 s"),
        "late.mkv": (frames + [Fraction(3600)], "holds one picture for 3,600 s"),
        "years.mkv": (frames + [Fraction(10**7)], "hours by its times"),
    }
    for name, (times, words) in cases.items():
        with pytest.raises(UserError, match=words):
            open_video(timed(tmp_path / name, times))
    assert open_video(timed(tmp_path / "pause.mkv", [*frames, Fraction(200)])).duration > 200


def test_a_picture_shorter_than_any_sound_is_refused(tmp_path: Path) -> None:
    """Ten pictures at 2 GHz, a damaged header, became a dub without a sound track."""
    path = tmp_path / "fast.mp4"
    tick_s = Fraction(1, 90_000)
    write_video(path, shades(3), None, times_s=[n * tick_s for n in range(3)], end_s=3 * tick_s)
    with pytest.raises(UserError, match="3e-05 s by its times, .* give it new ones"):
        open_video(path)


def test_pictures_beyond_any_camera_are_refused(tmp_path: Path) -> None:
    """Few bytes can stand for gigabytes of picture: one line, before anything is decoded."""
    path = tmp_path / "bomb.mkv"
    write_video(path, shades(2, (16, 32)), 30)
    data = path.read_bytes()
    # The track's PixelWidth and PixelHeight, now of two bytes each; what follows is a void element.
    size = b"\xb0\x81\x20\xba\x81\x10"
    assert data.count(size) == 1
    path.write_bytes(data.replace(size, b"\xb0\x82\x75\x30\xba\x82\x75\x30", 1))
    with pytest.raises(UserError):
        list(open_video(path).ticks())


def test_a_dub_is_not_taken_for_an_option(tmp_path: Path, clip: Path, monkeypatch, capsys) -> None:
    shutil.copy(clip, tmp_path / "-x.mp4")
    monkeypatch.chdir(tmp_path)
    assert run(["inspect", "-x.mp4"]) == 2
    assert "./-x.mp4" in capsys.readouterr().err
    assert default_out(Path("./-x.mp4"), None) == Path("-x.dubbed.mp4")


def test_sound_names_are_only_names(tmp_path: Path, monkeypatch) -> None:
    """libsndfile takes `-` for stdin."""
    monkeypatch.chdir(tmp_path)
    for name in ("-", os.fsdecode(b"\xff.wav"), "a:b.wav"):
        soundfile.write("plain.wav", np.zeros((1600, 2)), RATE_HZ, format="WAV")
        os.rename("plain.wav", name)
        assert read_rival_wav(Path(name), num_samples=1600).shape == (1600, 2)


def test_scratch_that_the_disk_cannot_take_is_refused(tmp_path: Path, clip: Path) -> None:
    """Sixteen takes of a day are 530 GB; of the sound of a clip that is not asked for, none."""
    (job,) = plan_jobs([clip], out=tmp_path / "out.wav")
    day = replace(job.source.extent, duration_s=Fraction(MAX_LENGTH_S))
    source = replace(job.source, extent=day)
    with pytest.raises(UserError, match="of scratch"):
        check_size(replace(job, source=source, takes=job.takes * 5000))


def test_sound_that_lies_days_from_the_picture_is_refused(tmp_path: Path, clip: Path) -> None:
    path = tmp_path / "far.mkv"
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        track = target.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                target.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
        frame.sample_rate, frame.time_base = RATE_HZ, Fraction(1, RATE_HZ)
        frame.pts = 3 * 24 * 3600 * RATE_HZ
        target.mux([*track.encode(frame), *track.encode(None)])
    options = DubOptions(mix=MixSettings(original="keep"))
    with pytest.raises(UserError, match="would last 72 hours"):
        plan_jobs([path], options=options)
    assert plan_jobs([path])[0].source.num_ticks == 6
