"""A simulated scene: things that walk, drive, fly or stand before a pinhole camera that may turn.

All of it is known exactly: where each thing is in every tick, when its feet come down, how fast its
wheels turn. Legend: T ticks, N events. Metres; x to the right of where the camera first looks, z
ahead; bearings in degrees, POSITIVE TO THE LEFT.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.concepts import CONCEPTS, Concept
from spatial_v2a.timing import TIMING

GRAVITY = 9.81
# Ordinary and highest speed, m/s, and the way between two footfalls, m (0: no feet).
SPEED_M_S = {
    "footsteps": (1.0, 1.8),
    "running": (2.4, 4.5),
    "crowd": (0.6, 1.2),
    "horse": (1.5, 5.0),
    "carriage": (1.5, 3.0),
    "large_animal": (0.8, 2.0),
    "bicycle": (3.0, 8.0),
    "scooter": (1.5, 5.0),
    "skateboard": (2.0, 5.0),
    "train": (8.0, 25.0),
    "tram": (4.0, 12.0),
    "aeroplane": (20.0, 60.0),
    "jet": (40.0, 90.0),
    "helicopter": (0.0, 20.0),
    "boat": (3.0, 9.0),
    "sailing_boat": (1.0, 4.0),
    "bird": (2.0, 7.0),
    "crow": (2.0, 7.0),
    "insect": (0.2, 1.0),
    "ball": (1.0, 5.0),
}
VEHICLE_M_S, OTHER_M_S = (4.0, 16.0), (0.3, 1.2)
STRIDE_M = {
    "footsteps": 0.72,
    "running": 1.1,
    "horse": 0.55,
    "carriage": 0.55,
    "large_animal": 1.2,
}
RAIL_M = 12.5  # between two joints of the rails
FLYING = frozenset({"aeroplane", "jet", "helicopter", "bird", "crow", "insect"})
# Width of the box against its height, seen from the side and from the front.
VEHICLES = frozenset(
    "car motorcycle bus truck fire_truck train tram carriage tractor aeroplane jet helicopter boat"
    " bicycle dog cat horse cow sheep pig large_animal".split()
)
SIDE_SHAPE = {"train": 4.0, "tram": 3.0, "bus": 2.6, "truck": 2.2, "car": 2.5}
PATTERNS = ("crossing", "approaching", "receding", "wandering", "returning", "standing")
PATTERN_SHARES = (0.3, 0.14, 0.14, 0.2, 0.12, 0.1)
BY_NAME = {concept.name: concept for concept in CONCEPTS}


@dataclass(frozen=True)
class View:
    """The camera.

    Attributes:
        fov_deg: horizontal field of view.
        aspect: width of the picture by its height.
        heading_deg_T: where it looks, positive to the left.
        height_m: of the camera above the ground.
        horizon: where the horizon lies, 0 (top of the picture) .. 1.
    """

    fov_deg: float
    aspect: float
    heading_deg_T: NDArray
    height_m: float
    horizon: float

    @property
    def half_height(self) -> float:
        """Half of the picture's height at a depth of one metre."""
        return float(np.tan(np.radians(self.fov_deg) / 2) / self.aspect)


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Attributes:
        track_id: its own, from 1 on.
        concept: what it is.
        height_m: its real height; `concept.height_m` is the usual one.
        place_T3: x, altitude of its foot, z.
        speed_T: m/s along the ground.
        sounds_T: whether it is heard in a tick.
        events_s: when its feet come down, it bounces, or passes a joint [N]; None where the picture
            does not tell.
        drive_T: how fast its clock runs, 0..1.
        shape_T: width of its box by its height.
    """

    track_id: int
    concept: Concept
    height_m: float
    place_T3: NDArray
    speed_T: NDArray
    sounds_T: NDArray
    events_s: NDArray | None
    drive_T: NDArray
    shape_T: NDArray

    @property
    def azimuth_first_deg_T(self) -> NDArray:
        """Bearing from the camera's place, as if it looked along z."""
        return np.degrees(np.arctan2(-self.place_T3[:, 0], self.place_T3[:, 2]))

    @property
    def distance_T(self) -> NDArray:
        """Metres along the ground."""
        return np.hypot(self.place_T3[:, 0], self.place_T3[:, 2])


