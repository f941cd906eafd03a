"""Tracks of a video: the file and its picture, the round trip into a dub, and errors."""

import math
import shutil
from importlib import resources
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer
from typer.testing import CliRunner

from spatial_v2a import Config
from spatial_v2a.conditioning.annotations import annotated_features
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.errors import UserError
from spatial_v2a.geometry import azimuth_rad
from spatial_v2a.inference.cli.tracks import tracks
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import plan_jobs
from spatial_v2a.inference.dub.track_picture import TrackPicture
from spatial_v2a.inference.dub.track_writer import (
    TracksResult,
    TrackWriter,
    corner,
    plan_tracks,
)
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.checkpoint import find_checkpoint, read_config
from spatial_v2a.timing import TIMING
from tests.tiny_checkpoint import shaken
from tests.track_lines import box, read

CONFIG = PerceptionConfig()
NUM_TICKS = 24
SEEN_TICKS = 16
FOV_DEG = 70.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    """A tiny random model behind the bundled perception, which knows what the demo clip shows."""
    bundled = find_checkpoint("stage")
    config = tiny_config.model_copy(update={"perception": read_config(bundled).perception})
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shaken(SpatialV2A(config)).save_pretrained(folder, card="Random weights for tests.")
    for name in ("perception.safetensors", "detector-yolo.safetensors"):
        shutil.copy(bundled / name, folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    demo = open_video(Path(str(resources.files("spatial_v2a") / "bundled" / "demo" / "clip.mp4")))
    write_video(path, islice(demo.ticks(), NUM_TICKS), TIMING.tick_hz)
    return path


@pytest.fixture(scope="module")
def emptied(tmp_path_factory) -> Path:
    """A clip whose picture turns grey after a while: its object vanishes, and stays away."""
    path = tmp_path_factory.mktemp("emptied") / "emptied.mp4"
    demo = open_video(Path(str(resources.files("spatial_v2a") / "bundled" / "demo" / "clip.mp4")))
    images = list(islice(demo.ticks(), SEEN_TICKS))
    grey = np.full_like(images[0], 110)
    # Not at once, which would be a cut, at which nothing is held.
    images += [(w * images[-1] + (1 - w) * grey).astype(np.uint8) for w in (0.8, 0.6, 0.4, 0.2)]
    images += [grey] * (2 * TIMING.tick_hz - len(images))
    write_video(path, images, TIMING.tick_hz)
    return path


@pytest.fixture(scope="module")
def dubber(checkpoint: Path) -> Dubber:
    # Not the checkpoint's own field of view, so that a test sees where it is forgotten.
    settings = EngineSettings(seed=2, nfe=1)
    return Dubber(checkpoint, settings=settings, device="cpu", fov_deg=FOV_DEG)


@pytest.fixture(scope="module")
def writer(dubber: Dubber) -> TrackWriter:
    return TrackWriter(dubber)


@pytest.fixture(scope="module")
def written(writer: TrackWriter, clip: Path) -> TracksResult:
    return writer.write(plan_tracks(clip))


def test_a_line_per_tick_with_ids_bearings_and_depth(written: TracksResult) -> None:
    lines = read(written.out)
    assert written.num_ticks == len(lines) == NUM_TICKS
    assert [line["t"] for line in lines] == [round(n / 30, 6) for n in range(NUM_TICKS)]
    entries = [entry for line in lines for entry in line["boxes"]]
    assert len(entries) >= NUM_TICKS, f"only {len(entries)} boxes, the tests say nothing"
    for entry in entries:
        centre = entry["x"] + entry["w"] / 2
        expected_deg = math.degrees(azimuth_rad(centre, FOV_DEG))
        assert abs(entry["azimuth_deg"] - expected_deg) <= 0.006, entry
        assert 0 <= entry["nearness"] <= 1
    assert {line["fov_deg"] for line in lines} == {FOV_DEG}
    assert {len(line["depth"]) for line in lines} == {CONFIG.depth.grid[0]}
    ids = {entry["id"] for entry in entries}
    assert [track.track_id for track in written.tracks] == sorted(ids)
    for track in written.tracks:
        seen = [n for n, line in enumerate(lines) if track.track_id in ids_of(line)]
        assert track.seen_s == pytest.approx(len(seen) / 30)
        assert (track.first_s, track.last_s) == pytest.approx((seen[0] / 30, (seen[-1] + 1) / 30))
        assert track.share == pytest.approx(len(seen) / NUM_TICKS)


def ids_of(line: dict) -> set[int]:
    return {entry["id"] for entry in line["boxes"]}


def compare(perception: Perception, clip: Path, tracks: Path) -> str:
    """Holds the features of a picture against those of its tracks, tick by tick, to the bit.

    Returns a letter for every tick: h where a box is held, s where boxes are seen only, or a dot.
    """
    config, found = perception.config, ""
    perception.init_state(1)
    given = list(annotated_features(tracks, config))
    images = list(open_video(clip).ticks(max_width=config.max_image_width))
    assert len(read(tracks)) == len(images) <= len(given)
    for tick, (image_HWC, told) in enumerate(zip(images, given, strict=False)):
        seen = perception.step(torch.from_numpy(image_HWC)[None], fov_deg=FOV_DEG)
        for name in ("boxes_BTKF", "class_BTK", "box_mask_BTK", "depth_BTHW", "has_boxes_BT"):
            a, b = getattr(seen, name), getattr(told, name)
            assert torch.equal(a, b), f"tick {tick}: {name} differs by {(a * 1.0 - b).abs().max()}"
        boxes = perception.boxes_B[0]
        found += "h" if any(box.is_persisted for box in boxes) else "s" if boxes else "."
    return found


def test_an_unedited_file_gives_the_features_of_the_picture_bit_by_bit(
    written: TracksResult, dubber: Dubber, clip: Path
) -> None:
    assert compare(dubber.perception, clip, written.out) == "s" * NUM_TICKS


def test_held_boxes_are_not_in_the_file_and_come_back_from_it(
    tmp_path: Path, writer: TrackWriter, dubber: Dubber, emptied: Path
) -> None:
    out = writer.write(plan_tracks(emptied, out=tmp_path)).out
    found = compare(dubber.perception, emptied, out)
    assert found.strip("s.") == "h" * 30 and found.endswith("."), found
    has_box = [bool(line["boxes"]) for line in read(out)]
    assert has_box == [letter == "s" for letter in found]


class Script:
    """A detector that sees, picture after picture, what it is told: corners, score and class."""

    def __init__(self, rows_T: list[list[tuple]]) -> None:
        self._rows = iter(rows_T)

    def detect(self, frames_BHWC: torch.Tensor) -> list[Detections]:
        """Of one picture."""
        rows = next(self._rows)
        return [
            Detections(
                np.array([row[0] for row in rows], np.float32).reshape(-1, 4).clip(0, 1),
                np.array([row[1] for row in rows], np.float32),
                np.array([row[2] for row in rows], np.int64),
            )
        ]


def test_many_objects_that_come_and_go_are_the_same_from_the_file(
    tmp_path: Path, dubber: Dubber, emptied: Path
) -> None:
    """One leaves to the left, one to the right, one is lost and found; slots are short."""
    random, rows_T = np.random.default_rng(0), []
    for tick in range(60):
        middles = [(0.4 - 0.03 * tick, 0.5, 1), (0.6 + 0.035 * tick, 0.4, 2)]
        middles += [(0.3, 0.7, 3)] * (tick < 12 or 30 <= tick < 40)
        middles += [(0.8, 0.7, 2)] * (tick >= 25) + [(0.6, 0.2, 5)] * (tick in (20, 21))
        sizes = random.uniform(0.1, 0.11, (len(middles), 2))
        rows = [
            ((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), random.uniform(0.8, 0.9), label)
            for (cx, cy, label), (w, h) in zip(middles, sizes, strict=True)
        ]
        rows_T.append([row for row in rows if row[0][2] > 0 and row[0][0] < 1])
    config = dubber.perception.config
    once = config.detector.model_copy(update={"zoom_weight": 0.0})  # as the script tells it
    config = config.model_copy(update={"max_boxes": 2, "detector": once})

    def scripted() -> Perception:
        return Perception(config, dino=None, depth=dubber.perception.depth, detector=Script(rows_T))

    writer = TrackWriter(Pipeline(dubber.model, perception=scripted(), fov_deg=FOV_DEG))
    out = writer.write(plan_tracks(emptied, out=tmp_path)).out
    found = compare(scripted(), emptied, out)
    assert 30 < found.count("h") < 60, found
    assert max(len(line["boxes"]) for line in read(out)) > config.max_boxes


@pytest.mark.parametrize("name", ["clip", "emptied"])
def test_an_unedited_file_gives_the_same_samples(
    tmp_path: Path, writer: TrackWriter, dubber: Dubber, name: str, request: pytest.FixtureRequest
) -> None:
    clip = request.getfixturevalue(name)
    written = writer.write(plan_tracks(clip, out=tmp_path))

    def sound(given: Path | None) -> np.ndarray:
        out = tmp_path / "out.wav"
        (job,) = plan_jobs([clip], out=out, annotations=given, overwrite=True)
        dubber.dub(job)
        return soundfile.read(out, dtype="float32")[0]

    plain_LC = sound(None)
    assert np.abs(plain_LC).max() > 1e-4, "the random model is silent, the test says nothing"
    assert np.array_equal(plain_LC, sound(written.out))


@pytest.mark.parametrize("size", [0.1, 0.2031, 1 / 3, 0.7])
def test_a_corner_gives_its_centre_back_to_the_bit(size: float) -> None:
    random = np.random.default_rng(0)
    for centre in random.uniform(size / 2, 1 - size / 2, 2000):
        assert corner(centre, size) + size / 2 == centre


def test_the_command_writes_both_files_and_tells_of_every_object(
    tmp_path: Path, checkpoint: Path, clip: Path
) -> None:
    app = typer.Typer()
    app.command()(tracks)
    out = tmp_path / "mine.jsonl"
    words = [str(clip), "-o", str(out), "--checkpoint", str(checkpoint), "--device", "cpu"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}" in result.output and "1 object in 0.80 s of video" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.jsonl", "mine.tracks.png"]
    assert (tmp_path / "mine.tracks.png").read_bytes().startswith(b"\x89PNG")
    for track_id in set().union(*map(ids_of, read(out)[:1])):
        assert f"\n{track_id:>4}  " in result.output
    again = CliRunner().invoke(app, words)
    assert isinstance(again.exception, UserError) and "exists" in str(again.exception)


