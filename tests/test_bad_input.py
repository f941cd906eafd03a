"""Bad input: one line that names the value and the remedy, exit code 2, nothing touched."""

import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from spatial_v2a import Config
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.inference.cli.main import run
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), dtype=np.uint8)
    write_video(path, noise, 30)
    return path


@pytest.fixture
def clip(tmp_path: Path, whole_clip: Path) -> Path:
    return Path(shutil.copy(whole_clip, tmp_path / "clip.mp4"))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(arguments: list, folder: Path, capsys) -> str:
    """Runs the command, checks the form of the refusal, and gives its one line."""
    before = tree(folder)
    code = run([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert code == 2, (code, said.err)
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), said.err
    assert not said.out, said.out
    assert tree(folder) == before, "files changed"
    return lines[0]


def missing(folder: Path) -> str:
    return "nothing.mp4"


def text(folder: Path) -> str:
    (folder / "text.mp4").write_text("These are words, not a film.\n" * 40)
    return "text.mp4"


def empty(folder: Path) -> str:
    (folder / "empty.mp4").write_bytes(b"")
    return "empty.mp4"


def without_index(folder: Path) -> str:
    """A recording that stopped before its index was written."""
    data = (folder / "clip.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[: len(data) // 2])
    return "cut.mp4"


def cut_in_data(folder: Path) -> str:
    """A download that stopped: the index at the front is whole, the data is not."""
    with av.open(str(folder / "clip.mp4")) as source:
        options = {"movflags": "faststart"}
        with av.open(str(folder / "front.mp4"), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    data = (folder / "front.mp4").read_bytes()
    (folder / "front.mp4").write_bytes(data[: int(len(data) * 0.7)])
    return "front.mp4"


def sound_only(folder: Path) -> str:
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        frame.sample_rate = 48_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return "sound.mp4"


def no_frames(folder: Path) -> str:
    with av.open(str(folder / "none.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return "none.mkv"


def folder_itself(folder: Path) -> str:
    (folder / "folder.mp4").mkdir()
    return "folder.mp4"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "no such file"),
        (text, "is not a readable video"),
        (empty, "is empty"),
        (without_index, "is not a readable video"),
        (cut_in_data, "is cut off"),
        (sound_only, "holds sound only"),
        (no_frames, "ends before its first frame"),
        (folder_itself, "holds no video"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bad_videos(tmp_path: Path, clip: Path, capsys, make, words: str) -> None:
    name = make(tmp_path)
    line = refused(["dub", tmp_path / name], tmp_path, capsys)
    assert words in line and name in line


def test_bad_outputs(tmp_path: Path, clip: Path, capsys) -> None:
    (tmp_path / "there.mp4").write_bytes(b"precious")
    (tmp_path / "clip.dubbed.mp4").write_bytes(b"precious too")
    (tmp_path / "pan.dubbed.pan.png").write_bytes(b"a picture")
    shutil.copy(clip, tmp_path / "pan.mp4")
    cases = [
        ([clip, "-o", tmp_path / "there.mp4"], "exists"),
        ([clip], "clip.dubbed.mp4 exists"),
        ([clip, "-o", clip, "--overwrite"], "is the video itself"),
        ([tmp_path / "pan.mp4", "--report"], "pan.png exists"),
        ([clip, "-o", tmp_path / "no" / "x.mp4"], "does not exist"),
        ([clip, "-o", tmp_path / "there.mp4" / "x.mp4"], "is not a folder"),
        ([clip, "-o", "/proc/x.mp4"], "cannot write into"),
        ([clip, "-o", tmp_path / "x.mp3"], "cannot write '.mp3'"),
        ([clip, "-o", tmp_path / "x"], "cannot write ''"),
        ([clip, "-o", tmp_path / "x.webm"], "cannot hold the"),
        ([clip, tmp_path / "pan.mp4", "-o", tmp_path / "x.mp4"], "is not a folder"),
    ]
    for arguments, words in cases:
        assert words in refused(["dub", *arguments], tmp_path, capsys), arguments


def test_two_videos_of_one_name(tmp_path: Path, clip: Path, capsys) -> None:
    for name in ("a", "b", "out"):
        (tmp_path / name).mkdir()
    twins = [shutil.copy(clip, tmp_path / name / "clip.mp4") for name in ("a", "b")]
    line = refused(["dub", *twins, "-o", tmp_path / "out"], tmp_path, capsys)
    assert "both be written" in line


def test_bad_settings(tmp_path: Path, clip: Path, checkpoint: Path, capsys) -> None:
    good = ["dub", clip, "--checkpoint", checkpoint]
    cases = [
        (["--nfe", 0], "--nfe 0"),
        (["--seed", -1], "--seed -1"),
        (["--seed", "x"], "--seed"),
        (["--guidance", 1000], "--guidance 1000"),
        (["--spatial-guidance", -1], "--spatial-guidance -1"),
        (["--without", "sky"], "'sky'"),
        (["--fov", 180], "field of view 180"),
        (["--colour", "red"], "--colour"),
    ]
    for arguments, words in cases:
        assert words in refused([*good, *arguments], tmp_path, capsys), arguments


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", "not JSON"),
        ('{"boxes": []}', '"t"'),
        ('{"t": 0, "boxes": [{"id": 1, "class": "ghost", "x": 0, "y": 0, "w": 1, "h": 1}]}',
         "unknown class"),
        ('{"t": 0, "depth": [[0.5]]}', "depth"),
    ],
    ids=["no_json", "no_time", "unknown_class", "wrong_grid"],
)  # fmt: skip
def test_bad_given_geometry(tmp_path, clip, checkpoint, capsys, line: str, words: str) -> None:
    """The bad line comes last: it must be found before the first tick all the same."""
    given = tmp_path / "given.jsonl"
    given.write_text('{"t": 0, "boxes": []}\n' * 3 + line + "\n")
    arguments = ["dub", clip, "--checkpoint", checkpoint, "--annotations", given]
    said = refused(arguments, tmp_path, capsys)
    assert words in said and "line 4" in said
    refused(["dub", clip, "--annotations", tmp_path / "none.jsonl"], tmp_path, capsys)


def test_bad_checkpoints(tmp_path: Path, clip: Path, checkpoint: Path, capsys) -> None:
    def broken(name: str, change) -> Path:
        folder = Path(shutil.copytree(checkpoint, tmp_path / name))
        change(folder)
        return folder

    def halve(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def add_key(folder: Path) -> None:
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("max_boxes:", "max_boxs: 3\n  max_boxes:"))

    cases = [
        (tmp_path / "nowhere", "no checkpoint folder"),
        (clip, "is a file"),
        (broken("a", lambda f: (f / "config.yaml").unlink()), "config.yaml is missing"),
        (broken("b", lambda f: (f / "model.safetensors").unlink()), "model.safetensors is missing"),
        (broken("c", lambda f: (f / "perception.safetensors").unlink()), "perception.safetensors"),
        (broken("d", lambda f: halve(f / "model.safetensors")), "damaged"),
        (broken("e", lambda f: halve(f / "perception.safetensors")), "perception.safetensors is"),
        (broken("f", lambda f: (f / "old.pt").write_bytes(b"x")), "pickle"),
        (broken("g", add_key), "perception.max_boxs"),
    ]
    for folder, words in cases:
        line = refused(["dub", clip, "--checkpoint", folder], tmp_path, capsys)
        assert words in line, (folder, line)


def test_the_installed_command_exits_with_two(tmp_path: Path) -> None:
    script = Path(sys.executable).with_name("spatial-v2a")
    done = subprocess.run(
        [script, "dub", str(tmp_path / "nothing.mp4")], capture_output=True, text=True
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith("error: no such file") and done.stderr.count("\n") == 1
