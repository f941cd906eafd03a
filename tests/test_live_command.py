"""`spatial-v2a live` itself, in real time: whole files, raw samples, Ctrl-C, what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spatial_v2a import Config
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.errors import install_command
from spatial_v2a.inference.cli.live import _one_interrupt, _recording
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.live.sinks import FileMarks
from spatial_v2a.inference.marking.reading import State, read_provenance
from spatial_v2a.timing import TIMING
from tests.full_disk import files_up_to
from tests.tiny_checkpoint import write_tiny_checkpoint

NUM_TICKS = 45
# With so long a delay a busy machine makes some ticks in time, so that something is heard.
BUSY_MS = 4000


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (NUM_TICKS, 48, 64, 3), dtype=np.uint8)
    write_video(path, noise, 30)
    return path


@pytest.fixture
def clip(tmp_path: Path, whole_clip: Path) -> Path:
    return Path(shutil.copy(whole_clip, tmp_path / "clip.mp4"))


def live(*words: object) -> int:
    return run(["live", "--nfe", "1", *map(str, words)])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, bytes | None]:
    """Of every file; None of a pipe."""
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


def test_a_fast_file_has_the_samples_of_dub(tmp_path, clip, checkpoint, capfd) -> None:
    plain = DubOptions(watermark=False, provenance=False)
    (job,) = plan_jobs([clip], out=tmp_path / "dub.wav", options=plain)
    Dubber(checkpoint, settings=EngineSettings(seed=4, nfe=1), device="cpu").dub(job)
    capfd.readouterr()
    out = tmp_path / "live.wav"
    words = ["--source", clip, "--sink", out, "--checkpoint", checkpoint, "--seed", 4, "--fast",
             "--no-watermark", "--no-provenance"]  # fmt: skip
    assert live(*words, "--json") == 0
    said = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert out.read_bytes() == job.out.read_bytes()
    assert (said["ticks"], said["samples"]) == (NUM_TICKS, NUM_TICKS * TIMING.samples_per_tick)
    assert said["ended"] == "the source ended" and said["underruns"] == 0
    assert names(tmp_path) == ["clip.mp4", "dub.wav", "live.wav"]


def test_ctrl_c_leaves_a_playable_file(tmp_path, checkpoint, capfd) -> None:
    """A real signal while it plays in real time; the header counts what was written."""
    clip, out = tmp_path / "clip.mp4", tmp_path / "live.wav"
    num_ticks = 20 * TIMING.tick_hz  # a busy machine may be seconds late with the signal
    write_video(clip, (np.zeros((48, 64, 3), np.uint8) for _ in range(num_ticks)), 30)
    # A shell starts what it runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        enough = 10 * TIMING.samples_per_tick * 6
        for _ in range(12_000):
            if any(p.stat().st_size > enough for p in tmp_path.glob(".spatial-v2a-*/*.wav")):
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.005)

    threading.Thread(target=interrupt, daemon=True).start()
    try:
        words = ["--source", clip, "--sink", out, "--checkpoint", checkpoint]
        assert live(*words, "--delay-ms", BUSY_MS) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    said = capfd.readouterr().out
    assert f"wrote {out}\n" in said and "(stopped)" in said
    info = soundfile.info(out)
    assert 10 * TIMING.samples_per_tick <= info.frames < num_ticks * TIMING.samples_per_tick
    assert info.frames % TIMING.samples_per_tick == 0
    # The size in the header is that of the file: 8 bytes are not counted.
    assert int.from_bytes(out.read_bytes()[4:8], "little") == out.stat().st_size - 8
    assert names(tmp_path) == ["clip.mp4", "live.wav"]


def test_raw_samples_on_stdout_and_words_on_stderr(clip, checkpoint, capfdbinary) -> None:
    words = ["--source", clip, "--sink", "-", "--pcm", "f32le", "--checkpoint", checkpoint]
    assert live(*words, "--seconds", 0.5, "--delay-ms", BUSY_MS, "--json") == 0
    out, err = capfdbinary.readouterr()
    said = json.loads(err.decode().strip().splitlines()[-1])
    audio_LC = np.frombuffer(out, "<f4").reshape(-1, 2)
    assert len(audio_LC) == said["samples"] == 15 * TIMING.samples_per_tick
    assert np.isfinite(audio_LC).all() and said["ended"] == "as long as asked for"
    counted = {"ticks", "pictures", "ticks_skipped", "underruns", "drift_ms", "av_delay_ms"}
    assert counted <= set(said)


@pytest.mark.parametrize(("suffix", "is_fast"), [(".wav", True), (".flac", False)])
def test_a_full_disk_keeps_what_is_whole(
    tmp_path, clip, checkpoint, capfd, suffix, is_fast
) -> None:
    """It was a traceback, and the recording was gone; from a file, and from a FIFO as it comes."""
    out, source = tmp_path / f"live{suffix}", clip
    words = ["--fast"]
    if not is_fast:
        source, words = tmp_path / "fifo", ["--delay-ms", BUSY_MS]
        os.mkfifo(source)
        write_video(tmp_path / "a.mkv", np.zeros((NUM_TICKS, 48, 64, 3), np.uint8), 30)
        data = (tmp_path / "a.mkv").read_bytes()
        threading.Thread(target=lambda: source.write_bytes(data), daemon=True).start()
    with files_up_to(120_000 if is_fast else 50_000):
        assert live("--source", source, "--sink", out, "--checkpoint", checkpoint, *words) == 1
    said = capfd.readouterr()
    (line,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert "the file cannot grow: File too large" in line and f"{out} holds the sound" in line
    assert "Traceback" not in said.err and f"wrote {out}" in said.out
    assert 0 < len(soundfile.read(out)[0]) < TIMING.sample_rate_hz
    assert not [name for name in names(tmp_path) if name.startswith(".")]


def test_a_session_of_pure_concealment_is_an_error(tmp_path, clip, checkpoint, capfd) -> None:
    """It ended with exit code 0 and a silent file."""
    words = ["--source", clip, "--checkpoint", checkpoint, "--delay-ms", 0, "--seconds", 0.2]
    assert live(*words, "--sink", tmp_path / "live.wav") == 2
    assert "error: nothing was heard: each of the 6 ticks" in capfd.readouterr().err
    assert names(tmp_path) == ["clip.mp4"]
    assert live(*words, "--sink", "-") == 2


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), KeyboardInterrupt()])
def test_a_recording_survives_what_ends_the_session(tmp_path: Path, error) -> None:
    """Whatever it is, once something was heard; before that no file is left."""
    marks = FileMarks(watermark=False, provenance=False, command="")
    tick = np.zeros((TIMING.samples_per_tick, 2), np.float32)
    with (
        pytest.raises(type(error)),
        _recording(tmp_path / "x.wav", marks, overwrite=False) as file,
    ):
        file.write(tick)
        raise error
    assert soundfile.info(tmp_path / "x.wav").frames == TIMING.samples_per_tick
    with (
        pytest.raises(type(error)),
        _recording(tmp_path / "y.wav", marks, overwrite=False),
    ):
        raise error
    assert names(tmp_path) == ["x.wav"]


def test_a_second_ctrl_c_does_not_reach_a_file_that_is_being_closed() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with _one_interrupt():
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_fifo_without_a_writer_ends_by_a_signal(tmp_path: Path, kill: int) -> None:
    """Of any kind that asks; the line that says what is waited for comes first."""
    os.mkfifo(tmp_path / "fifo")
    # Under nohup, or behind a shell's &, the child would inherit deaf ears, and the test never end.
    hears = f"import signal; signal.signal({int(kill)}, signal.default_int_handler)"
    main = "from spatial_v2a.inference.cli.main import main; main()"
    command = [sys.executable, "-c", f"{hears}; {main}", "live"]
    command += ["--source", str(tmp_path / "fifo"), "--sink", str(tmp_path / "x.wav")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert "waiting for a picture from" in process.stderr.readline()
        process.send_signal(kill)
        assert process.stderr.read() == "stopped; no unfinished file is left\n"
        assert process.wait(60) == 130
    assert names(tmp_path) == ["fifo"]


@pytest.mark.parametrize("delay_ms", [BUSY_MS, 0])  # 0: it goes before a first sound is there
def test_a_reader_that_has_gone_ends_with_a_line(clip, checkpoint, delay_ms: int) -> None:
    main = "from spatial_v2a.inference.cli.main import main; main()"
    command = [sys.executable, "-c", main, "live"]
    command += ["--source", str(clip), "--sink", "-", "--checkpoint", str(checkpoint)]
    command += ["--delay-ms", str(delay_ms)]
    reader, writer = os.pipe()
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        os.read(reader, 1)
        os.close(reader)
        said = process.stderr.read()
        assert process.wait(30) == 1, said
    assert "error: the reader of the pipe went away; the sound ends there" in said
    assert "Traceback" not in said and "Exception ignored" not in said


BAD = [
    (["--source", "fifo", "--fast", "--sink", "x.wav"], "--fast fits a file only"),
    (["--source", "/dev/null", "--sink", "x.wav"], "/dev/null is a device, no video"),
    (["--source", "nothing.mp4", "--sink", "x.wav"], "no such file: nothing.mp4"),
    (["--source", "text.mp4", "--sink", "x.wav"], "not a readable video"),
    (["--source", "clip.mp4", "--sink", "x.mp4"], "speakers, to - or to a .wav or .flac file"),
    (["--source", "clip.mp4", "--sink", "there.wav"], "there.wav exists; give another name with"),
    (["--source", "clip.mp4", "--sink", "no/x.wav"], "folder no of no/x.wav does not exist"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--pcm", "s16le"], "--pcm s16le is for --sink -"),
    (["--source", "clip.mp4", "--sink", "-", "--pcm", "mp3"], "'mp3' is not one of"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--newest"], "--newest is for a sender"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--device-name", "a"], "--device-name a fits"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--input-format", "h264"], "leave them out"),
    (["--source", "-", "--sink", "x.wav", "--input-option", "a"], "a is not KEY=VALUE"),
    (["--source", "-", "--sink", "x.wav", "--fast"], "--fast fits a file only"),
    (["--source", "camera", "--sink", "x.wav", "--fast"], "--fast fits a file only"),
    (["--source", "screen", "--sink", "x.wav"], "DISPLAY is not set"),
    (["--source", "http://127.0.0.1:9/x", "--sink", "x.wav"], "cannot open --source http://127"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--delay-ms", "-1"], "--delay-ms"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--seconds", "0"], "--seconds"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--without", "sky"], "'sky'"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--guidance", "99"], "--guidance"),
    (
        ["--source", "clip.mp4", "--sink", "x.wav", "--device", "tpu"],
        "'tpu' is not one of 'auto', 'cpu', 'cuda'",
    ),
    (["--source", "clip.mp4", "--sink", "x.wav", "--checkpoint", "nowhere"], "no checkpoint"),
    (["--source", "clip.mp4", "--sink", "x.wav", "--fov", "180"], "field of view 180"),
    (["--source", "camera", "--device-name", "none", "--sink", "x.wav"], "--device-name"),
]


def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, clip: Path, checkpoint: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)
    (tmp_path / "text.mp4").write_text("These are words, not a film.\n" * 40)
    (tmp_path / "there.wav").write_bytes(b"precious")
    os.mkfifo(tmp_path / "fifo")
    before = contents(tmp_path)
    for words, reason in BAD:
        given = words if "--checkpoint" in words else [*words, "--checkpoint", str(checkpoint)]
        code, said = live(*given), capfd.readouterr()
        lines = [line for line in said.err.splitlines() if not line.startswith("[transformers]")]
        assert (code, said.out) == (2, ""), (words, said)
        assert len(lines) == 1 and lines[0].startswith("error: "), (words, said.err)
        assert reason in lines[0], (words, lines[0])
        assert contents(tmp_path) == before, words


def test_speakers_without_sounddevice_are_refused(clip, checkpoint, capfd, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert live("--source", clip, "--checkpoint", checkpoint) == 2
    assert "install it with: " + install_command("live") in capfd.readouterr().err


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("is_signed", [True, False], ids=["signed", "unsigned"])
def test_a_file_of_live_sound_is_marked_and_says_so(
    tmp_path, clip, checkpoint, request, suffix: str, is_signed: bool
) -> None:
    if is_signed:
        request.getfixturevalue("signing_key")
    plain, marked = tmp_path / f"plain{suffix}", tmp_path / f"marked{suffix}"
    words = ["--source", clip, "--checkpoint", checkpoint, "--fast", "--sink"]
    assert live(*words, plain, "--no-watermark", "--no-provenance") == 0
    assert live(*words, marked) == 0
    before, after = (soundfile.read(path)[0] for path in (plain, marked))
    assert before.shape == after.shape
    changed_db = 10 * np.log10(np.mean((after - before) ** 2) / np.mean(before**2))
    assert -45 < changed_db < -30, f"the mark is {changed_db:.1f} dB below the sound"
    report = read_provenance(marked)
    assert report is not None and report.provenance is not None
    state = State.valid if is_signed else State.unsigned
    assert (report.state, report.provenance.model) == (state, "tiny")
    assert report.provenance.command.startswith("spatial-v2a live --nfe 1 --source")
    assert read_provenance(plain) is None
