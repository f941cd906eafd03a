"""One sound per object of a dub, with its pan and distance over time; together they are the mix.

DIR/mix.flac      the generated sound of the dub, before the original sound and the limiter
DIR/003-bell.flac what of it belongs to object 3; 003-bell.json its curves
DIR/rest.flac     what belongs to no object
DIR/stems.json    the list of all
The mix is divided by soft masks: the objects' own renders say who has which share. Wiener filtering
with one spectrogram per part (Liutkus & Badeau 2015, eq. 3): what the parts get sums to the mix,
because the masks sum to one in every cell of the short-time Fourier transform.
Legend: P parts, S per-object streams, L samples, C audio channels, T ticks, W window,
F frequencies.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from spatial_v2a.audio.stereo import StereoMeter, level_dbfs, level_difference_db
from spatial_v2a.conditioning.boxes import Box, slots_of
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.files import Outputs
from spatial_v2a.geometry import azimuth_rad, depth_m_from_nearness
from spatial_v2a.inference.dub.jobs import DubJob
from spatial_v2a.inference.dub.mixing import Extent, Finish, MixSettings, mixed_pieces, ticks_of
from spatial_v2a.inference.dub.spool import Spool
from spatial_v2a.inference.engine.allocator import Part
from spatial_v2a.inference.engine.object_mix import Heard
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.provenance import attach
from spatial_v2a.timing import TIMING

# A hop of half a tick: the window is long enough to part tones, short enough to part steps.
WINDOW = 2 * TIMING.samples_per_tick
HOP = WINDOW // 4
# Power per frequency below which a render says nothing: -90 dBFS.
FLOOR = 10 ** (-90 / 10) * WINDOW


def divided(mix: Iterator[np.ndarray], renders: list[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """The mix divided among its parts and a rest.

    Args:
        mix: float32 [L, 2] pieces of one tick (the last one may be shorter).
        renders: each part alone, in the same pieces.

    Yields:
        float32 [P + 1, L, 2], the rest last; joined, as long as the mix, and their sum is the mix.
    """
    num_streams, window_W11 = len(renders) + 1, _window()[:, None, None]
    inputs_WPC = np.zeros((WINDOW, num_streams, TIMING.num_channels), np.float32)
    output_WPC = np.zeros_like(inputs_WPC)
    waiting_LPC = inputs_WPC[:0]
    # The first samples that leave stand before the sound: no window has covered them whole.
    num_early, num_left = WINDOW - HOP, 0
    for pieces in itertools.chain(zip(mix, *renders, strict=True), [None]):
        if pieces is None:
            added_LPC = np.zeros((WINDOW, num_streams, TIMING.num_channels), np.float32)
        else:
            added_LPC = np.stack(pieces, axis=1)
            num_left += len(added_LPC)
        waiting_LPC = np.concatenate([waiting_LPC, added_LPC])
        done = []
        while len(waiting_LPC) >= HOP:
            inputs_WPC = np.concatenate([inputs_WPC[HOP:], waiting_LPC[:HOP]])
            waiting_LPC = waiting_LPC[HOP:]
            output_WPC += window_W11 * _masked(window_W11 * inputs_WPC)
            done.append(output_WPC[:HOP])
            output_WPC = np.concatenate([output_WPC[HOP:], np.zeros_like(output_WPC[:HOP])])
        out_LPC = np.concatenate(done) if done else output_WPC[:0]
        skipped = min(num_early, len(out_LPC))
        num_early -= skipped
        out_LPC = out_LPC[skipped : skipped + num_left]
        num_left -= len(out_LPC)
        if len(out_LPC):
            yield out_LPC.transpose(1, 0, 2)


def _masked(inputs_WPC: np.ndarray) -> np.ndarray:
    """Spectra of mix (first) and renders in, the mix's spectrum divided out; [W, P + 1, C]."""
    spectra_FPC = np.fft.rfft(inputs_WPC, axis=0)
    power_FPC = np.abs(spectra_FPC[:, 1:]) ** 2
    share_FPC = power_FPC / (power_FPC.sum(axis=1, keepdims=True) + FLOOR)
    rest_F1C = 1.0 - share_FPC.sum(axis=1, keepdims=True)
    shares = np.concatenate([share_FPC, rest_F1C], axis=1)
    return np.fft.irfft(shares * spectra_FPC[:, :1], n=WINDOW, axis=0).astype(np.float32)


