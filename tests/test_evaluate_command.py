"""`spatial-v2a evaluate`: scoring given sounds end to end, and bad input refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.evaluate import evaluate
from spatial_v2a.timing import TIMING
from tests import evaluation_clips as fake

KEYS = ["walk-a", "walk-b", "walk-c"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three sounding clips and a silent one."""
    folder = tmp_path_factory.mktemp("shards")
    samples = [fake.make_sample(key, fake.path_deg(90, seed=i)) for i, key in enumerate(KEYS)]
    samples.append(fake.make_sample("still", np.full(60, 10.0), sounding=False))
    fake.write_shard(folder / "walkers" / "000000.tar", samples)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Someone's sounds for the clips: the source's own, panned right."""
    folder = tmp_path_factory.mktemp("someone")
    for index, key in enumerate(KEYS):
        clip = fake.make_clip(key, fake.path_deg(90, seed=index))
        soundfile.write(folder / f"{key}.wav", clip.audio_LC(), TIMING.sample_rate_hz)
    return folder


def test_given_sounds_get_the_whole_table(shards, sounds, tmp_path):
    evaluate(tmp_path, data=[shards], audio=sounds, jobs=1)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report["rows"]) == [
        "ground_truth",
        "audio",
        "oracle_pan",
        "box_centre_panner",
        "mono",
        "hard_left",
        "random_pan",
        "shuffled",
        "silence",
    ]
    assert report["run"]["clips"] == KEYS
    right = report["rows"]["audio"]
    assert right["pan_correlation"]["value"] > 0.97
    assert right["sign_accuracy"]["value"] > 0.95
    assert right["skill"]["value"] > 0.9
    assert report["rows"]["mono"]["pan_correlation"]["value"] == 0.0
    assert sorted(path.stem for path in (tmp_path / "plots").iterdir()) == KEYS
    assert not list(tmp_path.rglob("*.tmp"))


def test_two_runs_give_the_same_bytes(shards, sounds, tmp_path):
    reports = []
    for name in ("one", "two"):
        evaluate(tmp_path / name, data=[shards], audio=sounds, clips=2, jobs=1)
        reports.append((tmp_path / name / "report.json").read_bytes())
    assert reports[0] == reports[1]
    assert json.loads(reports[0])["run"]["clips"] == ["walk-a", "walk-c"]


def refused(complaint: str, out: Path, **options) -> None:
    """The command refuses in one line and leaves no report."""
    with pytest.raises(UserError, match=complaint) as caught:
        evaluate(out, **options)
    assert "\n" not in str(caught.value)
    assert not (out / "report.md").exists()


def test_bad_input_is_refused(shards, sounds, tmp_path):
    out = tmp_path / "out"
    refused("no clips given", out)
    refused("no folder", out, data=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    refused("no .tar shards", out, data=[tmp_path / "empty"])
    refused("--clips 9 but .* holds 3", out, data=[shards], audio=sounds, clips=9)
    refused("no sounding clips of scenario 'combat'", out, data=[shards], scenario="combat")
    refused("no folder", out, data=[shards], audio=tmp_path / "nowhere")
    refused("--long-run needs no --suite, --data", out, data=[shards], long_run=tmp_path / "v.mp4")
    (tmp_path / "file").write_text("x")
    refused("is a file", tmp_path / "file", data=[shards])


def test_a_text_file_named_tar_is_refused(tmp_path):
    (tmp_path / "bad.tar").write_text("not a shard")
    refused("cannot read shard", tmp_path / "out", data=[tmp_path])


def test_names_that_match_nothing_are_refused(shards, sounds, tmp_path):
    folder = tmp_path / "sounds"
    folder.mkdir()
    for path in sounds.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "other.wav").write_bytes((sounds / "walk-a.wav").read_bytes())
    refused("other.wav matches no clip", tmp_path / "out", data=[shards], audio=folder)
    (folder / "other.wav").unlink()
    (folder / "walk-b.wav").unlink()
    refused("misses walk-b.wav", tmp_path / "out", data=[shards], audio=folder)
