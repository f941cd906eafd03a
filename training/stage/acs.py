"""A tiny assembler for the engine's script bytecode, and the scripts the recorder calls.

The console command `puke N a b c d` runs script N with up to four integers in the next tic; this
is how Python places, moves and removes actors without an external compiler.
"""

import struct

MAX_ACTORS = 8
ON_FLOOR = -(2**31)  # as a z coordinate: stand on the floor
SCRIPT_PLACE_PLAYER, SCRIPT_MOVE, SCRIPT_REMOVE, SCRIPT_WANDER, SCRIPT_JUMP = 1, 2, 3, 4, 5
SCRIPT_SPAWN_BASE = 10  # SCRIPT_SPAWN_BASE + tid spawns the actor that gets this tid

_TERMINATE, _PUSH, _LSPEC1, _ARG, _DROP, _TAGSTRING = 1, 3, 4, 28, 54, 225
_SPAWN, _SET_ANGLE, _SET_POSITION, _SET_STATE, _CALL_FUNCTION = 149, 276, 283, 334, 351
_THING_REMOVE = 132
_VELOCITY_Z, _SET_VELOCITY = 11, 23


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