def _window() -> np.ndarray:
    """Root of a periodic Hann window, used before and after; overlapped by four it sums to one."""
    phase_W = 2 * np.pi * np.arange(WINDOW) / WINDOW
    return np.sqrt((0.5 - 0.5 * np.cos(phase_W)) / 2).astype(np.float32)


@dataclass(frozen=True)
class Observation:
    """An object in one tick: bearing in degrees, positive to the left, and nearness 0..1."""

    tick: int
    azimuth_deg: float
    nearness: float


class Observations:
    """Notes the objects of one tick after another; boxes that are only held are no observations.

    Attributes:
        of_object: every object's observations, by its id.
        class_index: the newest class of every object, by its id.
    """

    def __init__(self) -> None:
        self.of_object: dict[int, list[Observation]] = {}
        self.class_index: dict[int, int] = {}
        self._tick = 0

    def add(self, features: FrameFeatures, boxes: tuple[Box, ...], *, fov_deg: float) -> None:
        """Notes a tick.

        Args:
            features: of the whole tick, [1, 1].
            boxes: the tick's boxes, in the order in which `features` was made of them.
            fov_deg: horizontal field of view, degrees.
        """
        near_K = features.boxes_BTKF[0, 0, :, BOX_FIELDS.index("nearness")].tolist()
        for slot, place in enumerate(slots_of(boxes, len(near_K))):
            box = boxes[place]
            if not box.is_persisted:
                bearing_deg = float(np.degrees(azimuth_rad(box.cx, fov_deg)))
                seen = self.of_object.setdefault(box.track_id, [])
                seen.append(Observation(self._tick, bearing_deg, near_K[slot]))
                self.class_index[box.track_id] = box.class_index
        self._tick += 1


# Shorter observations are mostly mistakes of the detector; their sound goes to the rest.
MIN_SEEN_TICKS = TIMING.tick_hz // 2


# Opens a sound file that is signed when it is finished.
Signed = Callable[[Path], AbstractContextManager[soundfile.SoundFile]]


@dataclass(frozen=True)
class _Stretch:
    """Ticks [first, stop) of an object stream that belong to one object."""

    object_stream: int
    first: int
    stop: int


class StemRecorder:
    """Records the object streams beside a dub, on disk.

    Args:
        job: whose stems are wanted.
        config: number of box slots, which is that of the object streams.
        outputs: where the sounds lie meanwhile.
        stack: closes the sounds.

    Attributes:
        sounds: what each object stream's objects sound like.
        parts: what was played, in the order in which it began.
        observations: where the objects were seen.
    """

    def __init__(
        self, job: DubJob, config: PerceptionConfig, outputs: Outputs, stack: ExitStack
    ) -> None:
        self.config = config
        self.sounds = [
            stack.enter_context(Spool(outputs, job.out)) for _ in range(config.max_boxes)
        ]
        self.parts: list[Part] = []
        self.observations = Observations()

    def add(
        self, features: FrameFeatures, boxes: tuple[Box, ...], heard: Heard, *, fov_deg: float
    ) -> None:
        """Appends a tick; what an object stream without an object sounds like is left out.

        Args:
            features, boxes, fov_deg: as for `Observations.add`.
            heard: what it sounds like.
        """
        self.observations.add(features, boxes, fov_deg=fov_deg)
        self.parts += heard.begun
        for sound, audio_LC in zip(self.sounds, heard.alone_SLC, strict=True):
            sound.write(audio_LC)

    def complete(self) -> None:
        """Ends writing."""
        for sound in self.sounds:
            sound.complete()


