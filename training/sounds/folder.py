"""A user's own recordings as the bank: a folder of WAV, FLAC or OGG files for each concept.

    library/
        footsteps/  gravel-01.wav  gravel-02.wav
        car/        idle.flac

What a folder is named for is heard from it; every other concept keeps its procedural sound. Whose
recordings they are, and what may be done with a model trained on them, is the user's to know.
Legend: L samples, N events.
"""

import difflib
import logging
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from torchaudio.functional import resample

from spatial_v2a.concepts import CONCEPTS, find_concept
from spatial_v2a.errors import UserError
from spatial_v2a.training.sounds.bank import Bank, ProceduralBank, Sound, levelled
from spatial_v2a.training.sounds.synthesis import RATE_HZ, Samples, num_of, place, regular

log = logging.getLogger(__name__)

SUFFIXES = (".wav", ".flac", ".ogg")
MAX_FILES, MAX_FILE_S, MAX_CHANNELS = 2_000, 60.0, 8
MIN_RATE_HZ, MAX_RATE_HZ = 8_000, 192_000
# What is this far below the peak, at the beginning and at the end, is silence.
TRIM_DB = -45.0
MIN_SOUND_S = 0.02
# Shorter recordings are one event; longer ones go on.
EVENT_S = 1.2
JOIN_S = 0.05
# A new event in a recording of several: so much louder than what was just before it.
RISE, MIN_GAP_S = 4.0, 0.12


