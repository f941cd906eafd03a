"""The running engine: sync, panning, silence, stems, repeatability, resume."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a.audio.onsets import onset_times_s
from spatial_v2a.clip import Clip
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING
from spatial_v2a.training.stage.plan import ClipPlan, RecordingSettings, resolve_maps

pytest.importorskip("vizdoom", reason="vizdoom is not installed")

from spatial_v2a.training.stage import record as record_module  # noqa: E402
from spatial_v2a.training.stage.game import TIC_HZ, StageGame  # noqa: E402
from spatial_v2a.training.stage.mod import ACTOR_PREFIX, LOOKALIKES  # noqa: E402
from spatial_v2a.training.stage.record import (  # noqa: E402
    MESSAGE_ARGUMENTS,  # noqa: E402
    Studio,
    check_openal,
    record,
    record_clip,
)
from spatial_v2a.training.stage.scenarios import STRIDE_TICS  # noqa: E402


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    try:
        check_openal()
    except UserError as error:
        pytest.skip(str(error))
    return Studio(tmp_path_factory.mktemp("studio"))


def plan(scenario: str, *classes: str, **changes: object) -> ClipPlan:
    known = ClipPlan(
        key=f"{scenario}-MAP01-00000000",
        index=0,
        scenario=scenario,
        map_name="MAP01",
        seed=11,
        num_ticks=90,
        classes=classes,
        has_stems=False,
    )
    return dataclasses.replace(known, **changes)


def clip_of(studio: Studio, wanted: ClipPlan) -> Clip:
    sample = record_clip(studio, wanted)
    return Clip(sample.pop("__key__"), sample)


def level_db(audio: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(audio**2) + 1e-12))


def test_same_plan_same_bytes_and_stem_is_the_mix(studio: Studio) -> None:
    wanted = plan("walkers", "engine", has_stems=True)
    first = record_clip(studio, wanted)
    assert record_clip(studio, wanted) == first
    clip = Clip(first["__key__"], first)
    rest = clip.audio_LC() - clip.stem_LC(1)
    assert level_db(rest) - level_db(clip.audio_LC()) < -60


def test_level_difference_follows_the_azimuth(studio: Studio) -> None:
    clip = clip_of(studio, plan("passers-by", "electric", num_ticks=180))
    audio = clip.audio_LC().reshape(clip.num_ticks, TIMING.samples_per_tick, 2)
    energy = (audio**2).mean(axis=1) + 1e-10
    difference_db = 10 * np.log10(energy[:, 0] / energy[:, 1])
    azimuth = np.array([t["sources"][0]["azimuth_deg"] for t in clip.meta["ticks"]])
    assert np.corrcoef(azimuth, difference_db)[0, 1] > 0.8
    boxes = {i: t["boxes"][0] for i, t in enumerate(clip.meta["ticks"]) if t["boxes"]}
    assert len(boxes) > 0.7 * clip.num_ticks
    for tick, box in boxes.items():
        centre = box["x"] + box["w"] / 2
        if abs(azimuth[tick]) > 10 and 0.1 < box["x"] and box["x"] + box["w"] < 0.9:
            assert (centre < 0.5) == (azimuth[tick] > 0)


def test_sound_starts_with_the_picture(studio: Studio) -> None:
    """A source that appears is heard from the very tic in which it is first seen."""
    plans = (plan("silence", "alarm", seed=s, num_ticks=60) for s in range(3, 30))
    for wanted in plans:
        clip = clip_of(studio, wanted)
        seen = [bool(t["boxes"]) for t in clip.meta["ticks"]]
        if not seen[0] and any(seen):
            break
    onset = np.argmax(np.abs(clip.audio_LC()).max(axis=1) > 1e-3) / TIMING.samples_per_tick
    assert abs(onset - seen.index(True)) <= 1.0
    before = clip.audio_LC()[: int(onset - 1) * TIMING.samples_per_tick]
    assert level_db(before) < -80


def test_silence_is_silent(studio: Studio) -> None:
    clip = clip_of(studio, plan("silence"))
    assert level_db(clip.audio_LC()) < -80
    assert clip.audio_LC().shape == (90 * TIMING.samples_per_tick, 2)


@pytest.mark.parametrize("scenario", ["third-person", "combat", "off-screen"])
def test_other_scenarios_sound(studio: Studio, scenario: str) -> None:
    classes = ("horn",) if scenario == "off-screen" else ()
    clip = clip_of(studio, plan(scenario, *classes))
    assert level_db(clip.audio_LC()) > -60
    if scenario == "third-person":
        assert all(t["sources"][0]["class"] == "footsteps" for t in clip.meta["ticks"])


@pytest.mark.parametrize("revision", [3, 4])
def test_steps_of_clips_are_not_all_in_time(studio: Studio, revision: int) -> None:
    """Else a metronome that begins with the clip steps with the walker, seeing nothing."""
    stride_s = STRIDE_TICS / 2 / TIC_HZ
    phases = set()
    for seed in range(11, 15):
        clip = clip_of(studio, plan("third-person", seed=seed, num_ticks=45, revision=revision))
        phases.add(round(onset_times_s(clip.audio_LC())[1] % stride_s, 2))
    assert (len(phases) > 1) == (revision > 3), phases


def test_freedoom1_maps_have_the_whole_cast(studio: Studio) -> None:
    """Its game file lacks half of the sprites; they come from the other one."""
    clip = clip_of(studio, plan("walkers", "steam", map_name="E1M1", num_ticks=30))
    assert any(t["boxes"] for t in clip.meta["ticks"])


@pytest.mark.parametrize("revision", [2, 3])
def test_nothing_silent_on_the_map_looks_like_the_cast(studio: Studio, revision: int) -> None:
    """A barrel of the map is the very picture of a clock; earlier recorders left it standing."""
    wanted = plan("silence", revision=revision)
    wad = studio.wad(wanted.wad_name)
    name = next(n for n in wad.map_names if {2035, 43} <= {thing.kind for thing in wad.things(n)})
    game = StageGame(
        wad.path,
        studio.mod(wanted, None),
        map_name=name,
        seed=1,
        with_monsters=False,
        arguments=MESSAGE_ARGUMENTS,
        folder=studio.folder,
    )
    try:
        for _ in range(3):
            game.step()
        names = {thing.name for thing in game.state.objects}
    finally:
        game.close()
    assert len(names) > 3
    assert set(LOOKALIKES) & names == (set(LOOKALIKES) if revision == 2 else set())
    assert not any(n.startswith(f"{ACTOR_PREFIX}no_") for n in names)


def test_recording_resumes_with_the_same_bytes(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_module, "CLIPS_PER_SHARD", 1)
    settings = RecordingSettings(
        num_clips=2,
        ticks_per_clip=30,
        seed=4,
        scenarios=("silence",),
        maps=resolve_maps("MAP01"),
        num_sources=0,
        stems_share=0.0,
    )
    shards = [s.path for s in record(tmp_path, settings, num_workers=2)]
    assert {p.name for p in tmp_path.iterdir()} == {"recording.json", *(p.name for p in shards)}
    last = tmp_path / "stage-000001.tar"
    before = last.read_bytes()
    last.rename(tmp_path / "stage-000001.tar.part")  # as a kill would leave it
    assert len(list(record(tmp_path, settings))) == 2
    assert last.read_bytes() == before