@dataclass(frozen=True)
class World:
    """A camera and what is before it."""

    view: View
    things: tuple[Thing, ...]

    def azimuth_deg_T(self, thing: Thing) -> NDArray:
        """Bearing of a thing from where the camera looks, -180..180."""
        turned = thing.azimuth_first_deg_T - self.view.heading_deg_T
        return (turned + 180.0) % 360.0 - 180.0


def make_world(
    rng: np.random.Generator, num_ticks: int, concepts: list[Concept], *, has_turns: bool = True
) -> World:
    """A scene by chance.

    Args:
        rng: source of all chance.
        num_ticks: length.
        concepts: what is in it, one thing each.
        has_turns: whether the camera may turn.
    """
    fov_deg = 90.0 if rng.random() < 0.4 else float(rng.uniform(30, 110))
    aspect = float(rng.choice([4 / 3, 16 / 9, 2.35]))
    view = View(fov_deg, aspect, np.zeros(num_ticks), rng.uniform(1.0, 2.6), rng.uniform(0.3, 0.55))
    things = tuple(
        _thing(rng, num_ticks, concept, number + 1, view) for number, concept in enumerate(concepts)
    )
    heading = _heading(rng, num_ticks, things[0] if things else None, has_turns)
    return World(replace(view, heading_deg_T=heading), things)


def _heading(
    rng: np.random.Generator, num_ticks: int, first: Thing | None, has_turns: bool
) -> NDArray:
    """Stands, pans, looks away and back, or follows the first thing; a hand trembles a little."""
    t = np.arange(num_ticks) / TIMING.tick_hz
    kind = rng.choice(["still", "pan", "away", "follow"], p=[0.5, 0.2, 0.1, 0.2])
    heading = np.zeros(num_ticks)
    if has_turns and kind == "pan":
        heading = rng.uniform(5, 40) * np.sin(2 * np.pi * rng.uniform(0.03, 0.15) * t)
    elif has_turns and kind == "away":
        begin, end = np.sort(rng.uniform(0, t[-1], 2))
        away = np.clip(np.minimum(t - begin, end - t) / 0.7, 0, 1)
        heading = rng.choice([-1, 1]) * rng.uniform(40, 100) * away
    elif has_turns and kind == "follow" and first is not None:
        bearing, pull = first.azimuth_first_deg_T, rng.uniform(0.02, 0.08)
        for tick in range(1, num_ticks):
            off = (bearing[tick] - heading[tick - 1] + 180) % 360 - 180
            heading[tick] = heading[tick - 1] + np.clip(pull * off, -4, 4)
    if rng.random() < 0.4:
        tremble = np.cumsum(rng.normal(0, 0.05, num_ticks))
        heading = heading + tremble - np.linspace(0, tremble[-1], num_ticks)
    return heading


