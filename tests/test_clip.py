"""The clip format: what is written is what is read, and wrong lengths are refused."""

from pathlib import Path

import numpy as np
import pytest
import webdataset

from spatial_v2a.clip import clip_to_sample, flac_bytes, jpeg_bytes, read_shards
from spatial_v2a.concepts import CLASS_NAMES, class_index
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING
from spatial_v2a.training.stage.export import export_clip, find_clip

NUM_TICKS = 6
GRID = (60, 80)


@pytest.fixture
def sample() -> dict:
    rng = np.random.default_rng(0)
    frames = [np.full((240, 320, 3), 40 * i, np.uint8) for i in range(NUM_TICKS)]
    box = {"id": 1, "class": "bell", "x": 0.4, "y": 0.3, "w": 0.1, "h": 0.2, "nearness": 0.5}
    source = {"id": 1, "class": "bell", "x": 0, "y": 0, "z": 0, "azimuth_deg": 5.0}
    source |= {"distance": 100.0, "visible": True, "sounding": True}
    meta = {"key": "walkers-MAP01-00000000", "num_ticks": NUM_TICKS, "fov_deg": 90.0}
    meta["sources"] = [{"id": 1, "class": "bell", "stem": "stem1.flac"}]
    meta["sources"].append({"id": 2, "class": "dog", "stem": None})
    meta["ticks"] = [{"boxes": [box], "sources": [source]}] * NUM_TICKS
    length = NUM_TICKS * TIMING.samples_per_tick
    audio_LC = rng.uniform(-0.5, 0.5, (length, 2)).astype(np.float32)
    return {
        "meta": meta,
        "jpegs": [jpeg_bytes(f) for f in frames],
        "depth_THW": rng.integers(0, 255, (NUM_TICKS, *GRID), dtype=np.uint8),
        "audio_LC": audio_LC,
        "stems": {"stem1.flac": 0.5 * audio_LC},
    }


def build(sample: dict, **changes: object) -> dict:
    parts = {**sample, **changes}
    return clip_to_sample(parts.pop("meta"), **parts)


def shard(folder: Path, *samples: dict) -> Path:
    path = folder / "stage-000000.tar"
    with open(path, "wb") as stream:
        writer = webdataset.TarWriter(stream, encoder=False, mtime=0)
        for entry in samples:
            writer.write(entry)
        writer.close()
    return path


def test_round_trip(sample: dict, tmp_path: Path) -> None:
    (clip,) = read_shards([shard(tmp_path, build(sample))])
    assert clip.num_ticks == NUM_TICKS
    np.testing.assert_array_equal(clip.depth_THW, sample["depth_THW"])
    np.testing.assert_allclose(clip.audio_LC(), sample["audio_LC"], atol=1 / 32768)
    np.testing.assert_allclose(clip.stem_LC(1), sample["audio_LC"] / 2, atol=1 / 32768)
    assert clip.stem_LC(2) is None
    assert [int(f.mean().round()) for f in clip.frames()] == [40 * i for i in range(NUM_TICKS)]
    assert clip.nearness_THW.dtype == np.float32
    assert 0 < clip.nearness_THW.min() and clip.nearness_THW.max() <= 1
    with pytest.raises(ValueError, match="no source 9"):
        clip.stem_LC(9)


def test_same_clip_same_bytes(sample: dict, tmp_path: Path) -> None:
    first = shard(tmp_path, build(sample)).read_bytes()
    assert shard(tmp_path, build(sample)).read_bytes() == first


@pytest.mark.parametrize("part", ["audio_LC", "depth_THW", "jpegs", "stems"])
def test_wrong_length_is_refused(sample: dict, part: str) -> None:
    short = {k: v[:-1] for k, v in sample["stems"].items()} if part == "stems" else None
    with pytest.raises(ValueError, match="lengths"):
        build(sample, **{part: short or sample[part][:-1]})


def test_sound_past_full_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="peak 1.500"):
        flac_bytes(np.full((10, 2), 1.5, np.float32))


def test_missing_shard_and_missing_part(sample: dict, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        list(read_shards([tmp_path / "absent.tar"]))
    broken = build(sample)
    del broken["audio.flac"]
    with pytest.raises(UserError, match="lacks audio.flac"):
        list(read_shards([shard(tmp_path, broken)]))


def test_export(sample: dict, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    soundfile = pytest.importorskip("soundfile")
    path = shard(tmp_path, build(sample))
    with pytest.raises(UserError, match="no clip 'other'"):
        find_clip([path], "other")
    files = export_clip(find_clip([path], None), tmp_path / "out", depth_grid=(6, 8))
    with av.open(str(files["clip.mp4"])) as container:
        assert not container.streams.audio
        assert container.streams.video[0].average_rate == TIMING.tick_hz
        assert sum(1 for _ in container.decode(video=0)) == NUM_TICKS
    audio, rate = soundfile.read(files["truth.wav"])
    assert (rate, len(audio)) == (TIMING.sample_rate_hz, NUM_TICKS * TIMING.samples_per_tick)
    assert len(files["geometry.jsonl"].read_text().splitlines()) == NUM_TICKS
    assert {p.name for p in (tmp_path / "out").iterdir()} == set(files)


def test_class_names() -> None:
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES) == 20
    assert class_index("engine") == 1
    with pytest.raises(ValueError, match="unknown class"):
        class_index("piano")
