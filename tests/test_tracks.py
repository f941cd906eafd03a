"""Tracks of a video: the file and its picture, the round trip into a dub, edits, and errors."""

import json
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
from spatial_v2a.checkpoint import find_checkpoint, read_config
from spatial_v2a.conditioning.box_fields import Box
from spatial_v2a.conditioning.bundle import Perception
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.given import given_features, given_ticks, overlay_tick
from spatial_v2a.conditioning.track_edits import (
    FADE_MS,
    MarkedBox,
    MuteGate,
    TrackEditor,
    TrackEdits,
    parse_edits,
)
from spatial_v2a.conditioning.video import open_video
from spatial_v2a.conditioning.video_write import write_video
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS, empty_features
from spatial_v2a.geometry import azimuth_rad
from spatial_v2a.inference.dub import Dubber
from spatial_v2a.inference.dubbing.track_picture import TrackPicture
from spatial_v2a.inference.dubbing.track_writer import (
    TracksResult,
    TrackWriter,
    corner,
    plan_tracks,
)
from spatial_v2a.inference.engine import EngineSettings
from spatial_v2a.inference.jobs import plan_jobs
from spatial_v2a.inference.tracks_command import tracks
from spatial_v2a.model import SpatialV2A
from spatial_v2a.perception_config import PerceptionConfig
from spatial_v2a.timing import TIMING
from tests.tiny_checkpoint import shaken

CONFIG = PerceptionConfig()
FIELD = {name: i for i, name in enumerate(BOX_FIELDS)}
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
    """A clip whose picture is grey after a while: its object vanishes, and stays away."""
    path = tmp_path_factory.mktemp("emptied") / "emptied.mp4"
    demo = open_video(Path(str(resources.files("spatial_v2a") / "bundled" / "demo" / "clip.mp4")))
    images = list(islice(demo.ticks(), SEEN_TICKS))
    images += [np.full_like(images[0], 110)] * (2 * TIMING.tick_hz - SEEN_TICKS)
    write_video(path, images, TIMING.tick_hz)
    return path


@pytest.fixture(scope="module")
def dubber(checkpoint: Path) -> Dubber:
    # Not the checkpoint's own field of view, so that a test sees where it is forgotten.
    settings = EngineSettings(seed=2, nfe=1)
    return Dubber(checkpoint, settings=settings, device="cpu", fov_deg=FOV_DEG)


@pytest.fixture(scope="module")
def writer(dubber: Dubber) -> TrackWriter:
    return TrackWriter(dubber.perception, fov_deg=FOV_DEG)


@pytest.fixture(scope="module")
def written(writer: TrackWriter, clip: Path) -> TracksResult:
    return writer.write(plan_tracks(clip))


