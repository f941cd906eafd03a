"""`spatial-v2a inspect` against made-up sounds and pictures whose answers are known."""

import json
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from spatial_v2a import Config
from spatial_v2a.audio.delay import time_difference
from spatial_v2a.audio.panning import pan_gains
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.inspect import measure as kinds
from spatial_v2a.inference.inspect.measure import LevelMeter, Measured, measure
from spatial_v2a.inference.inspect.picture import heat_map
from spatial_v2a.inference.inspect.report import FileReport, inspect_file, plan_inspection
from spatial_v2a.inference.inspect.sound import SoundReader, describe_track
from spatial_v2a.inference.inspect.swap import (
    FOLLOWS,
    PICTURE_HZ,
    SWAPPED,
    UNKNOWN,
    BoxFinder,
    judge,
)
from tests.test_bad_input import refused
from tests.tiny_checkpoint import write_tiny_checkpoint

RATE = 48_000
HEIGHT, WIDTH = 48, 64
# A bright square sways from one side to the other, twice in 12 s and not evenly.
SWAY_S = 12.0


def noise(seconds: float, *, level: float = 0.1, seed: int = 0, rate: int = RATE) -> np.ndarray:
    return level * np.random.default_rng(seed).normal(size=round(seconds * rate))


def write(path: Path, samples_LC: np.ndarray, *, rate: int = RATE, subtype: str = "PCM_24") -> Path:
    soundfile.write(path, samples_LC, rate, subtype=subtype)
    return path


def measured(path: Path) -> Measured:
    return measure(path, describe_track(path))


def inspected(path: Path, finder: BoxFinder | None = None) -> FileReport:
    (job,) = plan_inspection([path], overwrite=True)
    return inspect_file(job, finder=finder)


def column(time_s: np.ndarray | float) -> np.ndarray:
    """Where the square is, 0 (left) .. 1 (right)."""
    return 0.5 + 0.25 * np.sin(2 * np.pi * time_s / 5.3) + 0.15 * np.sin(2 * np.pi * time_s / 3.1)


def square_bearing(image_HWC: np.ndarray) -> float | None:
    """Stands in for the detector: bearing of what is bright, 45 degrees at the edges."""
    weight_W = np.maximum(image_HWC.mean(axis=(0, 2)) - 60.0, 0.0)
    if weight_W.sum() < 1.0:
        return None
    place = float((weight_W * (np.arange(len(weight_W)) + 0.5)).sum() / weight_W.sum())
    return 45.0 - 90.0 * place / len(weight_W)


FINDER = BoxFinder(square_bearing)


def write_sway(path: Path, *, swapped: bool = False, fps: int = 15, sound: str = "panned") -> Path:
    """A video whose sound moves with its square, against it, on its own, or not at all."""
    silent = path.with_name(f"silent-{path.name}")

    def frames():
        for index in range(round(SWAY_S * fps)):
            image = np.full((HEIGHT, WIDTH, 3), 20, np.uint8)
            left = round(float(column(index / fps)) * WIDTH) - 5
            image[16:32, max(0, left) : left + 10] = 240
            yield image

    write_video(silent, frames(), fps)
    time_L = np.arange(round(SWAY_S * RATE)) / RATE
    curve_L = {"panned": 20 * (0.5 - column(time_L)), "mono": 0 * time_L}.get(sound)
    if curve_L is None:
        curve_L = np.interp(time_L, np.arange(60) / 5, 8 * noise(12, rate=5, level=1, seed=3))
    stereo_LC = pan_gains(-curve_L if swapped else curve_L) * noise(SWAY_S)[:, None]
    add_sound(silent, path, stereo_LC)
    silent.unlink()
    return path


@pytest.fixture(scope="module")
def sway(tmp_path_factory) -> Path:
    """Its sound follows its square."""
    return write_sway(tmp_path_factory.mktemp("sway") / "sway.mkv")


