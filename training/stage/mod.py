"""What the engine loads: reads a Freedoom WAD, and builds the PK3 that makes it a sound stage.

The PK3 holds the cast (how each sounding class looks), its sounds, borrowed sprites, and scripts in
the engine's bytecode: the console command `puke N a b c d` runs script N with up to four integers
in the next tic, which is how Python places, moves and removes actors.
"""

import io
import re
import struct
import zipfile
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.errors import UserError, install_command
from spatial_v2a.training.stage.sounds import ENGINE_RATE_HZ, loop_for, single_footstep

MAP_NAME = re.compile(r"MAP\d\d|E\dM\d")
ACTOR_PREFIX = "stage_"
WALKER_ACTOR = "stage_player"  # the player's own body in third-person clips
STEP_VOLUME = 0.5
SOURCE_RMS_DB = -17.0  # every loop plays at this RMS relative to full scale before distance
# The maps' own things that look like one of the cast (barrels like clocks, burnt trees like saws).
LOOKALIKES = ("ExplosiveBarrel", "TorchTree")
_PAD_BYTES = 16

MAX_ACTORS = 8
ON_FLOOR = -(2**31)  # as a z coordinate: stand on the floor
SCRIPT_PLACE_PLAYER, SCRIPT_MOVE, SCRIPT_REMOVE, SCRIPT_WANDER, SCRIPT_JUMP = 1, 2, 3, 4, 5
SCRIPT_SPAWN_BASE = 10  # SCRIPT_SPAWN_BASE + tid spawns the actor that gets this tid

_TERMINATE, _PUSH, _LSPEC1, _ARG, _DROP, _TAGSTRING = 1, 3, 4, 28, 54, 225
_SPAWN, _SET_ANGLE, _SET_POSITION, _SET_STATE, _CALL_FUNCTION = 149, 276, 283, 334, 351
_THING_REMOVE = 132
_VELOCITY_Z, _SET_VELOCITY = 11, 23


class Thing(NamedTuple):
    """A thing placed on a map: position in map units, facing in degrees, editor number."""

    x: int
    y: int
    angle_deg: int
    kind: int


class _Entry(NamedTuple):
    offset: int
    size: int
    name: str


