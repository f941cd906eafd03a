"""Edits of tracks: mute, solo and move, in the command and in the file, and what they leave."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a.conditioning.annotations import annotated_features, annotated_ticks, overlay_tick
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.track_edits import (
    FADE_MS,
    MarkedBox,
    MuteGate,
    TrackEditor,
    TrackEdits,
    parse_edits,
)
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures, empty_features
from spatial_v2a.timing import TIMING
from tests.track_lines import FIELD, box, cx_of, write_lines

CONFIG = PerceptionConfig()


def empty_tick() -> FrameFeatures:
    """A tick of which nothing was seen."""
    rows, columns = CONFIG.dino.grid
    return empty_features(
        1, 1, num_patches=rows * columns, dino_dim=CONFIG.dino.hidden_size,
        depth_grid=CONFIG.depth.grid, max_boxes=CONFIG.max_boxes,
    )  # fmt: skip


def test_mute_solo_and_move_of_a_whole_file(tmp_path: Path) -> None:
    lines = [{"t": n / 30, "fov_deg": 90, "boxes": [box(1, 0.1), box(2, 0.6)]} for n in range(5)]
    path = write_lines(tmp_path / "t.jsonl", lines)

    def places(**edits) -> list[float]:
        (places,) = {tuple(cx_of(f)) for f in annotated_features(path, CONFIG, TrackEdits(**edits))}
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
    (features,) = annotated_features(path, CONFIG, TrackEdits(move_deg=((2, 40.0),)))
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
    places = [cx_of(features) for features in annotated_features(path, CONFIG)]
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
    seen = empty_tick()
    seen.dino_BTND += torch.arange(rows * columns)[:, None]
    seen.depth_BTHW += torch.linspace(0, 1, CONFIG.depth.grid[1])

    def changed(**edits) -> tuple[set[int], set[int]]:
        (tick,) = annotated_ticks(path, CONFIG, TrackEdits(**edits))
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
    ticks = annotated_ticks(path, CONFIG, TrackEdits(**edits))
    return [[box.track_id for box in tick.boxes if box.is_persisted] for tick in ticks]


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
    ticks = list(annotated_ticks(path, CONFIG, TrackEdits(move_deg=((1, 20.0),))))
    (seen,), (held,) = ticks[4].boxes, ticks[5].boxes
    assert held.is_persisted and held.cx == seen.cx < 0.3


def test_a_held_object_does_not_keep_a_silenced_one_in_the_picture(tmp_path: Path) -> None:
    """Object 1 is gone, muted object 2 comes to stand where it stood."""
    at = [[box(1)], [box(1)], [box(1)], [box(2, **{"class": "dog"})]]
    lines = [{"t": n / 30, "boxes": entries} for n, entries in enumerate(at)]
    path = write_lines(tmp_path / "t.jsonl", lines)
    tick = list(annotated_ticks(path, CONFIG, TrackEdits(mute=(2,))))[3]
    assert [(one.track_id, one.is_persisted) for one in tick.boxes] == [(1, True)]
    seen = empty_tick()
    seen.depth_BTHW += torch.linspace(0, 1, CONFIG.depth.grid[1])
    shown = overlay_tick(seen, tick, CONFIG)
    assert bool((shown.depth_BTHW != seen.depth_BTHW).any())


def muted_ticks(path: Path, **edits) -> str:
    ticks = annotated_ticks(path, CONFIG, TrackEdits(**edits))
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
            next(annotated_ticks(path, CONFIG, TrackEdits(**edits)))
    empty = write_lines(tmp_path / "e.jsonl", [{"t": 0, "boxes": []}])
    with pytest.raises(UserError, match="ids: none"):
        next(annotated_ticks(empty, CONFIG, TrackEdits(mute=(7,))))