def add_sound(video: Path, out: Path, stereo_LC: np.ndarray) -> None:
    with av.open(str(video)) as source, av.open(str(out), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        track = target.add_stream("flac", rate=RATE, layout="stereo", format="s32")
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                target.mux(packet)
        mux_sound(target, track, stereo_LC, layout="stereo")


def mux_sound(container, track, samples_LC: np.ndarray, *, layout: str) -> None:
    packed = (samples_LC * 2**31).astype(np.int32)
    for start in range(0, len(packed), 4096):
        block = np.ascontiguousarray(packed[start : start + 4096].reshape(1, -1))
        frame = av.AudioFrame.from_ndarray(block, "s32", layout)
        frame.sample_rate, frame.pts = RATE, start
        frame.time_base = Fraction(1, RATE)
        container.mux(track.encode(frame))
    container.mux(track.encode(None))


# What kind of stereo it is


def panned(gain: float) -> np.ndarray:
    return np.stack([noise(2), gain * noise(2)], axis=1)


@pytest.mark.parametrize(
    ("samples_LC", "kind"),
    [
        (noise(1)[:, None], kinds.MONO),
        (panned(1.0), kinds.EXACT),
        (panned(1.0) + noise(2, level=1e-5, seed=1)[:, None] * [1, -1], kinds.NEAR),
        (panned(1.0) + noise(2, level=1e-3, seed=1)[:, None] * [1, -1], kinds.NARROW),
        (panned(0.5), kinds.FIXED),
        (panned(-1.0), kinds.FIXED),
        (panned(0.0), kinds.ONE_SIDED),
        (np.zeros((RATE, 2)), kinds.SILENT),
        (np.stack([noise(1), noise(1, seed=1)], axis=1), kinds.STEREO),
    ],
    ids=["mono", "dual", "near", "narrow", "pan", "opposite", "one", "silent", "stereo"],
)
def test_kinds(tmp_path: Path, samples_LC: np.ndarray, kind: str) -> None:
    assert measured(write(tmp_path / "a.wav", samples_LC)).kind == kind


@pytest.mark.parametrize("rate", [48_000, 44_100, 8_000], ids=str)
def test_a_panned_tone_has_its_level_difference(tmp_path: Path, rate: int) -> None:
    tone_L = np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)
    stereo_LC = 0.2 * pan_gains(np.array(7.0)) * tone_L[:, None]
    result = measured(write(tmp_path / "tone.flac", stereo_LC, rate=rate))
    assert result.stereo is not None and result.kind == kinds.FIXED
    assert np.allclose(result.stereo.difference_db, 7.0, atol=0.01), result.stereo.difference_db
    assert result.stereo.balance_db == pytest.approx(7.0, abs=0.01)
    assert result.stereo.correlation == pytest.approx(1.0, abs=1e-6)
    summary = result.stereo.summary
    assert (summary.left, summary.centre, summary.right) == (1.0, 0.0, 0.0)
    ratio = 10 ** (7 / 20)
    expected_db = 20 * np.log10((ratio - 1) / (ratio + 1))
    assert summary.side_over_mid_db == pytest.approx(expected_db, abs=0.01)
    assert result.duration_s == pytest.approx(3.0)
    assert len(result.energies_TE) == 90, "ticks of 1/30 s at every rate"


def test_shares_of_left_centre_and_right(tmp_path: Path) -> None:
    curve_L = np.repeat([10.0, 0.0, -10.0, -10.0, 0.0], RATE)
    stereo_LC = pan_gains(curve_L) * noise(5)[:, None]
    stereo_LC[4 * RATE :] = 0.0
    result = measured(write(tmp_path / "parts.wav", stereo_LC))
    summary = result.stereo.summary
    assert (summary.left, summary.centre, summary.right) == pytest.approx((0.25, 0.25, 0.5))
    assert (result.silent, result.digital_silence) == pytest.approx((0.2, 0.2))


def test_two_windows_of_the_heat_map() -> None:
    """Energy lies in the row of its level difference, and silence is left blank."""
    energies_TE = np.array([[1.0, 0.1, 0.0], [0.001, 0.01, 0.0], [0.0, 0.0, 0.0]])
    cells_BN = heat_map(energies_TE)
    assert cells_BN.shape == (61, 3)
    assert cells_BN[30 + 10, 0] == pytest.approx(0.0)
    assert cells_BN[30 - 10, 1] == pytest.approx(-20.0, abs=0.01)
    assert np.isfinite(cells_BN).sum() == 2


# Time difference


@pytest.mark.parametrize(
    "delay", [24, -24, 0, 3], ids=["left_first", "right_first", "none", "short"]
)
def test_a_delayed_channel_has_its_time_difference(tmp_path: Path, delay: int) -> None:
    sound_L = noise(3)
    stereo_LC = np.stack([sound_L, np.roll(sound_L, delay)], axis=1)
    report = inspected(write(tmp_path / "d.wav", stereo_LC))
    found = report.measured.stereo.delay
    expected_ms = 1e3 * delay / RATE
    assert found.num_clear == found.num_windows == 15
    assert found.median_ms == pytest.approx(expected_ms, abs=0.002)
    assert found.low_ms == pytest.approx(found.high_ms, abs=0.004)
    first = {24: "left", -24: "right"}.get(delay)
    said = [warning for warning in report.warnings if "early throughout" in warning]
    assert len(said) == (first is not None) and all(first in warning for warning in said), said


