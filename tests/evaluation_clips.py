"""Small recordings with a known source, for the tests of the benchmark."""

from pathlib import Path

import numpy as np
import webdataset

from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.clip import Clip, clip_to_sample, jpeg_bytes
from spatial_v2a.timing import TIMING

FOV_DEG = 90.0


def noise_L(num_samples: int, *, seed: int) -> np.ndarray:
    """Band-limited noise at about -20 dBFS."""
    white = np.random.default_rng(seed).normal(size=num_samples)
    return 0.1 * np.convolve(white, np.ones(4) / 2, mode="same")


def column_of(azimuth_deg: float) -> float:
    """Column of a bearing in a 90-degree picture, 0 left .. 1 right."""
    return 0.5 - np.tan(np.radians(azimuth_deg)) / 2


def path_deg(num_ticks: int, *, seed: int) -> np.ndarray:
    """A bearing that swings through the picture and leaves it for a while."""
    phase = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    return 60.0 * np.sin(2 * np.pi * np.arange(num_ticks) / 150 + phase)


def make_sample(
    key: str,
    azimuth_T: np.ndarray,
    *,
    class_name: str = "bell",
    sounding: bool = True,
    mono_L: np.ndarray | None = None,
    frames: list[np.ndarray] | None = None,
) -> dict:
    """One recording: a source at these bearings, panned by the engine's law; grey by default."""
    num_ticks = len(azimuth_T)
    ticks = []
    for azimuth in azimuth_T:
        visible = bool(abs(azimuth) < 44)
        source = {"id": 7, "class": class_name, "x": 0.0, "y": 0.0, "z": 0.0}
        source |= {"azimuth_deg": float(azimuth), "distance": 100.0}
        source |= {"visible": visible, "sounding": sounding}
        box = {"id": 7, "class": class_name, "x": column_of(azimuth) - 0.05, "y": 0.4}
        box |= {"w": 0.1, "h": 0.2, "nearness": 0.5}
        ticks.append({"boxes": [box] if visible else [], "sources": [source]})
    if mono_L is None:
        mono_L = noise_L(num_ticks * TIMING.samples_per_tick, seed=len(key))
    meta = {
        "key": key,
        "scenario": "walkers" if sounding else "silence",
        "map": "MAP01",
        "wad": "test",
        "seed": 0,
        "num_ticks": num_ticks,
        "fov_deg": FOV_DEG,
        "engine": "test",
        "caption": "a test",
        "sources": [{"id": 7, "class": class_name, "stem": None}],
        "ticks": ticks,
    }
    if frames is None:
        jpegs = [jpeg_bytes(np.full((240, 320, 3), 40, np.uint8))] * num_ticks
    else:
        jpegs = [jpeg_bytes(frame) for frame in frames]
    return clip_to_sample(
        meta,
        jpegs=jpegs,
        depth_THW=np.full((num_ticks, 60, 80), 60, np.uint8),
        audio_LC=pan_mono(mono_L * sounding, azimuth_T, samples_per_tick=TIMING.samples_per_tick),
    )


def make_clip(key: str, azimuth_T: np.ndarray, **options) -> Clip:
    """The same as a `Clip`."""
    sample = make_sample(key, azimuth_T, **options)
    return Clip(
        key, {k: v for k, v in sample.items() if not k.startswith("__")} | {"json": sample["json"]}
    )


def write_shard(path: Path, samples: list[dict]) -> None:
    """Writes a shard of recordings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
