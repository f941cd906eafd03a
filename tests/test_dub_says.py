"""What a dub says at the end: the objects it saw, warnings with a remedy, JSON, progress."""

import json
import logging
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a import Config
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.inference.cli import output
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.cli.output import json_text
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.heard import HeardObjects, ObjectNotes
from spatial_v2a.inference.dub.jobs import plan_jobs
from spatial_v2a.inference.marking.reading import read_provenance
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(autouse=True)
def no_openvino(monkeypatch) -> None:
    monkeypatch.setenv(SWITCH, "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", np.full((12, 48, 64, 3), 90, np.uint8), 30)
    return tmp_path / "clip.mp4"


def dub(clip: Path, checkpoint: Path, *more: object) -> int:
    words = ["dub", clip, "--checkpoint", checkpoint, "--nfe", 1, "--overwrite", *more]
    return run([str(word) for word in words])


def given_file(folder: Path, class_name: str = "bell") -> Path:
    box = {"id": 1, "class": class_name, "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.5}
    lines = [{"t": round(n / 30, 6), "boxes": [box] if n < 6 else []} for n in range(12)]
    path = folder / "given.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_seconds_and_loudest_tick_of_every_class() -> None:
    notes = ObjectNotes(("bell", "engine"))
    there = Box(track_id=1, class_index=1, cx=0.5, cy=0.5, w=0.1, h=0.1)
    held = Box(track_id=2, class_index=0, cx=0.5, cy=0.5, w=0.1, h=0.1, is_persisted=True)
    for level in (0.1, 0.01):
        notes.add([there, there, held], np.full((1600, 2), level, np.float32))
    notes.add([held], np.ones((1600, 2), np.float32))
    notes.add([], np.ones((1600, 2), np.float32))
    seen = notes.summary()
    assert seen.share == 0.5 and not seen.is_next_to_nothing
    (engine,) = seen.classes
    assert (engine.class_name, engine.seconds) == ("engine", 2 / 30)
    assert engine.loudest_dbfs == pytest.approx(-20, abs=1e-4)
    assert "engine 0.1 s (loudest -20.0 dBFS)" in seen.line


def test_a_picture_of_nothing_is_said_with_remedies_that_work(
    clip: Path, checkpoint: Path, capsys, caplog
) -> None:
    """A silent file used to come without a word."""
    with caplog.at_level(logging.WARNING):
        assert dub(clip, checkpoint) == 0
    assert "objects in 0% of the picture's ticks: nothing it knows" in capsys.readouterr().out
    (warning,) = [text for text in caplog.messages if "next to nothing" in text]
    assert "--annotations FILE" in warning and "bell" in warning
    assert "--detector rtdetr" not in warning, "the tiny checkpoint has no such weights"
    # The remedy: boxes written into the file of `tracks`.
    assert run(["tracks", str(clip), "--checkpoint", str(checkpoint), "--no-picture"]) == 0
    tracks = clip.with_name("clip.tracks.jsonl")
    lines = [json.loads(line) for line in tracks.read_text().splitlines()]
    box = {"id": 1, "class": "bell", "x": 0.1, "y": 0.2, "w": 0.3, "h": 0.5}
    tracks.write_text("".join(json.dumps(line | {"boxes": [box]}) + "\n" for line in lines))
    caplog.clear()
    assert dub(clip, checkpoint, "--annotations", tracks) == 0
    assert "objects in 100% of the picture's ticks: bell 0.4 s" in capsys.readouterr().out
    assert not any("next to nothing" in text for text in caplog.messages)


def test_other_detectors_are_named_where_their_weights_are(tmp_path: Path) -> None:
    clip = Path(str(resources.files("spatial_v2a").joinpath("bundled", "demo", "clip.mp4")))
    (job,) = plan_jobs([clip], out=tmp_path)
    dubber = Dubber("stage", device="cpu")
    said = dubber.nothing_seen(job, HeardObjects(0.0, ()))
    assert "--detector rtdetr" in said and "--detector nanodet" in said
    assert dubber.nothing_seen(job, HeardObjects(0.5, ())) == ""


def test_dub_as_json(clip: Path, checkpoint: Path, capsys) -> None:
    """By the older name of --annotations, which stays."""
    given = given_file(clip.parent)
    assert dub(clip, checkpoint, "--given", given, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    (row,) = said["files"]
    assert (row["video"], row["state"], row["warning"]) == (str(clip), "dubbed", None)
    assert row["objects"]["share"] == 0.5
    (heard,) = row["objects"]["heard"]
    assert (heard["class"], heard["seconds"]) == ("bell", 0.2)
    assert Path(row["takes"][0]["out"]).is_file()
    assert row["settings"]["nfe"] == 1 and row["settings"]["annotations"] == "given.jsonl"
    assert row["tick_ms"]["p95"] > 0 and row["duration_s"] == 0.4


def test_a_folder_as_json_and_as_a_table(clip: Path, checkpoint: Path, capsys) -> None:
    (clip.parent / "bad.mp4").write_bytes(b"no video")
    assert dub(clip.parent, checkpoint, "--json") == 1
    said = capsys.readouterr()
    rows = {Path(row["video"]).name: row for row in json.loads(said.out)["files"]}
    assert rows["clip.mp4"]["state"] == "dubbed" and "nothing" in rows["clip.mp4"]["warning"]
    assert rows["bad.mp4"]["state"] == "failed" and rows["bad.mp4"]["message"]
    assert dub(clip.parent, checkpoint) == 1
    table = capsys.readouterr().out
    assert "objects" in table and "0%: nothing" in table
    assert dub(clip, checkpoint, "--skip-existing", "--json") == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["state"] == "skipped"


def test_tracks_as_json(clip: Path, checkpoint: Path, capsys) -> None:
    words = ["tracks", str(clip), "--checkpoint", str(checkpoint), "--no-picture", "--json"]
    assert run(words) == 0
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert row["num_ticks"] == 12 and row["tracks"] == [] and row["picture"] is None


def test_quiet_says_nothing_of_a_dub(clip: Path, checkpoint: Path, capfd) -> None:
    assert dub(clip, checkpoint, "--quiet") == 0
    assert capfd.readouterr() == ("", "")
    assert dub(clip.parent / "none.mp4", checkpoint, "--quiet") == 2
    assert capfd.readouterr().err.startswith("error: no such file")


def test_verbose_says_what_is_chosen(clip: Path, checkpoint: Path, caplog) -> None:
    assert dub(clip, checkpoint, "--verbose") == 0
    (said,) = [text for text in caplog.messages if text.startswith("clip.mp4: ")][:1]
    assert "device cpu" in said and "threads 1" in said and "detector yolo" in said


def test_piped_progress_is_whole_lines(clip: Path, checkpoint: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(output, "LINE_EVERY_S", 0.0)
    assert dub(clip, checkpoint) == 0
    said = capfd.readouterr().err
    assert "clip.mp4: 0.2 s of 0.4 s, about" in said
    assert "\r" not in said and "\x1b" not in said


def test_no_time_is_estimated_from_the_first_moments(capfd, monkeypatch) -> None:
    """It said "0.0 s of 11.1 s, about 13251 s left"."""
    monkeypatch.setattr(output, "LINE_EVERY_S", 0.0)
    with output.progress("clip.mp4", total_s=11.1) as show:
        for done_s in (0.0, 0.5, 0.6):
            show(done_s)
    first, second, third = capfd.readouterr().err.splitlines()
    assert (first, second) == ("clip.mp4: 0.0 s of 11.1 s", "clip.mp4: 0.5 s of 11.1 s")
    assert third.startswith("clip.mp4: 0.6 s of 11.1 s, about ")


def test_a_statement_of_origin_leaves_no_value_open(clip: Path, checkpoint: Path) -> None:
    """It said null where the checkpoint's own value had been used."""
    words = ["dub", clip, "--checkpoint", checkpoint, "--overwrite", "--without", "boxes"]
    assert run([str(word) for word in words]) == 0
    report = read_provenance(clip.with_name("clip.dubbed.mp4"))
    assert report is not None and report.provenance is not None
    settings = report.provenance.settings
    assert None not in settings.values(), settings
    expected = {"nfe": 3, "guidance": 1.0, "device": "cpu", "threads": 1, "detector": "yolo"}
    assert expected.items() <= settings.items()
    assert settings["objects"] == "together", "without boxes nothing can be told apart"
    assert settings["fov_deg"] > 0


def test_json_has_no_numbers_that_parsers_refuse() -> None:
    values = {"a": float("-inf"), "b": [float("nan")], "c": np.float64(1 / 3), "p": Path("x")}
    assert json.loads(json_text(values)) == {"a": None, "b": [None], "c": 0.333333, "p": "x"}