def test_a_delay_between_two_samples_is_found() -> None:
    spectrum = np.fft.rfft(noise(0.2))
    shift = np.exp(-2j * np.pi * np.fft.rfftfreq(9600, 1 / RATE) * 10.5 / RATE)
    stereo_LC = np.stack([np.fft.irfft(spectrum), np.fft.irfft(spectrum * shift)], axis=1)
    found_s, _ = time_difference(stereo_LC, sample_rate_hz=RATE)
    assert 1e6 * found_s == pytest.approx(1e6 * 10.5 / RATE, abs=2.0)


def test_hum_and_unrelated_channels_have_no_time_difference(tmp_path: Path) -> None:
    hum_L = 0.1 * np.sin(2 * np.pi * 100 * np.arange(3 * RATE) / RATE)
    pairs = {
        "hum": np.stack([hum_L, np.roll(hum_L, 24)], axis=1),
        "unrelated": np.stack([noise(3), noise(3, seed=1)], axis=1),
        "one": np.stack([noise(3), np.zeros(3 * RATE)], axis=1),
    }
    for name, stereo_LC in pairs.items():
        found = measured(write(tmp_path / f"{name}.wav", stereo_LC)).stereo.delay
        assert found.num_clear == 0 and np.isnan(found.median_ms), name


# Health of the samples


def test_clipping_is_counted_in_runs(tmp_path: Path) -> None:
    stereo_LC = np.stack([noise(1, level=0.05), noise(1, level=0.05, seed=1)], axis=1)
    stereo_LC[100:104, 0] = 1.0  # a run of 4
    stereo_LC[200:202, 0] = 1.0  # too short
    stereo_LC[9598:9608, 0] = -1.0  # a run of 10 across the border of two windows
    stereo_LC[-5:, 1] = 1.0  # a run of 5 that ends with the file
    path = write(tmp_path / "clipped.wav", stereo_LC, subtype="PCM_16")
    left, right = measured(path).channels
    assert (left.num_clip_runs, left.longest_clip_run) == (2, 10)
    assert left.at_full_scale == pytest.approx(16 / RATE)
    assert (right.num_clip_runs, right.longest_clip_run) == (1, 5)
    assert left.peak_dbfs == pytest.approx(0.0) and right.peak_dbfs == pytest.approx(0, abs=1e-3)


def test_runs_do_not_depend_on_the_cuts() -> None:
    is_full = np.random.default_rng(5).random(6000) < 0.7
    whole, pieces = (LevelMeter(("mono",), full_scale=1.0) for _ in range(2))
    whole.add(is_full[:, None].astype(float), np.array([0]))
    for piece in np.split(is_full, [1, 2, 3, 500, 501, 4000]):
        pieces.add(piece[:, None].astype(float), np.array([0]))
    assert whole.channels() == pieces.channels()


def test_offset_peak_level_and_nan(tmp_path: Path) -> None:
    tone_L = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    stereo_LC = np.stack([tone_L + 0.02, 3 * tone_L], axis=1).astype(np.float32)
    stereo_LC[10, 0], stereo_LC[11, 0] = np.nan, np.inf
    result = measured(write(tmp_path / "odd.wav", stereo_LC, subtype="FLOAT"))
    left, right = result.channels
    assert result.num_bad == 2
    assert left.offset == pytest.approx(0.02, abs=1e-4)
    assert left.peak_dbfs == pytest.approx(20 * np.log10(0.52), abs=0.01)
    assert right.peak_dbfs == pytest.approx(20 * np.log10(1.5), abs=0.01)
    assert right.rms_dbfs == pytest.approx(20 * np.log10(1.5 / 2**0.5), abs=0.01)


def test_silence_is_not_digital_silence(tmp_path: Path) -> None:
    hiss_LC = np.stack([noise(2, level=1e-4), noise(2, level=1e-4, seed=1)], axis=1)
    hiss_LC[RATE:] = 0.0
    result = measured(write(tmp_path / "quiet.wav", hiss_LC))
    assert (result.silent, result.digital_silence) == (1.0, 0.5)
    assert result.stereo.summary.left == result.stereo.summary.right == 0.0
    assert np.isnan(result.stereo.difference_db).all()


