"""Crops of ground-truth audio, drawn as a pure function of (seed, step, process)."""

from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from spatial_v2a.clip import decode_flac
from spatial_v2a.timing import Timing
from spatial_v2a.training.shards import ShardIndex

SILENT_SHARE = 0.02  # share of crops replaced by digital silence


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