def write_stems(
    job: DubJob,
    sound: Spool,
    recorder: StemRecorder,
    finish: Finish,
    *,
    outputs: Outputs,
    origin: Provenance | None,
) -> tuple[Path, ...]:
    """Writes the stems of a dub into its folder.

    Args:
        job: with `stems`.
        sound: the generated sound.
        recorder: what the object streams played.
        finish: that of the dub's file.
        outputs: takes the files.
        origin: the statement of origin to sign; None leaves it out.

    Returns:
        The files, the list of all first.
    """
    assert job.stems is not None
    outputs.make_folder(job.stems)

    @contextmanager
    def signed(path: Path) -> Iterator[soundfile.SoundFile]:
        """A sound file to write, which is signed at the end."""
        draft = outputs.new(path)
        with _flac(draft) as file:
            yield file
        if origin is not None:
            attach(draft, origin, ingredient=job.source.path, out=path, outputs=outputs)

    names = recorder.config.class_names
    observations = recorder.observations
    stretches = _stretches(recorder.parts, job.source.num_ticks)
    told = [i for i, seen in observations.of_object.items() if len(seen) >= MIN_SEEN_TICKS]
    files: list[Path] = []
    with ExitStack() as stack:
        apart = _divide(job, sound, recorder, finish, stack, outputs, signed)
        entries = []
        for track_id in sorted(told):
            name = names[observations.class_index[track_id]]
            stem = job.stems / f"{track_id:03d}-{name}"
            energies_TE = _write_object(stem, job, apart, stretches.get(track_id, []), signed)
            curves = _curves(track_id, name, observations.of_object[track_id], energies_TE)
            outputs.new(stem.with_suffix(".json")).write_text(json.dumps(curves) + "\n", "utf-8")
            entries.append({"id": track_id, "class": name, "sound": f"{stem.name}.flac",
                            "curves": f"{stem.name}.json"})  # fmt: skip
            files += [stem.with_suffix(".flac"), stem.with_suffix(".json")]
        others = [s for i in stretches if i not in told for s in stretches[i]]
        _write_rest(job, apart, others, signed)
    listing = {
        "video": job.source.path.name,
        "sample_rate_hz": TIMING.sample_rate_hz,
        "mix": "mix.flac",
        "rest": "rest.flac",
        "objects": entries,
        "mix_is_the_files_sound": job.track is None and not finish.is_limited,
    }
    text = json.dumps(listing, indent=1) + "\n"
    outputs.new(job.stems / "stems.json").write_text(text, encoding="utf-8")
    return (job.stems / "stems.json", job.stems / "mix.flac", *files, job.stems / "rest.flac")


def _stretches(parts: list[Part], num_ticks: int) -> dict[int, list[_Stretch]]:
    """What of which object stream belongs to each object: a part lasts until the next one begins.

    An object stream's first part reaches back to the start, for masks have a window's width.
    """
    found: dict[int, list[_Stretch]] = {}
    begun: set[int] = set()
    for number, part in enumerate(parts):
        later = (p for p in parts[number + 1 :] if p.object_stream == part.object_stream)
        stop = min((p.first_tick for p in later), default=num_ticks)
        first = part.first_tick if part.object_stream in begun else 0
        begun.add(part.object_stream)
        stretch = _Stretch(part.object_stream, first, stop)
        found.setdefault(part.track_id, []).append(stretch)
    return found


