"""The concept bank: which sound the class names of any detector stand for."""

import json
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

from spatial_v2a import Config
from spatial_v2a.concepts import (
    CLASS_NAMES,
    CONCEPTS,
    SoundMap,
    find_concept,
    parse_sounds,
    sound_index,
)
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli import main as cli
from tests.tiny_checkpoint import write_tiny_checkpoint

SOUNDING_COCO = {
    "person": "footsteps", "bicycle": "bicycle", "car": "car", "motorcycle": "motorcycle",
    "airplane": "aeroplane", "bus": "bus", "train": "train", "truck": "truck", "boat": "boat",
    "bird": "bird", "cat": "cat", "dog": "dog", "horse": "horse", "sheep": "sheep", "cow": "cow",
    "elephant": "large_animal", "bear": "large_animal", "zebra": "horse",
    "giraffe": "large_animal", "sports ball": "ball", "baseball bat": "racket",
    "skateboard": "skateboard", "surfboard": "sailing_boat", "tennis racket": "racket",
    "cell phone": "phone", "clock": "clock", "hair drier": "fan",
}  # fmt: skip


def names_of(data_set: str) -> list[str]:
    """Class names of a data set, as ultralytics lists them."""
    file = resources.files("ultralytics").joinpath("cfg", "datasets", f"{data_set}.yaml")
    return list(yaml.safe_load(file.read_text("utf-8"))["names"].values())


def test_every_coco_name_is_a_concept_or_silent() -> None:
    found = {name: find_concept(name) for name in names_of("coco")}
    assert {name: one.name for name, one in found.items() if one is not None} == SOUNDING_COCO


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("Sports Car", "car"), ("SUV", "car"), ("Heavy Truck", "truck"), ("Chainsaw", "saw"),
        ("Wild Bird", "bird"), ("Formula 1", "car"), ("Electric Drill", "drill"),
        ("Fire Truck", "fire_truck"),
        ("Washing Machine/Drying Machine", "machinery"), ("Kettle", "steam"), ("Donkey", "horse"),
        ("Hot dog", None), ("Fire Hydrant", None), ("Fire Extinguisher", None), ("Mouse", None),
        ("Stuffed Toy", None), ("Hot-air balloon", None), ("Street Lights", None), ("Watch", None),
        ("Head Phone", None), ("French Fries", None), ("Speaker", None),
    ],
)  # fmt: skip
def test_objects365_names_that_mislead(name: str, concept: str | None) -> None:
    assert name in names_of("Objects365")
    found = find_concept(name)
    assert (None if found is None else found.name) == concept


def test_about_a_quarter_of_objects365_sounds() -> None:
    """Every one of its names is looked up without an error; most are things that lie about."""
    sounding = [name for name in names_of("Objects365") if find_concept(name) is not None]
    assert 80 <= len(sounding) <= 110


@pytest.mark.parametrize(
    ("name", "concept"),
    [
        ("police car", "car"), ("PEOPLE", "footsteps"), ("fire-trucks", "fire_truck"),
        ("man with dog", "footsteps"), ("big red bus", "bus"), ("dog food", None),
        ("person/baby/child", "footsteps"), ("ping-pong ball", "ball"), ("qwerty", None),
        ("", None), ("//", None), ("toy car", None), ("church_bell", "bell"),
    ],
)  # fmt: skip
def test_unknown_names_are_understood_by_their_words(name: str, concept: str | None) -> None:
    found = find_concept(name)
    assert (None if found is None else found.name) == concept


def test_every_stage_class_is_heard_as_itself() -> None:
    for name in CLASS_NAMES:
        found = find_concept(name)
        assert found is not None and found.sound == name


def test_the_bank_is_consistent() -> None:
    assert len({concept.name for concept in CONCEPTS}) == len(CONCEPTS) >= 48
    for concept in CONCEPTS:
        assert find_concept(concept.name) is concept
        assert all(find_concept(synonym) is concept for synonym in concept.synonyms)
        assert sound_index(concept) is None or concept.sound in CLASS_NAMES


def test_overrides_by_visual_name_and_by_concept() -> None:
    names = ("person", "car", "truck", "tv")
    sounds = SoundMap(names, parse_sounds("truck=siren,footsteps=silent,tv=voice"))
    assert [one and one.name for one in sounds.concepts] == [None, "car", "siren", "voice"]
    # A visual name says more than the concept it has.
    sounds = SoundMap(names, parse_sounds("footsteps=silent,person=bell"))
    assert sounds.concepts[0].name == "bell"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("car", "is not NAME=SOUND"),
        ("=engine", "is not NAME=SOUND"),
        ("car=", "is not NAME=SOUND"),
        ("car=engine,car=bell", "given twice"),
        ("car=qwerty", "no such sound"),
        ("person=footsteps:snow", "no variant 'snow'; known: footsteps:gravel"),
        ("car=cat", "cat has no sound in this checkpoint yet"),
    ],
)
def test_bad_overrides_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse_sounds(text)


def test_an_override_of_what_the_detector_does_not_see_is_refused() -> None:
    with pytest.raises(UserError, match="the detector sees no 'unicorn'"):
        SoundMap(("person",), parse_sounds("unicorn=horse"))


def test_the_list_of_sounds_is_whole_as_json(capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["sounds", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["concepts"]
    assert [one["name"] for one in listed] == [concept.name for concept in CONCEPTS]


def test_the_list_of_sounds_is_a_table(capsys: pytest.CaptureFixture) -> None:
    assert cli.run(["sounds"]) == 0
    said = capsys.readouterr().out
    assert all(concept.name in said for concept in CONCEPTS)


def test_a_sound_can_be_heard_crossing_the_picture(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", tiny_config)
    out = tmp_path / "car.wav"
    command = ["sounds", "play", "sports car", "-o", str(out), "--seconds", "0.5"]
    assert cli.run([*command, "--checkpoint", str(checkpoint)]) == 0
    audio_LC, rate_hz = soundfile.read(out)
    assert (audio_LC.shape, rate_hz) == ((24000, 2), 48000)
    assert np.abs(audio_LC).max() > 0
    assert "sports car as engine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "out", "reason"),
    [
        ("qwerty", "x.wav", "no concept 'qwerty'"),
        ("cat", "x.wav", "cat has no sound yet"),
        ("car", "x.mp3", "cannot write '.mp3'"),
        ("car", "none/x.wav", "does not exist"),
    ],
)
def test_what_cannot_be_played_is_refused(
    name: str, out: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert cli.run(["sounds", "play", name, "-o", str(tmp_path / out)]) == 2
    assert reason in capsys.readouterr().err
