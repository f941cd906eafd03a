"""The scenarios: where one stands, what is on stage, what moves, and what the camera does.

A scenario is prepared (pre-roll, not recorded) and then asked for its buttons once per tic. All
choices come from the clip's own generator, so a clip repeats bit for bit.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.geometry import UNITS_PER_M, depth_m_from_buffer
from spatial_v2a.training.stage.game import Pose, StageGame, wrap_deg
from spatial_v2a.training.stage.mod import Thing

Buttons = tuple[float, float, float, float]
SPAWN_TRIES = 12
STRIDE_TICS = 16  # left and right step of the player's walk (`mod.py`)
SETTLE_TICS = 12  # after placing: warp sounds and momentum die away
VIEW_LIMIT_DEG = 40.0
COMBAT_VOLUME = 0.25  # the game's own sounds are stored louder than the cast's
HORIZON_ROWS = slice(118, 126)  # of 240: what stands at eye level or just below
NUM_HEADINGS = 8
MIN_OPEN_UNITS = 230.0
MIN_DISTANCE, MAX_DISTANCE = 80.0, 420.0
ARRIVED_UNITS = 14.0
STUCK_TICS = 7


@dataclass(frozen=True)
class Place:
    """A standing point with its panorama of free distances.

    Attributes:
        pose: the listener there, looking the most open way.
        free_360: free distance in map units per degree of absolute heading.
    """

    pose: Pose
    free_360: NDArray[np.float64]

    def free(self, heading_deg: float) -> float:
        """Free distance in map units along an absolute heading."""
        return float(self.free_360[int(round(heading_deg)) % 360])

    def point(self, heading_deg: float, distance: float) -> tuple[float, float]:
        """Map position at a distance along an absolute heading."""
        angle = math.radians(heading_deg)
        return self.pose.x + distance * math.cos(angle), self.pose.y + distance * math.sin(angle)


def _free_by_column(game: StageGame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Absolute heading in degrees and free distance in units of every picture column."""
    rows = game.state.depth_buffer[HORIZON_ROWS].astype(np.float64)
    axis_units = depth_m_from_buffer(rows.min(axis=0)) * UNITS_PER_M
    width = axis_units.size
    slope = (1 - 2 * (np.arange(width) + 0.5) / width) * math.tan(
        math.radians(game.pose.fov_deg / 2)
    )
    heading = game.pose.heading_deg + np.degrees(np.arctan(slope))
    return heading, axis_units * np.sqrt(1 + slope**2)


def _panorama(game: StageGame) -> NDArray[np.float64]:
    free = np.zeros(360)
    for _ in range(NUM_HEADINGS):
        game.step((360 / NUM_HEADINGS, 0.0, 0.0, 0.0))
        headings, units = _free_by_column(game)
        index = np.round(headings).astype(int) % 360
        middle = np.abs(wrap_deg(headings - game.pose.heading_deg)) < 30
        np.maximum.at(free, index[middle], units[middle])
    return free


def _openness(free_360: NDArray[np.float64], heading_deg: float) -> float:
    around = (int(round(heading_deg)) + np.arange(-35, 36)) % 360
    return float(np.percentile(free_360[around], 30))


def turn_to(game: StageGame, heading_deg: float) -> None:
    """Turns the camera to an absolute heading in one tic."""
    game.step((wrap_deg(heading_deg - game.pose.heading_deg), 0.0, 0.0, 0.0))


def find_place(
    game: StageGame,
    rng: np.random.Generator,
    things: list[Thing],
    *,
    max_tries: int = 25,
    min_open_units: float = MIN_OPEN_UNITS,
) -> Place | None:
    """Moves the player to a random open point of the map and looks along its most open view.

    Things (items, monsters, starts) are the candidate points: all of them lie inside the map.
    Returns None when none of `max_tries` candidates is open enough.
    """
    for index in rng.permutation(len(things))[:max_tries]:
        thing = things[index]
        game.command(f"warp {thing.x} {thing.y}")
        if not game.step():
            return None
        if math.hypot(game.pose.x - thing.x, game.pose.y - thing.y) > 4:
            continue
        free = _panorama(game)
        headings = np.arange(0, 360, 10)
        openness = np.array([_openness(free, h) for h in headings])
        # A random one of the good views, not always the same best one.
        good = headings[openness >= max(min_open_units, 0.6 * openness.max())]
        if good.size == 0:
            continue
        turn_to(game, float(rng.choice(good)))
        return Place(game.pose, free)
    return None


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
    _has_started: bool = False

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