def _thing(
    rng: np.random.Generator, num_ticks: int, concept: Concept, track_id: int, view: View
) -> Thing:
    usual_m = concept.height_m or 2.0
    height_m = usual_m * float(np.exp(rng.normal(0, 0.08)))
    fov_deg, half_height = view.fov_deg, view.half_height
    # A box between a thirtieth and nine tenths of the picture's height, its middle in the picture.
    below = 2 * half_height * (1 - view.horizon)
    near_m = max(height_m / (1.8 * half_height), (view.height_m - height_m / 2) / below, 1.0)
    far_m = min(max(height_m * 16 / half_height, 1.5 * near_m), 120.0)
    path_T2, speed_T = _path(rng, num_ticks, concept, fov_deg, (near_m, far_m))
    way_T = np.cumsum(speed_T) / TIMING.tick_hz + rng.uniform(0, 1)
    low, high = _speeds(concept)
    altitude = np.zeros(num_ticks)
    if concept.name in FLYING:
        depth = np.hypot(*path_T2.T).mean()
        altitude += view.height_m + rng.uniform(-0.5, 0.5) * view.horizon * half_height * depth
    events_s = _events(concept, way_T, height_m / usual_m)
    if concept.name == "ball":
        altitude, events_s = _bounces(rng, num_ticks)
        if (speed_T < 0.1).all():
            altitude, events_s = np.zeros(num_ticks), np.zeros(0)
    moves_T = (speed_T > 0.15) | (altitude > 0.05) & (concept.name == "ball")
    return Thing(
        track_id,
        concept,
        height_m,
        np.stack([path_T2[:, 0], altitude, path_T2[:, 1]], axis=-1),
        speed_T,
        np.ones(num_ticks, bool) if concept.sounds_at_rest else moves_T,
        events_s,
        np.clip((speed_T - 0.3 * low) / max(1.2 * high - 0.3 * low, 1e-3), 0, 1),
        _shape(rng, concept, path_T2, way_T, height_m / usual_m),
    )


def _speeds(concept: Concept) -> tuple[float, float]:
    if concept.name in SPEED_M_S:
        return SPEED_M_S[concept.name]
    return VEHICLE_M_S if concept.name in VEHICLES and concept.level_db >= 14 else OTHER_M_S


def _path(
    rng: np.random.Generator,
    num_ticks: int,
    concept: Concept,
    fov_deg: float,
    reach_m: tuple[float, float],
) -> tuple[NDArray, NDArray]:
    """Where it goes [T, 2] and how fast [T]; what sounds at rest often stays where it is."""
    near_m, far_m = reach_m
    depth = float(np.exp(rng.uniform(np.log(near_m), np.log(far_m))))
    half = np.tan(np.radians(fov_deg) / 2)
    speed = float(rng.uniform(*_speeds(concept)))
    pattern = str(rng.choice(PATTERNS, p=PATTERN_SHARES))
    if concept.sounds_at_rest and rng.random() < 0.6:
        pattern = "standing"
    side = float(rng.choice([-1.0, 1.0]))
    x = float(rng.uniform(-0.9, 0.9)) * half * depth
    seconds = num_ticks / TIMING.tick_hz
    if pattern == "standing":
        points = [(x, depth)]
    elif pattern == "crossing":
        # In the middle of its way at some moment of the clip, mostly from edge to edge.
        begin = -side * min(1.3 * half * depth, speed * seconds * rng.uniform(0.2, 0.8))
        points = [(begin, depth), (side * 1e4, depth * rng.uniform(0.7, 1.4))]
        points[1] = (begin + side * 400, depth + (points[1][1] - depth))
    elif pattern in ("approaching", "receding"):
        far = min(near_m + speed * seconds, far_m)
        ends = [(x * far / depth, far), (x * near_m / depth, near_m)]
        points = ends if pattern == "approaching" else ends[::-1]
    elif pattern == "returning":
        out = side * half * depth * rng.uniform(1.2, 2.0)
        points = [(x, depth), (out, depth), (x, depth), (-x, depth)]
    else:
        points = [(x, depth)]
        for _ in range(6):
            z = float(np.exp(rng.uniform(np.log(near_m), np.log(far_m))))
            points.append((float(rng.uniform(-1.1, 1.1)) * half * z, z))
    return _walked(rng, num_ticks, np.array(points), speed)