class FolderBank:
    """Recordings of some concepts, procedures for the others.

    Args:
        folder: with a folder a concept; names are concepts or their synonyms.

    Raises:
        UserError: no such folder, a name that is no concept, no recording, or a file that cannot be
            read, is silent or is out of bounds.
    """

    def __init__(self, folder: Path) -> None:
        self._procedural = ProceduralBank()
        self._files = _files_of(folder)
        self._read = lru_cache(256)(read_recording)
        for paths in self._files.values():
            for path in paths:
                self._read(path)
        log.info(
            "%s: %s", folder, ", ".join(f"{name} {len(each)}" for name, each in self._files.items())
        )

    @property
    def concepts(self) -> tuple[str, ...]:
        """Names of the concepts that it has sounds for."""
        return self._procedural.concepts

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of the concepts that are recorded."""
        return tuple(self._files)

    def generate(
        self,
        concept: str,
        rng: np.random.Generator,
        duration_s: float,
        *,
        events_s: Sequence[float] | None = None,
        drive_T: NDArray | None = None,
    ) -> Sound:
        """As `ProceduralBank.generate`, of the recordings where there are some.

        Each event is one event of some recording of the concept, from its first sample on. A
        recording that goes on is looped from anywhere in it, faster where `drive_T` is higher.
        """
        paths = self._files.get(concept)
        if paths is None:
            return self._procedural.generate(
                concept, rng, duration_s, events_s=events_s, drive_T=drive_T
            )
        num = num_of(duration_s)
        recording_L = self._read(paths[rng.integers(len(paths))])
        if events_s is None and len(recording_L) > num_of(EVENT_S):
            return Sound(levelled(_looped(recording_L, rng, num, drive_T)), np.zeros(0))
        parts = [part for path in paths[:32] for part in events_of(self._read(path))]
        if events_s is None:
            pause_s = max(1.5 * len(recording_L) / RATE_HZ, 0.5)
            events_s = regular(rng, duration_s, pause_s, 0.1)
        times = np.sort(np.asarray(events_s, np.float64))
        audio_L = place(num, times, lambda _: parts[rng.integers(len(parts))])
        return Sound(levelled(audio_L), times[(times >= 0) & (times < duration_s)])


def open_bank(folder: Path | None) -> Bank:
    """The recordings of a folder over the procedures; without a folder the procedures alone."""
    return ProceduralBank() if folder is None else FolderBank(folder)


def _files_of(folder: Path) -> dict[str, list[Path]]:
    """The recordings of every concept that has some."""
    if not folder.is_dir():
        raise UserError(f"--sounds {folder} is no folder; give one that holds a folder a concept")
    found: dict[str, list[Path]] = {}
    for each in sorted(folder.iterdir()):
        if not each.is_dir() or each.name.startswith("."):
            continue
        paths = sorted(path for path in each.iterdir() if path.suffix.lower() in SUFFIXES)
        if not paths:
            raise UserError(f"{each} holds no .wav, .flac or .ogg file; add some, or remove it")
        found.setdefault(_concept_of(each), []).extend(paths)
    if not found:
        raise UserError(
            f"--sounds {folder} holds no folder; make one a concept, such as {folder}/footsteps"
        )
    num_files = sum(map(len, found.values()))
    if num_files > MAX_FILES:
        raise UserError(f"--sounds {folder} holds {num_files} files; give at most {MAX_FILES}")
    return found


def _concept_of(folder: Path) -> str:
    concept = find_concept(folder.name)
    if concept is not None:
        return concept.name
    names = [name for each in CONCEPTS for name in (each.name, *each.synonyms)]
    near = difflib.get_close_matches(folder.name.lower()[:100], names, n=1, cutoff=0.0)[0]
    raise UserError(
        f"{folder}: no concept {folder.name!r}; did you mean {near!r}? `spatial-v2a sounds` lists"
        " them"
    )


def read_recording(path: Path) -> Samples:
    """The loudest channel of a recording [L], 48 kHz, without the silence around it, peak 1.

    Raises:
        UserError: it cannot be read, is out of bounds, or holds nothing that is heard.
    """
    try:
        with soundfile.SoundFile(path) as file:
            if not MIN_RATE_HZ <= file.samplerate <= MAX_RATE_HZ or file.channels > MAX_CHANNELS:
                raise UserError(
                    f"{path} has {file.channels} channels at {file.samplerate} Hz; give at most"
                    f" {MAX_CHANNELS} channels at {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz"
                )
            rate_hz = file.samplerate
            if file.frames > MAX_FILE_S * rate_hz:
                log.warning("%s: its first %g s are taken", path, MAX_FILE_S)
            audio_LC = file.read(round(MAX_FILE_S * rate_hz), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}); convert it, or remove it") from error
    if not np.isfinite(audio_LC).all():
        raise UserError(f"{path} holds samples that are no numbers; convert it, or remove it")
    channel_L = audio_LC[:, np.square(audio_LC).sum(0).argmax()]
    mono_L = resample(torch.from_numpy(channel_L.copy()), rate_hz, RATE_HZ).numpy()
    peak = float(np.abs(mono_L).max(initial=0.0))
    loud = np.flatnonzero(np.abs(mono_L) > peak * 10 ** (TRIM_DB / 20))
    if peak < 1e-4 or loud[-1] - loud[0] < num_of(MIN_SOUND_S):
        raise UserError(f"{path} is silent; remove it")
    return (mono_L[loud[0] : loud[-1] + 1] / peak).astype(np.float32)


def events_of(recording_L: Samples) -> list[Samples]:
    """The single events of a recording: footstep by footstep, each from its first sample on."""
    hop = num_of(0.004)
    levels = np.abs(recording_L[: len(recording_L) // hop * hop]).reshape(-1, hop).max(1)
    if len(recording_L) <= num_of(2 * MIN_GAP_S):
        return [recording_L]
    starts = [0]
    for block in range(1, len(levels)):
        before = levels[max(0, block - 8) : block].mean()
        is_apart = block * hop - starts[-1] >= num_of(MIN_GAP_S)
        if is_apart and levels[block] > max(RISE * before, 0.1):
            within = np.abs(recording_L[(block - 1) * hop : (block + 1) * hop])
            starts.append((block - 1) * hop + int(np.argmax(within > 0.5 * levels[block] / RISE)))
    ends = [*starts[1:], len(recording_L)]
    return [
        _faded_out(recording_L[a : min(b, a + num_of(3.0))])
        for a, b in zip(starts, ends, strict=True)
    ]


def _faded_out(event_L: Samples) -> Samples:
    num = min(num_of(0.01), len(event_L))
    event_L = event_L.copy()
    event_L[len(event_L) - num :] *= np.linspace(1, 0, num, dtype=np.float32)
    return event_L


def _looped(
    recording_L: Samples, rng: np.random.Generator, num: int, drive_T: NDArray | None
) -> NDArray:
    """A recording over and over, its end blended into its beginning."""
    join = num_of(JOIN_S)
    share = np.linspace(0, 1, join)
    loop = recording_L[join:].astype(np.float64)
    loop[-join:] = loop[-join:] * np.sqrt(1 - share) + recording_L[:join] * np.sqrt(share)
    speed = np.full(num, 2.0 ** rng.uniform(-0.1, 0.1))
    if drive_T is not None:
        at = np.linspace(0, len(drive_T) - 1, num)
        speed *= 0.8 + 0.45 * np.interp(at, np.arange(len(drive_T)), drive_T)
    at = (rng.uniform(0, len(loop)) + np.cumsum(speed)) % len(loop)
    return np.interp(at, np.arange(len(loop) + 1), np.append(loop, loop[0]))
