"""Turns of the camera: how far a picture slides, and what is held moves against it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.conditioning.annotations import annotated_ticks
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.scene import CameraTurn
from spatial_v2a.conditioning.tracker import TrackPersistence
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.errors import UserError
from spatial_v2a.geometry import azimuth_rad, column, slide_turn_deg
from spatial_v2a.inference.dub.track_writer import TrackWriter, plan_tracks
from tests.scenes import WIDTH, OneObject, looking, perception, scene, view
from tests.tiny_checkpoint import write_tiny_checkpoint
from tests.track_lines import box, read, write_lines


def slides_of(frames: list[np.ndarray]) -> list[float]:
    turn = CameraTurn()
    return [turn.step(frame) for frame in frames]


@pytest.mark.parametrize("step", [-60, -9, -1, 0, 2, 17, 40])
def test_a_slide_is_measured_to_less_than_a_pixel(step: int) -> None:
    """Of 160 columns; what stands to the right comes in as the camera turns to the right."""
    errors = []
    for seed in range(8):
        start = WIDTH if step <= 0 else 0
        slides = slides_of([view(scene(seed), start + step * n) for n in range(3)])
        assert slides[0] == 0.0
        errors += [abs(slide + step / WIDTH) for slide in slides[1:]]
    assert np.median(errors) < 0.25 / WIDTH and max(errors) < 1.5 / WIDTH


def test_what_has_nothing_in_it_and_what_is_reset_does_not_slide() -> None:
    grey = np.full((120, 160, 3), 90, np.uint8)
    assert slides_of([grey, grey, view(scene(1)), grey]) == [0.0] * 4
    turn = CameraTurn()
    turn.step(view(scene(1)))
    turn.reset()
    assert turn.step(view(scene(1), 20)) == 0.0


def test_size_and_light_do_not_matter() -> None:
    large = [view(scene(3, height=480, width=640), x) for x in (100, 140)]
    dim = [(0.5 * frame).astype(np.uint8) for frame in large]
    for frames in (large, dim):
        assert slides_of(frames)[1] == pytest.approx(-40 / 640, abs=0.003)


def test_a_column_is_where_a_bearing_is_and_a_slide_is_a_turn() -> None:
    for fov_deg in (40.0, 90.0, 120.0):
        for cx in (0.0, 0.2, 0.5, 0.9, 1.3):
            assert column(float(azimuth_rad(cx, fov_deg)), fov_deg) == pytest.approx(cx)
        # A camera that turns to the left by so much sees ahead what was that far left before.
        turned_rad = math.radians(slide_turn_deg(0.1, fov_deg))
        assert azimuth_rad(0.4, fov_deg) == pytest.approx(turned_rad)


def held_after(turns_deg: list[float], *, cx: float = 0.5, fov_deg: float = 90.0) -> list[float]:
    """Where an object stands in every tick after its last, while the camera turns."""
    persistence = TrackPersistence(persistence_s=2.0)
    for _ in range(3):
        persistence.step([Box(1, 3, cx, 0.5, 0.1, 0.2)], turn_deg=5.0, fov_deg=fov_deg)
    found = [persistence.step([], turn_deg=turn, fov_deg=fov_deg)[0] for turn in turns_deg]
    assert all(one.is_persisted and (one.cy, one.w, one.h) == (0.5, 0.1, 0.2) for one in found)
    return [one.cx for one in found]


def at(azimuth_deg: float, fov_deg: float = 90.0) -> float:
    return column(math.radians(azimuth_deg), fov_deg)


def test_what_is_held_stays_where_it_is_in_the_world() -> None:
    assert held_after([0.0, 0.0]) == [0.5, 0.5]
    assert held_after([10.0, 10.0, -5.0, 0.0]) == pytest.approx(
        [at(-10), at(-20), at(-15), at(-15)]
    )
    assert held_after([-4.0] * 3, cx=0.3, fov_deg=60.0) == pytest.approx(
        [at(math.degrees(azimuth_rad(0.3, 60.0)) + 4 * n, 60.0) for n in (1, 2, 3)]
    )


def test_out_of_the_picture_it_is_at_the_nearer_edge_and_comes_back() -> None:
    """To the right with a camera that turns left; behind it changes sides."""
    turning = held_after([30.0] * 12)
    right, left = 0.95, 0.05
    expected = [at(-30), right, right, right, right, None, left, left, left, left, at(30), 0.5]
    for found, wanted in zip(turning, expected, strict=True):
        assert wanted is None or found == pytest.approx(wanted)
    assert held_after([50.0, 50.0, -90.0]) == pytest.approx([right, right, at(-10)])


def test_seen_again_it_is_held_from_there() -> None:
    persistence, fov_deg = TrackPersistence(persistence_s=1.0), 90.0
    for _ in range(3):
        persistence.step([Box(1, 3, 0.5, 0.5, 0.1, 0.2)], fov_deg=fov_deg)
    persistence.step([], turn_deg=20.0, fov_deg=fov_deg)
    for _ in range(3):
        persistence.step([Box(1, 3, 0.3, 0.5, 0.1, 0.2)], turn_deg=20.0, fov_deg=fov_deg)
    (held,) = persistence.step([], turn_deg=1.0, fov_deg=fov_deg)
    assert held.cx == pytest.approx(at(math.degrees(azimuth_rad(0.3, fov_deg)) - 1.0))


def test_lines_of_given_boxes_may_turn(tmp_path: Path) -> None:
    def middles(*lines: dict) -> list[float]:
        seen = [{"t": n / 30, "boxes": [box(1, 0.45)]} for n in range(3)]
        gone = [{"t": (3 + 2 * n) / 30, "boxes": []} | line for n, line in enumerate(lines)]
        path = write_lines(tmp_path / "tracks.jsonl", [*seen, *gone])
        ticks = list(annotated_ticks(path, PerceptionConfig()))
        return [tick.boxes[0].cx for tick in ticks[3 : 3 + 2 * len(lines)]]

    turned = middles({"turn_deg": 10}, {"turn_deg": -4.0}, {})
    assert turned == pytest.approx([at(-10), at(-10), at(-6), at(-6), at(-6), at(-6)])
    # Two lines that come within one tick turn together.
    close = [{"turn_deg": 3, "t": 3.2 / 30}, {"turn_deg": 3, "t": 3.4 / 30}]
    assert middles(*close)[1] == pytest.approx(at(-6))
    for bad in ("left", True, 181, [1]):
        with pytest.raises(UserError, match="line 4: turn_deg .* is not in -180..180"):
            middles({"turn_deg": bad})


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


def test_a_lost_object_follows_the_turn_and_its_tracks_say_so(
    tmp_path: Path, folder: Path, tiny_config: Config
) -> None:
    """Seen for six ticks, carried on by the tracker for five; then the camera turns.

    By an eighth of the picture in each tick.
    """
    video = tmp_path / "turn.mp4"
    frames = [view(scene(5), WIDTH)] * 12 + [view(scene(5), WIDTH - 20 * n) for n in range(1, 5)]
    write_video(video, frames, 30)
    out = TrackWriter(looking(folder, tiny_config, OneObject(6))).write(plan_tracks(video)).out
    turns = [line.get("turn_deg", 0.0) for line in read(out)]
    assert turns == pytest.approx([0.0] * 12 + [slide_turn_deg(0.125, 90.0)] * 4, abs=0.5)
    seeing = perception(folder, tiny_config, OneObject(6))
    images = open_video(video).ticks(max_width=seeing.config.max_image_width)
    middles = []
    for told, image in zip(annotated_ticks(out, seeing.config), images, strict=False):
        seen = seeing.step(image[None], fov_deg=90.0)
        middles.append(seeing.boxes_B[0][0].cx)
        for name in ("boxes_BTKF", "class_BTK", "box_mask_BTK", "depth_BTHW", "is_cut_BT"):
            assert torch.equal(vars(seen)[name], vars(told.features)[name]), name
    assert middles[:12] == pytest.approx([0.25] * 12, abs=1e-6)
    start_deg = math.degrees(azimuth_rad(0.25, 90.0))
    turned = [at(start_deg - n * slide_turn_deg(0.125, 90.0)) for n in range(1, 5)]
    assert middles[12:] == pytest.approx(turned, abs=0.02)
    assert seeing.turn_deg_B[0] == turns[-1]
