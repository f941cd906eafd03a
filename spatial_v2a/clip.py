"""The clip format: one webdataset sample per clip, written by Stage and read by everything.

Parts: frames.npz (JPEG bytes and offsets), depth.npz (the engine's depth buffer, uint8
[T, 60, 80]), audio.flac (48 kHz stereo, exactly T * 1600 samples), stemN.flac (optional, one
source alone), json (metadata).
Legend: T ticks, H W depth rows and columns, L samples, C channels.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import webdataset
from numpy.typing import NDArray
from PIL import Image

from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.geometry import nearness_from_buffer
from spatial_v2a.timing import TIMING

JPEG_QUALITY = 88
REQUIRED_PARTS = ("frames.npz", "depth.npz", "audio.flac", "json")


@dataclass
class Clip:
    """One clip; parts are decoded when asked for.

    Attributes:
        key: the sample's key, as `walkers-MAP03-00000012`.
        parts: raw bytes by part name.
    """

    key: str
    parts: dict[str, bytes] = field(repr=False)

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Metadata: scenario, map, seed, sources, and the geometry of every tick."""
        return json.loads(self.parts["json"])

    @property
    def num_ticks(self) -> int:
        """Length in ticks of 1/30 s."""
        return self.meta["num_ticks"]

    @cached_property
    def _jpegs(self) -> tuple[bytes, NDArray[np.int64]]:
        with np.load(io.BytesIO(self.parts["frames.npz"])) as arrays:
            return arrays["data"].tobytes(), arrays["offsets"]

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Picture of a tick, RGB [240, 320, 3]."""
        data, offsets = self._jpegs
        with Image.open(io.BytesIO(data[offsets[index] : offsets[index + 1]])) as image:
            return np.asarray(image.convert("RGB"))

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Every picture in order."""
        return (self.frame(i) for i in range(self.num_ticks))

    @cached_property
    def depth_THW(self) -> NDArray[np.uint8]:
        """Depth buffer steps along the viewing axis, area-reduced to [T, 60, 80]; 0 is near."""
        with np.load(io.BytesIO(self.parts["depth.npz"])) as arrays:
            return arrays["depth"]

    @property
    def nearness_THW(self) -> NDArray[np.float32]:
        """Nearness in (0, 1] (see geometry.nearness), [T, 60, 80]."""
        return nearness_from_buffer(self.depth_THW).astype(np.float32)

    def audio_LC(self) -> NDArray[np.float32]:
        """The engine's stereo mix, 48 kHz [L, 2], L = num_ticks * 1600."""
        return _read_flac(self.parts["audio.flac"])

    def stem_LC(self, source_id: int) -> NDArray[np.float32] | None:
        """One source alone, rendered by the engine, or None when no stem was recorded."""
        source = next((s for s in self.meta["sources"] if s["id"] == source_id), None)
        if source is None:
            raise ValueError(f"clip {self.key} has no source {source_id}")
        return None if source["stem"] is None else _read_flac(self.parts[source["stem"]])


def _read_flac(data: bytes) -> NDArray[np.float32]:
    audio_LC, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return audio_LC


def flac_bytes(audio_LC: NDArray[np.float32]) -> bytes:
    """16-bit FLAC of float samples in -1..1 [L, 2]; refuses samples that clip."""
    peak = float(np.abs(audio_LC).max(initial=0.0))
    if peak > 1.0:
        raise ValueError(f"audio peak {peak:.3f} exceeds full scale")
    pcm = np.round(np.clip(audio_LC, -1.0, 32767 / 32768) * 32768).astype(np.int16)
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, TIMING.sample_rate_hz, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def jpeg_bytes(frame_HWC: NDArray[np.uint8]) -> bytes:
    """JPEG of an RGB picture; same picture, same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(frame_HWC).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def _npz(**arrays: NDArray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def clip_to_sample(
    meta: dict[str, Any],
    *,
    jpegs: list[bytes],
    depth_THW: NDArray[np.uint8],
    audio_LC: NDArray[np.float32],
    stems: dict[str, NDArray[np.float32]] | None = None,
) -> dict[str, str | bytes]:
    """Builds the webdataset sample of a clip.

    Args:
        meta: metadata with `key` and `num_ticks`; see the module docstring.
        jpegs: one JPEG per tick.
        depth_THW: depth buffer per tick.
        audio_LC: 48 kHz stereo in -1..1, exactly num_ticks * 1600 samples.
        stems: part name (`stem0.flac`) to audio of the same length.

    Returns:
        A sample for `webdataset.TarWriter`.
    """
    num_ticks = meta["num_ticks"]
    num_samples = num_ticks * TIMING.samples_per_tick
    lengths = (len(jpegs), len(depth_THW), *(len(a) for a in [audio_LC, *(stems or {}).values()]))
    wanted = (num_ticks, num_ticks, *[num_samples] * (1 + len(stems or {})))
    if lengths != wanted:
        raise ValueError(f"clip {meta['key']}: lengths {lengths}, expected {wanted}")
    offsets = np.cumsum([0, *(len(j) for j in jpegs)]).astype(np.int64)
    data = np.frombuffer(b"".join(jpegs), np.uint8)
    buffer = io.BytesIO()
    np.savez(buffer, data=data, offsets=offsets)
    sample: dict[str, str | bytes] = {
        "__key__": meta["key"],
        "frames.npz": buffer.getvalue(),
        "depth.npz": _npz(depth=depth_THW),
        "audio.flac": flac_bytes(audio_LC),
        "json": json.dumps(meta, separators=(",", ":")).encode(),
    }
    for part, stem_LC in (stems or {}).items():
        sample[part] = flac_bytes(stem_LC)
    return sample


def read_shards(paths: Iterable[str | Path]) -> Iterator[Clip]:
    """Yields the clips of finished shards in the given order.

    Raises:
        UserError: a shard is missing, or a sample lacks a part of the clip format.
    """
    names = [str(p) for p in as_tuple(paths, name="paths")]
    for name in names:
        if not Path(name).is_file():
            raise UserError(f"shard {name} does not exist; record it or correct the path")
        for sample in webdataset.WebDataset(name, shardshuffle=False, empty_check=False):
            parts = {k: v for k, v in sample.items() if not k.startswith("__")}
            missing = [p for p in REQUIRED_PARTS if p not in parts]
            if missing:
                raise UserError(
                    f"{name}: clip {sample['__key__']} lacks {', '.join(missing)}; record it again"
                )
            yield Clip(sample["__key__"], parts)
