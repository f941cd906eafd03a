"""The training loop: a killed run continues on the same loss curve; figures are what they say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from spatial_v2a.clip import flac_bytes
from spatial_v2a.config import load_config
from spatial_v2a.errors import UserError
from spatial_v2a.model import SpatialV2A
from spatial_v2a.training.loop import learning_rate
from spatial_v2a.training.shards import ShardIndex
from spatial_v2a.training.vae import (
    BandLevel,
    LevelDifference,
    MultiResolutionStft,
    si_sdr_db,
    train_vae,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One shard with three seconds of panned noise."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        for i in range(3):
            noise = 0.1 * rng.normal(size=(30 * 1600, 1))
            audio = (noise * [[i / 2, 1 - i / 2]]).astype(np.float32)
            writer.write({"__key__": f"clip-{i}", "audio.flac": flac_bytes(audio), "json": b"{}"})
    return folder


def tiny(steps: int, *overrides: str):
    """The tiny preset with a short autoencoder run."""
    return load_config(
        "tiny",
        [
            f"training.vae.steps={steps}",
            "training.vae.save_every=2",
            "training.vae.log_every=1",
            "training.vae.batch_size=2",
            "training.vae.crop_ticks=4",
            *overrides,
        ],
    )


def test_killed_run_continues_on_the_same_loss_curve(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after step 3 of 4 (a state exists of step 2), restarted: the last loss is the same."""
    config = tiny(4)
    whole = train_vae(config, [shards], [], tmp_path / "whole", init=None)

    import spatial_v2a.training.loop as loop

    update, calls = loop._update, []

    def killed_update(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(args[-1])
        return update(*args)

    monkeypatch.setattr(loop, "_update", killed_update)
    with pytest.raises(KeyboardInterrupt):
        train_vae(config, [shards], [], tmp_path / "killed", init=None)
    monkeypatch.setattr(loop, "_update", update)
    resumed = train_vae(config, [shards], [], tmp_path / "killed", init=None)

    assert resumed["loss"] == whole["loss"], (resumed, whole)
    a, b = (
        SpatialV2A.from_pretrained(tmp_path / name / "checkpoint") for name in ("whole", "killed")
    )
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y), name


def test_finished_run_of_more_steps_is_refused(shards: Path, tmp_path: Path) -> None:
    train_vae(tiny(2), [shards], [], tmp_path / "run", init=None)
    with pytest.raises(UserError, match="raise steps"):
        train_vae(tiny(1), [shards], [], tmp_path / "run", init=None)


def test_frozen_encoder_keeps_latents_and_generator_and_moves_the_decoder(
    shards: Path, tmp_path: Path
) -> None:
    train_vae(tiny(2), [shards], [], tmp_path / "first", init=None)
    first = tmp_path / "first" / "checkpoint"
    config = tiny(2, "training.vae.freeze_encoder=true")
    train_vae(config, [shards], [], tmp_path / "second", init=first)
    before, after = (
        SpatialV2A.from_pretrained(folder).state_dict()
        for folder in (first, tmp_path / "second" / "checkpoint")
    )
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved
    assert all(name.startswith("autoencoder.decoder.") for name in moved), sorted(moved)


def test_frozen_encoder_needs_an_encoder(shards: Path, tmp_path: Path) -> None:
    config = tiny(2, "training.vae.freeze_encoder=true")
    with pytest.raises(UserError, match="--init"):
        train_vae(config, [shards], [], tmp_path / "run", init=None)


def test_learning_rate_warms_up_holds_and_ends_at_zero() -> None:
    section = load_config("tiny").training.vae.model_copy(
        update={"steps": 100, "warmup_steps": 10, "decay_share": 0.5, "learning_rate": 1.0}
    )
    assert learning_rate(section, 0) == pytest.approx(0.1)
    assert learning_rate(section, 30) == 1.0
    assert learning_rate(section, 75) == pytest.approx(0.5)
    assert learning_rate(section, 100) == pytest.approx(0.0, abs=1e-12)


def test_shard_index_reads_parts_and_refuses_an_empty_folder(shards: Path, tmp_path: Path) -> None:
    index = ShardIndex([shards])
    assert index.keys == ["clip-0", "clip-1", "clip-2"]
    assert index.read("clip-1", "audio.flac")[:4] == b"fLaC"
    assert json.loads(index.read("clip-1", "json")) == {}
    with pytest.raises(UserError, match="spatial-v2a-train record"):
        ShardIndex([tmp_path])


def test_level_difference_sees_pan_and_spectral_distance_is_zero_when_equal() -> None:
    """A 12 dB pan against the centre is 12 dB of error (30 tanh(12 / 30) after the soft limit)."""
    noise = torch.randn(1, 1, 48_000, generator=torch.Generator().manual_seed(0)) * 0.1
    centre = noise.repeat(1, 2, 1)
    gain = 10 ** (6 / 20)
    left = torch.cat([noise * gain, noise / gain], dim=1)
    expected = 30 * np.tanh(12 / 30)
    assert LevelDifference(48_000)(left, centre).item() == pytest.approx(expected, abs=0.1)
    distance = MultiResolutionStft()
    assert distance(left, left).item() == 0.0
    assert distance(left, centre).item() > 0.1


def test_band_level_of_a_quieter_copy_is_its_attenuation() -> None:
    noise = torch.randn(1, 2, 48_000, generator=torch.Generator().manual_seed(0)) * 0.1
    for size in (512, 2048):
        level = BandLevel(48_000, size=size, num_bands=12)
        assert level(noise, noise).item() == 0.0
        assert level(0.5 * noise, noise).item() == pytest.approx(6.02, abs=0.05)


def test_si_sdr_of_a_known_mixture() -> None:
    """Target plus orthogonal noise of a tenth of its power is 10 dB, whatever the scale."""
    time = torch.arange(48_000) / 48_000
    target = torch.sin(2 * torch.pi * 100 * time).repeat(1, 2, 1)
    noise = torch.cos(2 * torch.pi * 100 * time).repeat(1, 2, 1) * 0.1**0.5
    assert si_sdr_db(0.3 * (target + noise), target).item() == pytest.approx(10.0, abs=0.01)