class Wad:
    """A WAD file: a flat list of named lumps."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.read_bytes()
        magic, num_lumps, offset = struct.unpack_from("<4sii", self._data)
        if magic not in (b"IWAD", b"PWAD"):
            raise UserError(f"{path} is not a WAD file; reinstall the vizdoom package")
        self._entries = [self._entry(offset + 16 * i) for i in range(num_lumps)]

    def _entry(self, at: int) -> _Entry:
        offset, size, name = struct.unpack_from("<ii8s", self._data, at)
        return _Entry(offset, size, name.rstrip(b"\0").decode("ascii"))

    def _bytes(self, entry: _Entry) -> bytes:
        return self._data[entry.offset : entry.offset + entry.size]

    def lump(self, name: str) -> bytes:
        """Content of the last lump of this name."""
        return self._bytes(next(e for e in reversed(self._entries) if e.name == name))

    @cached_property
    def map_names(self) -> list[str]:
        """Maps in the order of the file."""
        return [e.name for e in self._entries if MAP_NAME.fullmatch(e.name)]

    def sprite_names(self) -> list[str]:
        """Lump names between the sprite markers."""
        names = [e.name for e in self._entries]
        return names[names.index("S_START") + 1 : names.index("S_END")]

    def things(self, map_name: str) -> list[Thing]:
        """Every thing of a map (players, monsters, items: all stand inside the map)."""
        index = next(i for i, e in enumerate(self._entries) if e.name == map_name)
        entry = next(e for e in self._entries[index + 1 : index + 11] if e.name == "THINGS")
        data = self._bytes(entry)
        fields = struct.iter_unpack("<hhhhh", data)
        return [Thing(x, y, angle, kind) for x, y, angle, kind, _ in fields]


def freedoom_path(name: str) -> Path:
    """Path of freedoom1.wad or freedoom2.wad inside the installed vizdoom package."""
    spec = find_spec("vizdoom")
    if spec is None or spec.origin is None:
        raise UserError(f"vizdoom is not installed; install it with: {install_command('train')}")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise UserError(f"{path} is missing; reinstall the vizdoom package")
    return path


@dataclass(frozen=True)
class Look:
    """A Freedoom sprite, its walking frames, a size factor and an optional tint (r, g, b)."""

    sprite: str
    frames: str
    scale: float = 1.2
    tint: tuple[float, float, float] | None = None


LOOKS: dict[str, Look] = {
    "footsteps": Look("PLAY", "ABCD", 1.3),
    "engine": Look("SARG", "ABCD", 1.2),
    "water": Look("HEAD", "A", 1.0, (0.3, 0.7, 2.0)),
    "fire": Look("SKUL", "AB", 1.3),
    "siren": Look("SPOS", "ABCD", 1.3, (2.0, 0.2, 0.2)),
    "bell": Look("BOSS", "ABCD", 1.1, (1.9, 1.4, 0.2)),
    "dog": Look("TROO", "ABCD", 1.2),
    "crow": Look("SKEL", "ABCDEF", 1.1),
    "voice": Look("POSS", "ABCD", 1.3, (1.9, 1.9, 1.8)),
    "electric": Look("BSPI", "ABCDEF", 0.8, (0.2, 1.9, 1.9)),
    "drill": Look("CPOS", "ABCD", 1.3, (2.0, 1.0, 0.1)),
    "steam": Look("FATT", "ABCDEF", 0.9, (1.4, 1.4, 1.6)),
    "clock": Look("BAR1", "AB", 1.8),
    "helicopter": Look("PAIN", "ABC", 1.0),
    "machinery": Look("CYBR", "ABCD", 0.75),
    "alarm": Look("SSWV", "ABCD", 1.3, (1.8, 0.3, 1.8)),
    "frog": Look("BOS2", "ABCD", 1.0, (0.4, 1.9, 0.3)),
    "music_box": Look("VILE", "ABCDEF", 1.1, (2.0, 0.9, 1.4)),
    "saw": Look("TRE1", "A", 0.9),
    "horn": Look("SPID", "ABCDEF", 0.55),
}


def actor_name(class_name: str) -> str:
    """The engine's class name of a sounding class."""
    return ACTOR_PREFIX + class_name


def class_of_actor(name: str) -> str | None:
    """The sounding class of an engine object, or None."""
    if name == WALKER_ACTOR:
        return "footsteps"
    known = name.startswith(ACTOR_PREFIX) and name[len(ACTOR_PREFIX) :] in CLASS_NAMES
    return name[len(ACTOR_PREFIX) :] if known else None


def lump_name(class_name: str) -> str:
    """Sound lump of a class: at most 8 characters, longer ones are silently not found."""
    return f"SNDV{CLASS_NAMES.index(class_name):02d}"


def source_volume(class_name: str) -> float:
    """A_PlaySound volume that brings the full-scale loop to SOURCE_RMS_DB."""
    rms_db = 10 * np.log10(np.mean(loop_for(class_name) ** 2))
    return float(min(1.0, 10 ** ((SOURCE_RMS_DB - rms_db) / 20)))


def _actor(class_name: str) -> str:
    look = LOOKS[class_name]
    tint = ""
    if look.tint is not None:
        red, green, blue = look.tint
        tint = f'  Translation "0:255=%[0,0,0]:[{red},{green},{blue}]"\n'
    wander = "".join(f * 2 for f in look.frames)
    volume = f"{source_volume(class_name):.4f}"
    return f"""ACTOR {actor_name(class_name)}
{{
  Radius 18
  Height 56
  Mass 10000
  Speed 5
  Scale {look.scale}
{tint}  +SOLID
  +CANPASS
  States
  {{
  Spawn:
    TNT1 A 0
    {look.sprite} A 0 A_PlaySound("stage/{class_name}", CHAN_BODY, {volume}, true, ATTN_NORM)
  Walk:
    {look.sprite} {look.frames} 5 Bright
    Loop
  Wander:
    {look.sprite} {wander} 3 Bright A_Wander
    Loop
  }}
}}
"""


