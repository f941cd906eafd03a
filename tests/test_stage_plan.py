"""The recording plan and the parts of a mod: pure functions, no engine."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.errors import UserError
from spatial_v2a.training.cli import record
from spatial_v2a.training.stage.mod import (
    LOOKS,
    SCRIPT_MOVE,
    assemble,
    decorate,
    dmx_lump,
    lump_name,
    source_volume,
)
from spatial_v2a.training.stage.plan import (
    MAP_SETS,
    MIX,
    RecordingSettings,
    make_plan,
    resolve_maps,
    resolve_scenarios,
    ticks_for,
)
from spatial_v2a.training.stage.record import num_tics, prepare_folder, shown_tic, to_output_rate
from spatial_v2a.training.stage.sounds import ENGINE_RATE_HZ, loop_for


def settings(**changes: object) -> RecordingSettings:
    known = {
        "num_clips": 200,
        "ticks_per_clip": 300,
        "seed": 1,
        "scenarios": tuple(MIX),
        "maps": MAP_SETS["train"],
        "num_sources": None,
        "stems_share": 0.1,
    }
    return RecordingSettings(**{**known, **changes})


def test_plan_depends_on_settings_alone() -> None:
    assert make_plan(settings()) == make_plan(settings())
    assert make_plan(settings()) != make_plan(settings(seed=2))


def test_prefix_names_the_clips_and_changes_nothing_else() -> None:
    plain, named = make_plan(settings()), make_plan(settings(key_prefix="b-"))
    assert [p.key for p in named] == [f"b-{p.key}" for p in plain]
    assert [replace(p, key="") for p in named] == [replace(p, key="") for p in plain]


@pytest.mark.parametrize("prefix", ["a.b", "a/b", "a b"])
def test_prefix_that_would_spoil_a_key_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--prefix"):
        record(tmp_path / "new", prefix=prefix)
    assert not (tmp_path / "new").exists()


def test_plan_keeps_the_mix_and_spreads_maps_and_classes() -> None:
    plans = make_plan(settings())
    for name, share in MIX.items():
        count = sum(p.scenario == name for p in plans)
        assert abs(count - share * len(plans)) <= 2, (name, count)
    assert {p.map_name for p in plans[:24]} == set(MAP_SETS["train"])
    assert {c for p in plans for c in p.classes} == set(CLASS_NAMES)
    assert all(len(set(p.classes)) == len(p.classes) for p in plans)
    assert {p.scenario for p in plans[:20]} == set(MIX)


def test_fixed_number_of_sources() -> None:
    plans = make_plan(settings(scenarios=("walkers",), num_sources=1))
    assert all(len(p.classes) == 1 for p in plans)


def test_first_revision_has_the_cameras_steps() -> None:
    """The first recorder let a walking camera sound; its recordings must stay reproducible."""
    old, new = make_plan(settings(revision=1)), make_plan(settings())
    assert [p.seed for p in old] == [p.seed for p in new]
    assert all(p.has_steps for p in old)
    assert all(p.has_steps == (p.scenario == "third-person") for p in new)


def test_second_revision_left_the_maps_own_lookalikes() -> None:
    assert [make_plan(settings(revision=r))[0].has_lookalikes for r in (1, 2, 3)] == [
        True,
        True,
        False,
    ]


def test_splits_do_not_overlap() -> None:
    train, val, test = (set(MAP_SETS[n]) for n in ("train", "val", "test"))
    assert not (train & val or train & test or val & test)
    assert len(train) == 24 and len(val) == 4 and set(MAP_SETS["freedoom1"]) < test


def test_names_are_resolved() -> None:
    assert resolve_maps("MAP03, e1m1,val")[:3] == ("MAP03", "E1M1", "MAP25")
    assert resolve_scenarios(["all"]) == tuple(MIX)
    with pytest.raises(UserError, match="unknown map 'MAP33'"):
        resolve_maps("MAP33")
    with pytest.raises(UserError, match="unknown scenario 'dance'"):
        resolve_scenarios(["dance"])
    with pytest.raises(UserError, match="clip length"):
        ticks_for(0.5)


def test_tics_cover_ticks_without_looking_ahead() -> None:
    assert num_tics(300) == 350
    for tick in range(300):
        assert shown_tic(tick) / 35 <= tick / 30 + 1e-9 < (shown_tic(tick) + 1) / 35


def test_resampling_keeps_time_and_length() -> None:
    t = np.arange(350 * 1260) / ENGINE_RATE_HZ
    tone = (8_000 * np.sin(2 * np.pi * 1_000 * t)).astype(np.int16)
    audio_LC = to_output_rate(np.stack([tone, 0 * tone], 1), 300)
    assert audio_LC.shape == (480_000, 2)
    expected = 8_000 / 32768 * np.sin(2 * np.pi * 1_000 * np.arange(480_000) / 48_000)
    assert np.abs(audio_LC[2_000:-2_000, 0] - expected[2_000:-2_000]).max() < 1e-3
    assert np.abs(audio_LC[:, 1]).max() == 0


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_loop_is_loud_in_every_second_and_repeatable(name: str) -> None:
    loop = loop_for(name)
    assert np.array_equal(loop, loop_for(name))
    assert np.abs(loop).max() == pytest.approx(1.0)
    rms = np.sqrt(np.mean(loop**2))
    second = np.resize(loop, loop.size + ENGINE_RATE_HZ)
    energy = np.convolve(second[::10] ** 2, np.ones(ENGINE_RATE_HZ // 10), "valid")
    quietest_db = 10 * np.log10(energy.min() / (ENGINE_RATE_HZ / 10)) - 20 * np.log10(rms)
    assert quietest_db > -4, f"a second of {name} is {quietest_db:.1f} dB below its mean"
    assert 0 < source_volume(name) <= 1


def test_sounds_differ_in_spectrum() -> None:
    bands = np.geomspace(100, 12_000, 25)
    profiles = []
    for name in CLASS_NAMES:
        loop = loop_for(name)
        power = np.abs(np.fft.rfft(loop)) ** 2
        f = np.fft.rfftfreq(loop.size, 1 / ENGINE_RATE_HZ)
        energy = np.histogram(f, bands, weights=power)[0]
        profiles.append(np.sqrt(energy / energy.sum()))
    likeness = np.array(profiles) @ np.array(profiles).T - np.eye(len(profiles))
    first, second = np.unravel_index(likeness.argmax(), likeness.shape)
    assert likeness.max() < 0.97, (CLASS_NAMES[first], CLASS_NAMES[second], likeness.max())


def test_every_class_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == set(CLASS_NAMES)
    assert len({(look.sprite, look.tint) for look in LOOKS.values()}) == len(CLASS_NAMES)
    text = decorate(has_steps=False)
    assert all(f"ACTOR stage_{name}" in text for name in CLASS_NAMES)
    assert "stage/step" not in text and "stage/step" in decorate(has_steps=True)


def test_lumps() -> None:
    assert all(len(lump_name(name)) <= 8 for name in CLASS_NAMES)
    lump = dmx_lump(np.array([-1.0, 0.0, 1.0]))
    assert struct.unpack_from("<HHI", lump) == (3, ENGINE_RATE_HZ, 3 + 32)
    assert list(lump[8 + 16 : 8 + 19]) == [0, 128, 254]


def test_script_directory_points_at_the_scripts() -> None:
    library = assemble(["a", "b"])
    magic, directory = struct.unpack_from("<4si", library)
    assert magic == b"ACS\0"
    (count,) = struct.unpack_from("<i", library, directory)
    scripts = [struct.unpack_from("<iii", library, directory + 4 + 12 * i) for i in range(count)]
    assert SCRIPT_MOVE in {number for number, _, _ in scripts}
    strings = struct.unpack_from("<i3i", library, directory + 4 + 12 * count)
    assert strings[0] == 3 and library[strings[1] : strings[1] + 2] == b"a\0"


def test_another_recording_is_not_overwritten(tmp_path: Path) -> None:
    prepare_folder(tmp_path, settings())
    prepare_folder(tmp_path, settings())
    with pytest.raises(UserError, match="other settings"):
        prepare_folder(tmp_path, settings(seed=5))
    (tmp_path / "recording.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        prepare_folder(tmp_path, settings())


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        prepare_folder(tmp_path / "file" / "out", settings())