def read(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def box(track_id: int, x: float = 0.4, **more) -> dict:
    place = {"x": x, "y": 0.4, "w": 0.1, "h": 0.2}
    return {"id": track_id, "class": "bell", **place, **more}


def cx_of(features) -> list[float]:
    mask_K = features.box_mask_BTK[0, 0]
    return features.boxes_BTKF[0, 0, mask_K, FIELD["cx"]].tolist()


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
    given = list(given_features(tracks, config))
    images = list(open_video(clip).ticks(max_width=config.max_image_width))
    assert len(read(tracks)) == len(images) <= len(given)
    for tick, (image_HWC, told) in enumerate(zip(images, given, strict=False)):
        seen = perception.step(torch.from_numpy(image_HWC)[None], fov_deg=FOV_DEG)
        for name in ("boxes_BTKF", "class_BTK", "box_mask_BTK", "depth_BTHW", "has_boxes_BT"):
            a, b = getattr(seen, name), getattr(told, name)
            assert torch.equal(a, b), f"tick {tick}: {name} differs by {(a * 1.0 - b).abs().max()}"
        boxes = perception.boxes_B[0]
        found += "h" if any(box.is_held for box in boxes) else "s" if boxes else "."
    return found


def test_an_unedited_file_gives_the_features_of_the_picture_bit_by_bit(
    written: TracksResult, dubber: Dubber, clip: Path
) -> None:
    assert compare(dubber.perception, clip, written.out) == "s" * NUM_TICKS


def test_held_boxes_are_not_in_the_file_and_come_back_from_it(
    tmp_path: Path, writer: TrackWriter, emptied: Path
) -> None:
    out = writer.write(plan_tracks(emptied, out=tmp_path)).out
    found = compare(writer.perception, emptied, out)
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
    once = config.detector.model_copy(update={"closer_look_weight": 0.0})  # as the script tells it
    config = config.model_copy(update={"max_boxes": 2, "detector": once})

    def scripted() -> Perception:
        return Perception(config, dino=None, depth=dubber.perception.depth, detector=Script(rows_T))

    writer = TrackWriter(scripted(), fov_deg=FOV_DEG)
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
        (job,) = plan_jobs([clip], out=out, given=given, overwrite=True)
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


def test_mute_solo_and_move_of_a_whole_file(tmp_path: Path) -> None:
    lines = [{"t": n / 30, "fov_deg": 90, "boxes": [box(1, 0.1), box(2, 0.6)]} for n in range(5)]
    path = write_lines(tmp_path / "t.jsonl", lines)

    def places(**edits) -> list[float]:
        (places,) = {tuple(cx_of(f)) for f in given_features(path, CONFIG, TrackEdits(**edits))}
        return list(places)

    assert places() == pytest.approx([0.15, 0.65])
    assert places(mute=(1,)) == pytest.approx([0.65])
    assert places(solo=(1,)) == pytest.approx([0.15])
    assert places(mute=(1, 2)) == []
    # 90 degrees wide: the bearing of column c is arctan(1 - 2 c).
    moved = (1 - math.tan(math.atan(1 - 2 * 0.65) + math.radians(20))) / 2
    assert places(move_deg=((2, 20.0),)) == pytest.approx([0.15, moved])
    assert moved < 0.65, "positive is to the left"
    assert places(move_deg=((1, 30.0),)) == pytest.approx([0.65]), "out of the picture"


def test_a_moved_box_keeps_the_nearness_of_its_old_place(tmp_path: Path) -> None:
    grid = np.zeros(CONFIG.depth.grid)
    grid[:, CONFIG.depth.grid[1] // 2 :] = 0.75
    line = {"t": 0, "fov_deg": 90, "boxes": [box(2, 0.7)], "depth": grid.tolist()}
    path = write_lines(tmp_path / "t.jsonl", [line])
    (features,) = given_features(path, CONFIG, TrackEdits(move_deg=((2, 40.0),)))
    fields_F = features.boxes_BTKF[0, 0, 0]
    assert fields_F[FIELD["cx"]] < 0.4
    assert fields_F[FIELD["nearness"]] == 0.75


def test_marks_in_the_file_hold_to_the_next_box_of_the_object(tmp_path: Path) -> None:
    boxes = [
        [box(1, 0.1), box(2, 0.6)],
        [box(1, 0.1, mute=True), box(2, 0.6)],
        [box(1, 0.1), box(2, 0.6, solo=True)],
        [box(1, 0.1)],
        [box(1, 0.1), box(2, 0.6)],
    ]
    lines = [{"t": n / 30, "boxes": entries} for n, entries in enumerate(boxes)]
    path = write_lines(tmp_path / "t.jsonl", lines)
    places = [cx_of(features) for features in given_features(path, CONFIG)]
    # At tick 3 object 2 is held: it was seen three times. Object 1 is silenced, and never is.
    expected = [[0.15, 0.65], [0.65], [0.65], [0.65], [0.15, 0.65]]
    for tick, (found, wanted) in enumerate(zip(places, expected, strict=True)):
        assert found == pytest.approx(wanted), f"tick {tick}"


def test_a_muted_object_is_taken_out_of_patches_and_depth(tmp_path: Path) -> None:
    """Object 1 left, object 2 right, both a quarter of the picture high; 3 lies within 2."""
    tall = {"y": 0.26, "w": 0.2, "h": 0.23}
    boxes = [box(1, 0.01) | tall, box(2, 0.76) | tall, box(3, 0.78) | tall | {"w": 0.05}]
    path = write_lines(tmp_path / "t.jsonl", [{"t": 0, "boxes": boxes}])
    rows, columns = CONFIG.dino.grid
    seen = empty_features(
        1, 1, num_patches=rows * columns, dino_dim=CONFIG.dino.hidden_size,
        depth_grid=CONFIG.depth.grid, max_boxes=CONFIG.max_boxes,
    )  # fmt: skip
    seen.dino_BTND += torch.arange(rows * columns)[:, None]
    seen.depth_BTHW += torch.linspace(0, 1, CONFIG.depth.grid[1])

    def changed(**edits) -> tuple[set[int], set[int]]:
        (tick,) = given_ticks(path, CONFIG, TrackEdits(**edits))
        shown = overlay_tick(seen, tick, CONFIG)
        patches_N = (shown.dino_BTND != seen.dino_BTND)[0, 0].any(-1)
        columns_W = (shown.depth_BTHW != seen.depth_BTHW)[0, 0].any(0)
        return tuple(set(torch.nonzero(x)[:, 0].tolist()) for x in (patches_N, columns_W))

    assert changed() == (set(), set())
    patches, depth_columns = changed(mute=(1,))
    assert depth_columns == {0, 1, 2, 3}, depth_columns
    assert patches and all(n % columns < columns / 4 for n in patches), patches
    patches, _ = changed(mute=(2,))
    assert patches and all(n % columns >= columns * 3 / 4 - 1 for n in patches), patches
    assert changed(mute=(3,))[0] == set(), "all of it is object 2's, too"


def held_ticks(path: Path, **edits) -> list[list[int]]:
    """Ids of the held boxes of every tick."""
    ticks = given_ticks(path, CONFIG, TrackEdits(**edits))
    return [[box.track_id for box in tick.boxes if box.is_held] for tick in ticks]


def test_what_edits_silence_is_not_held(tmp_path: Path) -> None:
    """Object 1 until tick 9, object 2 from the start until tick 19, soloed from tick 15 on."""
    lines = [{"t": n / 30, "boxes": []} for n in range(60)]
    for n in range(20):
        lines[n]["boxes"] += [box(1, 0.1)] * (n < 10) + [box(2, 0.6, **{"class": "dog"})]
    path = write_lines(tmp_path / "t.jsonl", lines)
    both = [[]] * 10 + [[1]] * 10 + [[1, 2]] * 20 + [[2]] * 10 + [[]] * 10
    assert held_ticks(path) == both
    assert held_ticks(path, mute=(1,)) == [[2] if 20 <= n < 50 else [] for n in range(60)]
    assert held_ticks(path, mute=(1, 2)) == [[]] * 60
    assert held_ticks(path, solo=(1,)) == [[1] if 10 <= n < 40 else [] for n in range(60)]
    for n in range(15, 20):
        lines[n]["boxes"][0]["solo"] = True
    write_lines(path, lines)
    assert held_ticks(path) == [
        [1] if 10 <= n < 15 else [2] if 20 <= n < 50 else [] for n in range(60)
    ]
    for n in range(15, 20):
        lines[n]["boxes"][0].update(solo=False, mute=True)
    write_lines(path, lines)
    assert held_ticks(path) == [[1] if 10 <= n < 40 else [] for n in range(60)]


def test_a_moved_object_is_held_where_it_was_moved_to(tmp_path: Path) -> None:
    lines = [{"t": n / 30, "fov_deg": 90, "boxes": [box(1, 0.4)] * (n < 5)} for n in range(6)]
    path = write_lines(tmp_path / "t.jsonl", lines)
    ticks = list(given_ticks(path, CONFIG, TrackEdits(move_deg=((1, 20.0),))))
    (seen,), (held,) = ticks[4].boxes, ticks[5].boxes
    assert held.is_held and held.cx == seen.cx < 0.3


def test_a_held_object_does_not_keep_a_silenced_one_in_the_picture(tmp_path: Path) -> None:
    """Object 1 is gone, muted object 2 comes to stand where it stood."""
    at = [[box(1)], [box(1)], [box(1)], [box(2, **{"class": "dog"})]]
    lines = [{"t": n / 30, "boxes": entries} for n, entries in enumerate(at)]
    path = write_lines(tmp_path / "t.jsonl", lines)
    tick = list(given_ticks(path, CONFIG, TrackEdits(mute=(2,))))[3]
    assert [(one.track_id, one.is_held) for one in tick.boxes] == [(1, True)]
    rows, columns = CONFIG.dino.grid
    seen = empty_features(
        1, 1, num_patches=rows * columns, dino_dim=CONFIG.dino.hidden_size,
        depth_grid=CONFIG.depth.grid, max_boxes=CONFIG.max_boxes,
    )  # fmt: skip
    seen.depth_BTHW += torch.linspace(0, 1, CONFIG.depth.grid[1])
    shown = overlay_tick(seen, tick, CONFIG)
    assert bool((shown.depth_BTHW != seen.depth_BTHW).any())


def muted_ticks(path: Path, **edits) -> str:
    ticks = given_ticks(path, CONFIG, TrackEdits(**edits))
    return "".join("m" if tick.is_muted else "." for tick in ticks)


def test_all_muted_is_known_from_the_start_and_over_gaps(tmp_path: Path) -> None:
    """Object 1 at ticks 2 to 9, object 2 at 20 to 29."""
    lines = [{"t": n / 30, "boxes": []} for n in range(80)]
    for n in range(2, 10):
        lines[n]["boxes"].append(box(1))
    for n in range(20, 30):
        lines[n]["boxes"].append(box(2))
    path = write_lines(tmp_path / "t.jsonl", lines)
    assert muted_ticks(path) == "." * 80
    assert muted_ticks(path, mute=(1, 2)) == "m" * 80
    assert muted_ticks(path, mute=(1,)) == "." * 2 + "m" * 18 + "." * 60
    assert muted_ticks(path, solo=(2,)) == "m" * 20 + "." * 60
    assert muted_ticks(path, mute=(2,)) == "." * 80, "object 1 was heard a moment ago"


def test_a_muted_object_alone_for_a_second_is_silence() -> None:
    editor = TrackEditor(TrackEdits(mute=(1,)), known_ids=(1, 2))
    first, second = (MarkedBox(Box(i, 0, 0.5, 0.5, 0.1, 0.1)) for i in (1, 2))
    found = ""
    for tick in range(70):
        left = editor.step([first, second] if tick < 10 else [first], fov_deg=90.0)
        assert [item.track_id for item in left] == ([2] if tick < 10 else [])
        found += "m" if editor.is_muted else "."
    assert found == "." * 40 + "m" * 30, found


def test_the_gate_fades_and_leaves_the_rest_alone() -> None:
    sound_LC = np.ones((TIMING.samples_per_tick, 2), np.float32)
    gate = MuteGate()
    first, down, off, up, on = (
        gate.apply(sound_LC, is_muted=is_muted) for is_muted in (False, True, True, False, False)
    )
    num_fade = round(FADE_MS * 1e-3 * TIMING.sample_rate_hz)
    assert np.array_equal(first, sound_LC) and np.array_equal(on, sound_LC)
    assert not down[num_fade:].any() and not off.any() and (up[num_fade:] == 1).all()
    step = max(np.abs(np.diff(fade[:, 0])).max() for fade in (down, up))
    assert step < 0.002, f"a step of {step} clicks"
    assert down.dtype == np.float32
    assert not MuteGate().apply(sound_LC, is_muted=True).any(), "muted from the first sample"


def test_words_become_edits() -> None:
    assert parse_edits() is None
    edits = parse_edits(mute=[3], solo=[1], move=["1:-20", "4:7.5"])
    assert edits == TrackEdits(mute=(3,), solo=(1,), move_deg=((1, -20.0), (4, 7.5)))


@pytest.mark.parametrize("text", ["", "3", "3:", ":5", "a:5", "3:left", "-1:5", "3:nan", "3:1:2"])
def test_a_move_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(UserError, match="ID:DEGREES") as error:
        parse_edits(move=[text])
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"mute": [2], "solo": [2]}, "object 2 is both muted and soloed"),
        ({"move": ["2:5", "2:6"]}, "object 2 is moved twice"),
        ({"move": ["2:200"]}, "moved by 200 degrees"),
    ],
    ids=["both", "twice", "far"],
)
def test_edits_that_contradict_each_other(edits: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_edits(**edits)


def test_an_object_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    lines = [{"t": 0, "boxes": [box(1)]}, {"t": 0.1, "boxes": [box(12, 0.6)]}]
    path = write_lines(tmp_path / "t.jsonl", lines)
    for edits in ({"mute": (7,)}, {"solo": (7,)}, {"move_deg": ((7, 5.0),)}):
        with pytest.raises(UserError, match=r"no object 7; .* 1, 12"):
            next(given_ticks(path, CONFIG, TrackEdits(**edits)))
    empty = write_lines(tmp_path / "e.jsonl", [{"t": 0, "boxes": []}])
    with pytest.raises(UserError, match="ids: none"):
        next(given_ticks(empty, CONFIG, TrackEdits(mute=(7,))))
