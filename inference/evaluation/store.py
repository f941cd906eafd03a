"""The report folder's sounds: WAV files by row and clip, reused when their stamp still fits."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from spatial_v2a.bounded import read_json
from spatial_v2a.clip import Clip
from spatial_v2a.errors import UserError
from spatial_v2a.files import write_text, written_whole
from spatial_v2a.timing import TIMING


def stamp_of(*parts: Any) -> str:
    """Short hash of JSON-able settings; two sounds with one stamp are the same sound."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def clip_digest(clip: Clip) -> str:
    """Hash of what a model can see of a clip (three frames, the metadata) and of its sound."""
    digest = hashlib.sha256(json.dumps(clip.meta, sort_keys=True).encode())
    for index in (0, clip.num_ticks // 2, clip.num_ticks - 1):
        digest.update(np.ascontiguousarray(clip.frame(index)).tobytes())
    digest.update(np.ascontiguousarray(clip.audio_LC()).tobytes())
    return digest.hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Hash of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


class SoundStore:
    """`ROOT/ROW/KEY.wav` (48 kHz, 16 bit) with `KEY.json` beside it: stamp and notes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, row: str, key: str) -> Path:
        """Where a row's sound of a clip lies."""
        return self.root / row / f"{key}.wav"

    def notes(self, row: str, key: str, *, stamp: str) -> dict[str, Any] | None:
        """Notes of a stored sound, or None when it is absent or made under another stamp."""
        path = self.path(row, key)
        side = path.with_suffix(".json")
        if not (path.is_file() and side.is_file()):
            return None
        try:
            stored = read_json(side)
        except UserError:
            # A stamp that cannot be read fits nothing: the sound is made again.
            return None
        is_fit = isinstance(stored, dict) and stored.get("stamp") == stamp
        return stored.get("notes") if is_fit else None

    def save(
        self, row: str, key: str, audio_LC: np.ndarray, *, stamp: str, notes: dict[str, Any]
    ) -> None:
        """Writes the sound, then its stamp: a kill in between only costs the sound."""
        path = self.path(row, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)
        with written_whole(path, overwrite=True) as draft:
            soundfile.write(
                draft,
                np.clip(audio_LC, -1.0, 1.0),
                TIMING.sample_rate_hz,
                subtype="PCM_16",
                format="WAV",
            )
        write_text(path.with_suffix(".json"), json.dumps({"stamp": stamp, "notes": notes}))

    def load(self, row: str, key: str) -> np.ndarray:
        """Reads a stored sound as float32 [L, 2]."""
        return soundfile.read(self.path(row, key), dtype="float32", always_2d=True)[0]


def fitted(audio_LC: np.ndarray, num_samples: int) -> np.ndarray:
    """A sound [L, 2] cut or filled with silence to a length."""
    return np.pad(audio_LC[:num_samples], ((0, max(0, num_samples - len(audio_LC))), (0, 0)))


def read_rival_wav(path: Path, *, num_samples: int) -> np.ndarray:
    """Reads someone else's sound for a clip, float32 [L, 2], trimmed or padded by a tick at most.

    Raises:
        UserError: wrong rate, channel count or length, or not a sound file.
    """
    try:
        # An open file: the library takes some names for other things.
        with path.open("rb") as file:
            audio_LC, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot read {path} as sound ({error}); give WAV files") from error
    if rate_hz != TIMING.sample_rate_hz:
        raise UserError(f"{path} is at {rate_hz} Hz; resample it to {TIMING.sample_rate_hz} Hz")
    if audio_LC.shape[1] != TIMING.num_channels:
        raise UserError(f"{path} has {audio_LC.shape[1]} channels; give stereo")
    if abs(len(audio_LC) - num_samples) > TIMING.samples_per_tick:
        raise UserError(
            f"{path} has {len(audio_LC)} samples, the clip {num_samples}; "
            "give sound as long as the picture, to a tick"
        )
    return fitted(audio_LC, num_samples)
