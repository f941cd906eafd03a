"""The whole report of a tiny checkpoint, its resume, and the long run's figures."""

import json
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a import Config
from spatial_v2a.inference.cli.evaluate import evaluate
from spatial_v2a.inference.engine.engine import Engine, EngineSettings, fastest_weights
from spatial_v2a.inference.engine.object_mix import ObjectMix
from spatial_v2a.inference.evaluation import longrun
from spatial_v2a.inference.evaluation.clips import choose_clips
from spatial_v2a.inference.evaluation.generate import detect, dub_clips, load_system
from spatial_v2a.inference.evaluation.sounds import Plan, clip_stamp, generate_all, generate_group
from spatial_v2a.inference.evaluation.store import SoundStore
from spatial_v2a.model import SpatialV2A
from spatial_v2a.timing import TIMING
from tests import evaluation_clips as fake
from tests.test_object_mix import seen as seen_ticks
from tests.tiny_checkpoint import write_tiny_checkpoint

KEYS = ["walk-a", "walk-b"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    samples = [fake.make_sample(key, fake.path_deg(12, seed=i)) for i, key in enumerate(KEYS)]
    samples.append(fake.make_sample("still", np.full(6, 10.0), sounding=False))
    fake.write_shard(folder / "000000.tar", samples)
    return folder


def run(out: Path, checkpoint: Path, shards: Path, **options) -> dict:
    evaluate(out, data=[shards], checkpoint=str(checkpoint), nfe=2, jobs=1, **options)
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def scored(checkpoint, shards, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("report")
    return out, run(out, checkpoint, shards)


def test_report_of_a_checkpoint(scored):
    out, report = scored
    assert list(report["rows"])[:5] == [
        "ground_truth",
        "codec",
        "model",
        "model_without_depth_boxes",
        "model_given",
    ]
    assert {"mirror_correlation", "mirror_swapped", "silent_scene_dbfs"} <= set(report["checks"])
    assert list(report["checks"]["silent_scene_dbfs"]) == ["still"]
    assert report["run"]["objects"] == "apart"
    read = {row: (out / "audio" / row / "walk-a.wav").read_bytes() for row in report["rows"]
            if row.startswith("model")}  # fmt: skip
    assert len(set(read.values())) == 3, "streams that are left out, or given, change the sound"


def test_its_resume(scored, checkpoint, shards):
    out, report = scored
    sounds = sorted((out / "audio" / "model").glob("*.wav"))
    assert [path.stem for path in sounds] == ["still", *KEYS]
    written = [path.stat().st_mtime_ns for path in sounds]
    sounds[1].unlink()
    assert run(out, checkpoint, shards) == report
    again = [path.stat().st_mtime_ns for path in sounds]
    assert again[0] == written[0] and again[2] == written[2] and again[1] != written[1]


def test_sounds_do_not_depend_on_the_processes(scored, checkpoint, shards, tmp_path):
    system = load_system(str(checkpoint), settings=EngineSettings(nfe=2))
    chosen = choose_clips([shards], num_clips=None, scenario=None)
    lines: list[str] = []
    generate_all(
        system,
        chosen,
        SoundStore(tmp_path),
        plan=Plan(given=False, mirror=False, is_brief=True),
        num_jobs=2,
        progress=lines.append,
    )
    assert [line.split(" of ")[0] for line in lines] == ["group 1/2", "group 2/2"]
    for key in ("still", *KEYS):
        made, known = ((root / "model" / f"{key}.wav").read_bytes()
                       for root in (tmp_path, scored[0] / "audio"))  # fmt: skip
        assert made == known, key


def test_a_brief_report_holds_the_model_alone(scored, checkpoint, shards, tmp_path):
    brief = run(tmp_path, checkpoint, shards, brief=True, given=False, mirror=False)["rows"]
    assert list(brief) == ["ground_truth", "model", "mono"]
    whole = scored[1]["rows"]
    assert brief == {name: whole[name] for name in brief}, "leaving rows out changes no figure"


def test_third_octaves_find_a_tone():
    time_s = np.arange(TIMING.sample_rate_hz) / TIMING.sample_rate_hz
    tone_LC = np.stack([0.1 * np.sin(2 * np.pi * 1000 * time_s)] * 2, axis=-1)
    bands = longrun.third_octave_db(tone_LC)
    assert longrun.BAND_CENTRES_HZ[int(bands.argmax())] == pytest.approx(1000)
    assert bands.max() == pytest.approx(-23.0, abs=0.2)


def test_minutes_compare_by_hand():
    """Half the level everywhere is -6 dB in level and in every band that is heard."""
    noise_LC = np.random.default_rng(0).normal(size=(TIMING.sample_rate_hz, 2)) * 0.05
    loud, quiet = (
        longrun.minute_of(sound_LC, np.array(tick_ms), np.array([fresh_ms, np.nan, np.nan]))
        for sound_LC, tick_ms, fresh_ms in (
            (noise_LC, [20.0, 40.0, 20.0], 10.0),
            (noise_LC / 2, [30.0] * 3, 12.0),
        )
    )
    assert (loud.p50_ms, loud.num_misses, quiet.num_misses) == (20.0, 1, 0)
    result = longrun.LongRun([loud, loud, quiet], realtime_factor=1.0)
    assert result.level_db == pytest.approx(-6.02, abs=0.01)
    assert result.side_over_mid_db == pytest.approx(0.0, abs=0.01)
    assert result.worst_band_db == pytest.approx(6.02, abs=0.01)
    assert result.tick_change == pytest.approx(0.5)
    assert result.fresh_change == pytest.approx(0.2)
    assert result.tick_change_beside_fresh == pytest.approx(0.25)
    assert result.trend_beside_fresh == pytest.approx(0.25), "two minutes: the line meets both"


def test_looped_frames_end_on_time():
    frames = [np.zeros((1, 1, 3)), np.ones((1, 1, 3))]
    shown = [frame.flat[0] for frame in longrun.looped(lambda: frames, 5)]
    assert shown == [0, 1, 0, 1, 0]


def test_long_run_reports_each_minute(checkpoint, monkeypatch, tmp_path):
    """Minutes of four ticks: the run is the same, only shorter."""
    monkeypatch.setattr(longrun, "MINUTE_TICKS", 4)
    monkeypatch.setattr(longrun, "FRESH_EVERY_TICKS", 2)
    system = load_system(str(checkpoint), settings=EngineSettings(nfe=1))
    frames = [np.full((240, 320, 3), value, np.uint8) for value in (40, 90)]
    result = longrun.long_run(system, lambda: frames, minutes=3, progress=lambda line: None)
    assert len(result.minutes) == 3
    assert result.minutes[1].level_dbfs > -120 and np.isfinite(result.level_db)
    assert all(0 < minute.p50_ms <= minute.p99_ms for minute in result.minutes)
    assert all(0 < minute.fresh_ms < 1000 for minute in result.minutes)
    plain = result.as_json()
    assert len(plain["minutes"][0]["band_dbfs"]) == len(plain["band_db"]) == 26
    assert json.loads(json.dumps(plain)) == plain
    longrun.draw_long_run(tmp_path / "run.png", result, title="three minutes")
    assert (tmp_path / "run.png").stat().st_size > 10_000


def test_a_clip_does_not_hear_its_neighbours(checkpoint):
    """Clips of different length in one engine: each is the sound of its own `seed + slot` run."""
    clips = [fake.make_clip("a", fake.path_deg(6, seed=1)), fake.make_clip("b", np.zeros(4))]
    system = load_system(str(checkpoint), settings=EngineSettings(nfe=1))
    seen = [detect(system, clip) for clip in clips]
    sounds = dub_clips(system, seen)
    assert [len(sound_LC) // TIMING.samples_per_tick for sound_LC in sounds] == [6, 4]
    for slot, ticks in enumerate(seen):
        alone = system.with_settings(seed=slot)
        np.testing.assert_allclose(sounds[slot], dub_clips(alone, [ticks])[0], atol=1e-4)


def test_a_clip_with_two_objects_is_heard_apart_and_changes_no_neighbour(checkpoint, tiny_config):
    """Neighbours to the bit; the clip itself as alone with its `seed + slot`."""
    system = load_system(str(checkpoint), settings=EngineSettings(nfe=1))
    clips = [
        seen_ticks(tiny_config, pictures)
        for pictures in (["A"] * 6, ["A"] * 2 + ["AB"] * 3, ["A", "B", "-", "C"])
    ]
    apart = dub_clips(system, clips)
    system.objects = "together"
    together = dub_clips(system, clips)
    system.objects = "apart"
    for slot in (0, 2):
        assert np.abs(apart[slot]).max() > 1e-4 and np.array_equal(apart[slot], together[slot])
    assert apart[1].shape == together[1].shape
    assert not np.allclose(apart[1], together[1], atol=1e-4)
    alone = system.with_settings(seed=1)
    assert np.array_equal(apart[1], dub_clips(alone, [clips[1]])[0])
    engine = Engine(system.model, num_streams=4, settings=alone.settings, streams_per_noise=4)
    mix = ObjectMix(engine)
    expected = np.concatenate([mix.step(*tick).mix_NLC[0] for tick in clips[1]])
    assert np.array_equal(apart[1], expected)
    without = []
    for system.objects in ("apart", "together"):
        without.append(dub_clips(system, clips, "depth", "boxes"))
    assert all(np.array_equal(a, b) for a, b in zip(*without, strict=True))


def test_sounds_heard_otherwise_are_made_anew(checkpoint, tmp_path):
    system = load_system(str(checkpoint), settings=EngineSettings(nfe=1))
    clip, store = fake.make_clip("a", fake.path_deg(4, seed=1)), SoundStore(tmp_path)
    stamps = {}
    plan = Plan(given=False, mirror=False, only_model=True)
    for system.objects in ("together", "apart"):
        stamp = stamps[system.objects] = clip_stamp(system, clip, slot=0)
        assert store.notes("model", "a", stamp=stamp) is None
        generate_group(system, [clip], store, plan=plan)
        assert store.notes("model", "a", stamp=stamp) is not None
    assert store.notes("model", "a", stamp=stamps["together"]) is None


@pytest.mark.parametrize("run_as", ["dub", "live"])
def test_as_a_command_every_clip_is_heard_as_that_command_does(checkpoint, run_as):
    """Compiled, with its weights, each clip by itself."""
    settings = EngineSettings(nfe=1)
    system = load_system(str(checkpoint), settings=settings, run_as=run_as)
    weights = fastest_weights("cpu") if run_as == "live" else "float32"
    assert system.settings.weights == weights
    plain = load_system(str(checkpoint), settings=settings)
    assert system.digest != plain.digest
    clips = [fake.make_clip(key, np.zeros(4)) for key in "ab"]
    sounds = dub_clips(system, [detect(system, clip) for clip in clips])
    model = SpatialV2A.from_pretrained(checkpoint)
    for seed, (clip, sound_LC) in enumerate(zip(clips, sounds, strict=True)):
        fov_deg = clip.meta["fov_deg"]
        with model.stream(nfe=1, seed=seed, weights=weights, fov_deg=fov_deg) as stream:
            pushed_LC = np.concatenate([stream.push(frame) for frame in clip.frames()])
        assert np.abs(pushed_LC).max() > 1e-4
        np.testing.assert_allclose(sound_LC, pushed_LC, atol=1e-3)
