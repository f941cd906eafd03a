"""Simulated clips: what is seen of a scene beside its exact sound, one stem a thing.

    tracks = SimulatedTracks(ProceduralBank(), perception_config, seed=0, split="train")
    clip = tracks.clip(17)        # always the same

No picture is drawn and nothing is stored: a clip is a function of (seed, split, index).
Legend: T ticks, L samples, C channels, N events.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.concepts import CONCEPTS, Concept
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.timing import TIMING
from spatial_v2a.training.sounds.bank import Bank
from spatial_v2a.training.sounds.crops import Split, item_rng
from spatial_v2a.training.sounds.synthesis import RATE_HZ
from spatial_v2a.training.tracks.boxes import DetectorFaults, seen_features, true_boxes
from spatial_v2a.training.tracks.world import Thing, World, make_world

SOUND_M_S = 343.0
REFERENCE_M = 4.0
# Level of a person's steps at the reference distance against the bank's own level, and how much of
# the differences between concepts is kept: a shot is 40 dB above steps, which no mix bears.
STEPS_DB, KEPT_SHARE = -6.0, 0.35
PEAK = 0.98
FADE_TICKS = 2
AIR_HZ, AIR_M = 4_000, 150.0  # above that frequency air takes a third in so many metres
# How many things are in a clip: none, one, two, ...
NUM_THINGS_SHARES = (0.06, 0.5, 0.24, 0.13, 0.07)


@dataclass(frozen=True)
class Track:
    """The truth of one thing of a clip.

    Attributes:
        concept: name.
        azimuth_deg_T: bearing, positive to the left, -180..180.
        distance_T: metres.
        in_view_T: whether it is in the picture.
        sounds_T: whether it is heard.
        onsets_s: where its events begin [N].
        is_timed: whether box or motion tell those moments.
        boxes: the exact box of every tick, None out of the picture.
        stem_LC: its sound alone.
    """

    concept: str
    azimuth_deg_T: NDArray
    distance_T: NDArray
    in_view_T: NDArray
    sounds_T: NDArray
    onsets_s: NDArray
    is_timed: bool
    boxes: list[Box | None]
    stem_LC: NDArray[np.float32]


@dataclass(frozen=True)
class SimulatedClip:
    """One clip.

    Attributes:
        key: names it: split and index.
        fov_deg: of its camera.
        tracks: its things.
        audio_LC: the sum of their stems, float32.
        features: what perception hands over [1, T].
    """

    key: str
    fov_deg: float
    tracks: tuple[Track, ...]
    audio_LC: NDArray[np.float32]
    features: FrameFeatures

    @property
    def is_timed(self) -> bool:
        """Whether the picture tells the moments of all that is heard."""
        return bool(self.tracks) and all(track.is_timed for track in self.tracks)


class SimulatedTracks:
    """An endless collection of clips.

    Args:
        bank: what they sound like. Only concepts that both it and the model know occur.
        config: of the perception.
        seed: of the collection.
        split: which part; no two share a clip.
        duration_s: of a clip.
        faults: of the detector.
        num_things: how many in every clip; None varies from none to four.

    Raises:
        UserError: no concept of the bank is known to the model.
    """

    def __init__(
        self,
        bank: Bank,
        config: PerceptionConfig,
        *,
        seed: int,
        split: Split = "train",
        duration_s: float = 8.0,
        faults: DetectorFaults | None = None,
        num_things: int | None = None,
    ) -> None:
        self._bank = bank
        self._config = config
        self._seed = seed
        self._split: Split = split
        self._num_ticks = round(duration_s * TIMING.tick_hz)
        self._faults = faults or DetectorFaults()
        self._num_things = num_things
        self._class_of = config.concept_classes
        known = [c for c, at in zip(CONCEPTS, self._class_of, strict=True) if at >= 0]
        self.concepts = [concept for concept in known if concept.name in bank.concepts]
        if not self.concepts:
            raise UserError(
                f"the model knows none of the sounds {', '.join(bank.concepts)}; set"
                " perception.sounds=concepts, or add folders named as `spatial-v2a sounds` lists"
            )

    def clip(self, index: int, *, concept: str | None = None) -> SimulatedClip:
        """The clip of an index.

        Args:
            index: 0 and up.
            concept: what its first thing is; by turns if absent.
        """
        rng = item_rng(self._seed, self._split, index)
        chosen = self._choose(rng, index, concept)
        world = make_world(rng, self._num_ticks, chosen)
        boxes_of = [true_boxes(world, thing) for thing in world.things]
        tracks = [
            self._track(world, thing, boxes, rng)
            for thing, boxes in zip(world.things, boxes_of, strict=True)
        ]
        shape = (self._num_ticks * TIMING.samples_per_tick, TIMING.num_channels)
        audio_LC = sum((track.stem_LC for track in tracks), np.zeros(shape, np.float32))
        peak = float(np.abs(audio_LC).max(initial=0.0))
        if peak > PEAK:
            for track in tracks:
                track.stem_LC[:] *= PEAK / peak
            audio_LC = sum((track.stem_LC for track in tracks), np.zeros(shape, np.float32))
        features = seen_features(
            world, boxes_of, self._config, rng, self._faults, class_of=self._class_of
        )
        return SimulatedClip(
            f"{self._split}-{index:08d}", world.view.fov_deg, tuple(tracks), audio_LC, features
        )

    def _choose(self, rng: np.random.Generator, index: int, concept: str | None) -> list[Concept]:
        """What is in a clip; every concept comes first equally often."""
        count = self._num_things
        if count is None:
            count = int(rng.choice(len(NUM_THINGS_SHARES), p=NUM_THINGS_SHARES))
        others = [
            self.concepts[i] for i in rng.integers(len(self.concepts), size=max(count - 1, 0))
        ]
        first = self.concepts[index % len(self.concepts)]
        if concept is not None:
            first = next(each for each in self.concepts if each.name == concept)
        return [first, *others][:count]

    def _track(
        self, world: World, thing: Thing, boxes: list[Box | None], rng: np.random.Generator
    ) -> Track:
        concept = thing.concept
        seconds = self._num_ticks / TIMING.tick_hz
        is_timed = thing.events_s is not None
        sound = self._bank.generate(
            concept.name, rng, seconds, events_s=thing.events_s, drive_T=thing.drive_T
        )
        mono_L, onsets_s = sound.audio_L, sound.onsets_s
        if not is_timed:
            # What has no events of its own bends its pitch as it comes and goes.
            if not len(onsets_s):
                mono_L = _doppler(mono_L, thing.distance_T)
            onsets_s = onsets_s[thing.sounds_T[_tick_of(onsets_s, self._num_ticks)]]
            mono_L = mono_L * _per_sample(_faded(thing.sounds_T))
        distance_T = np.maximum(thing.distance_T, 0.5)
        level_db = STEPS_DB + KEPT_SHARE * concept.level_db
        gain_T = 10 ** (level_db / 20) * REFERENCE_M / distance_T
        mono_L = _through_air(mono_L, float(distance_T.mean())) * _per_sample(gain_T)
        azimuth_T = world.azimuth_deg_T(thing)
        stem_LC = pan_mono(mono_L, azimuth_T, samples_per_tick=TIMING.samples_per_tick)
        return Track(
            concept.name,
            azimuth_T,
            thing.distance_T,
            np.array([box is not None for box in boxes]),
            thing.sounds_T,
            onsets_s,
            is_timed,
            boxes,
            stem_LC,
        )


def _tick_of(times_s: NDArray, num_ticks: int) -> NDArray[np.int64]:
    return np.minimum((times_s * TIMING.tick_hz).astype(np.int64), num_ticks - 1)


def _per_sample(values_T: Sequence[float] | NDArray) -> NDArray:
    """Values of ticks [T] for every sample, linear between the middles of ticks."""
    middles = (np.arange(len(values_T)) + 0.5) * TIMING.samples_per_tick
    at = np.arange(len(values_T) * TIMING.samples_per_tick)
    return np.interp(at, middles, values_T)


def _faded(sounds_T: NDArray) -> NDArray:
    """1 where it sounds, with soft edges [T]."""
    window = np.ones(2 * FADE_TICKS + 1) / (2 * FADE_TICKS + 1)
    return np.convolve(np.pad(sounds_T * 1.0, FADE_TICKS, mode="edge"), window, "valid")


def _doppler(mono_L: NDArray, distance_T: NDArray) -> NDArray:
    """The sound as its way to the ear grows and shrinks, without the delay it begins with."""
    late_L = (_per_sample(distance_T) - distance_T[0]) / SOUND_M_S * RATE_HZ
    at = np.arange(len(mono_L)) - late_L
    # Approaching, it is ahead of itself: what is not there yet goes round to its beginning.
    return np.interp(at % (len(mono_L) - 1), np.arange(len(mono_L)), mono_L).astype(np.float32)


def _through_air(mono_L: NDArray, distance_m: float) -> NDArray:
    """Far sounds lose their highs; causal, so that no event begins early."""
    share = 1 - np.exp(-2 * np.pi * AIR_HZ / RATE_HZ)
    dull = 1 - np.exp(-distance_m / AIR_M)
    low_L = lfilter([share], [1, share - 1], mono_L)
    return (1 - dull) * mono_L + dull * low_L


def draw_clip(clip: SimulatedClip, path: Path) -> None:
    """A picture of a clip: bearing and distance of every thing, its events, and the boxes seen."""
    # Takes half a second to import, and few clips are drawn.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    FigureCanvasAgg(figure)
    bearing, distance, columns = figure.subplots(3, sharex=True)
    for number, track in enumerate(clip.tracks):
        time_s = np.arange(len(track.azimuth_deg_T)) / TIMING.tick_hz
        colour = f"C{number}"
        bearing.plot(time_s, track.azimuth_deg_T, colour, label=track.concept)
        distance.semilogy(time_s, track.distance_T, colour)
        for onset_s in track.onsets_s[:200]:
            bearing.axvline(onset_s, color=colour, alpha=0.2, linewidth=0.8)
    for edge in (clip.fov_deg / 2, -clip.fov_deg / 2):
        bearing.axhline(edge, color="grey", linestyle=":")
    mask_TK = clip.features.box_mask_BTK[0].numpy()
    cx_TK = clip.features.boxes_BTKF[0, ..., BOX_FIELDS.index("cx")].numpy()
    ticks, slots = np.nonzero(mask_TK)
    columns.scatter(ticks / TIMING.tick_hz, cx_TK[ticks, slots], s=3)
    bearing.set_ylabel("bearing, degrees to the left")
    distance.set_ylabel("distance, m")
    columns.set(ylabel="boxes: column", xlabel="s", ylim=(1, 0))
    if clip.tracks:
        bearing.legend(loc="upper right")
    figure.savefig(path, dpi=80)
