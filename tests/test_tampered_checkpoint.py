"""Tampered checkpoints: one UserError in one line, soon, in little memory; never a traceback."""

import json
import os
import re
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from spatial_v2a import Config
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.errors import UserError
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.checkpoint import read_card
from tests.tiny_checkpoint import write_tiny_checkpoint

# Of this process's time: the machine may be busy.
MAX_SECONDS = 10.0
MAX_BYTES = 600 * 2**20


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


def text_of(change: Callable[[str], str | bytes]) -> Callable[[Path], None]:
    """Changes the text of config.yaml."""

    def tamper(folder: Path) -> None:
        path = folder / "config.yaml"
        changed = change(path.read_text())
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())

    return tamper


def value(where: str, new: object) -> Callable[[Path], None]:
    """Sets one value of config.yaml, by its path."""

    def tamper(folder: Path) -> None:
        path = folder / "config.yaml"
        data = yaml.safe_load(path.read_text())
        *sections, key = where.split(".")
        section = data
        for name in sections:
            section = section[name]
        section[key] = new
        path.write_text(yaml.safe_dump(data))

    return tamper


def line(where: str, new: str) -> Callable[[Path], None]:
    """Writes YAML text for the value of a key at the top."""
    return text_of(lambda text: re.sub(rf"^{where}: .*$", f"{where}: {new}", text, flags=re.M))


def index_of(content: object) -> Callable[[Path], None]:
    """Gives the model an index."""

    def tamper(folder: Path) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / "model.safetensors.index.json").write_text(text)

    return tamper


