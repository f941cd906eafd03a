"""Which things of any world are heard: what moves, in a picture whose camera may move as well.

Legend: H W rows and columns of a picture.
"""

import numpy as np
import pytest

from spatial_v2a.concepts import CLASS_NAMES, CONCEPTS, SoundMap
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.sounding import Sounding, WorldMotion, as_concepts

HEIGHT, WIDTH = 240, 320
CONCEPT = {concept.name: index for index, concept in enumerate(CONCEPTS)}


def texture(seed: int, height: int, width: int) -> np.ndarray:
    """A picture with something to follow everywhere, uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (height // 8 + 1, width // 8 + 1))
    grey = np.kron(coarse, np.ones((8, 8)))[:height, :width]
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


WORLD, THING = texture(1, HEIGHT, 3 * WIDTH), texture(2, 80, 40)


def picture(*, camera_px: int = 0, thing_px: int | None = None) -> np.ndarray:
    """The world from a camera that has turned so far, and a thing at a column of the picture."""
    image = WORLD[:, WIDTH + camera_px : 2 * WIDTH + camera_px].copy()
    if thing_px is not None:
        image[100:180, thing_px : thing_px + 40] = THING
    return image


def box(x_px: float, *, concept: str = "car", track_id: int = 1) -> Box:
    cx = (x_px + 20) / WIDTH
    return Box(track_id, CONCEPT[concept], cx, 140 / HEIGHT, 40 / WIDTH, 80 / HEIGHT, score=0.8)


def heard_ticks(pictures: list[np.ndarray], boxes_T: list[list[Box]]) -> list[set[int]]:
    """Ids of the things that are heard in every tick."""
    sounding, heard = Sounding(), []
    for image, boxes in zip(pictures, boxes_T, strict=True):
        sounding.look(image)
        heard.append({one.track_id for one in sounding.step(boxes, fov_deg=90.0).heard})
    return heard


def test_a_parked_car_is_silent_and_a_driving_one_is_not() -> None:
    parked = heard_ticks([picture(thing_px=100)] * 60, [[box(100)]] * 60)
    assert parked == [set()] * 60
    places = [100 + tick for tick in range(60)]
    driving = heard_ticks([picture(thing_px=x) for x in places], [[box(x)] for x in places])
    assert driving[5:] == [{1}] * 55


@pytest.mark.parametrize("shown_for", [1, 3], ids=["30 pictures a second", "10"])
def test_a_film_of_any_rate_tells_the_same(shown_for: int) -> None:
    places = [100 + tick // shown_for * shown_for for tick in range(60)]
    driving = heard_ticks([picture(thing_px=x) for x in places], [[box(x)] for x in places])
    assert driving[9:] == [{1}] * 51


def test_a_turning_camera_moves_no_parked_car() -> None:
    """The car slides over the screen with the world that it stands in."""
    turns = [2 * tick for tick in range(50)]
    pictures = [picture(camera_px=turn, thing_px=200 - turn) for turn in turns]
    assert heard_ticks(pictures, [[box(200 - turn)] for turn in turns]) == [set()] * 50


def test_a_car_that_stops_is_heard_a_moment_longer() -> None:
    places = [100 + min(tick, 30) for tick in range(90)]
    heard = heard_ticks([picture(thing_px=x) for x in places], [[box(x)] for x in places])
    assert heard[30:45] == [{1}] * 15
    assert heard[70:] == [set()] * 20


def test_what_sounds_at_rest_is_heard_standing() -> None:
    heard = heard_ticks([picture(thing_px=100)] * 5, [[box(100, concept="fire")]] * 5)
    assert heard == [{1}] * 5


def test_a_generator_of_the_concepts_hears_each_and_knows_its_level() -> None:
    """What has no sound of the Stage is silent for a generator of those."""
    rain = box(100, concept="rain")
    assert Sounding().step([rain], fov_deg=90.0).silent == [rain]
    (heard,) = Sounding(knows_concepts=True).step([rain], fov_deg=90.0).heard
    assert (heard.class_index, heard.gain_db) == (CONCEPT["rain"], 0.0)


def test_a_dial_on_the_screen_is_silent_while_the_world_goes_by() -> None:
    """A clock sounds at rest, but this one keeps its place while the camera turns."""
    turns = [4 * tick for tick in range(75)]
    pictures = [picture(camera_px=turn, thing_px=20) for turn in turns]
    heard = heard_ticks(pictures, [[box(20, concept="clock")]] * 75)
    assert heard[10] == {1}
    assert heard[55:] == [set()] * 20


def test_a_weapon_in_the_hand_is_silent_whatever_its_track_is_called() -> None:
    """It bobs at the lower border, and a detector loses it every half second."""
    turns = [4 * tick for tick in range(90)]
    pictures = [picture(camera_px=turn, thing_px=200) for turn in turns]
    random = np.random.default_rng(3)
    boxes_T = [
        [Box(tick // 15, CONCEPT["footsteps"], 0.7 + x, 0.85 + y, 0.3, 0.3, score=0.6)]
        for tick, (x, y) in enumerate(random.uniform(-0.015, 0.015, (90, 2)))
    ]
    assert heard_ticks(pictures, boxes_T)[50:] == [set()] * 40


def test_who_is_followed_by_the_camera_is_heard() -> None:
    """A runner stays about in the middle, but nobody runs as still as a dial."""
    turns = [4 * tick for tick in range(90)]
    pictures = [picture(camera_px=turn, thing_px=140) for turn in turns]
    boxes_T = [[box(140 + 6 * np.sin(tick / 4), concept="footsteps")] for tick in range(90)]
    assert heard_ticks(pictures, boxes_T)[10:] == [{1}] * 80


def test_a_rider_makes_no_steps() -> None:
    places = [100 + 2 * tick for tick in range(20)]
    pictures = [picture(thing_px=x) for x in places]
    boxes_T = [
        [box(x, concept="footsteps"), box(x, concept="motorcycle", track_id=2)] for x in places
    ]
    assert heard_ticks(pictures, boxes_T)[-1] == {2}


def test_heard_things_have_the_generators_class_and_their_size_tells_the_distance() -> None:
    near, far = (Box(n, CONCEPT["footsteps"], 0.5, 0.5, 0.1, h) for n, h in ((1, 0.6), (2, 0.15)))
    sounding = Sounding()
    sounding.look(picture())
    fire = Box(3, CONCEPT["fire"], 0.5, 0.5, 0.1, 0.2)
    (heard,) = sounding.step([fire, near, far], fov_deg=90.0).heard
    assert heard.class_index == CLASS_NAMES.index("fire")
    for tick in range(10):
        sounding.look(picture(thing_px=100 + 8 * tick))
        moving = [Box(n, CONCEPT["footsteps"], (120 + 8 * tick) / WIDTH, 140 / HEIGHT, 0.1, h)
                  for n, h in ((1, 0.6), (2, 0.15))]  # fmt: skip
        boxes = sounding.step(moving, fov_deg=90.0).heard
    assert [one.class_index for one in boxes] == [CLASS_NAMES.index("footsteps")] * 2
    # Four times as far: depth 1.89 m and 7.56 m, nearness 1 / (1 + depth / 8).
    assert [round(one.nearness, 2) for one in boxes] == [0.81, 0.51]
    assert boxes[0].gain_db == 0.0
    assert boxes[1].gain_db == pytest.approx(-5.0 * np.log2(7.556 / 4), abs=0.05)


def test_names_become_concepts_and_silent_ones_go() -> None:
    found = Detections(
        np.array([[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6]], np.float32),
        np.array([0.9, 0.8, 0.7], np.float32),
        np.array([1, 0, 2]),
    )
    kept = as_concepts(found, SoundMap(("tv", "car", "person")))
    assert kept.class_K.tolist() == [CONCEPT["car"], CONCEPT["footsteps"]]
    assert kept.score_K.tolist() == pytest.approx([0.9, 0.7])
    assert kept.corners_K4.shape == (2, 4)


@pytest.mark.parametrize("turn_px", [0, 2, 6])
def test_the_cameras_motion_is_found(turn_px: int) -> None:
    motion = WorldMotion()
    assert motion.step(picture()) is None
    change = motion.step(picture(camera_px=turn_px, thing_px=60))
    x, y = change.carried(0.5, 0.5)
    assert (x, y) == (pytest.approx(0.5 - turn_px / WIDTH, abs=2e-3), pytest.approx(0.5, abs=2e-3))


@pytest.mark.parametrize("shape", [(1, 1, 3), (4000, 3, 3), (9, 9, 3)], ids=str)
def test_pictures_without_anything_in_them(shape: tuple[int, ...]) -> None:
    motion = WorldMotion()
    assert motion.step(np.full(shape, 7, np.uint8)) is None
    assert motion.step(np.full(shape, 7, np.uint8)) is None
