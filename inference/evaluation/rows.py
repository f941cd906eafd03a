"""The rows of the table: real systems, and the null systems any of them has to beat.

A row turns a clip's record into sound, and can be sent to another process. Rows made from the
system's own mono (panners, constants) use its sound and the engine's law, so that they differ from
it in the panning alone.
Legend: L samples, T ticks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from spatial_v2a.audio.panning import pan_gains, pan_mono
from spatial_v2a.inference.evaluation.store import SoundStore
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import ClipTruth, WindowTruth

GROUND_TRUTH = "ground_truth"
CODEC = "codec"
MODEL = "model"
WITHOUT = "model_without_depth_boxes"
GIVEN = "model_given"
MIRRORED = "model_mirrored"
MONO = "mono"


@dataclass(frozen=True)
class Record:
    """One clip under evaluation.

    Attributes:
        truth, windows: what the recording knows.
        panner_azimuth_T: bearing in degrees of the largest box per tick, for the box-centre panner.
        number: position of the clip in the run.
        load_stems: reads each source alone, float32 [N, L, 2]; None unless several were recorded.
        azimuths_NT: bearing of each of them in the picture, degrees; None as `load_stems`.
    """

    truth: ClipTruth
    windows: WindowTruth
    panner_azimuth_T: np.ndarray
    number: int
    load_stems: Callable[[], np.ndarray] | None = None
    azimuths_NT: np.ndarray | None = None


Render = Callable[[Record], np.ndarray]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: key in report.json.
        title: text in report.md.
        render: the row's sound of a clip, float32 [L, 2].
        names_class: whether the classifier listens to it (panning does not change the class).
    """

    name: str
    title: str
    render: Render
    names_class: bool = False


def hold_last(azimuth_T: np.ndarray) -> np.ndarray:
    """Fills NaN with the last known bearing, 0 before the first."""
    known = ~np.isnan(azimuth_T)
    last = np.maximum.accumulate(np.where(known, np.arange(len(azimuth_T)), -1))
    return np.where(last >= 0, np.nan_to_num(azimuth_T)[np.maximum(last, 0)], 0.0)


def random_path_deg(num_ticks: int, *, seed: int) -> np.ndarray:
    """A bearing that walks between random points of the picture, one a second, no sight of it."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-45.0, 45.0, num_ticks // TIMING.tick_hz + 2)
    return np.interp(np.arange(num_ticks) / TIMING.tick_hz, np.arange(len(points)), points)


def constant_pan(mono_L: np.ndarray, *, difference_db: float) -> np.ndarray:
    """Mono at one constant level difference, [L, 2]."""
    return (mono_L[:, None] * pan_gains(np.array(difference_db))).astype(np.float32)


def stored_rows(store: SoundStore, titles: dict[str, str]) -> list[Row]:
    """Rows whose sound lies in the store: the ground truth, the codec, the model's variants."""
    return [
        Row(name, title, partial(_stored, store, name), names_class=True)
        for name, title in titles.items()
    ]


def _stored(store: SoundStore, name: str, record: Record) -> np.ndarray:
    return store.load(name, record.truth.key)


@dataclass(frozen=True)
class NullSounds:
    """The sounds of the null rows, one method each, made from the mono of `system`.

    Attributes:
        store: holds the system's sound.
        system: row name of the system.
        other_keys: for every clip, the one whose sound the shuffled row gives it.
        seed: of the random pans.
    """

    store: SoundStore
    system: str
    other_keys: tuple[str, ...]
    seed: int

    def mono_L(self, record: Record) -> np.ndarray:
        """The system's sound without its panning."""
        return self.store.load(self.system, record.truth.key).mean(axis=1)

    def panned(self, record: Record, azimuth_T: np.ndarray) -> np.ndarray:
        """That mono, panned along a path by the engine's law."""
        samples = TIMING.samples_per_tick
        return pan_mono(self.mono_L(record), hold_last(azimuth_T), samples_per_tick=samples)

    def oracle(self, record: Record) -> np.ndarray:
        """Panned by the true position: the box's centre, the source's bearing without a box."""
        truth = record.truth
        seen_T = truth.screen_azimuth_T
        return self.panned(record, np.where(np.isnan(seen_T), truth.azimuth_T, seen_T))

    def box_centre(self, record: Record) -> np.ndarray:
        """Panned by the largest box."""
        return self.panned(record, record.panner_azimuth_T)

    def mono(self, record: Record) -> np.ndarray:
        """The same in both channels."""
        return constant_pan(self.mono_L(record), difference_db=0.0)

    def hard_left(self, record: Record) -> np.ndarray:
        """In the left channel."""
        return constant_pan(self.mono_L(record), difference_db=50.0)

    def random(self, record: Record) -> np.ndarray:
        """Panned along a path that knows nothing of the picture."""
        path_seed = self.seed * 100_003 + record.number
        return self.panned(record, random_path_deg(record.truth.num_ticks, seed=path_seed))

    def shuffled(self, record: Record) -> np.ndarray:
        """The system's sound of another clip."""
        return self.store.load(self.system, self.other_keys[record.number])

    def silence(self, record: Record) -> np.ndarray:
        """Zeros."""
        return np.zeros((record.truth.num_ticks * TIMING.samples_per_tick, 2), dtype=np.float32)


def null_rows(
    store: SoundStore, records: list[Record], *, system: str, panner: str, seed: int
) -> list[Row]:
    """The rows every system has to stand beside, made from the mono of `system`.

    Args:
        store: holds the system's sound.
        records: all clips, in order (for the shuffled row).
        system: row name of the system.
        panner: where the panner's boxes come from, for its title.
        seed: of the random pans and of the shuffle.
    """
    order = derangement(len(records), seed=seed)
    nulls = NullSounds(store, system, tuple(records[n].truth.key for n in order), seed)
    box_title = f"its mono, panned by the largest {panner} box"
    rows = [
        Row("oracle_pan", "its mono, panned by the true position", nulls.oracle),
        Row("box_centre_panner", box_title, nulls.box_centre),
        Row(MONO, "its mono, twice", nulls.mono),
        Row("hard_left", "its mono, hard left", nulls.hard_left),
        Row("random_pan", "its mono, random pan", nulls.random),
    ]
    if len(records) > 1:
        title = "its sound of another clip"
        rows.append(Row("shuffled", title, nulls.shuffled, names_class=True))
    return [*rows, Row("silence", "silence", nulls.silence)]


def derangement(count: int, *, seed: int) -> np.ndarray:
    """A permutation without fixed points (one cycle): clip i is scored with the sound of [i]."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=int)
    other[order] = np.roll(order, -1)
    return other
