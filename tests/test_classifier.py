"""The sound classifier: blind to side and level, learns, saves and refuses what is broken."""

import numpy as np
import pytest
import torch

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation.clips import clip_record
from spatial_v2a.inference.evaluation.scoring import named_class
from spatial_v2a.models.classifier import (
    CONFIG_NAME,
    ClassifierConfig,
    SoundClassifier,
    clip_logits,
)
from spatial_v2a.timing import TIMING
from spatial_v2a.training.classifier import (
    ClassifierObjective,
    accuracy,
    collect_windows,
    default_config,
    train_classifier,
)
from spatial_v2a.training.shards import shard_paths
from spatial_v2a.truth import class_window_starts, clip_truth
from tests import evaluation_clips as fake

RATE_HZ = TIMING.sample_rate_hz
PITCH_HZ = {"bell": 2000.0, "engine": 120.0}


def pitch_L(class_name: str, seconds: float) -> np.ndarray:
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    hiss = fake.noise_L(len(time_s), seed=3) * 0.05
    return 0.1 * np.sin(2 * np.pi * PITCH_HZ[class_name] * time_s) + hiss


def pitch_clip(class_name: str, number: int):
    return fake.make_clip(
        f"{class_name}-{number}",
        fake.path_deg(90, seed=number),
        class_name=class_name,
        mono_L=pitch_L(class_name, 3.0),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    model = SoundClassifier(default_config().model_copy(update={"window_samples": RATE_HZ}))
    windows = collect_windows([pitch_clip(name, 1) for name in PITCH_HZ], model)
    objective = ClassifierObjective(model)
    power_BMT = (10.0 ** windows.power_BCMT.float()).sum(1)

    def loss() -> float:
        batch = {"power_BMT": power_BMT, "label_B": windows.label_B}
        with torch.no_grad():
            losses = objective.train()(batch, step=0, rng=torch.Generator())
        objective.eval()
        return float(losses["loss"])

    before, folder = loss(), tmp_path_factory.mktemp("classifier")
    train_classifier(windows, model, folder, num_steps=20, seed=0, batch_size=8)
    after = loss()
    assert after < before / 2, f"loss went from {before:.2f} to {after:.2f}"
    return model


def test_blind_to_side_and_level(trained):
    sound = torch.from_numpy(pitch_L("bell", 1.0)).float()
    left = torch.stack([sound, 0 * sound])[None]
    right_quiet = torch.stack([0 * sound, 0.03 * sound])[None]
    with torch.no_grad():
        # The floor of the level keeps it from being exact.
        torch.testing.assert_close(trained(left), trained(right_quiet), atol=0.05, rtol=0.05)


def test_learns_two_pitches(trained):
    score = accuracy(collect_windows([pitch_clip(n, 2) for n in PITCH_HZ], trained), trained)
    assert score.windows == score.clips == 1.0
    assert score.num_clips == 2 and score.confusions == []


def test_names_a_clip_where_the_truth_is_audible(trained):
    clip = pitch_clip("engine", 4)
    record = clip_record(clip, 0)
    assert named_class(clip.audio_LC(), clip.audio_LC(), record, trained) == "engine"
    assert named_class(0 * clip.audio_LC(), clip.audio_LC(), record, trained) == "silence"


def test_window_starts_skip_silence():
    mono_L = fake.noise_L(5 * RATE_HZ, seed=0)
    mono_L[: 2 * RATE_HZ] = 0
    clip = fake.make_clip("k", np.full(150, 10.0), mono_L=mono_L)
    starts = class_window_starts(
        clip_truth(clip.meta),
        clip.audio_LC(),
        window_samples=RATE_HZ,
        hop_samples=RATE_HZ // 2,
    )
    assert starts == [s * RATE_HZ // 2 for s in (3, 4, 5, 6, 7, 8)]


def test_save_and_load_give_the_same_logits(trained, tmp_path):
    trained.save(tmp_path)
    again = SoundClassifier.load(tmp_path)
    audio_CL = torch.from_numpy(np.stack([pitch_L("bell", 2.0)] * 2)).float()
    torch.testing.assert_close(
        clip_logits(again, audio_CL, starts=[0, RATE_HZ]),
        clip_logits(trained, audio_CL, starts=[0, RATE_HZ]),
        atol=0.05,
        rtol=0.05,
    )
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1_000_000


def test_broken_folders_are_refused(trained, tmp_path):
    with pytest.raises(UserError, match="cannot read the classifier"):
        SoundClassifier.load(tmp_path / "nowhere")
    trained.save(tmp_path)
    other = ClassifierConfig.model_validate_json((tmp_path / CONFIG_NAME).read_text())
    narrow = other.model_copy(update={"class_names": list(CLASS_NAMES[:2])})
    (tmp_path / CONFIG_NAME).write_text(narrow.model_dump_json())
    with pytest.raises(UserError, match="does not fit"):
        SoundClassifier.load(tmp_path)


def test_no_shards_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no shards \(\*.tar\)"):
        shard_paths([tmp_path])
