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
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from spatial_v2a.bounded import is_key, parse_json, read_arrays, shard_parts
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.geometry import nearness_from_buffer
from spatial_v2a.timing import TIMING

JPEG_QUALITY = 88
MAX_PIXELS = 4096 * 4096
# Ten minutes; recordings are cut into clips of seconds.
MAX_TICKS = 600 * TIMING.tick_hz
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
        return parse_meta(self.parts["json"], where=f"metadata of clip {self.key}")

    @property
    def num_ticks(self) -> int:
        """Length in ticks of 1/30 s."""
        return self.meta["num_ticks"]

    @cached_property
    def jpegs(self) -> tuple[bytes, NDArray[np.int64]]:
        """The JPEGs of all ticks in a row, and where each begins; the last offset is the end."""
        data, offsets = self._arrays("frames.npz", data=np.uint8, offsets=np.int64)
        is_ordered = data.ndim == offsets.ndim == 1 and len(offsets) == self.num_ticks + 1
        if not is_ordered or offsets[0] < 0 or (np.diff(offsets) < 0).any():
            raise UserError(f"clip {self.key} has no picture for every tick; record it again")
        return data.tobytes(), offsets

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Picture of a tick, RGB [240, 320, 3]."""
        data, offsets = self.jpegs
        jpeg = io.BytesIO(data[offsets[index] : offsets[index + 1]])
        try:
            # Other formats would be handed to their own readers; one that ultralytics puts into
            # Pillow tries to import what is not installed.
            if not jpeg.getbuffer()[:2] == b"\xff\xd8":
                raise ValueError("it does not begin like one")
            with Image.open(jpeg, formats=("JPEG",)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels are too many")
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(
                f"clip {self.key}: picture {index} is no JPEG ({error}); record it again"
            ) from error

    def frames(self) -> Iterator[NDArray[np.uint8]]:
        """Every picture in order."""
        return (self.frame(i) for i in range(self.num_ticks))

    @cached_property
    def depth_THW(self) -> NDArray[np.uint8]:
        """Depth buffer steps along the viewing axis, area-reduced to [T, 60, 80]; 0 is near."""
        (depth_THW,) = self._arrays("depth.npz", depth=np.uint8)
        if depth_THW.ndim != 3 or len(depth_THW) != self.num_ticks:
            raise UserError(
                f"clip {self.key} has depth of shape {depth_THW.shape} for {self.num_ticks} ticks;"
                " record it again"
            )
        return depth_THW

    @property
    def nearness_THW(self) -> NDArray[np.float32]:
        """Nearness in (0, 1] (see geometry.nearness), [T, 60, 80]."""
        return nearness_from_buffer(self.depth_THW).astype(np.float32)

    def audio_LC(self) -> NDArray[np.float32]:
        """The engine's stereo mix, 48 kHz [L, 2], L = num_ticks * 1600."""
        return self._sound("audio.flac")

    def stem_LC(self, source_id: int) -> NDArray[np.float32] | None:
        """One source alone, rendered by the engine, or None when no stem was recorded."""
        source = next((s for s in self.meta["sources"] if s["id"] == source_id), None)
        if source is None:
            raise ValueError(f"clip {self.key} has no source {source_id}")
        return None if source["stem"] is None else self._sound(source["stem"])

    def _sound(self, name: str) -> NDArray[np.float32]:
        """The samples [L, 2] of a part."""
        where = f"{name} of clip {self.key}"
        if name not in self.parts:
            raise UserError(f"{where} is missing; record it again")
        num_samples = self.num_ticks * TIMING.samples_per_tick
        return decode_flac(self.parts[name], num_samples=num_samples, where=where)

    def _arrays(self, name: str, **kinds: type) -> list[NDArray]:
        """Arrays of an npz part, each of the kind that is wanted."""
        where = f"{name} of clip {self.key}"
        arrays = read_arrays(self.parts[name], where=where)
        for wanted, kind in kinds.items():
            if wanted not in arrays or arrays[wanted].dtype != kind:
                raise UserError(f"{where} lacks {wanted}; record it again")
        return [arrays[wanted] for wanted in kinds]


def decode_flac(
    data: bytes, *, where: str, num_samples: int | None = None, dtype: str = "float32"
) -> NDArray:
    """FLAC bytes of a clip [L, 2].

    Args:
        data: the bytes.
        where: names them in messages.
        num_samples: how long it must be; None is any length that a clip may have.
        dtype: float32 or int16.

    Raises:
        UserError: no stereo FLAC of that length at 48 kHz.
    """
    longest = MAX_TICKS * TIMING.samples_per_tick
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            length = min(file.frames, longest) if num_samples is None else num_samples
            found = (file.format, file.samplerate, file.channels, file.frames)
            if found != ("FLAC", TIMING.sample_rate_hz, TIMING.num_channels, length):
                raise UserError(
                    f"{where} is {found}, not {length} samples of stereo FLAC at"
                    f" {TIMING.sample_rate_hz} Hz; record it again"
                )
            return file.read(dtype=dtype, always_2d=True)
    except soundfile.SoundFileError as error:
        raise UserError(f"{where} cannot be decoded ({error}); record it again") from error


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
        UserError: a shard is missing or damaged, or a clip lacks a part of the clip format.
    """
    for path in map(Path, as_tuple(paths, name="paths")):
        for key, group in groupby(shard_parts(path), key=lambda part: part.key):
            parts: dict[str, bytes] = {}
            for part in group:
                if part.name in parts:
                    raise UserError(f"{path}: clip {key} holds {part.name} twice; record it again")
                parts[part.name] = part.read()
            missing = [name for name in REQUIRED_PARTS if name not in parts]
            if missing:
                raise UserError(f"{path}: clip {key} lacks {', '.join(missing)}; record it again")
            yield Clip(key, parts)


def parse_meta(data: bytes, *, where: str) -> dict[str, Any]:
    """The checked metadata of a clip; `where` names it in messages.

    Raises:
        UserError: not JSON, or without what every clip says of itself.
    """
    meta = parse_json(data, where=where)
    try:
        _Meta.model_validate(meta)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "it"
        raise UserError(f"{where}: {place}: {first['msg']}; record the clip again") from None
    return meta


def _checked_key(key: str) -> str:
    if not is_key(key):
        raise ValueError(f"{key[:100]!r} is no key of a clip")
    return key


class _Entry(BaseModel):
    """Some of what an entry of the metadata says; it may say more."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)


class _Box(_Entry):
    id: int
    x: float
    y: float
    w: float
    h: float


class _Heard(_Entry):
    id: int
    azimuth_deg: float
    visible: bool
    sounding: bool


class _Tick(_Entry):
    boxes: list[_Box]
    sources: list[_Heard]


class _Source(_Entry):
    id: int
    stem: str | None


class _Meta(_Entry):
    key: Annotated[str, AfterValidator(_checked_key)]
    num_ticks: Annotated[int, Field(ge=1, le=MAX_TICKS)]
    fov_deg: Annotated[float, Field(ge=1, le=175)]
    sources: list[_Source]
    ticks: list[_Tick]

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if len(self.ticks) != self.num_ticks:
            raise ValueError(f"num_ticks is {self.num_ticks}, but it has {len(self.ticks)} ticks")
        return self
