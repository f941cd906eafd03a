"""Finds an open place to stand and knows how far one can see in every direction from there."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.geometry import UNITS_PER_M, depth_m_from_buffer
from spatial_v2a.training.stage.game import Pose, StageGame, wrap_deg
from spatial_v2a.training.stage.wad import Thing

HORIZON_ROWS = slice(118, 126)  # of 240: what stands at eye level or just below
NUM_HEADINGS = 8
MIN_OPEN_UNITS = 230.0


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
