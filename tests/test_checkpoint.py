"""Checkpoint folders: round trip, sharding, and refusals that name the file and the remedy."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatial_v2a import tensor_files
from spatial_v2a.audio.panning import narrowed, widened
from spatial_v2a.config import Config, SamplerConfig
from spatial_v2a.errors import UserError
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models import checkpoint


@pytest.fixture(scope="module")
def model(tiny_config: Config) -> SpatialV2A:
    """A tiny model with statistics that differ from their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = SpatialV2A(tiny_config)
    dim = tiny_config.autoencoder.latent_dim
    made.set_latent_statistics(torch.linspace(-1, 1, dim), torch.linspace(0.5, 2, dim))
    return made


@pytest.fixture
def folder(model: SpatialV2A, tmp_path: Path) -> Path:
    """A sound checkpoint that a test may damage."""
    return model.save_pretrained(tmp_path / "good", card="# tiny\n")


def refuses(source: object, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        SpatialV2A.from_pretrained(source)
    assert "\n" not in str(caught.value), caught.value


def test_round_trip(model: SpatialV2A, folder: Path) -> None:
    loaded = SpatialV2A.from_pretrained(folder)
    assert loaded.config == model.config
    assert loaded.folder == folder
    assert not loaded.training
    for (name, got), want in zip(
        loaded.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert got.dtype == want.dtype, name
        # Vectors are stored exactly, matrices in float16.
        tolerance = 0.0 if want.dim() < 2 else 2**-10
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance and 1e-7)


def test_saving_a_loaded_model_changes_nothing(folder: Path, tmp_path: Path) -> None:
    again = SpatialV2A.from_pretrained(folder).save_pretrained(tmp_path / "again")
    for path in folder.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_perception_weights_and_card_travel_along(model: SpatialV2A, tmp_path: Path) -> None:
    encoders = {"dino.weight": torch.randn(4, 4, generator=torch.Generator().manual_seed(1))}
    first = model.save_pretrained(tmp_path / "first", card="# mine\n", perception=encoders)
    second = SpatialV2A.from_pretrained(first).save_pretrained(tmp_path / "second")
    assert (second / "card.md").read_text() == "# mine\n"
    got = tensor_files.read_tensors(second, checkpoint.PERCEPTION)
    torch.testing.assert_close(got, encoders, rtol=1e-3, atol=1e-3)


def test_normalize_is_inverted(model: SpatialV2A) -> None:
    latents = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model.denormalize(model.normalize(latents)), latents)


def test_pan_gain_widens_the_odd_dimensions_alone(model: SpatialV2A) -> None:
    sampler = model.config.sampler.model_copy(update={"pan_gain": 1.5})
    wide = SpatialV2A(model.config.model_copy(update={"sampler": sampler}))
    latents = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(2))
    num_odd = model.config.autoencoder.num_odd_latents
    got = wide.denormalize(wide.normalize(latents))
    torch.testing.assert_close(got[..., :-num_odd], latents[..., :-num_odd])
    torch.testing.assert_close(got[..., -num_odd:], 1.5 * latents[..., -num_odd:])


@pytest.mark.parametrize(("gain", "curve"), [(1.0, 0.0), (1.25, 0.16), (0.5, 1.0), (0.0, 0.2)])
def test_the_pan_is_widened_more_at_the_sides_and_narrowed_back(gain: float, curve: float) -> None:
    sampler = SamplerConfig(pan_gain=gain, pan_curve=curve)
    odd = torch.randn(500, 12, generator=torch.Generator().manual_seed(4))
    odd *= torch.linspace(0.01, 4.0, 500)[:, None]
    wide = widened(odd, sampler)
    torch.testing.assert_close(widened(-odd, sampler), -wide, rtol=0, atol=0)
    rms = odd.square().mean(-1, keepdim=True).sqrt()
    assert wide[0] / odd[0] == pytest.approx(float(gain + curve * rms[0] ** 2), rel=1e-5)
    assert (wide / odd)[rms[:, 0] > 2.5] == pytest.approx(gain + curve * 2.5**2, rel=1e-4)
    torch.testing.assert_close(narrowed(wide, sampler), odd, rtol=2e-3, atol=1e-5)


def test_a_pan_that_is_gone_stays_gone() -> None:
    flat = SamplerConfig(pan_gain=0.0)
    odd = torch.ones(2, 12)
    assert not widened(odd, flat).any() and not narrowed(odd, flat).any()