# More than two channels


def test_six_channels_without_a_layout(tmp_path: Path) -> None:
    sounds = np.stack([noise(1, seed=seed) for seed in range(6)], axis=1)
    report = inspected(write(tmp_path / "six.wav", sounds))
    assert [channel.name for channel in report.measured.channels] == list("123456")
    assert any("layout unknown" in warning for warning in report.warnings)


def test_a_layout_names_the_pair(tmp_path: Path) -> None:
    """5.1: left is twice as loud as right; the centre, far louder, must not matter."""
    path = tmp_path / "surround.mkv"
    sound_L = noise(2, level=0.05)
    sounds = np.stack([sound_L, sound_L / 2, 4 * noise(2, level=0.05, seed=1)] + [0 * sound_L] * 3)
    with av.open(str(path), "w") as container:
        track = container.add_stream("flac", rate=RATE, layout="5.1", format="s32")
        mux_sound(container, track, sounds.T, layout="5.1")
    report = inspected(path)
    assert [channel.name for channel in report.measured.channels][:3] == ["FL", "FR", "FC"]
    assert report.job.track.pair == (0, 1) and not report.job.track.is_pair_assumed
    assert report.measured.stereo.difference_db[2] == pytest.approx(6.02, abs=0.02)


# Left and right against the picture


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, FOLLOWS),
        ({"swapped": True}, SWAPPED),
        ({"sound": "mono"}, UNKNOWN),
        ({"sound": "unrelated"}, UNKNOWN),
    ],
    ids=["follows", "swapped", "mono", "unrelated"],
)
def test_the_sound_against_the_picture(tmp_path: Path, options: dict, verdict: str) -> None:
    report = inspected(write_sway(tmp_path / "sway.mkv", **options), FINDER)
    swap = report.swap
    assert swap.verdict == verdict, swap
    assert any("swapped" in warning for warning in report.warnings) == (verdict == SWAPPED)
    if verdict != UNKNOWN:
        assert swap.num_windows == swap.num_pictures == round(SWAY_S * PICTURE_HZ)
        assert abs(swap.correlation) > 0.95, swap
        assert swap.same_side == pytest.approx(1.0 if verdict == FOLLOWS else 0.0, abs=0.1)


def test_no_box_and_no_detector_is_no_evidence(sway: Path) -> None:
    blind = inspected(sway, BoxFinder(lambda image: None)).swap
    assert blind.verdict == UNKNOWN and blind.num_boxes == 0 and "15 are needed" in blind.reason
    off = inspected(sway, None).swap
    assert off.verdict == UNKNOWN and "--no-boxes" in off.reason


def test_chance_rarely_passes_for_evidence() -> None:
    """Smooth curves that share nothing: by the rule at most one in twenty may look related."""
    random = np.random.default_rng(0)
    kernel = np.hanning(15)
    verdicts = []
    for _ in range(400):
        bearing, difference = (np.convolve(random.normal(size=150), kernel) for _ in range(2))
        bearing[random.random(len(bearing)) < 0.2] = np.nan
        verdicts.append(judge(10 * bearing, 2 * difference).verdict)
    assert verdicts.count(UNKNOWN) >= 0.95 * len(verdicts), verdicts.count(UNKNOWN)


def test_short_or_still_scenes_decide_nothing() -> None:
    ramp = np.linspace(-30, 30, 30)
    assert "shifts" in judge(ramp, ramp / 3).reason
    still = judge(np.full(100, 10.0), np.sin(np.arange(100.0)))
    assert still.verdict == UNKNOWN and "does not move" in still.reason


