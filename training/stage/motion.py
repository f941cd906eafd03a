"""How sources walk and how the camera turns; all randomness comes from the clip's generator."""

import math
from dataclasses import dataclass, field

import numpy as np

from spatial_v2a.training.stage.game import StageGame, wrap_deg
from spatial_v2a.training.stage.place import Place

MIN_DISTANCE, MAX_DISTANCE = 80.0, 420.0
ARRIVED_UNITS = 14.0
STUCK_TICS = 7


def azimuth_deg(game: StageGame, x: float, y: float) -> float:
    """Bearing of a map point from the listener, degrees, POSITIVE LEFT."""
    pose = game.pose
    return wrap_deg(math.degrees(math.atan2(y - pose.y, x - pose.x)) - pose.heading_deg)


def random_point(
    rng: np.random.Generator,
    place: Place,
    heading_deg: float,
    *,
    max_distance: float = MAX_DISTANCE,
) -> tuple[float, float]:
    """A point along a heading, nearer than the first obstacle."""
    far = max(MIN_DISTANCE + 10, min(max_distance, 0.8 * place.free(heading_deg)))
    return place.point(heading_deg, rng.uniform(MIN_DISTANCE, far))


@dataclass
class Walker:
    """Walks a source between random points inside a sector of azimuths around a heading.

    Attributes:
        sector_deg: azimuths (positive left) it roams, relative to the camera's heading.
        speed: units per tic.
        rest_chance: chance of standing still for a while at a reached point.
        is_wandering: leave the walk to the engine (A_Wander).
    """

    tid: int
    rng: np.random.Generator
    place: Place
    sector_deg: tuple[float, float] = (-42.0, 42.0)
    speed: float = 5.0
    rest_chance: float = 0.2
    is_wandering: bool = False
    is_relative_to_camera: bool = True
    _target: tuple[float, float] | None = None
    _last: tuple[float, float] = (0.0, 0.0)
    _stuck: int = 0
    _rest: int = 0
    _has_started: bool = field(default=False)

    def act(self, game: StageGame) -> None:
        """Sends this tic's movement."""
        actor = game.actors.get(self.tid)
        if actor is None:
            return
        if self.is_wandering:
            if not self._has_started:
                game.wander(self.tid)
                self._has_started = True
            return
        if self._rest > 0:
            self._rest -= 1
            return
        here = (actor.x, actor.y)
        is_still = math.dist(here, self._last) < 0.3 * self.speed
        self._stuck = self._stuck + 1 if is_still else 0
        self._last = here
        arrived = self._target is not None and math.dist(here, self._target) < ARRIVED_UNITS
        if arrived and self.rng.random() < self.rest_chance:
            self._rest = int(self.rng.integers(10, 50))
        if self._target is None or arrived or self._stuck > STUCK_TICS:
            self._target = self._next_point(game)
            self._stuck = 0
        dx, dy = self._target[0] - here[0], self._target[1] - here[1]
        scale = self.speed / max(1e-6, math.hypot(dx, dy))
        game.move(self.tid, dx * scale, dy * scale)

    def _next_point(self, game: StageGame) -> tuple[float, float]:
        pose = game.pose if self.is_relative_to_camera else self.place.pose
        heading = pose.heading_deg + self.rng.uniform(*self.sector_deg)
        return random_point(self.rng, self.place, heading)


@dataclass
class Pacer:
    """Walks a source back and forth between two fixed points."""

    tid: int
    ends: list[tuple[float, float]]
    speed: float
    _goal: int = 1
    _stuck: int = 0
    _last: tuple[float, float] = (0.0, 0.0)

    def act(self, game: StageGame) -> None:
        """Sends this tic's movement."""
        actor = game.actors.get(self.tid)
        if actor is None:
            return
        here = (actor.x, actor.y)
        self._stuck = self._stuck + 1 if math.dist(here, self._last) < 0.3 * self.speed else 0
        self._last = here
        if math.dist(here, self.ends[self._goal]) < ARRIVED_UNITS or self._stuck > STUCK_TICS:
            self._goal = 1 - self._goal
            self._stuck = 0
        dx, dy = (self.ends[self._goal][i] - here[i] for i in range(2))
        scale = self.speed / max(1e-6, math.hypot(dx, dy))
        game.move(self.tid, dx * scale, dy * scale)


@dataclass
class Camera:
    """Turns the view: follows a source with a dead zone, stands, drifts, or looks away and back."""

    rng: np.random.Generator
    weights: dict[str, float]
    max_turn_deg: float = 5.0
    can_walk: bool = True
    is_held: bool = False
    _mode: str = "still"
    _left: int = 0
    _rate: float = 0.0
    _dead_zone: float = 20.0
    _forward: float = 0.0
    _turn: float = 0.0

    def act(self, game: StageGame, focus_tid: int | None) -> tuple[float, float, float, float]:
        """Buttons of this tic: turn (degrees left), forward, left, attack."""
        if self.is_held:
            return (0.0, 0.0, 0.0, 0.0)
        if self._left <= 0:
            self._begin_segment()
        self._left -= 1
        wanted = 0.0
        if self._mode in ("drift", "away"):
            wanted = self._rate
        elif self._mode == "follow" and focus_tid in game.actors:
            actor = game.actors[focus_tid]
            azimuth = azimuth_deg(game, actor.x, actor.y)
            excess = max(0.0, abs(azimuth) - self._dead_zone)
            wanted = math.copysign(min(self.max_turn_deg, 0.15 * excess), azimuth)
        self._turn += 0.35 * (wanted - self._turn)  # no jerks: a hand or a head has inertia
        return (self._turn, self._forward, 0.0, 0.0)

    def _begin_segment(self) -> None:
        names = list(self.weights)
        p = np.array([self.weights[n] for n in names])
        self._mode = str(self.rng.choice(names, p=p / p.sum()))
        self._left = int(self.rng.integers(40, 130))
        self._dead_zone = float(self.rng.uniform(8, 34))
        sign = self.rng.choice([-1.0, 1.0])
        self._rate = float(sign * self.rng.uniform(0.2, 0.9))
        if self._mode == "away":
            self._rate = float(sign * self.rng.uniform(1.5, 3.0))
            self._left = int(self.rng.integers(20, 35))
        moves = self.can_walk and self.rng.random() < 0.25
        self._forward = float(self.rng.uniform(-2.0, 3.0)) if moves else 0.0
