"""Stereo crops of the bank's sounds for the autoencoder: one to four of them at once, each with a
bearing and a level of its own.

What is drawn is a pure function of (seed, step). Legend: L samples, B crops, T ticks.
"""

from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.errors import UserError
from spatial_v2a.timing import Timing
from spatial_v2a.training.shards import SILENT_SHARE, AudioCrops
from spatial_v2a.training.sounds.bank import Bank
from spatial_v2a.training.sounds.synthesis import Samples

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SOUND_S = 3.0
MAX_SOUNDS = 4
# Of a sound whose loudest tenth of a second is at -20 dBFS.
MIN_GAIN_DB, MAX_GAIN_DB = -24.0, 9.0
MAX_BEARING_DEG = 100.0

Item = TypeVar("Item")


def item_rng(seed: int, split: Split, index: int) -> np.random.Generator:
    """Chance of one item of an endless collection; no two splits share a stream."""
    return np.random.default_rng([seed, SPLITS.index(split), index])


class RollingPool(Generic[Item]):
    """The newest items of an endless collection, made when they are first drawn.

    Making an item takes longer than a crop of it is worth, so each is drawn several times.

    Args:
        make: gives the item of an index.
        size: how many are there to draw from.
        fresh: how many of them are replaced every step, the oldest first.
    """

    def __init__(self, make: Callable[[int], Item], *, size: int, fresh: float) -> None:
        self._make = make
        self._size = size
        self._fresh = fresh
        self._items: dict[int, Item] = {}

    def draw(self, rng: np.random.Generator, step: int) -> Item:
        """One item of those of a step."""
        first = int(step * self._fresh)
        index = first + int(rng.integers(self._size))
        if index not in self._items:
            self._items = {i: item for i, item in self._items.items() if i >= first}
            self._items[index] = self._make(index)
        return self._items[index]


class BankCrops:
    """Random crops of sounds and of mixtures.

    Args:
        bank: gives the sounds.
        timing: clocks.
        seed: of the collection.
        split: which of its parts.
        num_sounds: how many sounds are there to draw from at any step.
        fresh: how many of them are new every step.
    """

    def __init__(
        self,
        bank: Bank,
        timing: Timing,
        *,
        seed: int,
        split: Split = "train",
        num_sounds: int = 600,
        fresh: float = 2.0,
    ) -> None:
        self._bank = bank
        self._timing = timing
        self._seed = seed
        self._split = split
        self._pool = RollingPool(self._sound, size=num_sounds, fresh=fresh)

    def _sound(self, index: int) -> Samples:
        # All concepts come equally often, in turn.
        concept = self._bank.concepts[index % len(self._bank.concepts)]
        return self._bank.generate(
            concept, item_rng(self._seed, self._split, index), SOUND_S
        ).audio_L.astype(np.float16)

    def batch(
        self, rng: np.random.Generator, batch_size: int, crop_ticks: int, *, step: int = 0
    ) -> Tensor:
        """Float crops [B, 2, crop_ticks * samples_per_tick] in -1..1."""
        num_samples = crop_ticks * self._timing.samples_per_tick
        crops = np.zeros((batch_size, num_samples, self._timing.num_channels), np.float32)
        for crop_LC in crops:
            if rng.random() < SILENT_SHARE:
                continue
            for _ in range(int(rng.integers(1, MAX_SOUNDS + 1))):
                crop_LC += self._one(rng, step, crop_ticks)
        return torch.from_numpy(crops).transpose(1, 2).contiguous().clamp(-1, 1)

    def _one(self, rng: np.random.Generator, step: int, crop_ticks: int) -> Samples:
        """Some ticks of one sound, at a bearing that may move [L, 2]."""
        num_samples = crop_ticks * self._timing.samples_per_tick
        whole_L = self._pool.draw(rng, step)
        start = int(rng.integers(max(1, len(whole_L) - num_samples + 1)))
        mono_L = whole_L[start : start + num_samples].astype(np.float32)
        mono_L = np.pad(mono_L, (0, num_samples - len(mono_L)))
        ends = rng.uniform(-MAX_BEARING_DEG, MAX_BEARING_DEG, 2)
        if rng.random() < 0.5:
            ends[1] = ends[0]
        gain = 10 ** (rng.uniform(MIN_GAIN_DB, MAX_GAIN_DB) / 20)
        bearing_T = np.linspace(*ends, crop_ticks)
        return pan_mono(gain * mono_L, bearing_T, samples_per_tick=num_samples // crop_ticks)


def held_out_mixtures(bank: Bank, timing: Timing) -> list[NDArray[np.int16]]:
    """The same mixtures each time, int16 [L, 2] of 3 s, of sounds that no training hears."""
    crops = BankCrops(bank, timing, seed=0, split="validation", num_sounds=len(bank.concepts))
    ticks = round(SOUND_S * timing.tick_hz)
    audio_BCL = crops.batch(np.random.default_rng(0), len(bank.concepts), ticks)
    return list((audio_BCL.numpy().transpose(0, 2, 1) * 32767).astype(np.int16))


class MixedCrops:
    """Crops of recordings and of the bank, by chance.

    Args:
        recorded: crops of shards, None where there are none.
        bank: crops of the bank, None where there are none.
        bank_share: share of the crops that come from the bank, where there are both.
    """

    def __init__(
        self, recorded: AudioCrops | None, bank: BankCrops | None, *, bank_share: float
    ) -> None:
        if recorded is None and bank is None:
            raise UserError("nothing to train on; give --data, or set training.vae.bank_share")
        self._recorded, self._bank = recorded, bank
        self._share = 1.0 if recorded is None else bank_share

    def batch(
        self, rng: np.random.Generator, batch_size: int, crop_ticks: int, *, step: int = 0
    ) -> Tensor:
        """Float crops [B, 2, crop_ticks * samples_per_tick]."""
        num_bank = 0 if self._bank is None else int(rng.binomial(batch_size, self._share))
        parts = []
        if num_bank:
            parts.append(self._bank.batch(rng, num_bank, crop_ticks, step=step))
        if num_bank < batch_size:
            parts.append(self._recorded.batch(rng, batch_size - num_bank, crop_ticks))
        return torch.cat(parts)