def _divide(
    job: DubJob,
    sound: Spool,
    recorder: StemRecorder,
    finish: Finish,
    stack: ExitStack,
    outputs: Outputs,
    signed: Signed,
) -> list[Spool]:
    """The finished mix divided among the object streams and a rest; writes mix.flac on the way."""
    assert job.stems is not None
    recorder.complete()
    extent = Extent(0, job.source.num_samples)
    settings = MixSettings(gain=job.options.mix.gain)
    plain = mixed_pieces(sound.pieces(), settings, source=job.source, track=None, extent=extent)
    unlimited = Finish(gain_db=finish.gain_db, is_marked=finish.is_marked)
    mix = ticks_of(unlimited.pieces(plain, start_sample=0), extent)
    renders = [ticks_of(solo.pieces(), extent) for solo in recorder.sounds]
    apart = [stack.enter_context(Spool(outputs, job.out)) for _ in range(len(renders) + 1)]
    with signed(job.stems / "mix.flac") as file:
        for pieces_PLC in divided(_copied(mix, file), renders):
            for part, piece_LC in zip(apart, pieces_PLC, strict=True):
                part.write(piece_LC)
    for part in apart:
        part.complete()
    return apart


def _copied(pieces: Iterator[np.ndarray], file: soundfile.SoundFile) -> Iterator[np.ndarray]:
    for piece_LC in pieces:
        file.write(piece_LC)
        yield piece_LC


def _write_object(
    stem: Path,
    job: DubJob,
    apart: list[Spool],
    stretches: list[_Stretch],
    signed: Signed,
) -> np.ndarray:
    """Writes an object's sound, silent where it has none; returns its energies [T, 3]."""
    meter = StereoMeter()
    step, num_samples = TIMING.samples_per_tick, job.source.num_samples
    with signed(stem.with_suffix(".flac")) as file, ExitStack() as stack:
        opened = {
            s.object_stream: stack.enter_context(soundfile.SoundFile(apart[s.object_stream].path))
            for s in stretches
        }
        for tick in range(job.source.num_ticks):
            length = min(step, num_samples - tick * step)
            audio_LC = np.zeros((length, TIMING.num_channels), np.float32)
            for stretch in stretches:
                if stretch.first <= tick < stretch.stop:
                    source = opened[stretch.object_stream]
                    source.seek(tick * step)
                    audio_LC += source.read(length, dtype="float32", always_2d=True)
            file.write(audio_LC)
            meter.add(audio_LC)
    return meter.energies_TE


def _curves(
    track_id: int, name: str, seen: list[Observation], energies_TE: np.ndarray
) -> dict[str, object]:
    """Where an object was and how it sounded, for every tick in which it was seen."""
    ticks = [s.tick for s in seen if s.tick < len(energies_TE)]
    near_T = np.array([s.nearness for s in seen[: len(ticks)]])
    distance_T = depth_m_from_nearness(np.maximum(near_T, 1e-3))
    return {
        "id": track_id,
        "class": name,
        "tick_hz": TIMING.tick_hz,
        "t": [round(tick / TIMING.tick_hz, 6) for tick in ticks],
        "azimuth_deg": [round(s.azimuth_deg, 2) for s in seen[: len(ticks)]],
        "nearness": np.round(near_T, 4).tolist(),
        "distance_m": np.round(distance_T, 2).tolist(),
        "pan_db": np.round(level_difference_db(energies_TE[ticks]), 2).tolist(),
        "level_dbfs": np.round(level_dbfs(energies_TE[ticks]), 2).tolist(),
    }


def _write_rest(job: DubJob, apart: list[Spool], others: list[_Stretch], signed: Signed) -> None:
    """Writes what belongs to no object, or to one that was hardly seen."""
    assert job.stems is not None
    step = TIMING.samples_per_tick
    with signed(job.stems / "rest.flac") as file, ExitStack() as stack:
        opened = {
            s.object_stream: stack.enter_context(soundfile.SoundFile(apart[s.object_stream].path))
            for s in others
        }
        for tick, audio_LC in enumerate(apart[-1].pieces()):
            for stretch in others:
                if stretch.first <= tick < stretch.stop:
                    source = opened[stretch.object_stream]
                    source.seek(tick * step)
                    audio_LC = audio_LC + source.read(len(audio_LC), dtype="float32")
            file.write(audio_LC)


def _flac(path: Path) -> soundfile.SoundFile:
    return soundfile.SoundFile(
        path, "w", TIMING.sample_rate_hz, TIMING.num_channels, "PCM_24", format="FLAC"
    )
