"""Folders and patterns of videos: skipped, failed and killed ones, and one model for all."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a import Config
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.many import find_videos
from tests.captures import decoded
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(autouse=True)
def no_openvino(monkeypatch) -> None:
    """It would compile longer than these moments take to hear."""
    monkeypatch.setenv(SWITCH, "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


def write_clips(folder: Path, *names: str, num_frames: int = 12) -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name in names:
        shades = (np.full((32, 48, 3), 9 * n % 250, np.uint8) for n in range(num_frames))
        write_video(folder / name, shades, 24)
    return [folder / name for name in names]


def decoded_sound(path: Path) -> np.ndarray:
    return decoded(path)[1]


def words(checkpoint: Path, *more: object) -> list[str]:
    return ["dub", "--checkpoint", str(checkpoint), "--nfe", "1", *map(str, more)]


def test_folders_and_patterns_are_searched(tmp_path: Path) -> None:
    clips = write_clips(tmp_path / "in", "b.mp4", "a.mkv", "c.dubbed.mp4")
    (tmp_path / "in" / "note.txt").touch()
    (tmp_path / "in" / ".b.partial-1.mp4").touch()
    assert find_videos([tmp_path / "in"]) == [clips[1], clips[0]]
    assert find_videos([tmp_path / "in" / "*.mp4"]) == [clips[0]]
    assert find_videos([clips[2], tmp_path / "in" / "**" / "b.*"]) == [clips[2], clips[0]]
    assert find_videos([clips[0], tmp_path / "in", clips[0]]) == [clips[0], clips[1]]
    with pytest.raises(UserError, match="fits no file"):
        find_videos([tmp_path / "*.avi"])
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="holds no video"):
        find_videos([tmp_path / "none"])


def test_a_failed_file_does_not_stop_the_rest(tmp_path, checkpoint, capsys) -> None:
    write_clips(tmp_path / "in", "a.mp4", "c.mp4")
    (tmp_path / "in" / "b.mp4").write_bytes(b"no video")
    assert run(words(checkpoint, tmp_path / "in")) == 1
    said = capsys.readouterr().out
    assert "2 dubbed, 0 skipped, 1 failed" in said and "b.mp4 is not a readable" in said
    assert sorted(p.name for p in (tmp_path / "in").glob("*.dubbed.*")) == [
        "a.dubbed.mp4", "c.dubbed.mp4",
    ]  # fmt: skip
    before = (tmp_path / "in" / "a.dubbed.mp4").stat().st_mtime_ns
    (tmp_path / "in" / "b.mp4").unlink()
    (tmp_path / "in" / "c.dubbed.mp4").unlink()
    assert run(words(checkpoint, tmp_path / "in", "--skip-existing")) == 0
    assert "1 dubbed, 1 skipped, 0 failed" in capsys.readouterr().out
    assert (tmp_path / "in" / "a.dubbed.mp4").stat().st_mtime_ns == before


def test_existing_files_stay_without_being_asked(tmp_path, checkpoint, capsys) -> None:
    write_clips(tmp_path / "in", "a.mp4", "b.mp4")
    (tmp_path / "in" / "a.dubbed.mp4").write_bytes(b"mine")
    assert run(words(checkpoint, tmp_path / "in")) == 1
    assert "a.dubbed.mp4 exists" in capsys.readouterr().out
    assert (tmp_path / "in" / "a.dubbed.mp4").read_bytes() == b"mine"


def test_several_processes_make_the_same_files(tmp_path, checkpoint, capsys) -> None:
    names = ("a.mp4", "b.mp4", "c.mp4")
    write_clips(tmp_path / "in", *names)
    (tmp_path / "in" / "bad.mp4").write_bytes(b"no video")
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, jobs in zip(outs, (1, 2), strict=True):
        out.mkdir()
        assert run(words(checkpoint, tmp_path / "in", "-o", out, "--jobs", jobs)) == 1
        assert "3 dubbed, 0 skipped, 1 failed" in capsys.readouterr().out
    for name in names:
        files = [out / f"{Path(name).stem}.dubbed.mp4" for out in outs]
        one, two = (decoded_sound(file) for file in files)
        assert np.array_equal(one, two), f"{name} differs"


def test_what_fits_one_video_only_is_refused(tmp_path, checkpoint, capsys, signing_key) -> None:
    a, b = write_clips(tmp_path / "in", "a.mp4", "b.mp4")
    cases = [("--redo", "0-0.3"), ("--annotations", a), ("--stems", tmp_path / "s"), ("--solo", 1),
             ("-o", tmp_path / "x.mp4")]  # fmt: skip
    for case in cases:
        assert run(words(checkpoint, a, b, *case)) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said
    twin = write_clips(tmp_path / "other", "a.mp4")[0]
    assert run(words(checkpoint, a, twin, "-o", tmp_path)) == 2
    assert "would both be written" in capsys.readouterr().err
    # Containers differ, the name of the statement beside them does not.
    write_clips(tmp_path / "pair", "a.mkv", "a.webm")
    assert run(words(checkpoint, tmp_path / "pair", "--overwrite")) == 2
    assert "a.dubbed.c2pa" in capsys.readouterr().err


def test_kill_and_start_again(tmp_path: Path, checkpoint: Path) -> None:
    """Kill -9 in the middle of a folder: afterwards every file is whole and there once."""
    names = [f"{number}.mp4" for number in range(4)]
    write_clips(tmp_path / "in", *names, num_frames=72)
    code = "import sys; from spatial_v2a.inference.cli.main import run; sys.exit(run(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words(checkpoint, tmp_path / "in", "--skip-existing")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = tmp_path / "in" / "0.dubbed.mp4"
    while not first.exists():
        assert process.poll() is None, f"ended with {process.returncode} before it was killed"
        time.sleep(0.02)
    while not list((tmp_path / "in").glob(".spatial-v2a-*/*.w64")):
        assert process.poll() is None, "the second file was never under way"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = first.stat().st_mtime_ns
    assert list((tmp_path / "in").glob(".spatial-v2a-*")), "nothing was under way"
    assert not (tmp_path / "in" / "3.dubbed.mp4").exists(), "it was killed too late"
    assert run(words(checkpoint, tmp_path / "in", "--skip-existing")) == 0
    assert first.stat().st_mtime_ns == done, "a finished file was made again"
    left = sorted(path.name for path in (tmp_path / "in").iterdir())
    assert left == sorted([*names, *(f"{n}.dubbed.mp4" for n in range(4))]), left
    lengths = {len(decoded_sound(tmp_path / "in" / f"{n}.dubbed.mp4")) for n in range(4)}
    assert len(lengths) == 1


def test_a_broken_file_ends_no_folder_run(tmp_path, checkpoint, capsys, monkeypatch) -> None:
    """A process that ends while it reads one file: the file is named, the rest is dubbed."""
    write_clips(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4")
    monkeypatch.setenv("PYTHONPATH", str(write_fault(tmp_path / "fault", "b.mp4")))
    out = tmp_path / "out"
    out.mkdir()
    assert run(words(checkpoint, tmp_path / "in", "-o", out)) == 1
    said = capsys.readouterr().out
    assert "2 dubbed, 0 skipped, 1 failed" in said
    assert "b.mp4 ended the process that dubbed it (SIGSEGV)" in said
    assert sorted(path.name for path in out.iterdir()) == ["a.dubbed.mp4", "c.dubbed.mp4"]


def write_fault(folder: Path, name: str) -> Path:
    """A folder for PYTHONPATH: Python processes started from there die when they open `name`."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def hook(event, args):\n"
        f"    if event == 'open' and str(args[0]).endswith({name!r}):\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "sys.addaudithook(hook)\n"
    )
    return folder
