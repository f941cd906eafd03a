"""Random access to clips of webdataset shards: a batch is a pure function of its step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spatial_v2a.bounded import Part, shard_parts
from spatial_v2a.clip import parse_meta
from spatial_v2a.errors import UserError, as_tuple


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
        for part in shard_parts(shard):
            parts = self.parts.setdefault(part.key, {})
            if part.name in parts:
                raise UserError(
                    f"clip {part.key} is in {parts[part.name].shard} and in {shard}; leave one out,"
                    " or record it with a --prefix of its own"
                )
            parts[part.name] = part

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, key: str, name: str) -> bytes:
        """Bytes of one part, for example `read(key, 'audio.flac')`."""
        parts = self.parts[key]
        if name not in parts:
            raise UserError(f"clip {key} lacks {name}; record it again")
        return parts[name].read()

    def sample(self, key: str) -> dict[str, Any]:
        """All parts of a clip as webdataset would hand them over."""
        return {"__key__": key, **{name: self.read(key, name) for name in self.parts[key]}}

    def meta(self, key: str) -> dict[str, Any]:
        """The metadata of a clip."""
        return parse_meta(self.read(key, "json"), where=f"metadata of clip {key}")
