"""Files to sign, and the statement they get."""

from pathlib import Path

import numpy as np

from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.inference.dub.mux import open_sink
from spatial_v2a.inference.marking.manifest import Provenance

MADE = Provenance(
    model="stage",
    checkpoint_sha256="5a" * 32,
    seed=2**63 - 1,
    command="spatial-v2a dub clip.mp4 --seed 7",
    settings={"nfe": 4, "guidance": 1.5, "original": "drop", "redone": [[0.5, 1.0]], "fov": None},
)


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (num_samples, 2)).astype(np.float32)


def dubbed(folder: Path, suffix: str) -> tuple[Path, Path]:
    """(source clip, dubbed file), made by the project's own writers."""
    clip = folder / ("clip.webm" if suffix == ".webm" else "clip.mp4")
    shades = (np.full((32, 48, 3), 5 * n % 250, np.uint8) for n in range(24))
    write_video(clip, shades, 24, rotation_deg=0 if suffix == ".webm" else 90)
    source, out = open_video(clip), folder / f"clip.dubbed{suffix}"
    with open_sink(out, source) as sink:
        sink.write(noise(source.num_samples))
    return clip, out


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
