"""The sound that footage came with: how stereo it is, and its samples on the picture's clock.

Legend: L samples, C audio channels, T ticks.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatial_v2a.errors import UserError
from spatial_v2a.inference.dub.original_sound import original_tracks, track_pieces
from spatial_v2a.inference.evaluation.footage import Item
from spatial_v2a.inference.evaluation.rows import MIRRORED, MODEL, Picture, Record
from spatial_v2a.inference.inspect.measure import (
    EXACT,
    MONO,
    NEAR,
    PERCENTILES,
    SILENT,
    StereoFigures,
    measure,
)
from spatial_v2a.inference.inspect.sound import describe_track

NO_SOUND, UNREADABLE = "no sound track", "unreadable sound"
MONO_KINDS = (MONO, EXACT, NEAR)
SPREADS = {
    "side_over_mid_db": "side/mid of the others",
    "pan_std_db": "pan spread of the others (standard deviation of the level difference)",
}


@dataclass(frozen=True)
class Original:
    """What is known of an item's own sound.

    Attributes:
        kind: as `spatial-v2a inspect` names it, or NO_SOUND or UNREADABLE.
        reason: why it is unreadable.
        stereo: its figures; None where there are none.
    """

    kind: str
    reason: str = ""
    stereo: StereoFigures | None = None

    @property
    def is_sound(self) -> bool:
        """Whether an envelope can be compared with it: it has one, in a layout that is known."""
        has_channels = self.stereo is not None or self.kind == MONO
        return has_channels and self.kind != SILENT

    @property
    def has_sides(self) -> bool:
        """Whether left and right can be compared with it."""
        return self.stereo is not None and self.kind not in (*MONO_KINDS, SILENT)

    @property
    def side_over_mid_db(self) -> float:
        """Side level minus mid level; NaN without sides."""
        return self.stereo.summary.side_over_mid_db if self.has_sides else float("nan")

    @property
    def pan_std_db(self) -> float:
        """Standard deviation of its level difference over audible ticks; NaN without sides."""
        return self.stereo.difference_std_db if self.has_sides else float("nan")


def inspect_original(item: Item) -> Original:
    """Measures an item's own sound in one pass; damage is told, not raised."""
    if item.sound is None:
        return Original(NO_SOUND)
    try:
        measured = measure(item.sound, describe_track(item.sound))
    except UserError as error:
        return Original(UNREADABLE, reason=str(error))
    return Original(measured.kind, stereo=measured.stereo)


def read_original(item: Item) -> np.ndarray:
    """An item's own sound at 48 kHz from the picture's first moment to its last, [L, 2] float32.

    Read as `dub` reads a video's own sound.

    Raises:
        UserError: it holds samples that are not finite.
    """
    track = original_tracks(item.sound, kind="audio or video file")[0]
    pieces = track_pieces(track, start_s=item.sound_start_s, num_samples=item.num_samples)
    return np.concatenate([*pieces])


@dataclass(frozen=True)
class FootageRecord(Record):
    """One item whose sounds are made.

    Attributes:
        duration_s: length of its picture.
        original: the sound it came with.
        mirrored: the same item seen in a mirror.
    """

    duration_s: float
    original: Original
    mirrored: Record


def footage_record(
    item: Item, number: int, *, notes: dict[str, dict[str, Any]], original: Original, fov_deg: float
) -> FootageRecord:
    """What the rows and figures need to know of an item.

    Args:
        item: the footage.
        number: its position among the scored items.
        notes: of the model's sounds, by row name (see `generate.dub_item`).
        original: the sound it came with.
        fov_deg: horizontal field of view of the pictures.
    """
    seen_T, mirrored_T = (
        np.array(notes[name]["largest_box_azimuth_deg"], dtype=np.float64)
        for name in (MODEL, MIRRORED)
    )
    picture = Picture(
        seen_T,
        fov_deg,
        edges_px_D=[np.array(e).reshape(-1, 2) for e in notes[MODEL]["box_edges_px"]],
        motion_peaks_s=np.array(notes[MODEL]["motion_peaks_s"], dtype=np.float64),
        picture_hz=float(item.picture_hz),
    )
    mirrored = Record(item.key, number, item.num_samples, Picture(mirrored_T, fov_deg), mirrored_T)
    return FootageRecord(
        key=item.key,
        number=number,
        num_samples=item.num_samples,
        picture=picture,
        panner_azimuth_T=seen_T,
        duration_s=float(item.duration_s),
        original=original,
        mirrored=mirrored,
    )