def test_names_of_the_files_and_what_is_refused(tmp_path: Path, clip: Path) -> None:
    job = plan_tracks(clip, overwrite=True)
    assert (job.out.name, job.picture.name) == ("clip.tracks.jsonl", "clip.tracks.png")
    assert plan_tracks(clip, out=tmp_path).out == tmp_path / "clip.tracks.jsonl"
    assert plan_tracks(clip, out=tmp_path, has_picture=False).picture is None
    with pytest.raises(UserError, match=r"does not end in \.jsonl"):
        plan_tracks(clip, out=clip)
    with pytest.raises(UserError, match="does not exist"):
        plan_tracks(clip, out=tmp_path / "no" / "t.jsonl")


def test_a_stop_leaves_neither_file(tmp_path: Path, writer: TrackWriter, clip: Path) -> None:
    def stop(done: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writer.write(plan_tracks(clip, out=tmp_path), on_tick=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_picture_is_drawn_of_nothing_and_of_one_tick(tmp_path: Path) -> None:
    image_HWC = np.zeros((48, 64, 3), np.uint8)
    entry = box(3, nearness=0.5, azimuth_deg=20.0)
    sizes = []
    for name, entries in (("nothing", []), ("one", [entry])):
        picture = TrackPicture(1)
        picture.add(image_HWC, entries)
        path = tmp_path / f"{name}.png"
        picture.draw(path, title=name, labels={3: "3 bell"} if entries else {}, edge_deg=45.0)
        sizes.append(path.stat().st_size)
    assert 0 < sizes[0] < sizes[1], sizes