# Files, words and refusals


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Ten times the sound may cost its 32 bytes a tick, and no more."""

    def peak_bytes(seconds: int) -> int:
        path = write(tmp_path / f"{seconds}.wav", np.tile(noise(5), (2, seconds // 5)).T)
        track = describe_track(path)
        tracemalloc.start()
        measure(path, track)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    short, long = peak_bytes(10), peak_bytes(100)
    assert long - short < 1_000_000, (short, long)


def test_windows_are_read_one_by_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(60)[:, None])
    reader = SoundReader(path, describe_track(path))
    windows = reader.windows()
    assert next(windows).samples_LC.shape == (9600, 1)
    assert reader.num_samples < RATE, "much more was read than the first window needs"
    windows.close()


def test_text_table_and_pictures(tmp_path: Path, capsys) -> None:
    files = [
        write(tmp_path / "mono.wav", noise(1)[:, None]),
        write(tmp_path / "dual.flac", panned(1.0)),
    ]
    assert run(["inspect", *map(str, files), "--out", str(tmp_path / "new" / "out")]) == 0
    said = capsys.readouterr().out
    assert "verdict           dual mono (bit for bit)" in said
    last = said.strip().splitlines()[-2:]
    assert last[0].startswith("mono.wav   mono") and last[1].startswith("dual.flac  dual mono")
    names = sorted(path.name for path in (tmp_path / "new" / "out").iterdir())
    assert names == ["dual.flac.stereo.png", "mono.wav.stereo.png"]
    for name in names:
        assert (tmp_path / "new" / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_json_is_all_that_is_printed(tmp_path: Path, capsys) -> None:
    path = write(tmp_path / "quiet.wav", np.zeros((RATE, 2)))
    assert run(["inspect", str(path), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["files"]
    assert entry["kind"] == "silent" and entry["silent"] == entry["digital_silence"] == 1.0
    assert entry["stereo"]["correlation"] is None
    assert entry["track"]["sample_rate_hz"] == RATE and entry["picture"] is None
    assert Path(entry["png"]) == tmp_path / "quiet.wav.stereo.png"


def test_the_detector_of_a_checkpoint_runs(
    sway: Path, tmp_path: Path, tiny_config: Config, capsys
) -> None:
    """Random weights see nothing sensible; the command must work and say what it looked at."""
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", tiny_config)
    words = ["inspect", str(sway), "--checkpoint", str(checkpoint), "--fov", "70", "--json"]
    assert run([*words, "--out", str(tmp_path)]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["files"]
    assert entry["picture"]["num_pictures"] == 60
    assert entry["picture"]["verdict"] in (FOLLOWS, SWAPPED, UNKNOWN)


def test_a_cut_off_file_is_measured_and_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.flac", panned(0.5))
    cut = tmp_path / "cut.flac"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    report = inspected(cut)
    assert 0.5 < report.measured.duration_s < 1.5
    assert any("cut off" in warning for warning in report.warnings), report.warnings


def test_refusals(tmp_path: Path, capsys) -> None:
    good = write(tmp_path / "good.wav", panned(0.5))
    (tmp_path / "text.mp4").write_text("These are words, not a film.\n" * 40)
    (tmp_path / "empty.wav").write_bytes(b"")
    write(tmp_path / "nothing.wav", np.zeros((0, 2)))
    write_video(tmp_path / "picture.mp4", np.zeros((4, HEIGHT, WIDTH, 3), np.uint8), fps=30)
    (tmp_path / "file").write_text("x")
    (tmp_path / "seen.wav.stereo.png").write_bytes(b"precious")
    seen = write(tmp_path / "seen.wav", panned(0.5))
    (tmp_path / "twin").mkdir()
    twin = write(tmp_path / "twin" / "good.wav", panned(0.5))
    cases = [
        ([tmp_path / "none.wav"], "no such file"),
        ([tmp_path], "is a folder"),
        ([tmp_path / "text.mp4"], "is not a readable audio or video file"),
        ([tmp_path / "empty.wav"], "is empty"),
        ([tmp_path / "nothing.wav"], "no sound in it"),
        ([tmp_path / "picture.mp4"], "no sound track"),
        ([good, tmp_path / "none.wav"], "no such file"),
        ([good, "--out", tmp_path / "file"], "is a file"),
        ([good, "--out", "/proc/new"], "choose another --out"),
        ([seen], "exists"),
        ([good, twin, "--out", tmp_path / "twin"], "two files"),
        ([], "FILE"),
    ]
    for arguments, words in cases:
        line = refused(["inspect", *arguments], tmp_path, capsys)
        assert words in line, line
    assert run(["inspect", str(seen), "--overwrite"]) == 0


def test_bad_detector_settings(sway: Path, tmp_path: Path, tiny_config: Config, capsys) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", tiny_config)
    words = ["inspect", sway, "--out", tmp_path]
    assert "field of view 180" in refused([*words, "--fov", 180], tmp_path, capsys)
    (checkpoint / "detector-yolo.safetensors").unlink()
    words += ["--checkpoint"]
    assert "detector-yolo.safetensors" in refused([*words, checkpoint], tmp_path, capsys)
    assert "no checkpoint" in refused([*words, tmp_path / "no"], tmp_path, capsys)
