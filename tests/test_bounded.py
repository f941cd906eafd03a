"""Text, YAML and JSON of strangers: plain data, or one UserError in one line, soon."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatial_v2a.bounded import (
    MAX_JSON_BYTES,
    MAX_YAML_BYTES,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
)
from spatial_v2a.conditioning.annotations import read_lines
from spatial_v2a.config import config_to_yaml, load_config, preset_names
from spatial_v2a.errors import UserError
from spatial_v2a.models.classifier import SoundClassifier, bundled_classifier_folder
from spatial_v2a.training.ablation import load_plan

HOSTILE_JSON = {
    "nothing": "",
    "half": '{"a": [1, ',
    "nested-lists": "[" * 100_000,
    "nested-maps": '{"a":' * 100_000,
    "long-integer": "9" * 6000,
    "integer-of-40-digits": "9" * 40,
    "nan": '{"a": NaN}',
    "infinite": '{"a": -Infinity}',
    "float-without-end": '{"a": 1e999}',
    "key-twice": '{"a": 1, "a": 2}',
    "key-twice-among-many": "{" + ", ".join(f'"{n}": 1' for n in range(60_000)) + ', "0": 1}',
    "zeros": '{"a": 1}' + "\0" * 10,
    "two": "{} {}",
}
HOSTILE_YAML = {
    "tag": "a: !!python/object/apply:os.system [touch PWNED]",
    "own-tag": "a: !x 1",
    "alias": "a: &a [1]\nb: *a",
    "merge": "a: {<<: {b: 1}}",
    "list-as-key": "? [a]\n: 1",
    "number-as-key": "1: 2",
    "key-twice": "a: 1\na: 2",
    "nested": "[" * 5000,
    "date": "a: 2026-12-01",
    "set": "a: !!set {b}",
    "nan": "a: .nan",
    "infinite": "a: 1e999",
    "long-integer": "a: " + "9" * 6000,
    "long": "a: " + "x" * 200_000,
    "two": "a: 1\n---\nb: 2",
    "controls": "a: \x07",
    "number-to-the-base-of-60": "a: " + ":".join(["59"] * 400) + ".5",
    "character-beyond-all": 'a: "\\UFFFFFFFF"',
    "tag-of-a-list-as-key": "? !!str {=: [b]}\n: 1",
    "tag-of-no-int": 'a: !!int ""',
    "tag-of-no-float": 'a: !!float ""',
    "tag-of-no-bool": "a: !!bool perhaps",
    "tag-of-no-map": "a: !!map b",
}


def refused(read: Callable[[], object]) -> str:
    start_s = time.process_time()
    with pytest.raises(UserError) as caught:
        read()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert time.process_time() - start_s < 10
    return str(caught.value)


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_json_is_plain_data_or_refused(kind: str) -> None:
    assert "its place" in refused(lambda: parse_json(HOSTILE_JSON[kind], where="its place"))


@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_yaml_is_plain_data_or_refused(kind: str) -> None:
    assert "its place" in refused(lambda: parse_yaml(HOSTILE_YAML[kind], where="its place"))


def test_plain_data_comes_through() -> None:
    plain = {"a": [1, -2.5, "x", True, None, {"b": []}], "c": 1e-4}
    assert parse_json(json.dumps(plain), where="x") == plain
    text = "a: [1, -2.5, x, true, null, {b: []}]\nc: 1e-4\n"
    assert parse_yaml(text, where="x") == plain


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        Path.mkdir,
        os.mkfifo,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.write_bytes(b"\xff\xfe"),
        lambda path: path.open("wb").truncate(2**30),
    ],
    ids=["missing", "folder", "pipe", "device", "loop", "no-text", "large"],
)
def test_only_a_regular_text_file_is_read(make, tmp_path: Path) -> None:
    path = tmp_path / "file"
    make(path)
    readers = (
        lambda: read_text(path, max_bytes=MAX_JSON_BYTES),
        lambda: read_json(path),
        lambda: list(read_lines(path)),
        lambda: load_plan(path),
    )
    for read in readers:
        assert str(path) in refused(read)


@pytest.mark.parametrize("kind", sorted(set(HOSTILE_JSON) - {"nothing"}))
def test_a_line_of_geometry_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text('{"t": 0}\n{"t": 0, "boxes": ' + HOSTILE_JSON[kind] + "\n")
    assert "line 2" in refused(lambda: list(read_lines(path)))


def test_a_line_of_geometry_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "given.jsonl"
    path.write_text('{"t": 0, "boxes": [' + "1," * 2**20)
    assert "characters or more" in refused(lambda: list(read_lines(path)))


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [10**9]},
        {"widths": []},
        {"widths": [0]},
        {"num_mels": 0},
        {"num_mels": 10**9},
        {"hop_samples": 0},
        {"window_samples": 10**12},
        {"class_names": []},
        {"sample_rate_hz": -1},
        {"dynamic_range_db": 0},
        {"x": 1},
    ],
    ids=str,
)
def test_a_tampered_classifier_is_refused(change: dict, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled_classifier_folder(), tmp_path / "classifier"))
    path = folder / "classifier.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "classifier" in refused(lambda: SoundClassifier.load(folder))


def test_damaged_weights_of_a_classifier_are_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled_classifier_folder(), tmp_path / "classifier"))
    path = folder / "classifier.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, path)
    message = refused(lambda: SoundClassifier.load(folder))
    assert name in message and str(path) in message


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_weights_of_a_classifier_are_real_numbers(kind: torch.dtype, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(bundled_classifier_folder(), tmp_path / "classifier"))
    path = folder / "classifier.safetensors"
    tensors = load_file(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = torch.full_like(tensors[name], 2**62, dtype=kind)
    save_file(tensors, path)
    assert "classifier" in refused(lambda: SoundClassifier.load(folder))


def test_every_preset_is_within_the_bounds_of_a_file() -> None:
    """What is written can be read again, with room."""
    for name in preset_names():
        assert len(config_to_yaml(load_config(name))) < MAX_YAML_BYTES / 10
