"""One running engine as a stage: place the camera and the actors, advance a tic, read it out.

Engine facts this relies on are in docs/stage.md. One tic is 1/35 s and 1260 samples at 44.1 kHz;
the audio block of a tic starts when the picture of that tic is shown.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import vizdoom as vzd
from numpy.typing import NDArray

from spatial_v2a.concepts import class_index
from spatial_v2a.training.stage.mod import (
    ON_FLOOR,
    SCRIPT_MOVE,
    SCRIPT_REMOVE,
    SCRIPT_SPAWN_BASE,
    SCRIPT_WANDER,
    WALKER_ACTOR,
    class_of_actor,
)

TIC_HZ = 35
SAMPLES_PER_TIC = 1_260
FIXED_ONE = 65_536
# Gain of all game sounds: three sources close by must not clip.
SFX_VOLUME = 0.5

_V = vzd.GameVariable
_VARIABLES = [
    _V.POSITION_X,
    _V.POSITION_Y,
    _V.POSITION_Z,
    _V.ANGLE,
    _V.CAMERA_FOV,
]


@dataclass(frozen=True)
class Pose:
    """The listener: position in map units, heading in degrees (counter-clockwise), view angle."""

    x: float
    y: float
    z: float
    heading_deg: float
    fov_deg: float


@dataclass(frozen=True)
class Actor:
    """A sounding actor on the map."""

    tid: int
    class_name: str
    object_id: int
    x: float
    y: float
    z: float


def wrap_deg(angle_deg: float) -> float:
    """Angle in [-180, 180)."""
    return (angle_deg + 180.0) % 360.0 - 180.0


class StageGame:
    """The engine on one map, with our actors addressed by tid (1..8)."""

    def __init__(
        self,
        wad: Path,
        mod: Path,
        *,
        map_name: str,
        seed: int,
        with_monsters: bool,
        arguments: str,
        folder: Path,
    ) -> None:
        """Starts the engine.

        Args:
            wad: the game file.
            mod: the PK3 of `mod.build_mod`.
            map_name: where to play.
            seed: of the engine's own random numbers.
            with_monsters: whether the map's own monsters are there.
            arguments: further engine arguments.
            folder: for the engine's settings file.
        """
        self._game = _configured_game(wad, mod, map_name, folder)
        self._game.add_game_args(arguments if with_monsters else f"-nomonsters {arguments}")
        self._game.set_seed(seed)
        self._game.init()
        self._tids: dict[int, int] = {}  # object id -> tid
        self._pending: dict[int, str] = {}  # tid -> class name, spawned but not seen yet
        self.actors: dict[int, Actor] = {}
        self.state: vzd.GameState | None = None
        for command in ("god", "notarget"):
            self.command(command)
        self.step()

    def close(self) -> None:
        """Stops the engine."""
        self._game.close()

    def command(self, text: str) -> None:
        """Sends a console command; it takes effect in the next tic."""
        self._game.send_game_command(text)

    def spawn(self, tid: int, class_name: str, x: float, y: float) -> None:
        """Puts an actor on the floor at (x, y); it exists after the next tic if it fits there."""
        place = f"{round(x * FIXED_ONE)} {round(y * FIXED_ONE)} {ON_FLOOR}"
        self.command(f"puke {SCRIPT_SPAWN_BASE + tid} {class_index(class_name)} {place}")
        self._pending[tid] = class_name

    def move(self, tid: int, vx: float, vy: float) -> None:
        """Sets an actor's horizontal speed (units per tic) and turns it that way."""
        turn = round(math.atan2(vy, vx) / (2 * math.pi) * FIXED_ONE) % FIXED_ONE
        speed = f"{round(vx * FIXED_ONE)} {round(vy * FIXED_ONE)}"
        self.command(f"puke {SCRIPT_MOVE} {tid} {speed} {turn}")

    def wander(self, tid: int) -> None:
        """Lets the engine walk the actor about."""
        self.command(f"puke {SCRIPT_WANDER} {tid}")

    def remove(self, tid: int) -> None:
        """Takes an actor and its sound off the stage."""
        self.command(f"puke {SCRIPT_REMOVE} {tid}")
        self._pending.pop(tid, None)

    def step(self, buttons: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)) -> bool:
        """Advances one tic; False when the level has ended.

        Args:
            buttons: turn (degrees, POSITIVE LEFT), forward, left (units), attack (0 or 1).
        """
        turn_left, forward, left, attack = buttons
        self._game.make_action([-turn_left, forward, -left, attack], 1)
        if self._game.is_episode_finished():
            return False
        self.state = self._game.get_state()
        self._track_actors()
        return True

    def _track_actors(self) -> None:
        actors = {}
        for thing in self.state.objects:
            class_name = class_of_actor(thing.name)
            if class_name is None or thing.name == WALKER_ACTOR:
                continue
            if thing.id not in self._tids:
                tid = next((t for t, c in self._pending.items() if c == class_name), None)
                if tid is None:
                    continue
                del self._pending[tid]
                self._tids[thing.id] = tid
            tid = self._tids[thing.id]
            place = (thing.position_x, thing.position_y, thing.position_z)
            actors[tid] = Actor(tid, class_name, thing.id, *place)
        gone = set(self._tids.values()) - set(actors)
        self._tids = {i: t for i, t in self._tids.items() if t not in gone}
        self.actors = actors

    @property
    def pose(self) -> Pose:
        """Where the listener is and looks now."""
        x, y, z, heading, fov = self.state.game_variables
        return Pose(float(x), float(y), float(z), float(heading), float(fov))

    @property
    def audio_LC(self) -> NDArray[np.int16]:
        """The engine's stereo samples of this tic [1260, 2]."""
        return self.state.audio_buffer


def _configured_game(wad: Path, mod: Path, map_name: str, folder: Path) -> vzd.DoomGame:
    game = vzd.DoomGame()
    game.set_doom_game_path(str(wad))
    game.set_doom_map(map_name)
    sound = f"+snd_efx 0 +snd_musicvolume 0 +snd_sfxvolume {SFX_VOLUME}"
    game.add_game_args(f"-file {mod} {sound} +sv_cheats 1")
    game.set_doom_config_path(str(folder / "engine.ini"))
    game.set_screen_resolution(vzd.ScreenResolution.RES_320X240)
    game.set_screen_format(vzd.ScreenFormat.RGB24)
    game.set_depth_buffer_enabled(True)
    game.set_labels_buffer_enabled(True)
    game.set_objects_info_enabled(True)
    game.set_audio_buffer_enabled(True)
    game.set_audio_sampling_rate(vzd.SamplingRate.SR_44100)
    game.set_audio_buffer_size(1)
    game.set_render_hud(False)
    game.set_render_weapon(False)
    game.set_render_messages(False)
    game.set_render_screen_flashes(False)
    game.set_window_visible(False)
    game.set_mode(vzd.Mode.PLAYER)
    game.set_episode_timeout(0)
    game.set_available_buttons(
        [
            vzd.Button.TURN_LEFT_RIGHT_DELTA,
            vzd.Button.MOVE_FORWARD_BACKWARD_DELTA,
            vzd.Button.MOVE_LEFT_RIGHT_DELTA,
            vzd.Button.ATTACK,
        ]
    )
    game.set_available_game_variables(_VARIABLES)
    return game
