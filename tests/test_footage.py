"""`spatial-v2a evaluate --suite footage` on made footage whose answers are known."""

import json
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from spatial_v2a import Config
from spatial_v2a.audio.panning import pan_gains
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.evaluate import SuiteName, evaluate
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.mux import DubbedVideo
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.evaluation.av_align import MotionMeter
from spatial_v2a.inference.evaluation.figures import side_over_mid_db
from spatial_v2a.inference.evaluation.footage import Found, Item, find_footage, spread
from spatial_v2a.inference.evaluation.generate import dub_item, load_system
from spatial_v2a.inference.evaluation.metrics import correlation
from spatial_v2a.inference.evaluation.originals import DataStereo, inspect_original, read_original
from spatial_v2a.inference.evaluation.scoring import clip_mirror_sums, stereo_sums
from spatial_v2a.inference.inspect import measure as kinds
from spatial_v2a.timing import TIMING
from tests.test_bad_input import refused
from tests.tiny_checkpoint import write_tiny_checkpoint

NUM_TICKS = 36  # one whole window of BiasSkill
NUM_SAMPLES = NUM_TICKS * TIMING.samples_per_tick


def pictures(num: int, *, seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """A bright square that jumps about over noise."""
    random = np.random.default_rng(seed)
    frames = random.integers(0, 60, (num, *size, 3), dtype=np.uint8)
    for frame in frames:
        column = random.integers(0, size[1] - 12)
        frame[10:22, column : column + 12] = 250
    return frames


def panned(difference_db: np.ndarray | float, *, seed: int = 0, num: int = NUM_SAMPLES):
    mono_L = 0.1 * np.random.default_rng(seed).normal(size=num)
    return (pan_gains(np.broadcast_to(difference_db, num)) * mono_L[:, None]).astype(np.float32)


def write_footage(path: Path, audio_LC: np.ndarray | None, *, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    silent = path.with_name(f"silent-{path.name}")
    write_video(silent, pictures(NUM_TICKS, seed=seed), 30)
    if audio_LC is None:
        return silent.rename(path)
    with DubbedVideo(path, open_video(silent)) as sink:
        sink.write(audio_LC)
    silent.unlink()
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two stereo videos (left, then right), a silent one, and what is no footage."""
    folder = tmp_path_factory.mktemp("footage")
    write_footage(folder / "a.mkv", panned(12.0))
    write_footage(folder / "walks" / "b.mkv", panned(-12.0, seed=1), seed=1)
    whole = write_footage(folder / "c.mp4", None, seed=2).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("not a film")
    return folder


def score(folder: Path, out: Path, checkpoint: Path, **options) -> dict:
    options = {"checkpoint": str(checkpoint), "nfe": 1, **options}
    evaluate(out, folder=folder, suite=SuiteName.FOOTAGE, **options)
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def scored(folder, checkpoint, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("report")
    return out, score(folder, out, checkpoint)


def reasons(report: dict) -> dict[str, str]:
    return {entry["name"]: entry["reason"] for entry in report["not_scored"]}


# The whole report


def test_every_row_and_every_file_is_in_the_report(scored) -> None:
    out, report = scored
    assert list(report["rows"]) == [
        "original",
        "model",
        "box_centre_panner",
        "mono",
        "hard_left",
        "random_pan",
        "shuffled",
        "silence",
    ]
    assert list(report["items"]) == ["a.mkv", "c.mp4", "walks/b.mkv"]
    assert report["items"]["c.mp4"]["original"] == "no sound track"
    assert set(reasons(report)) == {"notes.txt", "cut.mp4"}
    assert "no video: .txt" in reasons(report)["notes.txt"]
    drawn = {str(path.relative_to(out / "plots")) for path in (out / "plots").rglob("*.png")}
    assert drawn == {"a.mkv.png", "c.mp4.png", "walks/b.mkv.png"}
    text = (out / "report.md").read_text()
    assert "- cut.mp4: " in text and "2 of 3 items with an original" in text
    assert not [path for path in out.rglob("*") if ".tmp" in path.name or "partial" in path.name]


def test_null_rows_score_what_they_must(scored) -> None:
    _, report = scored
    rows = report["rows"]
    original = rows["original"]
    assert original["bias_skill"]["value"] == 1.0 and original["envelope_l1"]["value"] == 0.0
    assert original["mirror_correlation"]["value"] is None
    assert original["left"]["value"] == original["right"]["value"] == 0.5
    assert rows["mono"]["side_over_mid_db"]["value"] == -60.0
    assert rows["mono"]["centre"]["value"] == 1.0
    assert rows["mono"]["bias_skill"]["value"] == rows["hard_left"]["bias_skill"]["value"] == 0.0
    assert rows["hard_left"]["left"]["value"] == 1.0
    assert rows["hard_left"]["mirror_swapped"]["value"] == 0.0
    assert rows["random_pan"]["mirror_correlation"]["value"] < -0.99, "blind to the picture"
    assert rows["silence"]["side_over_mid_db"]["value"] is None


def test_the_originals_are_inspected(scored) -> None:
    stereo = scored[1]["originals"]
    assert (stereo["num_items"], stereo["num_sounds"], stereo["mono_share"]) == (3, 2, 0.0)
    assert stereo["kinds"] == {kinds.FIXED: 2, "no sound track": 1}
    assert stereo["items"]["a.mkv"]["left"] == stereo["items"]["walks/b.mkv"]["right"] == 1.0


def test_the_same_command_resumes(scored, folder, checkpoint) -> None:
    out, report = scored
    sounds = sorted((out / "audio").rglob("*.wav"))
    assert len(sounds) == 3 * 2 + 2
    written = [path.stat().st_mtime_ns for path in sounds]
    before = (out / "report.json").read_bytes()
    lost = next(i for i, path in enumerate(sounds) if path.match("model/a.mkv.wav"))
    sounds[lost].unlink()
    score(folder, out, checkpoint)
    assert (out / "report.json").read_bytes() == before
    again = [path.stat().st_mtime_ns for path in sounds]
    changed = [i for i in range(len(sounds)) if again[i] != written[i]]
    assert changed == [lost]


def test_it_is_the_sound_that_users_get(scored, folder, checkpoint, tmp_path, capsys) -> None:
    """The report's sound and that of `dub`, unmarked, stored with 24 bits instead of 16."""
    words = ["dub", str(folder / "a.mkv"), "-o", str(tmp_path / "a.wav"), "--device", "cpu"]
    assert run([*words, "--checkpoint", str(checkpoint), "--nfe", "1", "--no-watermark"]) == 0
    dubbed_LC = soundfile.read(tmp_path / "a.wav")[0]
    scored_LC = soundfile.read(scored[0] / "audio" / "model" / "a.mkv.wav")[0]
    assert dubbed_LC.shape == scored_LC.shape == (NUM_SAMPLES, 2)
    assert np.abs(dubbed_LC - scored_LC).max() < 2 / 2**15


def test_one_video_without_sound(folder, checkpoint, tmp_path) -> None:
    """No original, no other item: those rows and figures are left out, and the text says so."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "only.mp4").write_bytes((folder / "c.mp4").read_bytes())
    report = score(tmp_path / "in", tmp_path / "in" / "out", checkpoint)
    assert "original" not in report["rows"] and "shuffled" not in report["rows"]
    assert report["rows"]["model"]["bias_skill"]["value"] is None
    assert report["rows"]["model"]["envelope_l1"]["value"] is None
    assert "no original to compare" in (tmp_path / "in" / "out" / "report.md").read_text()
    found = find_footage(tmp_path / "in", out=tmp_path / "in" / "out")
    assert [c.key for c in found.candidates] == ["only.mp4"] and not found.not_scored


def test_frames_are_never_kept(checkpoint) -> None:
    """A bug of this kind only shows in long videos: all pictures in memory at once."""
    alive: set[int] = set()
    most = 0

    def ticks(*, max_width: int | None = None) -> Iterator[np.ndarray]:
        nonlocal most
        for number, frame in enumerate(pictures(12)):
            picture = frame.copy()
            alive.add(number)
            weakref.finalize(picture, alive.discard, number)
            most = max(most, len(alive))
            yield picture
            del picture

    item = Item("x", Fraction(12, 30), Fraction(30), ticks, (), None)
    system = load_system(str(checkpoint), settings=EngineSettings(nfe=1))
    audio_LC, notes = dub_item(system, item, mirrored=False, progress=print)
    assert audio_LC.shape == (12 * TIMING.samples_per_tick, 2)
    assert len(notes["largest_box_azimuth_deg"]) == 12
    assert most <= 5, most  # perception is two pictures ahead


# Walking The Maps


def write_sample(
    metadata: Path, frames: np.ndarray, *, sound: np.ndarray | None, rate_hz: int = 44_100
) -> None:
    """A sample in a folder of its own."""
    folder = metadata.parent
    (folder / "frames_4fps").mkdir(parents=True)
    metadata.write_text(json.dumps({"caption": "A person walks."}))
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / "frames_4fps" / f"frame{number:04d}.jpg")
    if sound is not None:
        (folder / "audio").mkdir()
        soundfile.write(folder / "audio" / "steps_resampled.wav", sound, rate_hz)


@pytest.fixture
def maps(tmp_path) -> Path:
    """Three samples of 2 s (mono, duplicated mono, stereo) with a split list, and a stray file."""
    folder = tmp_path / "maps"
    mono_L = 0.1 * np.random.default_rng(3).normal(size=2 * 44_100)
    sounds = [mono_L, np.stack([mono_L] * 2, axis=1), panned(9.0, num=2 * 44_100)]
    for index, sound in enumerate(sounds):
        name = f"walk_{index}"
        frames = pictures(8, seed=index, size=(224, 224))
        write_sample(folder / name / f"{name}.metadata.json", frames, sound=sound)
    (folder / "test.txt").write_text("walk_0\nwalk_2\nwalk_9\n")
    (folder / "readme.txt").write_text("about this data set\n")
    return folder


def found_in(folder: Path) -> Found:
    return find_footage(folder, out=folder / "nowhere")


def opened(folder: Path) -> list[Item]:
    return [candidate.open() for candidate in found_in(folder).candidates]


def test_walking_the_maps_says_how_stereo_it_is(maps) -> None:
    found = found_in(maps)
    assert [c.key for c in found.candidates] == [f"walk_{i}/walk_{i}" for i in range(3)]
    assert found.splits == {"test.txt": ["walk_0", "walk_2", "walk_9"]}
    assert [n.name for n in found.not_scored] == ["readme.txt", "walk_9"]
    stereo = DataStereo({item.key: inspect_original(item) for item in opened(maps)})
    assert stereo.kinds == {kinds.EXACT: 1, kinds.MONO: 1, kinds.FIXED: 1}
    assert "**67% of the sounds are mono** (2 of 3)" in stereo.text()
    (side_db, *_), (spread_db, *_) = stereo.spread("side_over_mid_db"), stereo.spread("pan_std_db")
    ratio = 10 ** (9 / 20)
    assert side_db == pytest.approx(20 * np.log10((ratio - 1) / (ratio + 1)), abs=0.05)
    assert spread_db == pytest.approx(0.0, abs=0.1)


def test_a_split_alone(maps) -> None:
    found = found_in(maps / "test.txt")
    assert [c.key for c in found.candidates] == ["walk_0/walk_0", "walk_2/walk_2"]
    with pytest.raises(UserError, match="readme.txt names no sample"):
        found_in(maps / "readme.txt")


def test_pictures_at_4_fps_are_held_and_never_early(maps) -> None:
    item = opened(maps)[0]
    assert item.num_ticks == 60 and item.picture_hz == 4
    shown = list(item.ticks(max_width=100))
    assert len(shown) == 60 and shown[0].shape == (100, 100, 3)
    changes = [tick for tick in range(1, 60) if shown[tick] is not shown[tick - 1]]
    assert changes == [8, 15, 23, 30, 38, 45, 53], "ceil(n * 30 / 4)"


def test_its_sound_is_resampled_onto_the_clock_of_the_picture(maps) -> None:
    """A click at 1 s stays at 1 s; one channel goes to both sides at its own level."""
    click_L = np.zeros(2 * 44_100)
    click_L[44_100 - 20 : 44_100 + 20] = 0.5 * np.hanning(40)
    soundfile.write(maps / "walk_0" / "audio" / "steps_resampled.wav", click_L, 44_100)
    item = opened(maps)[0]
    audio_LC = read_original(item)
    assert audio_LC.shape == (96_000, 2) and np.array_equal(audio_LC[:, 0], audio_LC[:, 1])
    assert np.abs(audio_LC[:, 0]).argmax() == pytest.approx(48_000, abs=1)
    assert audio_LC.max() == pytest.approx(0.5, abs=0.01)


def test_faster_pictures_are_taken_where_there_are_some(maps) -> None:
    fast = maps / "walk_1" / "frames_30fps"
    fast.mkdir()
    for number, frame in enumerate(pictures(60)):
        Image.fromarray(frame).save(fast / f"{number}.jpg")
    item = opened(maps)[1]
    assert item.picture_hz == 30 and item.num_ticks == 60
    assert len({id(frame) for frame in list(item.ticks())}) == 60


def test_one_folder_shared_by_all_samples(tmp_path) -> None:
    for name, grey in (("walk_1", 50), ("walk_1_2", 200)):
        (tmp_path / f"{name}.metadata.json").write_text("{}")
        (tmp_path / "frames_4fps").mkdir(exist_ok=True)
        (tmp_path / "audio").mkdir(exist_ok=True)
        for number in range(4):
            picture = Image.fromarray(np.full((8, 8, 3), grey, np.uint8))
            picture.save(tmp_path / "frames_4fps" / f"{name}_{number:03d}.jpg")
        soundfile.write(tmp_path / "audio" / f"{name}.wav", panned(0.0, num=48_000), 48_000)
    for item, grey in zip(opened(tmp_path), (50, 200), strict=True):
        assert item.duration_s == 1 and item.sound.stem == item.key
        assert {int(frame.mean()) for frame in item.ticks()} == {grey}


def test_a_broken_sample_is_listed_and_the_others_are_scored(maps, checkpoint, tmp_path) -> None:
    (maps / "walk_0" / "frames_4fps" / "frame0003.jpg").unlink()
    (maps / "walk_1" / "frames_4fps" / "frame0005.jpg").write_text("no picture")
    report = score(maps, tmp_path / "out", checkpoint)
    assert list(report["items"]) == ["walk_2/walk_2"]
    why = reasons(report)
    assert "picture 3 of walk_0 is missing" in why["walk_0/walk_0"]
    assert "frame0005.jpg is not a readable picture" in why["walk_1/walk_1"]
    assert report["splits"] == {"test.txt": 3}
    assert "AV-Align is lenient" in (tmp_path / "out" / "report.md").read_text()


def test_unclear_samples_are_refused(maps) -> None:
    soundfile.write(maps / "walk_0" / "audio" / "other.wav", np.zeros(100), 48_000)
    with pytest.raises(UserError, match="holds 2 sounds; name the one meant walk_0.wav"):
        opened(maps)
    (maps / "walk_0" / "audio" / "other.wav").unlink()
    for path in (maps / "walk_0" / "frames_4fps").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="walk_0.metadata.json has no pictures"):
        opened(maps)


# The figures, by hand


def test_a_track_that_starts_elsewhere_lands_on_the_picture(tmp_path) -> None:
    """The picture begins half a second into the sound, or half a second before it."""
    click_L = np.zeros(48_000)
    click_L[36_000] = 0.9
    soundfile.write(tmp_path / "x.wav", click_L, 48_000)
    for start_s, expected in ((Fraction(1, 2), 12_000), (Fraction(-1, 2), 60_000)):
        item = Item(
            "x", Fraction(2), Fraction(30), lambda: iter(()), (), tmp_path / "x.wav", start_s
        )
        audio_LC = read_original(item)
        assert len(audio_LC) == 96_000 and np.flatnonzero(audio_LC[:, 0]).tolist() == [expected]


def test_a_sound_that_follows_the_mirror_exactly() -> None:
    curve_db = np.repeat(np.linspace(-12, 12, 66), TIMING.samples_per_tick)
    num = len(curve_db)
    found = clip_mirror_sums(panned(curve_db, num=num), panned(-curve_db, num=num))
    assert correlation(found["mirror_correlation"][None])[0] == pytest.approx(1.0, abs=1e-6)
    sided, swapped = found["mirror_swapped"]
    assert sided == swapped >= 8
    same = clip_mirror_sums(panned(curve_db, num=num), panned(curve_db, num=num))
    assert correlation(same["mirror_correlation"][None])[0] == pytest.approx(-1.0)
    assert same["mirror_swapped"][1] == 0


def test_side_over_mid_and_shares() -> None:
    ratio = 10 ** (6 / 20)
    sums = stereo_sums(panned(6.0))
    expected_db = 20 * np.log10((ratio - 1) / (ratio + 1))
    assert side_over_mid_db(sums["side_over_mid_db"][None])[0] == pytest.approx(expected_db)
    assert sums["left"].tolist() == [6, 6] and sums["right"].tolist() == [6, 0]
    assert side_over_mid_db(stereo_sums(panned(0.0))["side_over_mid_db"][None])[0] == -60.0
    assert stereo_sums(np.zeros((NUM_SAMPLES, 2))) == {}


def test_motion_is_that_of_the_pictures_that_differ() -> None:
    """Holding each picture for three ticks moves the peaks to their ticks and adds none."""
    frames = list(pictures(10, size=(60, 80)))
    plain, held = MotionMeter(), MotionMeter()
    for frame in frames:
        plain.add(frame)
        for _ in range(3):
            held.add(frame)
    np.testing.assert_array_equal(plain.flow_px_P, held.flow_px_P)
    assert len(plain.peaks_s()) >= 2
    np.testing.assert_allclose(held.peaks_s(), 3 * np.array(plain.peaks_s()), atol=1e-5)
    assert MotionMeter().peaks_s() == []


# Bad input


def test_bad_input_is_refused_in_one_line(folder, checkpoint, tmp_path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.mp4").write_text("no film")
    out = ["--out", tmp_path / "out"]
    footage = ["evaluate", "--suite", "footage"]

    def said(*words: object) -> str:
        return refused([*words, *out], tmp_path, capsys)

    assert "needs a folder" in said(*footage)
    assert "without --suite footage" in said("evaluate", folder)
    assert "without --suite footage" in said("evaluate", "--suite", "stagebench", folder)
    assert "no folder" in said(*footage, tmp_path / "nowhere")
    assert "no folder" in said(*footage, folder / "a.mkv")
    assert "holds no footage (0 other files)" in said(*footage, tmp_path / "empty")
    assert "--clips 9 but" in said(*footage, folder, "--clips", "9")
    assert "field of view 0" in said(*footage, folder, "--fov", "0")
    for words in (
        ["--data", folder],
        ["--audio", folder],
        ["--scenario", "walkers"],
        ["--without", "depth"],
        ["--no-given"],
        ["--no-mirror"],
        ["--jobs", "2"],
        ["--validate"],
    ):
        assert f"no use for {words[0]}" in said(*footage, folder, *words)
    assert "--long-run needs no --suite" in said(*footage, folder, "--long-run", folder / "a.mkv")


def test_nothing_scorable_is_an_error(checkpoint, tmp_path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.mp4").write_text("no film")
    with pytest.raises(UserError, match="none of 1 items can be scored; the first: .*x.mp4"):
        score(tmp_path / "in", tmp_path / "out", checkpoint)
    assert not (tmp_path / "out" / "report.md").exists()


def test_clips_are_spread(folder) -> None:
    candidates = find_footage(folder, out=folder / "out").candidates
    assert [c.key for c in spread(candidates, 2)] == ["a.mkv", "walks/b.mkv"]
    assert spread(candidates, None) == candidates
