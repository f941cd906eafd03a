"""Detectors of everyday objects by name: the hub's, ultralytics', and weights from npm packages."""

import hashlib
import io
import json
import os
import stat
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

from spatial_v2a.conditioning.detectors import (
    get_detector,
    kind_of,
    list_detectors,
    load_detector,
)
from spatial_v2a.conditioning.nanodet import (
    NANODET,
    NanoDet,
    PublishedWeights,
    cache_folder,
    digest_of,
    fetch,
    is_present,
    load_weights,
    nanodet_state,
    weights_path,
)
from spatial_v2a.conditioning.yolo import build_yolo11
from spatial_v2a.config import DetectorSettings
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.main import run

FRAME_BHWC = torch.from_numpy(
    np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
)


@pytest.fixture(autouse=True)
def own_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# By name.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nanodet", "nanodet"),
        ("ustc-community/dfine-small-coco", "hub"),
        ("./dfine", "hub"),
        ("yolo11n", "ultralytics"),
        ("yolo11n.pt", "ultralytics"),
        ("./weights/mine.pt", "ultralytics"),
    ],
)
def test_a_name_tells_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nanodet", "get it: spatial-v2a detectors get nanodet"),
        ("nobody/detector", "get it: spatial-v2a detectors get nobody/detector"),
        ("./nowhere", "no folder ./nowhere"),
        ("yolo11n", "get it: spatial-v2a detectors get yolo11n.pt"),
        ("./none.pt", "no file ./none.pt"),
        ("detr", "'detr' is unknown; choose nanodet"),
    ],
)
def test_what_is_not_here_is_one_line_with_a_remedy(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load_detector(name)
    assert "\n" not in str(caught.value)


def _tiny_rtdetr() -> RTDetrForObjectDetection:
    backbone = RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8, 8, 8],
        encoder_hidden_dim=16,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_layers=1,
        decoder_ffn_dim=16,
        decoder_attention_heads=2,
        num_queries=6,
        id2label={0: "tram", 1: "cow", 2: "stone"},
        label2id={"tram": 0, "cow": 1, "stone": 2},
    )
    return RTDetrForObjectDetection(config)


def test_a_hub_detector_brings_its_own_names(tmp_path: Path) -> None:
    """`id2label` is the vocabulary, whatever its size."""
    _tiny_rtdetr().save_pretrained(tmp_path / "mine")
    detector = load_detector(str(tmp_path / "mine"))
    assert detector.names == ("tram", "cow", "stone")
    detector.settings = detector.settings.model_copy(update={"score_threshold": 0.0})
    (found,) = detector.detect(FRAME_BHWC)
    assert len(found.class_K) > 0 and found.class_K.max() < 3
    entry = get_detector(str(tmp_path / "mine"))
    assert entry.path == tmp_path / "mine" and entry.num_bytes > 0