@dataclass
class Cue:
    """A change in the middle of a clip: a source appears (at a probed point) or disappears."""

    tic: int
    tid: int
    appears: bool
    point: tuple[float, float] = (0.0, 0.0)


class Scenario:
    """Base of all scenarios: a place, sources with walkers, a camera, cues in the middle."""

    needs_monsters = False
    is_third_person = False

    def __init__(
        self,
        game: StageGame,
        rng: np.random.Generator,
        things: list[Thing],
        classes: list[str],
        num_tics: int,
        revision: int,
    ) -> None:
        self.game, self.rng, self.things = game, rng, things
        self.revision = revision
        self.classes = dict(enumerate(classes, start=1))  # tid -> class name
        self.num_tics = num_tics
        self.cues: list[Cue] = []
        self.movers: dict[int, Walker | Pacer] = {}
        self.place: Place | None = None
        # In revision 1 a camera said to stand took a step now and then.
        self.camera = Camera(rng, {"still": 1.0}, can_walk=revision == 1)
        self.focus: int | None = None

    def prepare(self) -> bool:
        """Pre-roll; False when this map point does not suit and another try is needed."""
        self.place = find_place(self.game, self.rng, self.things)
        if self.place is None or not self.set_scene():
            return False
        for _ in range(SETTLE_TICS + self.extra_settle_tics()):
            self.game.step(self.buttons())
        return True

    def extra_settle_tics(self) -> int:
        """Tics that pass before the recording begins, beyond those that every scenario needs."""
        return 0

    def set_scene(self) -> bool:
        """Places sources and camera; False to give this attempt up."""
        raise NotImplementedError

    def act(self, tic: int) -> Buttons:
        """Buttons for a recorded tic."""
        for cue in self.cues:
            if tic == cue.tic:
                self._play(cue)
        return self.buttons()

    def buttons(self) -> Buttons:
        """Moves the sources and returns the camera's buttons."""
        for mover in self.movers.values():
            mover.act(self.game)
        return self.camera.act(self.game, self.focus)

    def _play(self, cue: Cue) -> None:
        self.camera.is_held = False
        if not cue.appears:
            self.game.remove(cue.tid)
        elif cue.tid not in self.game.actors:
            self.game.spawn(cue.tid, self.classes[cue.tid], *cue.point)
            # Another actor may stand there now: try again in the next tic until it fits.
            cue.tic += 1

    def add_cue(self, tid: int, tic: int, *, appears: bool) -> None:
        """Plans a change; a source that is to appear leaves the stage until then.

        Its point is where it stood on screen, and the camera holds still until it is back, so
        that it appears in the picture.
        """
        actor = self.game.actors[tid]
        self.cues.append(Cue(tic, tid, appears, (actor.x, actor.y)))
        if appears:
            self.game.remove(tid)
            self.camera.is_held = True

    def is_on_screen(self, tid: int) -> bool:
        """Whether the labels of the present picture show the actor."""
        actor = self.game.actors.get(tid)
        if actor is None:
            return False
        return any(label.object_id == actor.object_id for label in self.game.state.labels)

    def place_source(self, tid: int, sector_deg: tuple[float, float], *, visible: bool) -> bool:
        """Spawns a source at a random point of a sector; visible: it must be on screen."""
        for _ in range(SPAWN_TRIES):
            heading = self.game.pose.heading_deg + self.rng.uniform(*sector_deg)
            x, y = random_point(self.rng, self.place, heading)
            self.game.spawn(tid, self.classes[tid], x, y)
            self.game.step()
            self.game.step()
            if tid in self.game.actors and (not visible or self.is_on_screen(tid)):
                return True
            self.game.remove(tid)
            self.game.step()
        return False


