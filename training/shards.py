"""Random access to clips of webdataset shards: a batch is a pure function of its step."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from spatial_v2a.errors import UserError, as_tuple


class Part(NamedTuple):
    """Where the bytes of one part of a clip lie."""

    shard: Path
    offset: int
    num_bytes: int


def shard_paths(folders: Sequence[Path | str]) -> list[Path]:
    """The .tar shards below some folders, sorted within each.

    Raises:
        UserError: when a folder holds none.
    """
    paths = []
    for folder in as_tuple(folders, name="folders"):
        found = sorted(Path(folder).rglob("*.tar"))
        if not found:
            raise UserError(
                f"no shards (*.tar) in {folder}; record some with spatial-v2a-train record"
            )
        paths += found
    return paths


class ShardIndex:
    """Clips of all shards below some folders, in the order of their keys.

    Raises:
        UserError: if a folder is missing or holds no clip, or two recordings share a key.
    """

    def __init__(self, folders: Sequence[Path | str]) -> None:
        self.parts: dict[str, dict[str, Part]] = {}
        for shard in shard_paths(folders):
            self._add(shard)
        self.keys = sorted(self.parts)

    def _add(self, shard: Path) -> None:
        with tarfile.open(shard) as archive:
            for member in archive:
                key, _, name = Path(member.name).name.partition(".")
                parts = self.parts.setdefault(key, {})
                if name in parts:
                    raise UserError(
                        f"clip {key} is in {parts[name].shard} and in {shard}; leave one out, or "
                        "record it with a --prefix of its own"
                    )
                parts[name] = Part(shard, member.offset_data, member.size)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, key: str, name: str) -> bytes:
        """Bytes of one part, for example `read(key, 'audio.flac')`."""
        part = self.parts[key][name]
        with part.shard.open("rb") as file:
            file.seek(part.offset)
            return file.read(part.num_bytes)

    def sample(self, key: str) -> dict[str, Any]:
        """All parts of a clip as webdataset would hand them over."""
        return {"__key__": key, **{name: self.read(key, name) for name in self.parts[key]}}

    def meta(self, key: str) -> dict[str, Any]:
        """The metadata of a clip."""
        return json.loads(self.read(key, "json"))
