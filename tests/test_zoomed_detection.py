"""Zoomed detection: which part it sees, and where its boxes go."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a.conditioning.detections import Detections, Region, cut_out, join_zoomed, region_of
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.tracker import BoxTracker
from spatial_v2a.conditioning.weights import write_weights
from spatial_v2a.conditioning.yolo import build_yolo11
from spatial_v2a.config import PerceptionConfig, load_config

MIDDLE = Region(0.25, 0.25, 0.75, 0.75)


def found(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Detections of (cx, cy, w, h, score, class)."""
    boxes = np.array([row[:4] for row in rows], np.float32).reshape(-1, 4)
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
    scores = np.array([row[4] for row in rows], np.float32)
    return Detections(corners, scores, np.array([row[5] for row in rows], np.int64))


@pytest.mark.parametrize(("height", "width"), [(240, 320), (479, 641), (2, 3), (1, 1)])
def test_parts_lie_in_the_picture_on_pixels_and_are_of_one_size(height: int, width: int) -> None:
    picture = torch.arange(height * width).reshape(height, width, 1).repeat(1, 1, 3)
    sizes = set()
    for look in range(6):
        region = region_of(look, height=height, width=width)
        part = cut_out(picture, region)
        sizes.add(part.shape)
        row, column = divmod(int(part[0, 0, 0]), width)
        assert (row, column) == (round(region.y1 * height), round(region.x1 * width))
        assert part.shape[0] == round((region.y2 - region.y1) * height)
        assert part.shape[1] == round((region.x2 - region.x1) * width)
    assert sizes == {(max(1, height // 2), max(1, width // 2), 3)}


def test_three_looks_cover_the_width_and_the_fourth_begins_anew() -> None:
    regions = [region_of(look, height=240, width=320) for look in range(4)]
    assert [(r.x1, r.x2) for r in regions[:3]] == [(0.0, 0.5), (0.25, 0.75), (0.5, 1.0)]
    assert {(r.y1, r.y2) for r in regions} == {(0.3, 0.8)}
    assert regions[3] == regions[0]


def test_a_small_box_comes_back_at_its_place_with_its_score_weighed() -> None:
    joined = join_zoomed(found(), found((0.4, 0.6, 0.1, 0.2, 0.9, 7)), MIDDLE, weight=0.5)
    centre = (joined.corners_K4[0, :2] + joined.corners_K4[0, 2:]) / 2
    np.testing.assert_allclose(centre, [0.45, 0.55], atol=1e-6)
    size = joined.corners_K4[0, 2:] - joined.corners_K4[0, :2]
    np.testing.assert_allclose(size, [0.05, 0.1], atol=1e-6)
    assert joined.score_K.tolist() == pytest.approx([0.45]) and joined.class_K.tolist() == [7]
    assert joined.zoomed_region == MIDDLE


def test_an_object_seen_twice_stays_one_box_of_the_surer_look() -> None:
    near = found((0.5, 0.5, 0.2, 0.2, 0.8, 3))
    faint = join_zoomed(found((0.5, 0.5, 0.1, 0.1, 0.3, 4)), near, MIDDLE, weight=1.0)
    assert faint.score_K.tolist() == pytest.approx([0.8]) and faint.class_K.tolist() == [3]
    sure = join_zoomed(found((0.5, 0.5, 0.1, 0.1, 0.9, 4)), near, MIDDLE, weight=1.0)
    assert sure.score_K.tolist() == pytest.approx([0.9]) and sure.class_K.tolist() == [4]


def test_what_is_cut_off_too_large_or_a_piece_of_something_is_not_taken() -> None:
    whole = found((0.5, 0.5, 0.4, 0.6, 0.5, 1))
    at_inner_edge, too_large = (0.05, 0.5, 0.1, 0.1, 0.9, 2), (0.5, 0.5, 0.7, 0.3, 0.9, 2)
    assert (
        len(join_zoomed(found(), found(at_inner_edge, too_large), MIDDLE, weight=1.0).score_K) == 0
    )
    piece = (0.5, 0.5, 0.2, 0.2, 0.9, 2)
    assert join_zoomed(whole, found(piece), MIDDLE, weight=1.0).class_K.tolist() == [1]
    unsure = found((0.5, 0.5, 0.4, 0.6, 0.2, 1))
    assert join_zoomed(unsure, found(piece), MIDDLE, weight=1.0).class_K.tolist() == [2, 1]
    # The left edge of this part is the picture's: what touches it is whole.
    left = Region(0.0, 0.25, 0.5, 0.75)
    assert len(join_zoomed(found(), found(at_inner_edge), left, weight=1.0).score_K) == 1


def test_the_inputs_stay_as_they_are() -> None:
    whole, near = found((0.5, 0.5, 0.1, 0.1, 0.3, 4)), found((0.5, 0.5, 0.2, 0.2, 0.8, 3))
    before = [whole.corners_K4.copy(), whole.score_K.copy(), near.corners_K4.copy()]
    join_zoomed(whole, near, MIDDLE, weight=0.9)
    for kept, now in zip(before, (whole.corners_K4, whole.score_K, near.corners_K4), strict=True):
        assert np.array_equal(kept, now)


def test_a_small_track_is_not_missed_where_the_zoom_did_not_go() -> None:
    """Seen in every third tick only, from its first tick on; it ends when that look misses it."""
    tracker = BoxTracker(new_track_score=0.75)

    def shown(tick: int, *, is_there: bool) -> int:
        region = region_of(tick, height=240, width=320)
        sees = is_there and region.holds(0.1, 0.5)
        near = found((0.2, 0.4, 0.1, 0.1, 0.9, 2)) if sees else found()
        return len(tracker.step(join_zoomed(found(), near, region, weight=1.0)))

    assert [shown(tick, is_there=True) for tick in range(12)] == [1] * 12
    gone = [shown(tick, is_there=False) for tick in range(12, 24)]
    # Looked for again in its fourth tick; coasting carries a steady one on for five.
    assert gone == [1] * 3 + [0] * 9


def test_a_large_track_is_missed_at_once() -> None:
    """The zoom went elsewhere, but this one is seen where the whole picture is."""
    tracker = BoxTracker(new_track_score=0.75)
    away, nothing = region_of(2, height=240, width=320), found()
    tracker.step(join_zoomed(found((0.2, 0.5, 0.3, 0.5, 0.9, 2)), nothing, away, weight=1.0))
    assert tracker.step(join_zoomed(nothing, nothing, away, weight=1.0)) == []


@pytest.fixture(scope="module")
def looking(tmp_path_factory: pytest.TempPathFactory) -> Perception:
    """Random weights that report boxes, with zoomed detection."""
    tiny = load_config("tiny").perception
    sensitive = {"score_threshold": 0.0, "new_track_score": 0.0, "zoom_weight": 1.0}
    config = tiny.model_copy(update={"detector": tiny.detector.model_copy(update=sensitive)})
    folder: Path = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_yolo11(config.detector, num_classes=config.num_classes)
        write_weights(folder, "detector", model)
    return Perception.from_checkpoint(folder, config, cues=["boxes"])


def test_steps_give_what_a_whole_clip_gives_and_every_look_counts(
    looking: Perception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detector that sees something in the middle of a part, and nothing in a whole picture."""
    frames_THWC = np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)

    def detect(frames_BHWC: torch.Tensor) -> list[Detections]:
        is_part = frames_BHWC.shape[1:3] == (24, 32)
        return [found(*[(0.5, 0.5, 0.2, 0.2, 0.9, 1)] * is_part) for _ in frames_BHWC]

    monkeypatch.setattr(looking.detector, "detect", detect)
    whole = looking.extract(frames_THWC, fov_deg=90.0)
    looking.init_state(1)
    steps = [looking.step(frame[None], fov_deg=90.0) for frame in frames_THWC]
    stepped = torch.cat([step.boxes_BTKF for step in steps], dim=1)
    torch.testing.assert_close(stepped, whole.boxes_BTKF, atol=1e-6, rtol=1e-6)
    newest = {round(float(x), 2) for x in whole.boxes_BTKF[0, :, :, 0].flatten() if x > 0}
    assert newest >= {0.25, 0.5, 0.75}, "left, middle and right"


def test_pictures_are_read_twice_as_wide_for_it() -> None:
    config = PerceptionConfig()
    near = config.detector.model_copy(update={"zoom_weight": 0.9})
    looking = config.model_copy(update={"detector": near})
    assert looking.max_image_width == 2 * config.detector.image_width
    assert config.max_image_width == config.detector.image_width