def _walked(
    rng: np.random.Generator, num_ticks: int, points: NDArray, speed: float
) -> tuple[NDArray, NDArray]:
    """Goes along a line of points at a speed that swings a little, with a rest now and then."""
    t = np.arange(num_ticks) / TIMING.tick_hz
    if len(points) == 1:
        return np.repeat(points, num_ticks, axis=0), np.zeros(num_ticks)
    swing = 1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t + rng.uniform(0, 6))
    speed_T = speed * swing
    if rng.random() < 0.35:
        begin = rng.uniform(0, t[-1])
        rests = (t >= begin) & (t < begin + rng.uniform(1.0, 3.0))
        speed_T = speed_T * np.convolve(
            np.pad(~rests * 1.0, 3, mode="edge"), np.ones(7) / 7, "valid"
        )
    legs = np.hypot(*np.diff(points, axis=0).T)
    marks = np.concatenate([[0.0], np.cumsum(legs)])
    way = np.cumsum(speed_T) / TIMING.tick_hz
    speed_T = np.where(way < marks[-1], speed_T, 0.0)
    path = np.stack([np.interp(way, marks, points[:, axis]) for axis in (0, 1)], axis=-1)
    return path, speed_T


def _events(concept: Concept, way_T: NDArray, size: float) -> NDArray | None:
    """When so much way was made: footfalls, joints of the rails; None where nothing tells."""
    period_m = STRIDE_M.get(concept.name, 0.0) * size
    if concept.name == "train":
        period_m = RAIL_M
    if period_m == 0:
        return None
    turns = way_T / period_m
    wanted = np.arange(np.ceil(turns[0]), np.floor(turns[-1]) + 1)
    wanted = wanted[wanted > turns[0]]
    # Where it rests the way stays: the first tick that reaches the mark counts.
    after = np.searchsorted(turns, wanted)
    before = after - 1
    share = (wanted - turns[before]) / np.maximum(turns[after] - turns[before], 1e-9)
    return (before + share) / TIMING.tick_hz


def _bounces(rng: np.random.Generator, num_ticks: int) -> tuple[NDArray, NDArray]:
    """Altitude [T] of something that is dropped again and again, and when it hits the ground."""
    t, now = np.arange(num_ticks) / TIMING.tick_hz, -float(rng.uniform(0, 0.6))
    altitude, hits = np.zeros(num_ticks), []
    push = float(rng.uniform(2.5, 4.5))
    while now < t[-1]:
        flight = 2 * push / GRAVITY
        within = (t >= now) & (t < now + flight)
        since = t[within] - now
        altitude[within] = push * since - GRAVITY / 2 * since**2
        hits.append(now)
        now += flight
        push = push * 0.8 if push > 1.6 and rng.random() < 0.7 else float(rng.uniform(2.5, 4.5))
    return altitude, np.array([hit for hit in hits if hit >= 0])


def _shape(
    rng: np.random.Generator, concept: Concept, path_T2: NDArray, way_T: NDArray, size: float
) -> NDArray:
    """Width of the box by its height, from side to front, with the stride of what has feet.

    The legs are widest apart as a foot comes down.
    """
    step = np.gradient(path_T2, axis=0)
    ahead = path_T2 / np.maximum(np.linalg.norm(path_T2, axis=1, keepdims=True), 1e-6)
    along = np.abs((step * ahead).sum(1)) / np.maximum(np.linalg.norm(step, axis=1), 1e-9)
    sideways_T = np.sqrt(np.clip(1 - along**2, 0, 1))
    is_long = concept.name in VEHICLES
    side = SIDE_SHAPE.get(concept.name, 1.7 if is_long else 0.42)
    front = 0.9 if is_long else 0.38
    if concept.clock == "none" and not is_long:
        side = front = float(np.exp(rng.uniform(np.log(0.5), np.log(1.8))))
    shape_T = (front + (side - front) * sideways_T) * float(np.exp(rng.normal(0, 0.1)))
    if concept.name in STRIDE_M:
        phase = np.pi * way_T / (STRIDE_M[concept.name] * size)
        swing = rng.uniform(0.06, 0.22) * (0.25 + 0.75 * sideways_T)
        shape_T = shape_T * (1 + swing * (2 * np.abs(np.cos(phase)) - 1))
    return shape_T
