"""Vanished boxes: where, how long and as what they are held, and what ends that."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from spatial_v2a.conditioning.boxes import Box, BoxTokenBuilder, frame_features, slots_of
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.tracker import BoxTracker, TrackPersistence
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.features import BOX_FIELDS, mirror_features

CONFIG = PerceptionConfig()
FIELD = {name: i for i, name in enumerate(BOX_FIELDS)}
FOV_DEG = 90.0


def box(track_id: int = 1, cx: float = 0.5, cy: float = 0.5, **more) -> Box:
    return Box(track_id, **({"class_index": 3, "cx": cx, "cy": cy, "w": 0.1, "h": 0.2} | more))


def after(*ticks: Sequence[Box], persistence_s: float = 1.0) -> list[Box]:
    """What the last of these ticks gives."""
    persistence = TrackPersistence(persistence_s=persistence_s)
    for boxes in ticks:
        given = persistence.step(list(boxes))
    return given


def ids(boxes: Sequence[Box]) -> list[int]:
    return [one.track_id for one in boxes]


def test_what_is_seen_passes_and_what_vanishes_is_held_where_it_was() -> None:
    seen = box(cx=0.4, cy=0.6, score=0.7, nearness=0.25)
    persistence = TrackPersistence(persistence_s=1.0)
    for _ in range(3):
        assert persistence.step([seen]) == [seen]
    assert persistence.step([]) == [replace(seen, is_persisted=True)]


def test_held_for_exactly_thirty_ticks() -> None:
    persistence = TrackPersistence(persistence_s=1.0)
    for _ in range(5):
        persistence.step([box()])
    counts = [len(persistence.step([])) for _ in range(40)]
    assert counts == [1] * 30 + [0] * 10


@pytest.mark.parametrize(
    ("persistence_s", "num_seen", "num_ticks"),
    [(0.0, 5, 0), (0.5, 5, 15), (2.0, 5, 30), (2.0, 45, 45), (2.0, 70, 60), (0.5, 70, 15)],
)
def test_held_as_long_as_it_was_seen_and_as_the_setting_says(
    persistence_s: float, num_seen: int, num_ticks: int
) -> None:
    """What was seen for less than a second counts as seen for one."""
    persistence = TrackPersistence(persistence_s=persistence_s)
    for _ in range(num_seen):
        persistence.step([box()])
    counts = [len(persistence.step([])) for _ in range(80)]
    assert counts == [1] * num_ticks + [0] * (80 - num_ticks)


@pytest.mark.parametrize("persistence_s", [-0.1, 10.5])
def test_a_setting_out_of_range_is_refused(persistence_s: float) -> None:
    with pytest.raises(ValidationError, match="persistence_s"):
        PerceptionConfig(persistence_s=persistence_s)


def test_seen_in_two_ticks_is_not_held_in_three_it_is() -> None:
    assert after([box()], [box()], []) == []
    assert ids(after([box()], [box()], [box()], [])) == [1]
    assert ids(after([box()], [], [box()], [], [box()], [])) == [1], "ticks need not follow"
    gap = [[]] * 31
    assert after([box()], [box()], *gap, [box()], []) == [], "after a second it begins anew"


# Steps of 0.01 a tick are 0.3 a second: 0.06 in the 0.2 s that are looked ahead.
@pytest.mark.parametrize(
    ("last", "step", "held"),
    [
        ((0.05, 0.5), (-0.01, 0.0), (0.05, 0.5)),
        ((0.055, 0.5), (0.0, 0.0), (0.05, 0.5)),
        ((0.065, 0.5), (0.0, 0.0), (0.065, 0.5)),
        ((0.10, 0.5), (-0.01, 0.0), (0.05, 0.5)),
        ((0.13, 0.5), (-0.01, 0.0), (0.13, 0.5)),
        ((0.10, 0.5), (0.01, 0.0), (0.10, 0.5)),
        ((0.02, 0.5), (0.0, 0.0), (0.02, 0.5)),
        ((0.95, 0.5), (0.01, 0.0), (0.95, 0.5)),
        ((0.945, 0.5), (0.0, 0.0), (0.95, 0.5)),
        ((0.90, 0.5), (0.01, 0.0), (0.95, 0.5)),
        ((0.87, 0.5), (0.01, 0.0), (0.87, 0.5)),
        ((0.5, 0.14), (0.0, -0.01), (0.5, 0.10)),
        ((0.5, 0.86), (0.0, 0.01), (0.5, 0.90)),
        ((0.10, 0.14), (-0.01, -0.01), (0.05, 0.10)),
        ((0.5, 0.5), (0.03, 0.0), (0.5, 0.5)),
    ],
    ids=[
        "left, there",
        "left, within the margin",
        "left, near and still",
        "left, soon",
        "left, too far",
        "left, away from it",
        "left, hanging over",
        "right, there",
        "right, within the margin",
        "right, soon",
        "right, too far",
        "top, soon",
        "bottom, soon",
        "corner",
        "middle",
    ],
)  # fmt: skip
def test_where_a_box_of_a_tenth_by_a_fifth_is_held(last, step, held) -> None:
    path = [(last[0] - n * step[0], last[1] - n * step[1]) for n in reversed(range(6))]
    (found,) = after(*([box(cx=cx, cy=cy)] for cx, cy in path), [])
    assert (found.cx, found.cy) == pytest.approx(held, abs=1e-9)
    assert (found.w, found.h) == (0.1, 0.2), "the size stays"


def test_at_an_edge_a_sliver_is_held_with_its_size() -> None:
    """A box that the tracker cuts at the edge: 0.02 of it are left."""
    for cx, expected in ((0.01, 0.01), (0.99, 0.99)):
        (held,) = after(*[[box(cx=cx, w=0.02)]] * 4, [])
        assert (held.cx, held.w) == pytest.approx((expected, 0.02))
        assert held.is_persisted


def test_a_box_from_edge_to_edge_stays() -> None:
    wide = box(cx=0.501, w=0.99)
    (held,) = after(*[[wide]] * 4, [])
    assert held.cx == wide.cx


def test_back_with_its_id_it_is_seen_and_may_be_held_again() -> None:
    persistence = TrackPersistence(persistence_s=1.0)
    for _ in range(4):
        persistence.step([box()])
    assert [one.is_persisted for one in persistence.step([])] == [True]
    back = box(cx=0.7)
    assert persistence.step([back]) == [back]
    counts = [len(persistence.step([])) for _ in range(31)]
    assert counts == [1] * 30 + [0]


def test_a_new_object_of_its_class_ends_the_hold_for_good() -> None:
    persistence = TrackPersistence(persistence_s=1.0)
    for _ in range(4):
        persistence.step([box(1)])
    assert ids(persistence.step([])) == [1]
    assert ids(persistence.step([box(2, cx=0.9, class_index=4)])) == [2, 1], "of another class"
    assert ids(persistence.step([box(3, cx=0.9)])) == [3]
    assert ids(persistence.step([])) == [], "it was there for one tick, and the old one is not back"


def test_a_new_id_in_the_tick_of_vanishing_takes_over_at_once() -> None:
    seen = [[box(1)]] * 4
    assert ids(after(*seen, [box(2)])) == [2]
    assert ids(after(*seen, [box(2, class_index=4)])) == [2, 1]


def test_a_new_id_beside_a_box_that_is_carried_on_takes_over() -> None:
    """The tracker shows a lost box for some ticks more, while its successor is there already."""
    alone, both = [box(1)], [box(1), box(2)]
    assert ids(after(*[alone] * 4, *[both] * 5, both[1:])) == [2]
    assert ids(after(*[alone] * 4, *[both] * 12, both[1:])) == [2]
    assert ids(after(*[alone] * 4, *[both] * 15, both[1:])) == [2, 1], "these are two"


def test_another_of_its_class_that_was_there_before_ends_nothing() -> None:
    both = [box(1, cx=0.2), box(2, cx=0.8)]
    assert ids(after(*[both] * 4, both[1:])) == [2, 1]
    # Held itself when the first one vanished, and back later.
    assert ids(after(*[both] * 4, both[:1], [], both[1:])) == [2, 1]


def test_a_silenced_object_is_never_held_and_ends_the_hold_of_its_like() -> None:
    persistence = TrackPersistence(persistence_s=1.0)
    for _ in range(4):
        persistence.step([box(1)])
    assert persistence.step([], silenced=[box(1)]) == []
    assert persistence.step([]) == []
    for _ in range(4):
        persistence.step([box(5)])
    assert ids(persistence.step([])) == [5]
    assert persistence.step([], silenced=[box(6)]) == [], "most likely it is 5"


def test_who_was_never_sure_is_not_held_beside_one_that_is() -> None:
    """Scenery that looked like an object for a moment goes on as nothing; a far object does."""
    for score, held in ((0.5, []), (0.8, [2])):
        sure = box(1, score=0.9)
        persistence = TrackPersistence(persistence_s=1.0)
        for _ in range(8):
            persistence.step([sure, box(2, cx=0.9, class_index=5, score=score)])
        assert ids(persistence.step([sure])) == [1, *held]
        assert ids(persistence.step([]))[-1] == 2, "with nobody surer in view it is what there is"


def test_what_is_forgotten_is_not_held() -> None:
    persistence = TrackPersistence(persistence_s=1.0)
    for _ in range(4):
        persistence.step([box(1), box(2, class_index=5)])
    persistence.step([])
    assert persistence.track_ids == (1, 2)
    persistence.forget([1, 7])
    assert ids(persistence.step([])) == [2]


def test_reset_forgets_everything() -> None:
    persistence = TrackPersistence(persistence_s=1.0)
    for _ in range(4):
        persistence.step([box()])
    persistence.reset()
    assert persistence.step([]) == [] and persistence.track_ids == ()


def test_memory_does_not_grow() -> None:
    persistence = TrackPersistence(persistence_s=1.0)
    for tick in range(300):
        persistence.step([box(tick)])
        assert len(persistence.track_ids) <= 31


def test_nearness_is_that_of_the_last_sight() -> None:
    """The grid at that place shows the wall behind it one tick later."""
    near_HW, far_HW = np.full((12, 16), 0.75, np.float32), np.full((12, 16), 0.125, np.float32)
    persistence, builder = TrackPersistence(persistence_s=1.0), BoxTokenBuilder(max_boxes=2)
    found = []
    for tick, grid_HW in enumerate((far_HW, far_HW, near_HW, far_HW, far_HW)):
        boxes = persistence.step([box()] if tick < 3 else [], nearness_HW=grid_HW)
        tokens = builder.step(boxes, fov_deg=FOV_DEG, nearness_HW=grid_HW)
        found.append(float(tokens.fields_KF[0, FIELD["nearness"]]))
    assert found == [0.125, 0.125, 0.75, 0.75, 0.75]
    assert after(*[[box(nearness=0.5)]] * 3, [])[0].nearness == 0.5
    assert after(*[[box()]] * 3, [])[0].nearness == 0.0, "no grid, as in a token"


def tokens_of(ticks: Sequence[Sequence[Box]], *, max_boxes: int = 2) -> list[np.ndarray]:
    """Fields [K, F] of every tick."""
    persistence, builder = TrackPersistence(persistence_s=1.0), BoxTokenBuilder(max_boxes=max_boxes)
    return [
        builder.step(persistence.step(list(boxes)), fov_deg=FOV_DEG).fields_KF.copy()
        for boxes in ticks
    ]


def test_velocity_is_kept_and_age_goes_on() -> None:
    moving = [[box(cx=0.3 + 0.01 * n)] for n in range(10)]
    fields = tokens_of([*moving, *[[]] * 31])
    for tick, fields_KF in enumerate(fields[10:40], start=10):
        assert fields_KF[0, FIELD["cx"]] == pytest.approx(0.39)
        assert fields_KF[0, FIELD["vx"]] == pytest.approx(0.3, abs=1e-5), tick
        assert fields_KF[0, FIELD["age"]] == pytest.approx(tick / 30)
    assert not fields[40].any()


def test_back_after_a_hold_it_has_the_velocity_of_its_whole_way() -> None:
    """Held for 8 ticks and moved to the edge meanwhile, the box itself went on all the time."""
    path = [0.25 - 0.01 * n for n in range(20)]
    ticks = [[box(cx=cx)] if n < 10 or n >= 18 else [] for n, cx in enumerate(path)]
    fields = tokens_of(ticks)
    assert fields[17][0, FIELD["cx"]] == pytest.approx(0.16)
    for fields_KF in fields[2:]:
        assert fields_KF[0, FIELD["vx"]] == pytest.approx(-0.3, abs=1e-5)
    assert fields[19][0, FIELD["age"]] == pytest.approx(19 / 30)


def test_a_hold_of_many_seconds_keeps_its_velocity() -> None:
    persistence, builder = TrackPersistence(persistence_s=5.0), BoxTokenBuilder(max_boxes=2)
    for tick in range(190):
        seen = [box(cx=0.1 + 0.002 * tick)] if tick < 100 else []
        fields_KF = builder.step(persistence.step(seen), fov_deg=FOV_DEG).fields_KF
    assert fields_KF[0, FIELD["vx"]] == pytest.approx(0.06, abs=1e-5)


def test_seen_boxes_are_never_pushed_out_by_held_ones() -> None:
    large = [box(1, w=0.5, class_index=1), box(2, w=0.4, class_index=2)]
    small = [box(3, w=0.01, class_index=3), box(4, w=0.02, class_index=4)]
    boxes = after(*[large] * 4, small)
    assert ids(boxes) == [3, 4, 1, 2]
    assert slots_of(boxes, 2) == [0, 1]
    assert slots_of(boxes, 3) == [0, 1, 2], "the larger one of the held"
    assert slots_of([boxes[2], boxes[0]], 1) == [1]
    fields_KF = tokens_of([*[large] * 4, small])[-1]
    assert fields_KF[:, FIELD["w"]].tolist() == pytest.approx([0.01, 0.02])


def detections(rows: Sequence[tuple[float, float, int]], *, is_mirrored: bool) -> Detections:
    """Boxes of size 0.12 x 0.2 from (cx, cy, class), cut at the edges."""
    corners = [(cx - 0.06, cy - 0.1, cx + 0.06, cy + 0.1) for cx, cy, _ in rows]
    corners_K4 = np.clip(np.array(corners, np.float32).reshape(-1, 4), 0.0, 1.0)
    if is_mirrored:
        corners_K4[:, [0, 2]] = 1.0 - corners_K4[:, [2, 0]]
    score_K = np.full(len(rows), 0.9, np.float32)
    return Detections(corners_K4, score_K, np.array([label for *_, label in rows], np.int64))


def test_the_mirrored_picture_gives_mirrored_features() -> None:
    """One leaves to the left, one to the right, one vanishes and returns, one is taken over."""
    grid_HW = np.random.default_rng(0).random(CONFIG.depth.grid).astype(np.float32)
    rows_T = []
    for tick in range(100):
        rows = [(0.4 - 0.02 * tick, 0.5, 1), (0.3 + 0.025 * tick, 0.3, 2)]
        if not 20 <= tick < 40:
            # Not 0.5, where the two cells of the depth grid that meet are as good.
            rows.append((0.507 + 0.1 * math.sin(tick / 10), 0.7, 3))
        if tick < 50 or tick >= 65:
            rows.append((0.15 if tick < 50 else 0.8, 0.85, 4))
        rows_T.append([row for row in rows if -0.05 < row[0] < 1.05])
    seen, num_held = [], 0
    for is_mirrored in (False, True):
        tracker, persistence = BoxTracker(new_track_score=0.3), TrackPersistence(persistence_s=1.0)
        builder, tokens = BoxTokenBuilder(max_boxes=CONFIG.max_boxes), []
        shown_HW = np.ascontiguousarray(grid_HW[:, ::-1]) if is_mirrored else grid_HW
        for rows in rows_T:
            boxes = tracker.step(detections(rows, is_mirrored=is_mirrored))
            boxes = persistence.step(boxes, nearness_HW=shown_HW)
            num_held += sum(one.is_persisted for one in boxes)
            tokens.append(builder.step(boxes, fov_deg=FOV_DEG, nearness_HW=shown_HW))
        seen.append(frame_features(CONFIG, tokens=tokens, num_ticks=len(tokens)))
    assert num_held > 150, f"only {num_held} boxes are held, the test says nothing"
    flipped = mirror_features(seen[0], grid_width=CONFIG.dino.grid[1])
    assert torch.equal(flipped.class_BTK, seen[1].class_BTK)
    assert torch.equal(flipped.box_mask_BTK, seen[1].box_mask_BTK)
    torch.testing.assert_close(flipped.boxes_BTKF, seen[1].boxes_BTKF, atol=2e-5, rtol=0)


def test_a_box_that_leaves_stays_at_its_edge() -> None:
    """Through the tracker: the last thing to be seen of it is a sliver, which is what stays."""
    for sign in (-1.0, 1.0):
        tracker, persistence = BoxTracker(new_track_score=0.3), TrackPersistence(persistence_s=1.0)
        held = []
        for tick in range(60):
            cx = 0.5 + sign * 0.03 * tick
            rows = [(cx, 0.5, 1)] if -0.05 < cx < 1.05 else []
            boxes = persistence.step(tracker.step(detections(rows, is_mirrored=False)))
            held += [one for one in boxes if one.is_persisted]
        assert len(held) == 30
        edge = held[0].cx + sign * held[0].w / 2
        assert edge == pytest.approx(0.0 if sign < 0 else 1.0) and held[0].w > 0
        assert len(set(held)) == 1, "it stands still"
