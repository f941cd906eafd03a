"""The rows of the tables: real systems, and the null systems any of them has to beat.

A row turns the record of a clip, or of a piece of footage, into sound, and can be sent to another
process. Rows made from the system's own mono (panners, constants) use its sound and the engine's
law, so that they differ from it in the panning alone.
Legend: L samples, T ticks, D detection frames (4 a second), K boxes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from spatial_v2a.audio.panning import pan_gains, pan_mono
from spatial_v2a.inference.evaluation.store import SoundStore, fitted
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import ClipTruth, WindowTruth

GROUND_TRUTH = "ground_truth"
CODEC = "codec"
MODEL = "model"
WITHOUT = "model_without_depth_boxes"
GIVEN = "model_given"
MIRRORED = "model_mirrored"
MONO = "mono"
ORIGINAL = "original"


@dataclass(frozen=True)
class Picture:
    """What the figures need to know of a picture.

    Attributes:
        box_azimuth_T: bearing in degrees of the largest box per tick, positive left; NaN without.
        fov_deg: horizontal field of view.
        edges_px_D: left and right edge of every box in px of 256, [K, 2] per detection frame.
        motion_peaks_s: times at which its motion peaks.
        picture_hz: pictures that are stored per second.
    """

    box_azimuth_T: np.ndarray
    fov_deg: float
    edges_px_D: Sequence[np.ndarray] = ()
    motion_peaks_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    picture_hz: float = TIMING.tick_hz

    @property
    def box_side_T(self) -> np.ndarray:
        """2 x / W - 1 of the middle of the largest box per tick, -1 (left) .. 1; NaN without."""
        return -np.tan(np.radians(self.box_azimuth_T)) / math.tan(math.radians(self.fov_deg) / 2)


@dataclass(frozen=True)
class Record:
    """A clip or a piece of footage under evaluation.

    Attributes:
        key: its name in the report and in the store.
        number: its position in the run.
        num_samples: length of its sound.
        picture: what is seen.
        panner_azimuth_T: bearing in degrees of the largest box per tick, for the box-centre panner.
    """

    key: str
    number: int
    num_samples: int
    picture: Picture
    panner_azimuth_T: np.ndarray

    @property
    def num_ticks(self) -> int:
        """Ticks of its picture; the last may be partial."""
        return len(self.panner_azimuth_T)


@dataclass(frozen=True)
class ClipRecord(Record):
    """A clip with known positions.

    Attributes:
        truth, windows: what the recording knows.
        load_stems: reads each source alone, float32 [N, L, 2]; None unless several were recorded.
        azimuths_NT: bearing of each of them in the picture, degrees; None as `load_stems`.
    """

    truth: ClipTruth
    windows: WindowTruth
    load_stems: Callable[[], np.ndarray] | None = None
    azimuths_NT: np.ndarray | None = None


# A row's sound of a record, float32 [L, 2]; None where there is none.
Render = Callable[[Record], np.ndarray | None]


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: key in report.json.
        title: text in report.md.
        render: the row's sound.
        names_class: whether the classifier listens to it (panning does not change the class).
        render_mirrored: its sound of the mirrored picture; None for a row without.
    """

    name: str
    title: str
    render: Render
    names_class: bool = False
    render_mirrored: Render | None = None


def stored_row(store: SoundStore, name: str, title: str) -> Row:
    """A row whose sounds lie in the store, made by the model or given."""
    return Row(name, title, partial(_stored, store, name), names_class=True)


def _stored(store: SoundStore, name: str, record: Record) -> np.ndarray:
    return store.load(name, record.key)


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


@dataclass(frozen=True)
class NullSounds:
    """The sounds of the null rows, one method each, made from the mono of `system`.

    Attributes:
        store: holds the system's sound.
        system: row name of the system.
        other_keys: for every record, the one whose sound the shuffled row gives it.
        seed: of the random pans.
    """

    store: SoundStore
    system: str
    other_keys: tuple[str, ...]
    seed: int

    def mono_L(self, record: Record) -> np.ndarray:
        """The system's sound without its panning."""
        return self.store.load(self.system, record.key).mean(axis=1)

    def panned(self, record: Record, azimuth_T: np.ndarray) -> np.ndarray:
        """That mono, panned along a path by the engine's law."""
        samples = TIMING.samples_per_tick
        return pan_mono(self.mono_L(record), hold_last(azimuth_T), samples_per_tick=samples)

    def oracle(self, record: ClipRecord) -> np.ndarray:
        """Panned by the true position: the box's centre, the source's bearing without a box."""
        truth = record.truth
        seen_T = truth.screen_azimuth_T
        return self.panned(record, np.where(np.isnan(seen_T), truth.azimuth_T, seen_T))

    def box_centre(self, record: Record) -> np.ndarray:
        """Panned by the largest box."""
        return self.panned(record, record.panner_azimuth_T)

    def constant(self, difference_db: float, record: Record) -> np.ndarray:
        """At one constant level difference."""
        gains_C = pan_gains(np.array(difference_db))
        return (self.mono_L(record)[:, None] * gains_C).astype(np.float32)

    def random(self, record: Record) -> np.ndarray:
        """Panned along a path that knows nothing of the picture."""
        path_seed = self.seed * 100_003 + record.number
        return self.panned(record, random_path_deg(record.num_ticks, seed=path_seed))

    def shuffled(self, record: Record) -> np.ndarray:
        """The system's sound of another record, cut or filled with silence to this one's length."""
        other_LC = self.store.load(self.system, self.other_keys[record.number])
        return fitted(other_LC, record.num_samples)

    def silence(self, record: Record) -> np.ndarray:
        """Zeros."""
        return np.zeros((record.num_samples, TIMING.num_channels), dtype=np.float32)


def null_rows(
    store: SoundStore,
    records: Sequence[Record],
    *,
    system: str,
    panner: str,
    seed: int,
    noun: str = "clip",
) -> list[Row]:
    """The rows every system has to stand beside, made from the mono of `system`.

    Args:
        store: holds the system's sound.
        records: all of them, in order (for the shuffled row).
        system: row name of the system.
        panner: where the panner's boxes come from, for its title.
        seed: of the random pans and of the shuffle.
        noun: what a record is, for titles.
    """
    order = derangement(len(records), seed=seed)
    nulls = NullSounds(store, system, tuple(records[n].key for n in order), seed)
    box_title = f"its mono, panned by the largest {panner} box"
    rows = [
        Row("box_centre_panner", box_title, nulls.box_centre),
        Row(MONO, "its mono, twice", partial(nulls.constant, 0.0)),
        Row("hard_left", "its mono, hard left", partial(nulls.constant, 50.0)),
        Row("random_pan", "its mono, random pan", nulls.random),
    ]
    if any(isinstance(record, ClipRecord) for record in records):
        rows.insert(0, Row("oracle_pan", "its mono, panned by the true position", nulls.oracle))
    if len(records) > 1:
        title = f"its sound of another {noun}"
        rows.append(Row("shuffled", title, nulls.shuffled, names_class=True))
    return [*rows, Row("silence", "silence", nulls.silence)]


def derangement(count: int, *, seed: int) -> np.ndarray:
    """A permutation without fixed points (one cycle): clip i is scored with the sound of [i]."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=int)
    other[order] = np.roll(order, -1)
    return other
