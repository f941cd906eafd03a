"""Scores and ranking of takes: each defect lowers the score it belongs to, and only that rank."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spatial_v2a.audio.onsets import OnsetMeter, onset_times_s
from spatial_v2a.audio.panning import pan_mono
from spatial_v2a.features import BOX_FIELDS, FrameFeatures, empty_features
from spatial_v2a.inference.dub.take_meter import TakeMeter, find_clicks, outside_rhythm
from spatial_v2a.inference.dub.take_report import (
    behind,
    draw_takes,
    ranking_json,
    ranking_markdown,
    ranking_table,
)
from spatial_v2a.inference.dub.take_scores import (
    MAX_THUMBNAILS,
    SceneNotes,
    TakeScore,
    rank_takes,
    score_take,
)
from spatial_v2a.timing import TIMING

TICK = TIMING.samples_per_tick
NUM_TICKS = 240
HALF_SECOND = TIMING.sample_rate_hz // 2


def swing_deg(num_ticks: int = NUM_TICKS) -> np.ndarray:
    """A bearing that moves at changing speed: two swings of different lengths."""
    time_s = np.arange(num_ticks) / TIMING.tick_hz
    return 25 * np.sin(2 * np.pi * time_s / 3.1) + 10 * np.sin(2 * np.pi * time_s / 1.7 + 1)


def burst_ticks(num_ticks: int = NUM_TICKS) -> np.ndarray:
    """Irregular moments, about two a second."""
    steps = np.random.default_rng(5).integers(10, 24, num_ticks)
    ticks = np.cumsum(steps)
    return ticks[ticks < num_ticks - 5]


def features_at(bearing_deg: float | None, *, score: float = 1.0) -> FrameFeatures:
    """One tick with one box, or none."""
    features = empty_features(
        1, 1, num_patches=1, dino_dim=1, depth_grid=(2, 2), max_boxes=2, dtype=torch.float32
    )
    features.has_boxes_BT[:] = True
    if bearing_deg is not None:
        values = {"cx": 0.5, "cy": 0.5, "w": 0.2, "h": 0.3, "score": score}
        values["azimuth"] = np.radians(bearing_deg)
        for name, value in values.items():
            features.boxes_BTKF[0, 0, 0, BOX_FIELDS.index(name)] = float(value)
        features.box_mask_BTK[0, 0, 0] = True
    return features


def make_scene(*, has_boxes: bool = True, flashes: bool = False, num_ticks=NUM_TICKS) -> SceneNotes:
    """A box that swings; with `flashes` the whole picture changes at the moments of the bursts."""
    scene, bursts = SceneNotes(), set(burst_ticks(num_ticks).tolist())
    value = 40
    for tick, bearing_deg in enumerate(swing_deg(num_ticks)):
        if flashes and tick in bursts:
            value = 220 - value
        image_HWC = np.full((30, 40, 3), value, np.uint8)
        scene.add(image_HWC, features_at(bearing_deg if has_boxes else None))
    return scene


def noise_L(num_ticks: int = NUM_TICKS) -> np.ndarray:
    """Noise of mostly under 3 kHz, as game sounds, at about -26 dBFS."""
    white = np.random.default_rng(1).normal(0, 0.05, num_ticks * TICK)
    window = np.hanning(26)
    return np.convolve(white, window / np.sqrt((window**2).sum()), mode="same")


def panned_LC(mono_L: np.ndarray) -> np.ndarray:
    """The sound at the bearings of the box."""
    return pan_mono(mono_L, swing_deg(len(mono_L) // TICK), samples_per_tick=TICK)


def bursts_L(num_ticks: int = NUM_TICKS) -> np.ndarray:
    """Noise that bursts at the moments of the flashes and dies away, over a soft bed."""
    gain_L = np.full(num_ticks * TICK, 0.02)
    for tick in burst_ticks(num_ticks):
        rest = np.arange(len(gain_L) - tick * TICK)
        gain_L[tick * TICK :] += np.exp(-rest / 3000)
    return noise_L(num_ticks) * gain_L


def metered(audio_LC: np.ndarray) -> TakeMeter:
    meter = TakeMeter()
    for start in range(0, len(audio_LC), TICK):
        meter.add(audio_LC[start : start + TICK])
    return meter


def delayed(audio_LC: np.ndarray) -> np.ndarray:
    return np.roll(audio_LC, HALF_SECOND, axis=0)


@pytest.fixture(scope="module")
def scene() -> SceneNotes:
    return make_scene()


@pytest.fixture(scope="module")
def good_LC() -> np.ndarray:
    return panned_LC(noise_L())


@pytest.fixture(scope="module")
def good(scene: SceneNotes, good_LC: np.ndarray) -> TakeScore:
    return score_take(scene, metered(good_LC))


def test_the_sound_of_the_box_scores_high_in_everything(good: TakeScore) -> None:
    assert good.direction > 0.95 and good.sync > 0.75, (good.direction, good.sync)
    assert good.artefacts == 1.0, good
    assert abs(good.shift_ms) <= 67, good.shift_ms
    assert good.total == pytest.approx((good.sync + good.direction + good.artefacts) / 3)


def test_swapped_channels_cost_direction_only(scene, good_LC, good) -> None:
    swapped = score_take(scene, metered(good_LC[:, ::-1].copy()))
    assert swapped.direction < 0.2, swapped.direction
    assert swapped.sync == pytest.approx(good.sync, abs=0.02)
    assert swapped.artefacts == good.artefacts


def test_mono_has_no_direction_and_no_time(scene, good_LC) -> None:
    mono = score_take(scene, metered(np.repeat(good_LC.mean(axis=1, keepdims=True), 2, axis=1)))
    assert mono.direction == pytest.approx(0.5, abs=0.1)
    assert mono.sync == pytest.approx(0.5, abs=0.05)


def test_half_a_second_late_costs_sync_and_is_named(scene, good_LC, good) -> None:
    late = score_take(scene, metered(delayed(good_LC)))
    assert late.sync < good.sync - 0.25, (late.sync, good.sync)
    assert late.shift_ms == pytest.approx(500, abs=67)


def test_onsets_are_compared_with_motion_where_no_box_is() -> None:
    scene = make_scene(has_boxes=False, flashes=True)
    mono_LC = np.repeat(bursts_L()[:, None], 2, axis=1)
    in_time, late = (score_take(scene, metered(x)) for x in (mono_LC, delayed(mono_LC)))
    assert in_time.movement_contrast is None and in_time.direction is None
    assert in_time.sync > 0.65 and late.sync < in_time.sync - 0.15, (in_time.sync, late.sync)


def test_what_cannot_be_told_is_none() -> None:
    still = make_scene(has_boxes=False)
    score = score_take(still, metered(np.zeros((NUM_TICKS * TICK, 2), np.float32)))
    assert (score.sync, score.direction, score.artefacts) == (None, None, 1.0)
    assert score.total == 1.0
    empty = score_take(SceneNotes(), TakeMeter())
    assert (empty.sync, empty.direction, empty.artefacts, empty.total) == (None, None, None, 0.0)


def test_weak_boxes_do_not_count() -> None:
    scene = SceneNotes()
    for bearing_deg in swing_deg(60):
        scene.add(np.zeros((8, 8, 3), np.uint8), features_at(bearing_deg, score=0.1))
    assert len(scene.boxes_BF) == 0 and not scene.has_box_T.any()


def test_silence_beside_a_box_is_worth_nothing(scene, good_LC, good) -> None:
    silent = score_take(scene, metered(np.zeros_like(good_LC)))
    assert (silent.sync, silent.direction, silent.artefacts) == (0.0, 0.0, 0.0)
    half_LC = good_LC.copy()
    half_LC[len(half_LC) // 2 :] = 0
    half = score_take(scene, metered(half_LC))
    assert half.missing_share == pytest.approx(0.5, abs=0.01)
    assert half.artefacts < 0.55 < good.artefacts


def spoil(audio_LC: np.ndarray, defect: str) -> np.ndarray:
    bad_LC = audio_LC.copy()
    if defect == "clicks":
        bad_LC[[20_000, 111_111, 250_000, 300_500]] += 0.3
    elif defect == "clipped":
        bad_LC = np.clip(bad_LC * 20, -1.0, 1.0)
    else:
        for start in (50_000, 130_000, 290_001):
            bad_LC[start : start + 4000] = 0
    return bad_LC


@pytest.mark.parametrize(
    ("defect", "figure", "expected"),
    [("clicks", "num_clicks", 4), ("clipped", "num_clipped_samples", None), ("cut", "num_cuts", 3)],
)
def test_faults_cost_artefacts_and_are_counted(
    scene, good_LC, good, defect: str, figure: str, expected: int | None
) -> None:
    bad = score_take(scene, metered(spoil(good_LC, defect)))
    assert getattr(good, figure) == 0
    assert getattr(bad, figure) == expected or (expected is None and getattr(bad, figure) > 1000)
    assert bad.artefacts < 0.9 * good.artefacts and bad.total < good.total, bad


def test_attacks_are_no_clicks() -> None:
    """A loud burst of noise out of silence jumps as far as a click, but goes on."""
    attack_L = np.minimum(np.arange(12_000) / 24, 1.0) * 10 * noise_L(8)[:12_000]
    burst_LC = np.zeros((20_000, 2))
    burst_LC[8000:] = attack_L[:, None]
    jump = np.abs(np.diff(burst_LC[:8100, 0])).max()
    assert jump > 0.1 and len(find_clicks(burst_LC)) == 0, (jump, find_clicks(burst_LC))
    burst_LC[4000] = jump
    assert np.allclose(find_clicks(burst_LC), [4000], atol=4), find_clicks(burst_LC)


def test_cuts_in_a_steady_rhythm_belong_to_the_sound() -> None:
    times_s = np.array([0.25, 0.5, 0.75, 1.0, 1.1, 1.25, 2.9])
    assert outside_rhythm(times_s).tolist() == [False] * 4 + [True] * 3


def test_clicks_are_found_across_the_ticks_borders(good_LC) -> None:
    for offset in (-100, -40, -1, 0, 1, 40):
        bad_LC = good_LC[: 30 * TICK].copy()
        bad_LC[10 * TICK + offset] += 0.3
        ticks = np.flatnonzero(metered(bad_LC).faults.clicks_T)
        assert ticks.tolist() in ([9], [10]), f"click at {offset} samples: ticks {ticks}"


def test_streamed_onsets_are_those_of_the_whole_sound() -> None:
    audio_LC = np.repeat(bursts_L(300)[:, None], 2, axis=1).astype(np.float32)
    meter = OnsetMeter()
    for start in range(0, len(audio_LC), TICK):
        meter.add(audio_LC[start : start + TICK])
    whole_s = onset_times_s(audio_LC)
    assert len(whole_s) > 10
    assert np.allclose(meter.times_s, whole_s), (meter.times_s, whole_s)
    assert len(meter.strength_db_T) == 300


def test_the_expected_bearing_is_the_boxs() -> None:
    scene = SceneNotes()
    for tick in range(40):
        features = features_at(20.0 if tick < 30 else None)
        scene.add(np.zeros((8, 8, 3), np.uint8), features)
    assert np.allclose(scene.bearing_deg_T[:25], 20, atol=0.5), scene.bearing_deg_T[:25]
    assert np.isnan(scene.bearing_deg_T[30:]).all()


def test_of_two_boxes_the_larger_one_pulls_more() -> None:
    """At +-20 degrees: equal areas cancel; four times the area on the left is heard on the left."""
    expected = []
    for factor in (1.0, 2.0):
        features = features_at(20.0)
        features.boxes_BTKF[0, 0, 1] = features.boxes_BTKF[0, 0, 0]
        features.boxes_BTKF[0, 0, 1, BOX_FIELDS.index("azimuth")] *= -1
        features.boxes_BTKF[0, 0, 0, BOX_FIELDS.index("w")] *= factor
        features.boxes_BTKF[0, 0, 0, BOX_FIELDS.index("h")] *= factor
        features.box_mask_BTK[0, 0, 1] = True
        scene = SceneNotes()
        for _ in range(9):
            scene.add(np.zeros((8, 8, 3), np.uint8), features)
        expected.append(float(scene.bearing_deg_T[4]))
    assert expected[0] == pytest.approx(0.0, abs=0.1), expected
    assert 5 < expected[1] < 19, expected


def make_score(total_parts: tuple[float | None, float | None, float]) -> TakeScore:
    sync, direction, artefacts = total_parts
    numbers = dict.fromkeys(("onset_contrast", "movement_contrast", "shift_ms"), 0.1)
    numbers |= dict.fromkeys(("pan_correlation", "pan_error_deg"), 3.0)
    counts = dict.fromkeys(("num_heard_ticks", "num_clicks", "num_clipped_samples", "num_cuts"), 1)
    shares = dict.fromkeys(("damaged_share", "silent_share", "missing_share"), 0.0)
    return TakeScore(sync, direction, artefacts, **numbers, **counts, **shares)


def test_ranking_is_by_total_and_stable() -> None:
    scores = [make_score((0.5, 0.5, p)) for p in (0.5, 0.9, 0.5, 0.9, 0.1)]
    assert rank_takes(scores) == [1, 3, 0, 2, 4]
    assert rank_takes([]) == []


def test_the_largest_reason_comes_first() -> None:
    best, other = make_score((0.9, 0.9, 1.0)), make_score((0.8, 0.3, 1.0))
    assert behind(other, best) == "-0.233 to the best: direction -0.200, sync -0.033"
    assert behind(best, best) == ""


def test_the_report_lists_every_take(good: TakeScore) -> None:
    scores = [replace(good, direction=0.2), good, make_score((None, None, 0.5))]
    names = ["a", "b", "c"]
    document = json.loads(ranking_json(names, scores, title="clip.mp4"))
    assert [entry["take"] for entry in document["ranking"]] == ["b", "a", "c"]
    assert document["ranking"][2]["sync"] is None
    assert document["ranking"][1]["why"].startswith("-")
    assert ranking_table(names, scores) in ranking_markdown(names, scores, title="clip.mp4")


def test_the_picture_grows_with_the_takes(tmp_path, scene, good_LC, good) -> None:
    num_takes = 16
    meter = metered(spoil(good_LC, "clicks"))
    path = tmp_path / "takes.png"
    draw_takes(
        path,
        scene,
        [meter] * num_takes,
        [good] * num_takes,
        names=[f"take {n}" for n in range(num_takes)],
        title="clip.mp4",
    )
    with Image.open(path) as image:
        assert image.width == 1300 and image.height >= 140 * num_takes, image.size


def test_an_empty_scene_can_be_drawn(tmp_path: Path) -> None:
    scene, meter = SceneNotes(), TakeMeter()
    path = tmp_path / "empty.png"
    draw_takes(path, scene, [meter], [score_take(scene, meter)], names=["a"], title="nothing")
    assert path.read_bytes().startswith(b"\x89PNG")


def kept_bytes(thing: object, seen: set[int]) -> int:
    """Memory of an object with all that it holds."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    inner = []
    if isinstance(thing, np.ndarray):
        # A view keeps the whole array alive.
        return max(thing.nbytes, getattr(thing.base, "nbytes", 0))
    if isinstance(thing, list | tuple):
        inner = list(thing)
    elif hasattr(thing, "__dict__"):
        inner = list(vars(thing).values())
    return sys.getsizeof(thing) + sum(kept_bytes(part, seen) for part in inner)


def test_memory_per_tick_is_small() -> None:
    """Twenty seconds more add under 100 bytes a tick for the picture, and for each sound."""
    rng = np.random.default_rng(0)
    piece_LC = rng.normal(0, 0.1, (TICK, 2)).astype(np.float32)
    image_HWC, features = np.zeros((120, 160, 3), np.uint8), features_at(10.0)
    scene, meter, sizes = SceneNotes(), TakeMeter(), []
    num_ticks = 20 * TIMING.tick_hz
    for _ in range(2):
        for _ in range(num_ticks):
            scene.add(image_HWC, features)
            meter.add(piece_LC)
        thumbnails = sum(image.nbytes for _, image in scene.thumbnails)
        sizes.append((kept_bytes(scene, set()) - thumbnails, kept_bytes(meter, set())))
    (scene_before, meter_before), (scene_after, meter_after) = sizes
    per_tick = np.array([scene_after - scene_before, meter_after - meter_before]) / num_ticks
    assert (per_tick < 100).all(), per_tick
    assert MAX_THUMBNAILS / 2 <= len(scene.thumbnails) <= MAX_THUMBNAILS
    assert np.diff([tick for tick, _ in scene.thumbnails]).std() == 0