class Walkers(Scenario):
    """Sources walk about in view; the camera follows, stands, drifts, loses them sometimes."""

    def set_scene(self) -> bool:
        for tid in self.classes:
            if not self.place_source(tid, (-VIEW_LIMIT_DEG, VIEW_LIMIT_DEG), visible=True):
                return False
            self.movers[tid] = self.walker(tid)
        self.focus = 1
        weights = {"follow": 0.52, "still": 0.33, "drift": 0.1, "away": 0.05}
        self.camera = Camera(self.rng, weights)
        if self.rng.random() < 0.2:
            self._cue_one()
        return True

    def walker(self, tid: int) -> Walker:
        """A walker of random speed and habits."""
        wide = self.rng.random() < 0.25
        limit = 75.0 if wide else 42.0
        return Walker(
            tid,
            self.rng,
            self.place,
            sector_deg=(-limit, limit),
            speed=float(self.rng.uniform(2.5, 8.0)),
            is_wandering=bool(self.rng.random() < 0.2),
        )

    def _cue_one(self) -> None:
        tid = int(self.rng.integers(1, len(self.classes) + 1))
        appears = bool(self.rng.random() < 0.7)
        span = (0.08, 0.45) if appears else (0.4, 0.85)
        self.add_cue(tid, int(self.rng.uniform(*span) * self.num_tics), appears=appears)


class PassersBy(Scenario):
    """A still camera; one source crosses the picture, turns and comes back."""

    def set_scene(self) -> bool:
        heading = self.game.pose.heading_deg
        around = [self.place.free(heading + a) for a in range(-40, 41, 4)]
        distance = self.rng.uniform(0.45, 0.85) * min(max(np.percentile(around, 20), 140), 480)
        side = self.rng.choice([-1.0, 1.0])
        reach = self.rng.uniform(34, 55)
        ends = [
            self.place.point(heading + s * side * reach, distance * self.rng.uniform(0.8, 1.25))
            for s in (1.0, -1.0)
        ]
        if not self.place_source(1, (-VIEW_LIMIT_DEG, VIEW_LIMIT_DEG), visible=True):
            return False
        width = math.dist(*ends)
        self.movers[1] = Pacer(1, ends, speed=width / self.rng.uniform(70, 200))
        for tid in list(self.classes)[1:]:
            if not self.place_source(tid, (-VIEW_LIMIT_DEG, VIEW_LIMIT_DEG), visible=True):
                return False
        return True


class ThirdPerson(Scenario):
    """The camera looks over the walker's shoulder; the walker's own steps sound."""

    is_third_person = True

    def extra_settle_tics(self) -> int:
        # Until revision 3 every clip began in the same moment of the stride, so that a metronome
        # stepped with the walker.
        return int(self.rng.integers(STRIDE_TICS)) if self.revision > 3 else 0

    def set_scene(self) -> bool:
        self.game.command("chase")
        for tid in self.classes:
            if not self.place_source(tid, (-35, 35), visible=False):
                return False
            self.movers[tid] = Walker(tid, self.rng, self.place, is_relative_to_camera=False)
        self._turn, self._rate, self._left = 0.0, 0.0, 0
        self._is_walking = True
        self._last = (self.game.pose.x, self.game.pose.y)
        self._stuck = 0
        return True

    def buttons(self) -> Buttons:
        for mover in self.movers.values():
            mover.act(self.game)
        here = (self.game.pose.x, self.game.pose.y)
        self._stuck = self._stuck + 1 if math.dist(here, self._last) < 1.0 else 0
        self._last = here
        if self._is_walking and self._stuck > 5:
            self._rate, self._left = float(self.rng.choice([-4.5, 4.5])), 22
            self._stuck = 0
        if self._left <= 0:
            self._left = int(self.rng.integers(25, 80))
            self._rate = float(self.rng.choice([0.0, self.rng.uniform(-1.6, 1.6)]))
            self._is_walking = bool(self.rng.random() < 0.8)
        self._left -= 1
        self._turn += 0.3 * (self._rate - self._turn)
        return (self._turn, 8.0 if self._is_walking else 0.0, 0.0, 0.0)


