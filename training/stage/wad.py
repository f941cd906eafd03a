"""Reads what the recorder needs from a Freedoom WAD: map names, things and sprites."""

import re
import struct
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from spatial_v2a.errors import UserError, install_command

MAP_NAME = re.compile(r"MAP\d\d|E\dM\d")


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
