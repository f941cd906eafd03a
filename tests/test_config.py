"""Strict configuration: presets, round trip, and errors that name the key and the remedy."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from spatial_v2a.config import (
    RENAMED,
    Config,
    config_to_yaml,
    load_config,
    parse_config,
    preset_names,
)
from spatial_v2a.errors import UserError
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.checkpoint import find_checkpoint

PRESETS = ("base", "large", "stage", "tiny")


def fails(match: str, preset: str = "tiny", *overrides: str) -> str:
    """Expects a UserError; returns its text after checking that it is one line."""
    with pytest.raises(UserError, match=match) as caught:
        load_config(preset, list(overrides))
    message = str(caught.value)
    assert "\n" not in message, message
    return message


def test_the_presets_are_these() -> None:
    assert tuple(preset_names()) == PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_preset_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(name)
    assert config.name == name
    path = tmp_path / "again.yaml"
    path.write_text(config_to_yaml(config))
    assert load_config(path) == config
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    assert load_config(tmp_path) == config, "a checkpoint folder is read through its config.yaml"


@pytest.mark.parametrize(
    "name, smallest, largest",
    [
        ("tiny", 10_000, 500_000),
        # 64 MB in 16 bits, with room for the compact encoders.
        ("stage", 15_000_000, 29_000_000),
        ("base", 85_000_000, 120_000_000),
        ("large", 260_000_000, 340_000_000),
    ],
)
def test_preset_has_the_promised_size(name: str, smallest: int, largest: int) -> None:
    with torch.device("meta"):
        model: nn.Module = SpatialV2A(load_config(name))
    num_params = sum(p.numel() for p in model.parameters())
    assert smallest <= num_params <= largest, f"{name} has {num_params:,} parameters"


def test_overrides_make_a_new_config() -> None:
    before = load_config("tiny")
    after = load_config("tiny", ["sampler.nfe=5", "training.vae.learning_rate=1e-4", "name=mine"])
    assert (after.sampler.nfe, after.training.vae.learning_rate, after.name) == (5, 1e-4, "mine")
    assert before == load_config("tiny")


def test_override_can_set_lists_and_none() -> None:
    config = load_config("tiny", ["perception.depth.grid=[3, 4]", "perception.dino.source=null"])
    assert config.perception.depth.grid == (3, 4)
    assert config.perception.dino.source is None


def test_config_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_config("tiny").name = "other"


def test_unknown_key_names_its_path_and_the_nearest_key() -> None:
    message = fails("unknown key", "tiny", "generator.backbone.num_layer=3")
    assert "'generator.backbone.num_layer'" in message
    assert "'generator.backbone.num_layers'" in message


@pytest.mark.parametrize(
    "override, path",
    [
        ("sampler.nfe=three", "sampler.nfe"),
        ("sampler.nfe='3'", "sampler.nfe"),
        ("sampler.nfe=2.5", "sampler.nfe"),
        ("sampler.nfe=true", "sampler.nfe"),
        ("sampler.nfe=0", "sampler.nfe"),
        ("sampler.kind=magic", "sampler.kind"),
        ("generator.backbone.width=-4", "generator.backbone.width"),
        ("perception.depth.grid=[three, 4]", "perception.depth.grid"),
        ("training=7", "training"),
    ],
)
def test_wrong_value_names_path_and_value(override: str, path: str) -> None:
    message = fails("tiny", "tiny", override)
    assert f"'{path}" in message
    value = override.partition("=")[2].strip("'[]").split(",")[0]
    assert value.lower() in message.lower()


def test_missing_key_is_named() -> None:
    fails("key 'perception.depth.grid.1' is missing", "tiny", "perception.depth.grid=[3]")
    with pytest.raises(UserError, match="key 'name' is missing"):
        parse_config(config_to_yaml(load_config("tiny")).replace("name: tiny\n", ""), where="x")


def test_sections_must_agree() -> None:
    assert "64" in fails("generator.latent_dim is 32", "tiny", "generator.latent_dim=32")
    assert "12" in fails("generator.forgotten_dims is 64", "stage", "generator.forgotten_dims=64")


@pytest.mark.parametrize("override", ["sampler.nfe", "=3", "sampler..nfe=3", "name.x=3"])
def test_malformed_override(override: str) -> None:
    fails("override", "tiny", override)


def test_missing_file_names_the_presets() -> None:
    message = fails("no config file", "no_such_preset")
    assert all(name in message for name in PRESETS)


@pytest.mark.parametrize(
    "text, match",
    [
        ("a: [1", "not valid YAML"),
        ("name: a\nname: b\n", "given twice"),
        ("- 1\n- 2\n", "not a mapping"),
        ("", "not a mapping"),
        ("format_version: 99\nname: x\n", "format_version 99"),
        ("name: 2026-11-21\n", "."),
        ("!!python/object:os.system {}\n", "not valid YAML"),
    ],
    ids=["syntax", "twice", "list", "empty", "version", "date", "tag"],
)
def test_bad_file(text: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=match) as caught:
        load_config(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match="cannot read"):
        load_config(path)


def test_exponents_without_a_dot_are_numbers() -> None:
    """YAML 1.1 reads 3e-4 as text, which once turned learning rates into errors."""
    text = re.sub("learning_rate: .*", "learning_rate: 3e-4", config_to_yaml(load_config("tiny")))
    config: Config = parse_config(text, where="text")
    assert config.training.vae.learning_rate == 3e-4


def test_keys_of_older_files_and_commands_still_load() -> None:
    """The bundled checkpoint keeps the names of the day on which it was saved."""
    text = (find_checkpoint("stage") / "config.yaml").read_text()
    assert all(f"{path.split('.')[-1]}: " in text for path in RENAMED)
    old = parse_config(text, where="old")
    assert (old.perception.persistence_s, old.sampler.pan_curve) == (3.0, 0.2)
    assert old.perception.detector.zoom_weight == old.perception.rtdetr.zoom_weight == 0.9
    assert parse_config(config_to_yaml(old), where="new") == old
    for name in ("pan_bend", "pan_curve"):
        both = parse_config(text, where="old", overrides=[f"sampler.{name}=0.5"])
        assert both.sampler.pan_curve == 0.5


OFF = {
    "generator.positions": "interleaved",
    "training.vae.latent_noise": 0.0,
    "training.vae.adversarial_weight": 0.0,
    "training.vae.feature_matching_weight": 0.1,
    "training.vae.adversarial_after": 200,
    "training.diffusion.objective.odd_weight": 1.0,
    "training.consistency.objective.odd_weight": 1.0,
}


def test_configs_of_earlier_releases_load_without_what_was_off() -> None:
    """The bundle of 2026-12-01 names `positions`; what was on has no code any more."""
    overrides = [f"{key}={value}" for key, value in OFF.items()]
    for name in ("tiny", find_checkpoint("stage")):
        assert load_config(name, overrides) == load_config(name)
    for key, value in (
        ("generator.positions", "fused"),
        ("training.vae.latent_noise", "0.5"),
        ("training.vae.adversarial_weight", "0.1"),
        ("training.diffusion.objective.odd_weight", "3.0"),
    ):
        message = fails("no longer has", "tiny", f"{key}={value}")
        assert key in message and value in message, message
