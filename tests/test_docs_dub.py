"""The walk through a dub in docs/dub-a-capture.md works: its commands are run, in order."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a import Config
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.inference.cli.main import run
from tests.captures import RATE_HZ, decoded, write_capture
from tests.test_docs import FENCE, command_line, options
from tests.tiny_checkpoint import write_tiny_checkpoint

PAGE = Path(__file__).parents[1] / "docs" / "dub-a-capture.md"
# Enough for the ranges that the page makes again.
LENGTH_S = 3.6
WROTE = re.compile(r"^wrote (.+)$", re.M)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


def for_tests(words: list[str], checkpoint: Path) -> list[str]:
    """The command with the tiny checkpoint and one evaluation, where it takes them."""
    command = command_line("spatial-v2a").commands[words[0]]
    extra = {"--checkpoint": str(checkpoint), "--nfe": "1"} if words[0] != "watermark" else {}
    known = options(command)
    return [*words, *(word for flag in extra if flag in known for word in (flag, extra[flag]))]


def run_shell(body: str, checkpoint: Path) -> set[str]:
    """Runs a block's lines here; returns the first words of what ran."""
    ran = set()
    for line in body.splitlines():
        program, *words = shlex.split(line)
        if program == "mkdir":
            Path(*words).mkdir()
        else:
            assert program == "spatial-v2a", f"the page runs {program}"
            code = run(for_tests(words, checkpoint))
            # Nothing is signed without a key, and the page says so.
            assert code == (words[0] == "provenance"), f"exit code {code}: {line}"
            ran.add(words[0])
    return ran


def put_objects(path: Path) -> None:
    """Puts the objects of the page in: random weights detect none."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    place = {"y": 0.4, "w": 0.1, "h": 0.2}
    for line in lines:
        share = line["t"] / lines[-1]["t"]
        line["boxes"] = [
            {"id": 1, "class": "steam", "x": 0.1 + 0.5 * share, **place},
            {"id": 2, "class": "crow", "x": 0.8 - 0.5 * share, **place},
        ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_walk_through_a_dub_works(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Every command ends with 0 and writes the files that the page shows, neither more nor less."""
    monkeypatch.chdir(tmp_path)
    # OpenVINO would compile longer than these few seconds take to hear.
    monkeypatch.setenv(SWITCH, "0")
    write_capture(tmp_path, length_s=LENGTH_S)
    (tmp_path / "footage").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(f"footage/{name}", np.full((12, 32, 48, 3), 90, np.uint8), fps=24)
    ran, num_shown, printed = set(), 0, ""
    for language, body in FENCE.findall(PAGE.read_text("utf-8")):
        if language == "sh":
            ran |= run_shell(body, checkpoint)
            printed = capsys.readouterr().out
            if "capture.tracks.jsonl" in printed:
                put_objects(tmp_path / "capture.tracks.jsonl")
        elif language == "python":
            exec(compile(body, PAGE.name, "exec"), {})
        else:
            shown = WROTE.findall(body)
            assert WROTE.findall(printed) == shown, f"{WROTE.findall(printed)} is not {shown}"
            assert all((tmp_path / name).stat().st_size > 0 for name in shown)
            num_shown += len(shown)
    assert ran == {"dub", "tracks", "provenance", "watermark"}, f"the page ran {ran}"
    assert num_shown >= 24, f"the page shows {num_shown} files"
    assert {path.name for path in (tmp_path / "dubbed").iterdir()} == {
        f"{name}.dubbed.mp4" for name in "ab"
    }
    _, kept = decoded(tmp_path / "capture.dubbed.mkv")
    _, redone = decoded(tmp_path / "capture.dubbed.v2.mkv")
    changed_s = np.flatnonzero((kept != redone).any(1)) / RATE_HZ
    assert 2.5 <= changed_s.min() < 2.6 and 3.4 < changed_s.max() < 3.5, f"redone {changed_s}"


def test_its_python_mirrors_and_mutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ten seconds with both objects: mirrored, and object 2 mute from 8 s on."""
    monkeypatch.chdir(tmp_path)
    tracks = tmp_path / "capture.tracks.jsonl"
    tracks.write_text("".join(f'{{"t": {t / 2}, "boxes": []}}\n' for t in range(21)))
    put_objects(tracks)
    (body,) = (body for language, body in FENCE.findall(PAGE.read_text()) if language == "python")
    exec(compile(body, PAGE.name, "exec"), {})
    edited = (tmp_path / "capture.edited.jsonl").read_text().splitlines()
    muted = set()
    for before, after in zip(tracks.read_text().splitlines(), edited, strict=True):
        pairs = zip(json.loads(before)["boxes"], json.loads(after)["boxes"], strict=True)
        for old, new in pairs:
            centres = [box["x"] + box["w"] / 2 for box in (old, new)]
            assert sum(centres) == pytest.approx(1), f"not mirrored: {centres}"
            muted |= {(new["id"], json.loads(after)["t"])} if new["mute"] else set()
    assert muted == {(2, 8.0), (2, 8.5), (2, 9.0), (2, 9.5), (2, 10.0)}, f"muted: {muted}"


def test_its_pictures_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE.read_text("utf-8"))
    assert len(pictures) >= 5, f"{len(pictures)} pictures"
    for name in pictures:
        size = (PAGE.parent / name).stat().st_size
        assert 1000 < size < 300_000, f"{name}: {size} bytes"