def test_the_hubs_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laid out as huggingface_hub does; what has no safetensors counts as absent."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("fine", "pickle"):
        folder = tmp_path / "hub" / f"models--somebody--{name}"
        snapshot = folder / "snapshots" / ("0" * 40)
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        _tiny_rtdetr().save_pretrained(snapshot)
        if name == "pickle":
            (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    detector = load_detector("somebody/fine")
    assert detector.names == ("tram", "cow", "stone")
    with pytest.raises(UserError, match="somebody/pickle is not on this machine"):
        load_detector("somebody/pickle")
    found = {entry.name: entry for entry in list_detectors()}
    assert found["somebody/fine"].num_bytes > 0 and "somebody/pickle" not in found


@pytest.mark.parametrize("text", ["[" * 200_000, '{"model_type": ["d_fine"]}', "\xff", "9" * 6000])
def test_a_damaged_model_in_the_hubs_cache_is_no_detector(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--somebody--odd"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").touch()
    (snapshot / "config.json").write_text(text, encoding="latin-1")
    assert "somebody/odd" not in {entry.name for entry in list_detectors()}


def test_a_yolo_brings_its_own_names(tmp_path: Path) -> None:
    settings = DetectorSettings(depth_multiple=0.1, width_multiple=0.05, num_distance_bins=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_yolo11(settings, num_classes=3)
    model.names = {0: "tram", 1: "cow", 2: "stone"}
    torch.save({"model": model, "train_args": {"task": "detect"}}, tmp_path / "mine.pt")
    detector = load_detector(str(tmp_path / "mine.pt"), is_live=True)
    assert detector.names == ("tram", "cow", "stone")
    detector.settings = detector.settings.model_copy(update={"score_threshold": 0.0})
    (found,) = detector.detect(FRAME_BHWC)
    assert (detector.settings.image_height, detector.settings.image_width) == (256, 320)
    assert len(found.class_K) > 0 and found.class_K.max() < 3


# From npm packages.


def _tgz(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return path


def _published(archive: Path) -> PublishedWeights:
    state = {"weight": torch.arange(6, dtype=torch.float16).view(2, 3)}
    return PublishedWeights(
        name="tiny",
        licence="CC0-1.0",
        package="tiny-weights@1.0.0",
        archive_sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
        members=("package/weights.bin",),
        convert=lambda raw: {
            "weight": torch.frombuffer(bytearray(raw), dtype=torch.float16).view(2, 3)
        },
        digest=digest_of(state),
    )


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    raw = np.arange(6, dtype=np.float16).tobytes()
    return _tgz(tmp_path / "tiny.tgz", {"package/weights.bin": raw, "../../evil": b"x"})


def test_weights_of_a_file_are_checked_and_kept_private(archive: Path) -> None:
    published = _published(archive)
    assert not is_present(published)
    path = fetch(published, archive=archive)
    assert is_present(published) and path == weights_path("tiny")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [file.name for file in path.parent.iterdir()] == ["tiny.safetensors"]
    model = torch.nn.Linear(3, 2, bias=False)
    load_weights(published, model)
    assert model.weight.dtype == torch.float32 and model.weight[1, 2] == 5
    assert not list(archive.parent.parent.glob("evil"))


def test_another_archive_is_refused(archive: Path, tmp_path: Path) -> None:
    published = _published(archive)
    other = _tgz(tmp_path / "other.tgz", {"package/weights.bin": b"\0" * 12})
    with pytest.raises(UserError, match="is not tiny-weights@1.0.0 .*npm pack"):
        fetch(published, archive=other)
    known = replace(published, archive_sha256=hashlib.sha256(other.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="does not hold the weights of tiny"):
        fetch(known, archive=other)
    assert not cache_folder().exists() or not list(cache_folder().iterdir())


@pytest.mark.parametrize(
    ("members", "links"),
    [
        pytest.param({"package/other": b"x"}, {}, id="missing"),
        pytest.param({}, {"package/weights.bin": "/etc/hostname"}, id="a link"),
    ],
)
def test_members_that_are_no_files_are_refused(members, links, tmp_path: Path) -> None:
    odd = _tgz(tmp_path / "odd.tgz", members, links)
    with pytest.raises(UserError, match="cannot read .*odd.tgz"):
        fetch(_published(odd), archive=odd)


def test_damaged_weights_are_refused_and_fetched_again(archive: Path) -> None:
    published = _published(archive)
    path = fetch(published, archive=archive)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert not is_present(published)
    with pytest.raises(UserError, match="is not what was published; get it again"):
        load_weights(published, torch.nn.Linear(3, 2, bias=False))
    fetch(published, archive=archive)
    assert is_present(published)


def _put_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_npm_fetches_the_package(archive: Path, tmp_path: Path, monkeypatch) -> None:
    """A program of that name stands in for npm: no network here."""
    script = f'[ "$1" = view ] || [ "$2" != tiny-weights@1.0.0 ] || cp {archive} .'
    _put_npm(tmp_path / "bin", script, monkeypatch)
    assert fetch(_published(archive)).is_file()


def test_where_npm_fails_one_line_says_what_to_do(archive: Path, tmp_path, monkeypatch) -> None:
    _put_npm(tmp_path / "bin", "echo npm error code ENOTFOUND >&2; exit 1", monkeypatch)
    with pytest.raises(UserError, match=r"ENOTFOUND.*npm pack tiny.*--from FILE.tgz") as caught:
        fetch(_published(archive))
    assert "\n" not in str(caught.value)


def test_the_published_graph_becomes_the_network() -> None:
    """A graph as TensorFlow.js writes it, with its nodes out of order and other constants."""
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(tensor.shape, generator=generator).to(torch.float16)
        for name, tensor in NanoDet().state_dict().items()
    }
    specs, nodes, raw = [], [], b""

    def constant(name: str, values: np.ndarray) -> None:
        nonlocal raw
        spec = {"name": name, "shape": list(values.shape), "dtype": "int32"}
        if values.dtype == np.float16:
            spec |= {"dtype": "float32", "quantization": {"dtype": "float16"}}
        specs.append(spec)
        raw += values.tobytes()

    parts = sorted(
        {name.rpartition(".")[0] for name in state},
        key=list(dict.fromkeys(name.rpartition(".")[0] for name in state)).index,
    )
    for number, part in reversed(list(enumerate(parts))):
        name = f"P/convolution_{number}" if number else "P/convolution"
        constant(f"k{number}", state[f"{part}.weight"].numpy().transpose(2, 3, 1, 0).copy())
        constant(f"perm{number}", np.arange(4, dtype=np.int32))
        constant(f"b{number}", state[f"{part}.bias"].numpy())
        nodes.append({"op": "Conv2D", "name": name, "input": ["x", f"k{number}"]})
        nodes.append({"op": "Add", "name": f"add{number}", "input": [name, f"b{number}"]})
    graph = {"weightsManifest": [{"weights": specs}], "modelTopology": {"node": nodes}}
    made = nanodet_state(json.dumps(graph).encode(), raw)
    assert made.keys() == state.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in state.items())


# On the command line.


def test_the_list_says_what_is_here(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert run(["detectors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("nanodet ") and "Apache-2.0; not here" in lines[0]
    cache_folder().mkdir(parents=True)
    (cache_folder() / "mine.pt").write_bytes(b"12345")
    assert run(["detectors", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["detectors"]}
    assert rows["nanodet"]["path"] is None
    assert rows["mine.pt"]["num_bytes"] == 5 and "AGPL" in rows["mine.pt"]["licence"]
    assert [entry.name for entry in list_detectors()] == list(rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nano"], "'nano' is unknown"),
        (["nanodet", "--from", "none.tgz"], "no file none.tgz"),
        (["nobody/detector"], "cannot fetch nobody/detector"),
        (["./nowhere"], "no folder ./nowhere"),
        (["yolo99"], "publishes no yolo99"),
        (["./none.pt"], "publishes no ./none.pt"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_had_is_one_line(arguments, words, capsys) -> None:
    assert run(["detectors", "get", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and words in said and "\n" not in said


def test_another_package_is_not_nanodet(archive: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(["detectors", "get", "nanodet", "--from", str(archive)]) == 2
    assert f"is not {NANODET.package}" in capsys.readouterr().err
