"""The rows of the table: real systems, and the null systems any of them has to beat.

A row turns a clip's record into sound. Rows made from the system's own mono (panners, constants)
use its sound and the engine's law, so that they differ from it in the panning alone.
Legend: L samples, T ticks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spatial_v2a.inference.evaluation.store import SoundStore
from spatial_v2a.panning import pan_gains, pan_mono
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
        Row(
            name,
            title,
            lambda record, name=name: store.load(name, record.truth.key),
            names_class=True,
        )
        for name, title in titles.items()
    ]


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

    def mono(record: Record) -> np.ndarray:
        return store.load(system, record.truth.key).mean(axis=1)

    def panned(record: Record, azimuth_T: np.ndarray) -> np.ndarray:
        return pan_mono(mono(record), azimuth_T, samples_per_tick=TIMING.samples_per_tick)

    def oracle(record: Record) -> np.ndarray:
        truth = record.truth
        best = np.where(np.isnan(truth.screen_azimuth_T), truth.azimuth_T, truth.screen_azimuth_T)
        return panned(record, hold_last(best))

    def random(record: Record) -> np.ndarray:
        return panned(
            record, random_path_deg(record.truth.num_ticks, seed=seed * 100_003 + record.number)
        )

    other = derangement(len(records), seed=seed)

    def shuffled(record: Record) -> np.ndarray:
        return store.load(system, records[other[record.number]].truth.key)

    def silence(record: Record) -> np.ndarray:
        return np.zeros((record.truth.num_ticks * TIMING.samples_per_tick, 2), dtype=np.float32)

    rows = [
        Row("oracle_pan", "its mono, panned by the true position", oracle),
        Row(
            "box_centre_panner",
            f"its mono, panned by the largest {panner} box",
            lambda record: panned(record, hold_last(record.panner_azimuth_T)),
        ),
        Row(MONO, "its mono, twice", lambda r: constant_pan(mono(r), difference_db=0.0)),
        Row("hard_left", "its mono, hard left", lambda r: constant_pan(mono(r), difference_db=50)),
        Row("random_pan", "its mono, random pan", random),
    ]
    if len(records) > 1:
        rows.append(Row("shuffled", "its sound of another clip", shuffled, names_class=True))
    return [*rows, Row("silence", "silence", silence)]


def derangement(count: int, *, seed: int) -> np.ndarray:
    """A permutation without fixed points (one cycle): clip i is scored with the sound of [i]."""
    order = np.random.default_rng(seed).permutation(count)
    other = np.empty(count, dtype=int)
    other[order] = np.roll(order, -1)
    return other