def _walker(has_steps: bool) -> str:
    """The player's body; without steps a walking camera makes no sound."""
    left, right = (
        (f' A_PlaySound("stage/step{i}", CHAN_BODY, {STEP_VOLUME})' if has_steps else "")
        for i in range(2)
    )
    return f"""ACTOR {WALKER_ACTOR} : DoomPlayer
{{
  Player.DisplayName "Walker"
  -PICKUP
  States
  {{
  See:
    PLAY A 4{left}
    PLAY B 4
    PLAY C 4{right}
    PLAY D 4
    Loop
  }}
}}
"""


def _nothing(replaced: str) -> str:
    """An actor that takes the place of one of the maps' own and is gone at once."""
    return f"""ACTOR {ACTOR_PREFIX}no_{replaced} replaces {replaced}
{{
  States
  {{
  Spawn:
    TNT1 A 1
    Stop
  }}
}}
"""


def decorate(*, has_steps: bool, has_lookalikes: bool = False) -> str:
    """The DECORATE lump (sources are drawn fullbright: dark maps must not hide them).

    Args:
        has_steps: whether the player's own steps sound.
        has_lookalikes: whether the maps' own things of a look of the cast stay, silent as they are.
    """
    actors = [*(_actor(name) for name in CLASS_NAMES), _walker(has_steps)]
    return "\n".join(actors if has_lookalikes else actors + [_nothing(n) for n in LOOKALIKES])


def sndinfo() -> str:
    """The SNDINFO lump: names, lumps, and no limit on simultaneous instances."""
    lines = [f"stage/{n} {lump_name(n)}\n$limit stage/{n} 0" for n in CLASS_NAMES]
    lines += [f"stage/step{i} SNDSTEP{i}\n$limit stage/step{i} 0" for i in range(2)]
    return "\n".join(lines) + "\n"


def _place_player() -> list[int]:
    """(x, y, z, angle): moves the activator, the player."""
    move = [_PUSH, 0, _ARG, 0, _ARG, 1, _ARG, 2, _PUSH, 0, _SET_POSITION, _DROP]
    return [*move, _PUSH, 0, _ARG, 3, _SET_ANGLE, _TERMINATE]


def _move() -> list[int]:
    """(tid, vx, vy, angle): horizontal velocity; falling is left to the engine."""
    fall = [_ARG, 0, _CALL_FUNCTION, 1, _VELOCITY_Z]
    push = [_ARG, 0, _ARG, 1, _ARG, 2, *fall, _PUSH, 0, _PUSH, 0]
    turn = [_ARG, 0, _ARG, 3, _SET_ANGLE]
    return [*push, _CALL_FUNCTION, 6, _SET_VELOCITY, _DROP, *turn, _TERMINATE]


def _spawn(tid: int) -> list[int]:
    """(class, x, y, z): class is an index into the class list."""
    arguments = [_ARG, 0, _TAGSTRING, _ARG, 1, _ARG, 2, _ARG, 3, _PUSH, tid, _PUSH, 0]
    return [*arguments, _SPAWN, _DROP, _TERMINATE]


def _jump() -> list[int]:
    """(tid, x, y, z): teleports an actor."""
    push = [_ARG, 0, _ARG, 1, _ARG, 2, _ARG, 3, _PUSH, 0]
    return [*push, _SET_POSITION, _DROP, _TERMINATE]


