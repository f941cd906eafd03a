"""Several sources: errors, order, missed and invented sounds are told apart, source by source."""

import numpy as np
import pytest

from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.inference.evaluation import metrics, several
from spatial_v2a.inference.evaluation.clips import source_azimuths
from spatial_v2a.timing import TIMING

TICKS = 90
LENGTH = TICKS * TIMING.samples_per_tick
AZIMUTHS_NT = np.stack([np.full(TICKS, 20.0), np.full(TICKS, -35.0)])


def tone_L(hz: float) -> np.ndarray:
    return 0.2 * np.sin(2 * np.pi * hz * np.arange(LENGTH) / TIMING.sample_rate_hz)


def stems(azimuths_NT: np.ndarray = AZIMUTHS_NT) -> np.ndarray:
    """Two tones, each panned by the law."""
    panned = [
        pan_mono(tone_L(hz), azimuth_T, samples_per_tick=TIMING.samples_per_tick)
        for hz, azimuth_T in zip((400.0, 3000.0), azimuths_NT, strict=True)
    ]
    return np.stack(panned)


def figures(audio_LC: np.ndarray, own: np.ndarray | None = None) -> dict[str, float]:
    sums = several.several_sums(audio_LC, stems() if own is None else own, AZIMUTHS_NT)
    return {name: float(metrics.ratio(value[None])[0]) for name, value in sums.items()}


def test_power_is_the_mean_square() -> None:
    masks = np.ones((1, several.FFT_SIZE // 2 + 1, LENGTH // several.HOP))
    shared = several.shared_power(np.stack([tone_L(440), 0.5 * tone_L(440)], axis=1), masks)
    np.testing.assert_allclose(shared[0, 0, 2:-2], 0.02, rtol=0.01)
    np.testing.assert_allclose(shared[0, 1, 2:-2], 0.005, rtol=0.01)


def test_the_mix_of_the_stems_is_right() -> None:
    got = figures(stems().sum(axis=0))
    assert got["source_azimuth_error_deg"] < 1.0
    assert got["source_order"] == 1.0
    assert got["source_missed"] == 0.0


def test_each_source_is_scored_against_its_own_truth() -> None:
    """One source moved by 10 degrees and the other not: half of that on average."""
    moved = AZIMUTHS_NT + np.array([[10.0], [0.0]])
    got = figures(stems(moved).sum(axis=0))
    assert got["source_azimuth_error_deg"] == pytest.approx(5.0, abs=1.0)


def test_swapped_sources_and_mono_have_no_order() -> None:
    assert figures(stems(AZIMUTHS_NT[::-1]).sum(axis=0))["source_order"] == 0.0
    mono_L = stems().sum(axis=(0, 2)) / 2
    assert figures(np.stack([mono_L, mono_L], axis=1))["source_order"] == 0.0


def test_a_missing_source_is_missed_and_counts_the_maximum_error() -> None:
    got = figures(stems()[0])
    assert got["source_missed"] == 0.5
    assert got["source_azimuth_error_deg"] == pytest.approx((0 + 90) / 2, abs=1.0)
    assert got["source_order"] == 0.0


def test_sound_where_nothing_sounds_is_invented() -> None:
    own = stems()
    half = LENGTH // 2
    own[:, half:] = 0.0
    assert figures(own.sum(axis=0), own)["source_invented"] < 0.2
    assert figures(stems().sum(axis=0), own)["source_invented"] == 1.0


def test_bearings_of_visible_sounding_sources() -> None:
    box = {"id": 1, "x": 0.45, "y": 0.4, "w": 0.1, "h": 0.2}
    source = {"id": 1, "visible": True, "sounding": True}
    ticks = [
        {"boxes": [box], "sources": [source]},
        {"boxes": [], "sources": [source]},
        {"boxes": [box], "sources": [{**source, "sounding": False}]},
        {"boxes": [{**box, "x": 0.0}], "sources": [source]},
    ]
    meta = {"fov_deg": 90.0, "sources": [{"id": 1}], "ticks": ticks}
    # Centre at 0.05 of the width: tan = 1 - 2 * 0.05 = 0.9, 42 degrees to the left.
    expected = [0.0, np.nan, np.nan, np.degrees(np.arctan(0.9))]
    np.testing.assert_allclose(source_azimuths(meta)[1], expected, atol=1e-9)