def test_statistics_must_be_positive(model: SpatialV2A) -> None:
    with pytest.raises(ValueError, match="positive"):
        model.set_latent_statistics(torch.zeros(64), torch.zeros(64))


def test_large_weights_are_split_and_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "MAX_FILE_BYTES", 5_000)
    draw = torch.Generator().manual_seed(3)
    tensors = {f"layer.{i}": torch.randn(30, 30, generator=draw) for i in range(9)}
    tensor_files.write_tensors(tmp_path, "model", tensors)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) == 5 and shards[0].name == "model-00001-of-00005.safetensors"
    assert all(path.stat().st_size < 6_000 for path in shards)
    torch.testing.assert_close(
        tensor_files.read_tensors(tmp_path, "model"), tensors, rtol=1e-3, atol=1e-3
    )
    shards[2].unlink()
    with pytest.raises(UserError, match="model-00003-of-00005.safetensors is missing"):
        tensor_files.read_tensors(tmp_path, "model")


def test_what_float16_cannot_hold_is_stored_as_it_is(tmp_path: Path) -> None:
    tensors = {"big": torch.full((2, 2), 1e6), "count": torch.tensor([[3]])}
    tensor_files.write_tensors(tmp_path, "model", tensors)
    torch.testing.assert_close(
        tensor_files.read_tensors(tmp_path, "model"), tensors, rtol=0, atol=0
    )


def test_saving_refuses_to_overwrite_unless_asked(model: SpatialV2A, folder: Path) -> None:
    before = (folder / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match="exists; choose another folder or ask to overwrite"):
        model.save_pretrained(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    model.save_pretrained(folder, card="# second\n", overwrite=True)
    assert (folder / "card.md").read_text() == "# second\n"
    assert [path.name for path in folder.parent.iterdir()] == ["good"], "nothing is left behind"


def test_failed_saving_leaves_the_old_folder(
    model: SpatialV2A, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", full_disk)
    with pytest.raises(UserError, match="No space left"):
        model.save_pretrained(folder, card="# half\n", overwrite=True)
    assert (folder / "card.md").read_text() == "# tiny\n"
    assert [path.name for path in folder.parent.iterdir()] == ["good"]


@pytest.mark.parametrize("name", ["nowhere", "./runs/nowhere", "a/b/c"])
def test_missing_folder(name: str) -> None:
    refuses(name, "no checkpoint folder .*; give a folder, a hub id")


def test_hub_id_out_of_reach() -> None:
    refuses("someone/no-such-model", "neither a folder here nor a hub repository in reach")


def test_file_instead_of_folder(folder: Path) -> None:
    refuses(folder / "model.safetensors", "is a file; give the checkpoint folder")


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refuses(folder, f"{name} is missing")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: pickle.dumps({"a": 1}),
        lambda data: b"\xff" * 8 + data[8:],
    ],
    ids=["cut", "empty", "pickle-inside", "header"],
)
def test_corrupt_weights(folder: Path, damage) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    refuses(folder, "model.safetensors is damaged")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": 3}'])
def test_corrupt_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    refuses(folder, "index.json is damaged")


def test_index_cannot_lead_outside_the_folder(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"weight_map": {"x": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refuses(folder, "names a file outside the folder")


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "weights.pkl", "last.ckpt"])
def test_pickles_are_refused(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(pickle.dumps({"weight": [1.0]}))
    refuses(folder, f"{name} is a pickle, which can run code")
    refuses(path, f"{name} is a pickle, which can run code")


def test_shape_mismatch_names_the_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(key for key, tensor in tensors.items() if tensor.dim() == 2)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path)
    refuses(folder, f"tensor '{name}' has shape .* the model needs")


def test_missing_and_unknown_tensors_are_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    value = tensors.pop("latent_mean_D")
    save_file(tensors, path)
    refuses(folder, "tensor 'latent_mean_D' is missing")
    save_file({**tensors, "latent_mean_D": value, "extra": value.clone()}, path)
    refuses(folder, "tensor 'extra' is unknown")


def test_unknown_format_version(folder: Path) -> None:
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("format_version: 1", "format_version: 7"))
    refuses(folder, "format_version 7, this release reads 1")


@pytest.mark.parametrize("name", checkpoint.bundled_names())
def test_bundled_checkpoint_is_small_and_loads(name: str) -> None:
    folder = checkpoint.find_checkpoint(name)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert max(sizes) < 16_000_000 and sum(sizes) < 64_000_000
    loaded = SpatialV2A.from_pretrained(name)
    assert float(loaded.latent_std_D.min()) > 0
    assert "licen" in checkpoint.read_card(folder).lower()