@dataclass(frozen=True)
class DataStereo:
    """Originals by key.

    Attributes:
        originals: one per item that was measured.
    """

    originals: dict[str, Original]

    @property
    def sounds(self) -> list[Original]:
        """Those that could be read."""
        return [o for o in self.originals.values() if o.kind not in (NO_SOUND, UNREADABLE)]

    @property
    def kinds(self) -> dict[str, int]:
        """How many there are of each kind, most frequent first."""
        found = [original.kind for original in self.originals.values()]

        def order(kind: str) -> tuple[int, str]:
            return -found.count(kind), kind

        return {kind: found.count(kind) for kind in sorted(set(found), key=order)}

    @property
    def num_mono(self) -> int:
        """Sounds without any left and right: one channel, or twice the same."""
        return sum(original.kind in MONO_KINDS for original in self.sounds)

    def spread(self, name: str) -> list[float]:
        """PERCENTILES of one of SPREADS over the sounds with sides; empty when there are none."""
        values = [getattr(original, name) for original in self.sounds]
        values = [value for value in values if not math.isnan(value)]
        return [round(float(v), 2) for v in np.percentile(values, PERCENTILES)] if values else []

    def text(self) -> str:
        """In plain English, as Markdown."""
        count, num_sounds = len(self.originals), len(self.sounds)
        lines = [f"{count} items measured, {num_sounds} with a sound of their own."]
        lines += ["", "| kind of sound | items |", "|---|---|"]
        lines += [f"| {kind} | {number} |" for kind, number in self.kinds.items()]
        if not num_sounds:
            return "\n".join([*lines, "", "There is no original to compare with."])
        share = self.num_mono / num_sounds
        lines += ["", f"- **{share:.0%} of the sounds are mono** ({self.num_mono} of {num_sounds})"]
        if self.num_mono == num_sounds:
            return "\n".join([*lines, "- nothing can be said of left and right against them"])
        for name, title in SPREADS.items():
            if numbers := self.spread(name):
                low, quarter, middle, three_quarters, high = (f"{v:.1f}" for v in numbers)
                lines.append(
                    f"- {title}: median {middle} dB, half within {quarter}..{three_quarters},"
                    f" 90 % within {low}..{high} dB"
                )
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The same for machines, with a line per item; null where there are no sides."""
        num_sounds = len(self.sounds)
        return {
            "num_items": len(self.originals),
            "num_sounds": num_sounds,
            "kinds": self.kinds,
            "mono_share": round(self.num_mono / num_sounds, 6) if num_sounds else None,
            "percentiles": PERCENTILES,
            **{name: self.spread(name) for name in SPREADS},
            "items": {key: _item_json(original) for key, original in self.originals.items()},
        }


def _item_json(original: Original) -> dict[str, Any]:
    numbers = {name: getattr(original, name) for name in SPREADS}
    found: dict[str, Any] = {"kind": original.kind}
    if original.reason:
        found["reason"] = original.reason
    found |= {name: None if math.isnan(v) else round(v, 3) for name, v in numbers.items()}
    if original.stereo is not None:
        summary = original.stereo.summary
        parts = {"left": summary.left, "centre": summary.centre, "right": summary.right}
        found |= {name: round(value, 4) for name, value in parts.items()}
    return found