def header_of(change: Callable[[dict], object]) -> Callable[[Path], None]:
    """Rewrites the header of model.safetensors."""

    def tamper(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        header = change(header) or header
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return tamper


def first_of(header: dict) -> dict:
    return next(entry for name, entry in header.items() if name != "__metadata__")


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def tamper(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))

    return tamper


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Something else in the place of a file."""

    def tamper(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return tamper


def linked_out(name: str) -> Callable[[Path], None]:
    """A file that is a link to one outside, with the same content."""

    def tamper(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        shutil.move(folder / name, outside)
        (folder / name).symlink_to(outside)

    return tamper


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300 * 2**20)


def renamed_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["other"] = tensors.pop(min(tensors))
    save_file(tensors, folder / "model.safetensors")


def whole_numbers(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.int() for name, tensor in load_file(path).items()}, path)


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
SIZES = [
    "autoencoder.frame_width", "autoencoder.tick_width", "autoencoder.decoder_frame_depth",
    "autoencoder.expansion", "autoencoder.frame_kernel", "autoencoder.num_bands",
    "autoencoder.hop", "autoencoder.num_odd_latents", "autoencoder.latent_dim",
    "generator.backbone.width", "generator.backbone.num_layers", "generator.backbone.num_heads",
    "generator.backbone.window_ticks", "generator.head.num_blocks", "generator.head.sigma_dim",
    "generator.conditioner.width", "generator.conditioner.num_layers",
    "generator.conditioner.shape_ticks", "perception.dino.num_layers", "perception.dino.patch_size",
    "perception.dino.hidden_size", "perception.dino.image_width", "perception.depth.num_layers",
    "perception.depth.head_size", "perception.depth.every_ticks", "perception.detector.image_width",
    "perception.detector.width_multiple", "perception.detector.depth_multiple",
    "perception.detector.num_distance_bins", "perception.max_boxes", "sampler.nfe",
    "perception.rtdetr.num_queries",
    "timing.tick_hz", "timing.sample_rate_hz", "timing.num_channels",
    "training.diffusion.steps", "training.vae.batch_size", "training.diffusion.crop_ticks",
]  # fmt: skip
TAMPERED: dict[str, Callable[[Path], None]] = {
    **{f"{where}-zero": value(where, 0) for where in SIZES},
    **{f"{where}-negative": value(where, -3) for where in SIZES},
    **{f"{where}-huge": value(where, 10**12) for where in SIZES},
    # Within the bounds of each value, larger than the weights all the same.
    "wide": value("generator.backbone.width", 16_384),
    "deep": value("generator.backbone.num_layers", 512),
    "wide-and-deep": lambda folder: [
        value(f"generator.backbone.{name}", new)(folder)
        for name, new in (("width", 16_384), ("num_layers", 512), ("hidden_dim", 16_384))
    ],
    "wide-encoder": value("perception.dino.hidden_size", 16_384),
    "deep-encoder": value("perception.depth.num_layers", 512),
    "wide-detector": value("perception.detector.width_multiple", 1.5),
    "uneven-heads": value("generator.backbone.num_heads", 7),
    "uneven-encoder": value("perception.dino.num_heads", 7),
    "uneven-grid": value("generator.conditioner.dino_tokens", [50, 50]),
    "large-grid": value("perception.depth.grid", [10**6, 10**6]),
    "wrong-latents": value("generator.latent_dim", 32),
    "laughs": text_of(lambda text: LAUGHS + text),
    "alias": text_of(lambda text: text.replace("name: tiny", "name: &n tiny\nother: *n")),
    "anchor-to-itself": text_of(lambda text: text + "x: &x [*x]\n"),
    "merge": text_of(lambda text: text + "sampler2: {<<: {a: 1}}\n"),
    "nested-lists": line("name", "[" * 5000 + "]" * 5000),
    "nested-maps": line("name", "{a: " * 5000 + "}" * 5000),
    "nested-blocks": text_of(lambda t: t + "".join(f"{' ' * n}a:\n" for n in range(300))),
    "open-list": line("name", "[" * 50_000),
    "list-as-key": text_of(lambda text: text + "? [a, b]\n: 1\n"),
    "map-as-key": text_of(lambda text: text + "? {a: b}\n: 1\n"),
    "number-as-key": text_of(lambda text: text + "1: 2\n"),
    "null-as-key": text_of(lambda text: text + "~: 2\n"),
    "key-twice": text_of(lambda text: text + "name: other\n"),
    "long-integer": line("name", "9" * 6000),
    "long-hex": line("name", "0x" + "f" * 6000),
    "long-sexagesimal": line("name", ":".join(["59"] * 3000)),
    "integer-of-30-digits": value("training.vae.seed", 10**30),
    "nan": value("sampler.sigma_max", float("nan")),
    "infinite": value("sampler.rho", float("inf")),
    "float-without-end": text_of(lambda t: t.replace("rho: 7.0", "rho: 1e999")),
    "fov": value("perception.default_fov_deg", 1e9),
    "date": line("name", "2026-12-01"),
    "set": line("name", "!!set {a, b}"),
    "binary": line("name", "!!binary aGVsbG8="),
    "python-tag": line("name", "!!python/object/apply:os.system [touch PWNED]"),
    "own-tag": line("name", "!x y"),
    "two-documents": text_of(lambda text: text + "---\n" + text),
    "name-of-controls": value("name", "\x1b[2J"),
    "name-without-end": value("name", "x" * 10_000),
    "name-is-a-list": value("name", ["a"]),
    "section-is-a-list": value("generator", [1]),
    "section-is-null": value("perception", None),
    "boolean-size": value("generator.backbone.width", True),
    "text-size": value("generator.backbone.width", "32"),
    "unknown-key": value("generator.backbone.num_layer", 2),
    "unknown-key-of-megabytes": text_of(lambda text: text + "k" * 100_000 + ": 1\n"),
    "version": value("format_version", 99),
    "version-is-a-map": value("format_version", {"a": [1] * 1000}),
    "not-a-map": text_of(lambda text: "- 1\n"),
    "nothing": text_of(lambda text: ""),
    "latin-1": text_of(lambda text: text.replace("tiny", "\xe9").encode("latin-1")),
    "utf-16": text_of(lambda text: text.encode("utf-16")),
    "zeros": text_of(lambda text: text.encode() + bytes(10)),
    "comment-of-megabytes": text_of(lambda text: text + "# " + "x" * 2**21),
    "config-large": replaced("config.yaml", large),
    "config-folder": replaced("config.yaml", Path.mkdir),
    "config-pipe": replaced("config.yaml", os.mkfifo),
    "config-device": replaced("config.yaml", lambda path: path.symlink_to("/dev/zero")),
    "config-link-loop": replaced("config.yaml", lambda path: path.symlink_to(path)),
    "config-link": linked_out("config.yaml"),
    "model-link": linked_out("model.safetensors"),
    "perception-link": linked_out("perception.safetensors"),
    "index-link": lambda folder: [
        index_of({"weight_map": {"x": "model.safetensors"}})(folder),
        linked_out("model.safetensors.index.json")(folder),
    ],
    "model-large": replaced("model.safetensors", large),
    "model-folder": replaced("model.safetensors", Path.mkdir),
    "model-pipe": replaced("model.safetensors", os.mkfifo),
    "perception-pipe": replaced("perception.safetensors", os.mkfifo),
    "detector-folder": replaced("detector-yolo.safetensors", Path.mkdir),
    "index-large": replaced("model.safetensors.index.json", large),
    "index-folder": replaced("model.safetensors.index.json", Path.mkdir),
    "index-pipe": replaced("model.safetensors.index.json", os.mkfifo),
    "index-list": index_of([1, 2]),
    "index-number": index_of(7),
    "index-null": index_of({"weight_map": None}),
    "index-empty": index_of({"weight_map": {}}),
    "index-of-numbers": index_of({"weight_map": {"a": 1, "b": 2}}),
    "index-of-lists": index_of({"weight_map": {"a": ["model.safetensors"]}}),
    "index-up": index_of({"weight_map": {"x": "../outside.safetensors"}}),
    "index-absolute": index_of({"weight_map": {"x": "/etc/passwd"}}),
    "index-nul": index_of({"weight_map": {"x": "model\0.safetensors"}}),
    "index-of-another": index_of({"weight_map": {"x": "perception.safetensors"}}),
    "index-of-a-pickle": index_of({"weight_map": {"x": "model.pt"}}),
    "index-names-what-is-not-there": index_of({"weight_map": {"x": "model.safetensors"}}),
    "index-of-no-file": index_of({"weight_map": {"x": "model-00001-of-00002.safetensors"}}),
    "index-twice": index_of('{"weight_map": {"x": "a", "x": "b"}}'),
    "index-nan": index_of('{"weight_map": NaN}'),
    "index-long-integer": index_of('{"weight_map": ' + "9" * 6000 + "}"),
    "index-nested": index_of("[" * 100_000),
    "index-nested-maps": index_of('{"a":' * 100_000),
    "index-not-text": replaced(
        "model.safetensors.index.json", lambda path: path.write_bytes(b"\xff\xfe{")
    ),
    "header-longer-than-the-file": bytes_of("model.safetensors", lambda d: b"\xff" * 8 + d[8:]),
    "header-of-gigabytes": bytes_of(
        "model.safetensors", lambda d: struct.pack("<Q", 2**33) + d[8:]
    ),
    "header-zero": bytes_of("model.safetensors", lambda d: bytes(8) + d[8:]),
    "header-list": header_of(lambda header: [1]),
    "header-shape": header_of(lambda header: first_of(header).update(shape=[2**40])),
    "header-negative-shape": header_of(lambda header: first_of(header).update(shape=[-1])),
    "header-offsets": header_of(lambda header: first_of(header).update(data_offsets=[0, 2**60])),
    "header-kind": header_of(lambda header: first_of(header).update(dtype="F4096")),
    "header-overlap": header_of(lambda header: first_of(header).update(data_offsets=[0, 4])),
    "weights-cut": bytes_of("model.safetensors", lambda data: data[: len(data) // 2]),
    "weights-empty": bytes_of("model.safetensors", lambda data: b""),
    "weights-of-text": bytes_of("perception.safetensors", lambda data: b"text" * 1000),
    "tensor-renamed": renamed_tensor,
    "tensors-of-whole-numbers": whole_numbers,
    "a-pickle-beside": lambda folder: (folder / "x.pt").write_bytes(b"x"),
}


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_checkpoint_is_one_line(kind: str, whole: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "tampered"))
    TAMPERED[kind](folder)
    start_s, peak_kb = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        model = SpatialV2A.from_pretrained(folder)
        Perception.from_checkpoint(folder, model.config.perception)
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak_kb
    message = str(caught.value)
    assert "\n" not in message and 20 < len(message) < 1000, message
    assert time.process_time() - start_s < MAX_SECONDS
    assert 1024 * grown_kb < MAX_BYTES, grown_kb
    assert not list(tmp_path.rglob("PWNED"))


def test_there_are_many_kinds() -> None:
    assert len(TAMPERED) >= 80


def test_a_card_that_is_a_link_is_not_passed_on(whole: Path, tmp_path: Path) -> None:
    """save_pretrained and push_to_hub would publish what it leads to."""
    folder = Path(shutil.copytree(whole, tmp_path / "tampered"))
    (tmp_path / "secret").write_text("a key")
    replaced("card.md", lambda path: path.symlink_to(tmp_path / "secret"))(folder)
    with pytest.raises(UserError, match="card.md is a link out of the folder"):
        SpatialV2A.from_pretrained(folder).save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    replaced("card.md", large)(folder)
    with pytest.raises(UserError, match="card.md has .* bytes"):
        read_card(folder)


def test_the_hubs_cache_keeps_files_beside_its_snapshots(whole: Path, tmp_path: Path) -> None:
    """Links that lead there are its own."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b/snapshots/1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(whole.iterdir()):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    assert SpatialV2A.from_pretrained(snapshot).config.name == "tiny"
