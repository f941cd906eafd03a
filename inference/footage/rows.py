"""The rows of the footage table: the original, the model, and the null systems it has to beat.

Each row also has a sound for the mirrored picture, so that the mirror test has its nulls too.
Legend: D detection frames (4 a second), K boxes, L samples.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.inference.evaluation import rows
from spatial_v2a.inference.evaluation.store import SoundStore, fitted
from spatial_v2a.inference.footage.item import Item
from spatial_v2a.inference.footage.original import Original
from spatial_v2a.timing import TIMING

ORIGINAL = "original"


@dataclass(frozen=True)
class FootageRecord:
    """One item whose sounds are made.

    Attributes:
        number: position among the scored items.
        notes: of the model's sounds, by row name (see `sounds.Dubbed`).
        original: the sound it came with.
    """

    item: Item
    number: int
    notes: dict[str, dict[str, Any]]
    original: Original

    @property
    def edges_px_D(self) -> list[np.ndarray]:
        """Edges of the detected boxes in px of 256, [K, 2] each."""
        frames = self.notes[rows.MODEL]["box_edges_px"]
        return [np.array(edges, dtype=np.float64).reshape(-1, 2) for edges in frames]

    @property
    def motion_peaks_s(self) -> np.ndarray:
        """When the motion of the picture peaks."""
        return np.array(self.notes[rows.MODEL]["motion_peaks_s"], dtype=np.float64)

    def largest_box_side_T(self, *, fov_deg: float) -> np.ndarray:
        """2 x / W - 1 of the middle of the largest detected box per tick; NaN without a box."""
        azimuth_rad = np.radians(self.largest_box_deg_T())
        return -np.tan(azimuth_rad) / math.tan(math.radians(fov_deg) / 2)

    def largest_box_deg_T(self, *, mirrored: bool = False) -> np.ndarray:
        """Bearing of the largest detected box per tick, positive left; NaN without a box."""
        notes = self.notes[rows.MIRRORED if mirrored else rows.MODEL]
        return np.array(notes["largest_box_azimuth_deg"], dtype=np.float64)


# A row's sound of an item [L, 2], of its mirrored picture if asked; None where there is none.
Render = Callable[[FootageRecord, bool], np.ndarray | None]


@dataclass(frozen=True)
class FootageRow:
    """One line of the table: its key in report.json, its title in report.md, its sounds."""

    name: str
    title: str
    render: Render


def footage_rows(store: SoundStore, records: list[FootageRecord], *, seed: int) -> list[FootageRow]:
    """Every row, in order; `seed` draws the random pans and the shuffle."""

    def model(record: FootageRecord, mirrored: bool) -> np.ndarray:
        return store.load(rows.MIRRORED if mirrored else rows.MODEL, record.item.key)

    def original(record: FootageRecord, mirrored: bool) -> np.ndarray | None:
        if mirrored or not record.original.is_sound:
            return None
        return store.load(ORIGINAL, record.item.key)

    def mono(record: FootageRecord, mirrored: bool) -> np.ndarray:
        return model(record, mirrored).mean(axis=1)

    def constant(difference_db: float) -> Render:
        return lambda record, mirrored: rows.constant_pan(
            mono(record, mirrored), difference_db=difference_db
        )

    def panned(record: FootageRecord, mirrored: bool, azimuth_T: np.ndarray) -> np.ndarray:
        samples = TIMING.samples_per_tick
        return pan_mono(mono(record, mirrored), azimuth_T, samples_per_tick=samples)

    def box_centre(record: FootageRecord, mirrored: bool) -> np.ndarray:
        azimuth_T = rows.hold_last(record.largest_box_deg_T(mirrored=mirrored))
        return panned(record, mirrored, azimuth_T)

    def random(record: FootageRecord, mirrored: bool) -> np.ndarray:
        path_seed = seed * 100_003 + record.number
        azimuth_T = rows.random_path_deg(record.item.num_ticks, seed=path_seed)
        return panned(record, mirrored, azimuth_T)

    def silence(record: FootageRecord, mirrored: bool) -> np.ndarray:
        return np.zeros((record.item.num_samples, TIMING.num_channels), np.float32)

    table = [
        FootageRow(rows.MODEL, "**model**", model),
        FootageRow("box_centre_panner", "its mono, panned by the largest detected box", box_centre),
        FootageRow("mono", "its mono, twice", constant(0.0)),
        FootageRow("hard_left", "its mono, hard left", constant(50.0)),
        FootageRow("random_pan", "its mono, random pan", random),
    ]
    if any(record.original.is_sound for record in records):
        table.insert(0, FootageRow(ORIGINAL, "original track", original))
    if len(records) > 1:
        other = rows.derangement(len(records), seed=seed)
        table.append(
            FootageRow(
                "shuffled",
                "its sound of another item",
                lambda record, mirrored: fitted(
                    model(records[other[record.number]], mirrored), record.item.num_samples
                ),
            )
        )
    return [*table, FootageRow("silence", "silence", silence)]
