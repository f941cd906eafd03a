"""Given geometry: bearing, nearness, box tokens, JSONL, and the faults training adds to it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a.conditioning.annotations import (
    annotated_features,
    annotated_ticks,
    clip_features,
    clip_ticks,
    overlay_annotations,
)
from spatial_v2a.conditioning.boxes import Box, BoxTokenBuilder
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS
from spatial_v2a.geometry import (
    azimuth_rad,
    depth_m_from_nearness,
    nearness,
    nearness_in_boxes,
    pool_grid,
)
from spatial_v2a.training.degrade import Degrader
from tests import evaluation_clips as fake

CONFIG = PerceptionConfig()
FIELD = {name: i for i, name in enumerate(BOX_FIELDS)}


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def box_line(t: float, x: float, **more) -> dict:
    box = {"id": 1, "class": "bell", "x": x, "y": 0.4, "w": 0.1, "h": 0.2, "nearness": 0.5}
    return {"t": t, "fov_deg": 90, "boxes": [box | more]}


def test_azimuth_is_positive_to_the_left() -> None:
    assert azimuth_rad(0.0, 90.0) == pytest.approx(math.pi / 4)
    assert azimuth_rad(0.5, 90.0) == 0.0
    assert azimuth_rad(1.0, 60.0) == pytest.approx(-math.pi / 6)


def test_nearness_inverts_and_falls_with_depth() -> None:
    depth_m = np.array([0.5, 8.0, 40.0])
    assert nearness(depth_m)[1] == 0.5
    np.testing.assert_allclose(depth_m_from_nearness(nearness(depth_m)), depth_m)
    assert (np.diff(nearness(depth_m)) < 0).all()


def test_nearness_of_a_box_is_read_where_the_box_is() -> None:
    grid = np.zeros((12, 16))
    grid[:, 8:] = 1.0
    boxes = np.array([[0.25, 0.5, 0.2, 0.3], [0.75, 0.5, 0.2, 0.3]])
    np.testing.assert_array_equal(nearness_in_boxes(grid, boxes), [0.0, 1.0])


def test_pool_grid_refuses_a_grid_that_does_not_divide() -> None:
    assert pool_grid(np.ones((2, 60, 80)), (12, 16)).shape == (2, 12, 16)
    with pytest.raises(ValueError, match="does not divide"):
        pool_grid(np.ones((60, 80)), (13, 16))


def test_tokens_carry_velocity_per_second_and_age() -> None:
    builder = BoxTokenBuilder(max_boxes=2)
    for tick in range(31):
        tokens = builder.step([Box(7, 3, 0.2 + 0.01 * tick, 0.5, 0.1, 0.1)], fov_deg=90.0)
        expected = 0.0 if tick == 0 else 0.3
        assert tokens.fields_KF[0, FIELD["vx"]] == pytest.approx(expected, abs=1e-5)
    assert tokens.fields_KF[0, FIELD["age"]] == pytest.approx(1.0)
    assert tokens.mask_K.tolist() == [True, False]


def test_the_largest_boxes_fill_the_slots() -> None:
    boxes = [Box(i, i, 0.5, 0.5, 0.1 * i, 0.1) for i in (1, 3, 2)]
    tokens = BoxTokenBuilder(max_boxes=2).step(boxes, fov_deg=90.0)
    assert sorted(tokens.class_K.tolist()) == [2, 3]


def test_jsonl_holds_the_newest_line_and_never_shows_the_future(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", [box_line(0.0, 0.1), box_line(0.09, 0.6)])
    features = list(annotated_features(path, CONFIG))
    cx = [float(f.boxes_BTKF[0, 0, 0, 0]) for f in features]
    assert cx == pytest.approx([0.15, 0.15, 0.15, 0.65])
    assert all(bool(f.has_boxes_BT) and not bool(f.has_depth_BT) for f in features)


def test_a_file_ends_where_nothing_is_held_any_more(tmp_path: Path) -> None:
    """Whoever needs more ticks repeats the last one: what it shows would be held for ever."""
    gone = {"t": 0.2, "boxes": []}
    path = write_lines(tmp_path / "g.jsonl", [box_line(0.0, 0.02), gone])
    held = [[box.is_persisted for box in tick.boxes] for tick in annotated_ticks(path, CONFIG)]
    assert held == [[False]] * 6 + [[True]] * 30 + [[]]
    without = CONFIG.model_copy(update={"persistence_s": 0.0})
    assert [len(tick.boxes) for tick in annotated_ticks(path, without)] == [1] * 6 + [0]
    there = write_lines(tmp_path / "there.jsonl", [box_line(0.0, 0.1), box_line(0.2, 0.1)])
    assert len(list(annotated_ticks(there, CONFIG))) == 7


def test_ticks_of_a_clip_are_its_features_one_by_one_with_their_boxes() -> None:
    """The source leaves the picture and comes back: it is held where it left."""
    clip = fake.make_clip("swing", 60.0 * np.sin(2 * np.pi * np.arange(120) / 120))
    for degrade in (None, 1):
        faults = [degrade and Degrader(CONFIG, np.random.default_rng(3)) for _ in range(2)]
        whole = clip_features(clip, CONFIG, degrade=faults[0])
        ticks = list(clip_ticks(clip, CONFIG, degrade=faults[1]))
        assert len(ticks) == clip.num_ticks
        for name, value in vars(whole).items():
            joined = torch.cat([vars(features)[name] for features, _ in ticks], dim=1)
            assert torch.equal(joined, value), name
        for features, boxes in ticks:
            cx_K = features.boxes_BTKF[0, 0, features.box_mask_BTK[0, 0], FIELD["cx"]]
            assert cx_K.tolist() == pytest.approx([box.cx for box in boxes])
    exact = [boxes for _, boxes in clip_ticks(clip, CONFIG)]
    held = [tick for tick, boxes in enumerate(exact) if any(box.is_persisted for box in boxes)]
    there = [bool(tick["boxes"]) for tick in clip.meta["ticks"]]
    gone = [tick for tick, is_there in enumerate(there) if not is_there]
    assert held == gone and len(gone) > 50, "both times it is back before a second is over"
    for tick in held:
        (box,) = exact[tick]
        left, right = box.cx - box.w / 2, box.cx + box.w / 2
        assert left <= 0 < right if tick < 60 else left < 1 <= right, box


def test_jsonl_depth_and_overlay(tmp_path: Path) -> None:
    line = box_line(0.0, 0.1) | {"depth": np.full(CONFIG.depth.grid, 0.25).tolist()}
    (given,) = annotated_features(write_lines(tmp_path / "g.jsonl", [line]), CONFIG)
    blank = given.map(torch.zeros_like)
    merged = overlay_annotations(blank, given)
    assert float(merged.depth_BTHW.mean()) == 0.25
    assert bool(merged.has_depth_BT) and bool(merged.has_boxes_BT)
    assert not bool(merged.has_dino_BT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (box_line(0.0, 0.1, **{"class": "dragon"}), "unknown class 'dragon'"),
        (box_line(0.0, 1.5), "outside the picture"),
        ({"boxes": []}, 'no number "t"'),
        ({"t": 0.0, "depth": [[0.5]]}, "depth is"),
    ],
    ids=["class", "outside", "time", "depth"],
)
def test_a_bad_line_is_named(tmp_path: Path, line: dict, message: str) -> None:
    path = write_lines(tmp_path / "g.jsonl", [line])
    with pytest.raises(UserError, match=message) as error:
        list(annotated_features(path, CONFIG))
    assert "line 1" in str(error.value) and "\n" not in str(error.value)


def test_jsonl_that_goes_back_in_time_or_is_missing(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "g.jsonl", [box_line(1.0, 0.1), box_line(0.5, 0.1)])
    with pytest.raises(UserError, match="goes back"):
        list(annotated_features(path, CONFIG))
    with pytest.raises(UserError, match="cannot read"):
        list(annotated_features(tmp_path / "none.jsonl", CONFIG))


def bad_box(**more) -> dict:
    return box_line(0.0, **({"x": 0.1} | more))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([1, 2], "no object"),
        ({"t": "0", "boxes": []}, 'no number "t"'),
        ({"t": True, "boxes": []}, 'no number "t"'),
        ({"t": -0.5, "boxes": []}, "t -0.5 is before"),
        ({"t": 0.4, "boxes": []}, "the first t is 0.4; begin"),
        ({"t": 1.7e12, "boxes": []}, "over a day"),
        ({"t": 10**400, "boxes": []}, "a number of 401 digits"),
        ({"t": float("nan"), "boxes": []}, "holds NaN"),
        ({"t": 0, "boxes": {"id": 1}}, "boxes is not a list"),
        ({"t": 0, "boxes": [3]}, "boxes is not a list of objects"),
        ({"t": 0, "boxes": [], "fov_deg": "wide"}, "fov_deg 'wide'"),
        ({"t": 0, "boxes": [], "fov_deg": 180}, "fov_deg 180"),
        (bad_box(x=float("inf")), "holds Infinity"),
        (bad_box(x="left"), "give numbers"),
        (bad_box(w=10**400), "a number of 401 digits"),
        (bad_box(w=None), "give numbers"),
        (bad_box(id=-3), "id -3"),
        (bad_box(id=1.5), "id 1.5"),
        (bad_box(id="one"), "id 'one'"),
        (bad_box(id=None), "id None"),
        (bad_box(**{"class": ["bell"]}), "unknown class"),
        (bad_box(score="high"), "give numbers"),
        (bad_box(score=1.5), "score 1.5"),
        (bad_box(nearness=-0.1), "nearness -0.1"),
        (bad_box(mute="yes"), "must be true or false"),
        (bad_box(solo=1), "must be true or false"),
        ({"t": 0, "boxes": bad_box()["boxes"] * 2}, "id 1 is there twice"),
        ({"t": 0, "depth": [["a"]]}, "not a grid of numbers"),
    ],
)
def test_a_wrong_type_or_number_is_named(tmp_path: Path, line, message: str) -> None:
    path = tmp_path / "g.jsonl"
    path.write_text("\n" + json.dumps(line) + "\n")
    with pytest.raises(UserError, match=message) as error:
        list(annotated_features(path, CONFIG))
    assert "line 2" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no line"),
        (b" \n\t\n\n", "has no line"),
        (b"\x00\xff\xfe", "is not text"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'{"t": 0, "boxes": [', "line 1 is not JSON"),
        (b'{"t": ' + b"9" * 5000 + b"}", "line 1 is not JSON"),
    ],
    ids=["empty", "blank", "binary", "deep", "cut", "digits"],
)
def test_a_file_that_is_no_jsonl(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "g.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(annotated_features(path, CONFIG))


def test_byte_order_mark_null_and_whole_float_ids_are_read(tmp_path: Path) -> None:
    line = box_line(0.0, 0.1, id=1.0) | {"fov_deg": None, "depth": None}
    path = tmp_path / "g.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(line).encode() + b'\n{"t": 0.1, "boxes": null}\n')
    features = list(annotated_features(path, CONFIG))
    # Seen for three ticks, then held for a second, though the file has no more lines.
    assert [int(f.box_mask_BTK.sum()) for f in features] == [1] * 33 + [0]
    bearing = azimuth_rad(0.15, CONFIG.default_fov_deg)
    assert float(features[0].boxes_BTKF[0, 0, 0, FIELD["azimuth"]]) == pytest.approx(bearing)


def test_degraded_boxes_are_near_the_truth_and_repeatable() -> None:
    truth = [[Box(1, 4, 0.5, 0.5, 0.2, 0.4)] for _ in range(600)]
    first, again = (Degrader(CONFIG, np.random.default_rng(3))(truth) for _ in range(2))
    assert first == again
    seen = [box for boxes in first for box in boxes if box.track_id == 1]
    assert 0.80 < len(seen) / 600 < 0.99
    assert np.std([box.cx for box in seen]) < 0.03
    assert all(box.score <= 1.0 and box.w > 0 for boxes in first for box in boxes)


def test_degraded_boxes_err_by_a_length_when_large() -> None:
    """A stride of a walker, a tenth of its width, is not drowned in faults no detector makes."""

    def error_of_log_width(side: float) -> float:
        truth = [[Box(1, 4, 0.5, 0.5, side, side)] for _ in range(2000)]
        seen = Degrader(CONFIG, np.random.default_rng(3))(truth)
        return np.std([np.log(b.w / side) for boxes in seen for b in boxes if b.track_id == 1])

    assert error_of_log_width(0.04) == pytest.approx(0.05, rel=0.15)
    assert error_of_log_width(0.24) == pytest.approx(0.05 / 3, rel=0.15)


def test_degraded_nearness_stays_in_range_and_changes_slowly() -> None:
    grid = np.full((60, 12, 16), 0.4, np.float32)
    degraded = Degrader(CONFIG, np.random.default_rng(0)).nearness(grid)
    assert degraded.min() > 0 and degraded.max() < 1
    assert np.abs(np.diff(degraded, axis=0)).mean() < 0.05 < degraded.std()