def assemble(actor_names: list[str]) -> bytes:
    """The compiled library; `actor_names` are the classes that the spawn scripts know."""
    wander_index = len(actor_names)
    wander = [_ARG, 0, _PUSH, wander_index, _TAGSTRING, _PUSH, 1, _SET_STATE, _DROP, _TERMINATE]
    scripts: dict[int, tuple[int, list[int]]] = {
        SCRIPT_PLACE_PLAYER: (4, _place_player()),
        SCRIPT_MOVE: (4, _move()),
        SCRIPT_REMOVE: (1, [_ARG, 0, _LSPEC1, _THING_REMOVE, _TERMINATE]),
        SCRIPT_WANDER: (1, wander),
        SCRIPT_JUMP: (4, _jump()),
    }
    for tid in range(1, MAX_ACTORS + 1):
        scripts[SCRIPT_SPAWN_BASE + tid] = (4, _spawn(tid))
    body, entries = bytearray(), []
    for number, (num_args, words) in scripts.items():
        entries.append((number, 8 + len(body), num_args))
        body += struct.pack(f"<{len(words)}i", *words)
    strings, offsets = bytearray(), []
    for name in [*actor_names, "Wander"]:
        offsets.append(8 + len(body) + len(strings))
        strings += name.encode("ascii") + b"\0"
    strings += b"\0" * (-len(strings) % 4)
    directory = struct.pack("<i", len(entries))
    directory += b"".join(struct.pack("<iii", *entry) for entry in entries)
    directory += struct.pack(f"<i{len(offsets)}i", len(offsets), *offsets)
    return b"ACS\0" + struct.pack("<i", 8 + len(body) + len(strings)) + body + strings + directory


def dmx_lump(loop_L: NDArray[np.float64]) -> bytes:
    """A DMX sound lump: 8-bit unsigned PCM at 44.1 kHz, the one format this engine build plays."""
    pcm = np.clip(np.round(127.5 + 127 * loop_L), 0, 255).astype(np.uint8).tobytes()
    pad = b"\x80" * _PAD_BYTES
    header = struct.pack("<HHI", 3, ENGINE_RATE_HZ, len(pcm) + 2 * _PAD_BYTES)
    return header + pad + pcm + pad


def _silence(num_samples: int) -> bytes:
    return dmx_lump(np.full(num_samples, 0.5 / 127))


def _sounds(sounding: set[str] | None) -> dict[str, bytes]:
    """Sound lumps; classes outside `sounding` (None: all sound) are replaced by silence."""
    lumps = {}
    for name in CLASS_NAMES:
        loop = loop_for(name)
        heard = sounding is None or name in sounding
        lumps[f"sounds/{lump_name(name)}.lmp"] = dmx_lump(loop) if heard else _silence(loop.size)
    for index in range(2):
        step = single_footstep(index)
        heard = sounding is None or "footsteps" in sounding
        lumps[f"sounds/SNDSTEP{index}.lmp"] = dmx_lump(step) if heard else _silence(step.size)
    return lumps


def _borrowed_sprites(iwad: Wad, donor: Wad) -> dict[str, bytes]:
    """Sprites of the cast that the loaded game file lacks, taken from the other Freedoom file."""
    wanted = {look.sprite for look in LOOKS.values()}
    wanted -= {name[:4] for name in iwad.sprite_names()}
    names = [n for n in donor.sprite_names() if n[:4] in wanted]
    # A backslash cannot stand in a file name of an archive; the engine reads ^ for it.
    return {f"sprites/{n.replace(chr(92), '^')}.lmp": donor.lump(n) for n in names}


def build_mod(
    iwad: Wad,
    donor: Wad,
    *,
    has_steps: bool,
    has_lookalikes: bool = False,
    sounding: set[str] | None = None,
) -> bytes:
    """The PK3 as bytes; same arguments, same bytes.

    Args:
        iwad: the game file it is loaded with.
        donor: the other Freedoom file, for sprites that `iwad` lacks.
        has_steps: whether the player's own steps sound.
        has_lookalikes: whether the maps' own things of a look of the cast stay.
        sounding: only these classes are heard; None is all of them.
    """
    actors = decorate(has_steps=has_steps, has_lookalikes=has_lookalikes)
    entries: dict[str, bytes] = {
        "DECORATE.txt": actors.encode("ascii"),
        "SNDINFO.txt": sndinfo().encode("ascii"),
        "LOADACS.txt": b"STAGEACS\n",
        "acs/STAGEACS.o": assemble([actor_name(n) for n in CLASS_NAMES]),
        "MAPINFO.txt": b'gameinfo\n{\n  playerclasses = "stage_player"\n}\n',
    }
    entries |= _sounds(sounding)
    entries |= _borrowed_sprites(iwad, donor)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, (2000, 1, 1, 0, 0, 0)), data)
    return buffer.getvalue()