class Combat(Scenario):
    """The game's own monsters and weapons; no cast on stage."""

    needs_monsters = True

    def set_scene(self) -> bool:
        self.game.command("notarget")  # toggles: monsters notice the player again
        self.game.command(f"snd_sfxvolume {COMBAT_VOLUME}")
        for name in ("weapons", "ammo"):
            self.game.command(f"give {name}")
        self._weapon_left = 0
        self._burst = 0
        self.camera = Camera(self.rng, {"drift": 0.7, "still": 0.3})
        return True

    def buttons(self) -> Buttons:
        turn, forward, left, _ = self.camera.act(self.game, None)
        monsters = [lb for lb in self.game.state.labels if lb.object_category == "Monster"]
        if monsters:
            target = min(monsters, key=lambda lb: lb.object_id)
            azimuth = azimuth_deg(self.game, target.object_position_x, target.object_position_y)
            turn = float(np.clip(0.3 * azimuth, -6, 6))
        if self._weapon_left <= 0:
            self._weapon_left = int(self.rng.integers(90, 200))
            weapon = self.rng.choice(["Pistol", "Shotgun", "Chaingun", "PlasmaRifle"])
            self.game.command(f"use {weapon}")
        self._weapon_left -= 1
        if self._burst <= 0 and self.rng.random() < (0.05 if monsters else 0.01):
            self._burst = int(self.rng.integers(5, 25))
        self._burst -= 1
        return (turn, max(forward, 0.0) + 2.0, left, 1.0 if self._burst > 0 else 0.0)


class OffScreen(Scenario):
    """Sources at the side of and behind the camera, which may later turn to them."""

    def set_scene(self) -> bool:
        side = float(self.rng.choice([-1.0, 1.0]))
        sector = (55.0, 165.0) if side > 0 else (-165.0, -55.0)
        for tid in self.classes:
            if not self.place_source(tid, sector, visible=False):
                return False
            roam = sector if self.rng.random() < 0.6 else (sector[0] - side * 40, sector[1])
            speed = float(self.rng.uniform(2.5, 7.0))
            self.movers[tid] = Walker(
                tid, self.rng, self.place, roam, speed=speed, is_relative_to_camera=False
            )
        self.focus = 1
        finds = self.rng.random() < 0.5
        weights = {"still": 0.6, "drift": 0.2, "follow": 0.4} if finds else {"still": 1.0}
        self.camera = Camera(self.rng, weights, max_turn_deg=2.5, can_walk=False)
        return True


class Silence(Scenario):
    """Nothing sounds; in some clips a source appears, or was there and disappears."""

    def set_scene(self) -> bool:
        if not self.classes:
            weights = {"still": 0.5, "drift": 0.35, "away": 0.15}
            self.camera = Camera(self.rng, weights, can_walk=False)
            return True
        if not self.place_source(1, (-36, 36), visible=True):
            return False
        self.movers[1] = Walker(1, self.rng, self.place, speed=float(self.rng.uniform(2, 6)))
        weights = {"still": 0.8, "drift": 0.2}
        self.camera = Camera(self.rng, weights, can_walk=False)
        appears = bool(self.rng.random() < 0.65)
        change = int(self.rng.uniform(0.15, 0.8) * self.num_tics)
        self.add_cue(1, change, appears=appears)
        # The source leaves again: both edges in one clip.
        if appears and self.rng.random() < 0.3 and change + 60 < self.num_tics:
            self.cues.append(Cue(change + 60, 1, False))
        return True


SCENARIOS: dict[str, type[Scenario]] = {
    "walkers": Walkers,
    "passers-by": PassersBy,
    "third-person": ThirdPerson,
    "combat": Combat,
    "off-screen": OffScreen,
    "silence": Silence,
}
