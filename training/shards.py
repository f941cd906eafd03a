"""Clips of webdataset shards by key: crops of their sound, features of their pictures."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from spatial_v2a.bounded import Part, shard_parts
from spatial_v2a.clip import Clip, decode_flac, parse_meta
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.store import FeatureStore
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.timing import Timing

SILENT_SHARE = 0.02  # share of crops replaced by digital silence


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


def read_sound(index: ShardIndex, key: str) -> np.ndarray:
    """The sound of a clip, int16 [L, 2]."""
    where = f"audio.flac of clip {key}"
    return decode_flac(index.read(key, "audio.flac"), where=where, dtype="int16")


def step_rng(seed: int, step: int, process_index: int) -> np.random.Generator:
    """NumPy generator of one step's choices."""
    return np.random.default_rng([seed, step, process_index])


class AudioCrops:
    """Random crops of the `audio.flac` part of every clip; decoded clips are kept as int16.

    Args:
        index: the clips.
        timing: clocks.
        max_cached: decoded clips kept in memory (a 10 s clip takes 1.9 MB).
    """

    def __init__(self, index: ShardIndex, timing: Timing, *, max_cached: int = 4096) -> None:
        self.index = index
        self.timing = timing
        self._decode = lru_cache(max_cached)(partial(read_sound, index))

    def batch(self, rng: np.random.Generator, batch_size: int, crop_ticks: int) -> Tensor:
        """Float crops [B, 2, crop_ticks * samples_per_tick]; channels swapped half of the time."""
        num_samples = crop_ticks * self.timing.samples_per_tick
        crops = np.zeros((batch_size, num_samples, self.timing.num_channels), np.float32)
        for row in range(batch_size):
            clip_LC = self._decode(self.index.keys[rng.integers(len(self.index))])
            start = rng.integers(max(1, len(clip_LC) - num_samples + 1))
            crop_LC = clip_LC[start : start + num_samples].astype(np.float32) / 32768
            gain = 10 ** (rng.uniform(-9, 3) / 20) * (rng.random() >= SILENT_SHARE)
            swap = -1 if rng.random() < 0.5 else 1
            crops[row, : len(crop_LC)] = crop_LC[:, ::swap] * gain
        return torch.from_numpy(crops).transpose(1, 2).contiguous().clamp(-1, 1)


def fill_store(
    store: FeatureStore,
    perception: Perception,
    index: ShardIndex,
    *,
    limit: int | None = None,
) -> int:
    """Extracts the first `limit` clips of the index that the store lacks; returns how many."""
    store.claim(perception)
    missing = [key for key in index.keys[:limit] if not store.has(key)]
    for key in track(missing, description="extracting", disable=not missing):
        parts = {name: index.read(key, name) for name in ("json", "frames.npz")}
        clip = Clip(key, parts)
        store.save(key, perception.extract(clip.frames(), fov_deg=float(clip.meta["fov_deg"])))
    return len(missing)
