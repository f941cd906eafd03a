"""Stems: every object alone, what they have of the mix, and that together they are the mix."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from spatial_v2a import Config
from spatial_v2a.conditioning.boxes import Box, BoxTokenBuilder, frame_features
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
from spatial_v2a.inference.dub.stems import WINDOW, Observations, divided
from spatial_v2a.inference.engine.object_mix import ObjectStreams
from spatial_v2a.inference.marking.reading import State, read_provenance
from spatial_v2a.timing import TIMING
from tests.tiny_checkpoint import write_tiny_checkpoint

STEP = TIMING.samples_per_tick


@pytest.fixture(autouse=True)
def no_openvino(monkeypatch) -> None:
    """It would compile longer than these moments take to hear."""
    monkeypatch.setenv(SWITCH, "0")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


def tone(hz: float, num_samples: int, *, left: float, right: float) -> np.ndarray:
    wave = 0.1 * np.sin(2 * np.pi * hz * np.arange(num_samples) / TIMING.sample_rate_hz)
    return np.stack([left * wave, right * wave], axis=-1).astype(np.float32)


def ticks(sound_LC: np.ndarray):
    return (sound_LC[n : n + STEP] for n in range(0, len(sound_LC), STEP))


@pytest.mark.parametrize("num_samples", [100, STEP, 3 * STEP + 77, 40 * STEP + 1])
def test_the_parts_sum_to_the_mix(num_samples: int) -> None:
    random = np.random.default_rng(0)
    mix, first, second = (
        (level * random.standard_normal((num_samples, 2))).astype(np.float32)
        for level in (0.1, 0.05, 0.2)
    )
    pieces = list(divided(ticks(mix), [ticks(first), ticks(second)]))
    parts = np.concatenate(pieces, axis=1)
    assert parts.shape == (3, num_samples, 2)
    error = np.abs(parts.sum(axis=0) - mix).max()
    assert error < 1e-6, f"{error:.2g}"


def test_each_part_gets_what_is_its_own() -> None:
    num = 60 * STEP
    low, high = tone(400, num, left=1.0, right=0.2), tone(2500, num, left=0.2, right=1.0)
    parts = np.concatenate(list(divided(ticks(low + high), [ticks(low), ticks(high)])), axis=1)
    inner = slice(WINDOW, -WINDOW)
    for part, own in zip(parts, (low, high), strict=False):
        error_db = 10 * np.log10(np.mean((part - own)[inner] ** 2) / np.mean(own[inner] ** 2))
        assert error_db < -40, f"{error_db:.1f} dB of the other object"
    assert np.abs(parts[2][inner]).max() < 1e-3, "the rest holds sound of an object"


def test_what_no_object_plays_is_the_rest() -> None:
    mix = tone(400, 30 * STEP, left=1.0, right=1.0)
    silent = np.zeros_like(mix)
    parts = np.concatenate(list(divided(ticks(mix), [ticks(silent)])), axis=1)
    assert not parts[0].any() and np.allclose(parts[1], mix, atol=1e-6)


def features_of(config: Config, boxes: list[Box]):
    perception = config.perception
    builder = BoxTokenBuilder(max_boxes=perception.max_boxes)
    tokens = [builder.step(boxes, fov_deg=90.0)]
    return frame_features(perception, tokens=tokens, num_ticks=1)


def box(track_id: int, x: float, size: float = 0.2) -> Box:
    return Box(track_id, class_index=0, cx=x, cy=0.5, w=size, h=size, nearness=0.5)


def test_every_object_stream_sees_its_object_only(tiny_config: Config) -> None:
    object_streams = ObjectStreams(tiny_config.perception.max_boxes)
    boxes = [box(7, 0.2), box(9, 0.8)]
    seen = object_streams.assign(features_of(tiny_config, boxes), tuple(boxes))
    masks_BK = seen.features.box_mask_BTK[:, 0]
    assert masks_BK.sum(dim=-1).tolist() == [2, 1, 1] + [0] * (tiny_config.perception.max_boxes - 2)
    assert seen.fresh_B.tolist()[:4] == [False, True, True, False] and seen.num_objects == 2
    for object_stream, track in enumerate(boxes, start=1):
        fields_KF = seen.features.boxes_BTKF[object_stream, 0][masks_BK[object_stream]]
        assert fields_KF.shape[0] == 1 and float(fields_KF[0, 0]) == pytest.approx(track.cx)
    # The one that left keeps its stream, and comes back to it.
    only = [box(9, 0.7)]
    seen = object_streams.assign(features_of(tiny_config, only), tuple(only))
    assert seen.features.box_mask_BTK[:, 0].sum(dim=-1).tolist()[:3] == [1, 0, 1]
    assert seen.allocation.plays_S[:2] == [True, True] and not seen.fresh_B.any()
    seen = object_streams.assign(features_of(tiny_config, boxes), tuple(boxes))
    assert not seen.fresh_B.any() and not seen.allocation.begun


def test_only_what_is_seen_is_an_observation(tiny_config: Config) -> None:
    observations = Observations()
    held = replace(box(9, 0.8), is_persisted=True)
    for boxes in ([box(7, 0.2), box(9, 0.8)], [box(7, 0.2), held], [held]):
        observations.add(features_of(tiny_config, boxes), tuple(boxes), fov_deg=90.0)
    seen = {i: [s.tick for s in found] for i, found in observations.of_object.items()}
    assert seen == {7: [0, 1], 9: [0]}
    bearings = [round(s.azimuth_deg) for s in observations.of_object[7]]
    assert bearings == [31, 31], "positive to the left"
    assert observations.of_object[7][0].nearness == 0.5


def write_clip_with_objects(folder: Path) -> tuple[Path, Path]:
    """A video and objects in it: 1 all the time, 8 for four ticks, and 5 from tick 20 on."""
    from spatial_v2a.concepts import CLASS_NAMES

    clip, given = folder / "clip.mp4", folder / "g.jsonl"
    write_video(clip, (np.full((32, 48, 3), 5 * n, np.uint8) for n in range(48)), 30)
    lines = []
    for tick in range(48):
        boxes = [{"id": 1, "class": CLASS_NAMES[0], "x": 0.1, "y": 0.3, "w": 0.2, "h": 0.4}]
        if tick >= 20:
            boxes += [{"id": 5, "class": CLASS_NAMES[1], "x": 0.6, "y": 0.3, "w": 0.2, "h": 0.4}]
        if 10 <= tick < 14:
            boxes += [{"id": 8, "class": CLASS_NAMES[2], "x": 0.4, "y": 0.3, "w": 0.1, "h": 0.1}]
        lines.append(json.dumps({"t": tick / 30, "boxes": boxes}))
    given.write_text("\n".join(lines))
    return clip, given


@pytest.mark.parametrize("objects", ["apart", "together"])
def test_the_command_writes_stems_that_sum_to_the_dub(
    tmp_path, checkpoint, capsys, monkeypatch, objects: str
) -> None:
    # PyTorch alone rounds a batch of streams otherwise than one stream.
    monkeypatch.delenv(SWITCH)
    clip, given = write_clip_with_objects(tmp_path)
    folder = tmp_path / "stems"
    out = tmp_path / "out.wav"
    words = ["dub", str(clip), "-o", str(out), "--checkpoint", str(checkpoint), "--nfe", "1",
             "--annotations", str(given), "--objects", objects, "--stems", str(folder)]  # fmt: skip
    assert run(words) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    listing = json.loads((folder / "stems.json").read_text())
    assert [entry["id"] for entry in listing["objects"]] == [1, 5], "8 was seen for 4 ticks only"
    assert listing["mix_is_the_files_sound"] is True
    dub = soundfile.read(out)[0]
    stems = [soundfile.read(folder / entry["sound"])[0] for entry in listing["objects"]]
    total = sum(stems) + soundfile.read(folder / listing["rest"])[0]
    error_db = 10 * np.log10(np.mean((total - dub) ** 2) / np.mean(dub**2))
    assert error_db < -80, f"stems differ from the dub by {error_db:.1f} dB"
    assert all(np.mean(stem**2) > 0 for stem in stems)
    for entry in listing["objects"]:
        curves = json.loads((folder / entry["curves"]).read_text())
        lengths = {len(values) for values in curves.values() if isinstance(values, list)}
        assert lengths == {48 if entry["id"] == 1 else 28}
        assert curves["azimuth_deg"][0] == pytest.approx(31 if entry["id"] == 1 else -21.8, abs=0.1)
        assert f"wrote {folder / entry['sound']}" in said
    report = read_provenance(folder / "mix.flac")
    assert report is not None and report.state == State.unsigned
    assert report.provenance is not None and report.provenance.settings["objects"] == objects
    # The same seed without stems is the same sound.
    plain = tmp_path / "plain.wav"
    assert run([*words[:3], str(plain), *words[4:-2]]) == 0
    assert np.array_equal(soundfile.read(plain)[0], dub)


def test_a_folder_with_files_stays_as_it_is(tmp_path: Path) -> None:
    clip, folder = tmp_path / "clip.mp4", tmp_path / "stems"
    write_video(clip, (np.full((32, 48, 3), 5 * n, np.uint8) for n in range(10)), 30)
    folder.mkdir()
    (folder / "mine.flac").write_bytes(b"mine")
    with pytest.raises(UserError, match="not empty"):
        plan_jobs([clip], stems=folder)
    with pytest.raises(UserError, match="is a file"):
        plan_jobs([clip], stems=folder / "mine.flac")
    with pytest.raises(UserError, match="one take only"):
        plan_jobs([clip], stems=tmp_path / "new", options=DubOptions(takes=2))
    assert (folder / "mine.flac").read_bytes() == b"mine"
