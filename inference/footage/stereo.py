"""How stereo a set of footage is, before anything is made for it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from spatial_v2a.inference.footage.original import (
    MONO_KINDS,
    NO_SOUND,
    UNREADABLE,
    Original,
)
from spatial_v2a.inference.inspect.measure import PERCENTILES

SPREADS = {
    "side_over_mid_db": "side/mid of the others",
    "pan_std_db": "pan spread of the others (standard deviation of the level difference)",
}


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
