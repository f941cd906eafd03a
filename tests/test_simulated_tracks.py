"""Simulated tracks: exact stems, events, levels and sides; nothing shared between the splits."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a.config import load_config
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS
from spatial_v2a.model import SpatialV2A
from spatial_v2a.timing import TIMING
from spatial_v2a.training import cli
from spatial_v2a.training.generator_data import GeneratorData
from spatial_v2a.training.sounds.bank import ProceduralBank
from spatial_v2a.training.tracks.boxes import NO_FAULTS
from spatial_v2a.training.tracks.pool import TrackClips
from spatial_v2a.training.tracks.simulate import SimulatedTracks

CONFIG = load_config("tiny", ["perception.sounds=concepts"])
BANK = ProceduralBank()


def _tracks(split: str = "train", **options) -> SimulatedTracks:
    options = {"seed": 5, "duration_s": 3.0} | options
    return SimulatedTracks(BANK, CONFIG.perception, split=split, **options)


@pytest.fixture(scope="module")
def clips():
    """Twelve clips of one thing each, seen without faults."""
    collection = _tracks(faults=NO_FAULTS, num_things=1)
    names = ["footsteps", "car", "running", "siren"] * 3
    return [collection.clip(index, concept=name) for index, name in enumerate(names)]


def test_a_clip_is_a_function_of_seed_split_and_index() -> None:
    clip, again = _tracks().clip(3), _tracks().clip(3)
    assert (clip.audio_LC == again.audio_LC).all()
    for name, tensor in vars(clip.features).items():
        assert torch.equal(tensor, getattr(again.features, name)), name
    for other in (_tracks(seed=6), _tracks("validation"), _tracks("test")):
        assert not np.array_equal(other.clip(3).audio_LC, clip.audio_LC)


def test_stems_sum_to_the_mix_and_nothing_clips() -> None:
    for index in range(4):
        clip = _tracks(num_things=3).clip(index)
        assert clip.audio_LC.shape == (90 * TIMING.samples_per_tick, 2)
        assert np.abs(clip.audio_LC).max() <= 1.0
        total_LC = sum(track.stem_LC for track in clip.tracks)
        np.testing.assert_allclose(total_LC, clip.audio_LC, atol=1e-6)


def test_level_falls_by_six_db_a_doubling() -> None:
    collection = _tracks(num_things=1, faults=NO_FAULTS)
    pairs = []
    for index in range(20):
        track = collection.clip(index, concept="fire_truck").tracks[0]
        power_T = np.square(track.stem_LC).reshape(90, -1, 2).mean((1, 2))
        heard = track.sounds_T & (power_T > 0)
        pairs += list(zip(track.distance_T[heard], power_T[heard], strict=True))
    distance, power = np.array(pairs).T
    slope = np.polyfit(np.log2(distance), 10 * np.log10(power), 1)[0]
    # Air takes some of the highs on top.
    assert -7.5 < slope < -5.5


def test_sound_is_on_the_side_of_the_box(clips) -> None:
    num_windows = 0
    for clip in clips:
        track = clip.tracks[0]
        power_TC = np.square(track.stem_LC).reshape(90, -1, 2).mean(1)
        for tick, box in enumerate(track.boxes):
            if box is None or abs(box.cx - 0.5) < 0.15 or power_TC[tick].sum() < 1e-9:
                continue
            num_windows += 1
            assert (power_TC[tick, 0] > power_TC[tick, 1]) == (box.cx < 0.5)
    assert num_windows > 100


def test_events_are_heard_when_they_are_said_to_be() -> None:
    collection = _tracks(num_things=1, faults=NO_FAULTS)
    num_events = 0
    for index in range(6):
        track = collection.clip(index, concept="ball").tracks[0]
        mono_L = np.abs(track.stem_LC).sum(1)
        for onset_s in track.onsets_s:
            start = round(onset_s * TIMING.sample_rate_hz)
            before, after = mono_L[max(0, start - 48) : start], mono_L[start : start + 480]
            if len(after) < 480 or len(before) < 48:
                continue
            num_events += 1
            begins = np.argmax(after > 0.05 * after.max())
            assert begins <= 48 and before.max() < after.max()
    assert num_events > 5


def test_feet_come_down_where_the_box_is_widest(clips) -> None:
    ratios = []
    for clip in clips:
        track = clip.tracks[0]
        if track.concept != "footsteps":
            continue
        for onset_s in track.onsets_s:
            at, between = round(onset_s * 30), round(onset_s * 30) + 8
            boxes = [track.boxes[t] if 0 <= t < 90 else None for t in (at, between)]
            if all(box is not None and 0.1 < box.cx < 0.9 for box in boxes):
                ratios.append(boxes[0].w / boxes[0].h / (boxes[1].w / boxes[1].h))
    assert len(ratios) > 4 and np.mean(ratios) > 1.03


def test_what_stands_is_silent_unless_it_sounds_at_rest() -> None:
    collection = _tracks(num_things=1, faults=NO_FAULTS)
    is_heard = set()
    for index in range(16):
        for concept in ("car", "fire"):
            clip = collection.clip(index, concept=concept)
            track = clip.tracks[0]
            if np.ptp(track.distance_T) == 0:
                is_heard.add((concept, bool(np.abs(clip.audio_LC).any())))
    assert is_heard == {("car", False), ("fire", True)}


def test_a_detector_with_faults_still_sees_most() -> None:
    collection = _tracks(num_things=1)
    seen, in_view, errors = 0, 0, []
    for index in range(12):
        clip = collection.clip(index, concept="footsteps")
        track = clip.tracks[0]
        fields = clip.features.boxes_BTKF[0].numpy()
        mask = clip.features.box_mask_BTK[0].numpy()
        for tick, box in enumerate(track.boxes):
            if box is None or not track.sounds_T[tick]:
                continue
            in_view += 1
            centres = fields[tick, mask[tick], BOX_FIELDS.index("cx")]
            if len(centres):
                seen += 1
                errors.append(np.abs(centres - box.cx).min())
    assert seen > 0.75 * in_view and np.median(errors) < 0.02


def test_a_model_of_the_stages_classes_gets_those_alone() -> None:
    config = load_config("tiny").perception
    collection = SimulatedTracks(BANK, config, seed=0)
    assert {c.sound is not None for c in collection.concepts} == {True}
    clip = collection.clip(0)
    assert int(clip.features.class_BTK.max()) < config.num_classes


def test_names_of_the_stage_and_of_the_bank_are_classes_of_a_model_of_concepts() -> None:
    indices, names = CONFIG.perception.class_indices, CONFIG.perception.class_names
    assert names[indices["cat"]] == "cat" and names[indices["electric"]] == "electricity"
    assert CONFIG.perception.shapes.num_classes == len(names)
    stage = load_config("tiny").perception
    assert stage.class_indices == {name: i for i, name in enumerate(stage.class_names)}


def test_a_bank_of_unknown_sounds_is_refused() -> None:
    class Nothing(ProceduralBank):
        concepts = ("rain",)

    with pytest.raises(UserError, match="perception.sounds=concepts"):
        SimulatedTracks(Nothing(), load_config("tiny").perception, seed=0)


def test_the_generators_batches_are_functions_of_the_step() -> None:
    model = SpatialV2A(CONFIG)
    section = {"num_clips": 4, "fresh": 2.0}

    def batch(step: int) -> dict[str, torch.Tensor]:
        clips = TrackClips(_tracks(), model, **section)
        data = GeneratorData(
            None,
            model,
            cache=Path("unused"),
            store=None,
            detected_share=0.0,
            num_given_views=1,
            simulated=clips.draw,
        )
        return data.batch(np.random.default_rng([0, step]), 3, 30, step=step)

    first, again, later = batch(1), batch(1), batch(2)
    assert first["latents_BTD"].shape == (3, 30, 64) and bool(first["has_boxes_BT"].all())
    assert not bool(first["has_dino_BT"].any()) and not bool(first["has_depth_BT"].any())
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
    assert not torch.equal(first["latents_BTD"], later["latents_BTD"])


def test_tracks_are_written_to_be_heard_and_looked_at(tmp_path: Path, capsys) -> None:
    out = tmp_path / "clips"
    arguments = ["tracks", "-o", str(out), "--count", "2", "--seconds", "1", "--concept", "car"]
    assert cli.run(arguments) == 0
    assert sorted(path.suffix for path in out.iterdir()) == [".png", ".png", ".wav", ".wav"]
    assert "train-00000001: car" in capsys.readouterr().out
    assert cli.run([*arguments[:-1], "teapot"]) == 2
    assert "no concept 'teapot'" in capsys.readouterr().err
