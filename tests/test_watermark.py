"""The watermark: linear, faint, the same however it is streamed, found again, never invented."""

import io
import json
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.signal
import soundfile
from typer.testing import CliRunner

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.marks import watermark_app
from spatial_v2a.inference.marking.watermark import PERIOD_SAMPLES, Watermarker, mark
from spatial_v2a.inference.marking.watermark_detect import (
    MAX_FALSE_ALARM,
    detect_file,
    detect_watermark,
)
from spatial_v2a.timing import TIMING

RATE_HZ = TIMING.sample_rate_hz
# What the first and the last samples of a stream hear beyond its ends is silence.
EDGE_SAMPLES = 1024


def step_sound(seed: int, length_s: float = 8.0) -> np.ndarray:
    """Footsteps of decaying noise with silence between, each at its own place, on a faint hum."""
    random = np.random.default_rng(seed)
    sound_LC = np.zeros((round(length_s * RATE_HZ), 2))
    decay_L = np.exp(-np.arange(RATE_HZ // 4) / (0.05 * RATE_HZ))
    for start in range(RATE_HZ // 10, len(sound_LC) - len(decay_L), RATE_HZ * 2 // 5):
        low, high = random.uniform(150, 500), random.uniform(2000, 6000)
        band = scipy.signal.butter(2, (low, high), "bandpass", fs=RATE_HZ, output="sos")
        burst_L = scipy.signal.sosfilt(band, random.standard_normal(len(decay_L))) * decay_L
        pan = random.uniform(0.2, 0.8)
        sound_LC[start : start + len(decay_L)] += 0.3 * burst_L[:, None] * [pan, 1 - pan]
    return sound_LC.astype(np.float32)


@pytest.fixture(scope="module")
def marked_LC() -> np.ndarray:
    return mark(step_sound(1), start_sample=4321)


def coded(audio_LC: np.ndarray, codec: str, container: str) -> tuple[np.ndarray, int]:
    """The sound after a codec at 128 kbit/s."""
    memory = io.BytesIO()
    with av.open(memory, "w", format=container) as output:
        options = {"b": "128000"}
        track = output.add_stream(codec, rate=RATE_HZ, layout="stereo", options=options)
        planes = np.ascontiguousarray(np.clip(audio_LC, -1, 1).T)
        frame = av.AudioFrame.from_ndarray(planes, format="fltp", layout="stereo")
        frame.sample_rate = RATE_HZ
        output.mux(track.encode(frame))
        output.mux(track.encode(None))
    memory.seek(0)
    with av.open(memory) as source:
        pieces = [frame.to_ndarray() for frame in source.decode(audio=0)]
    return np.concatenate(pieces, axis=1).T, RATE_HZ


def cut(audio_LC: np.ndarray) -> np.ndarray:
    return audio_LC[77_777 : 77_777 + 5 * RATE_HZ]


ATTACKS = {
    "nothing": lambda audio_LC: (audio_LC, RATE_HZ),
    "AAC": lambda audio_LC: coded(audio_LC, "aac", "adts"),
    "MP3": lambda audio_LC: coded(audio_LC, "libmp3lame", "mp3"),
    "44.1 kHz": lambda audio_LC: (scipy.signal.resample_poly(audio_LC, 147, 160, axis=0), 44_100),
    "-12 dB": lambda audio_LC: (10 ** (-12 / 20) * audio_LC, RATE_HZ),
    "mono": lambda audio_LC: (audio_LC.mean(axis=1), RATE_HZ),
    "5 s": lambda audio_LC: (cut(audio_LC), RATE_HZ),
    "5 s, AAC": lambda audio_LC: coded(cut(audio_LC), "aac", "adts"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_the_mark_survives(marked_LC: np.ndarray, attack) -> None:
    finding = detect_watermark(*attack(marked_LC))
    said = f"score {finding.score:.1f}, threshold {finding.threshold:.1f}"
    assert finding.is_marked and finding.p_value < MAX_FALSE_ALARM, said


def test_unmarked_sound_is_not_found() -> None:
    """With and without a codec; the scores also lie where chance puts them."""
    findings = [detect_watermark(step_sound(100 + n, 5.0), RATE_HZ) for n in range(20)]
    coded_sounds = [coded(step_sound(200 + n, 5.0), "aac", "adts") for n in range(10)]
    findings += [detect_watermark(*sound) for sound in coded_sounds]
    scores = [finding.score for finding in findings]
    assert not any(finding.is_marked for finding in findings), f"highest score {max(scores):.2f}"
    assert all(finding.has_enough_sound for finding in findings)
    assert 2.5 < np.median(scores) < 3.8, f"median of the maxima {np.median(scores):.2f}"


def test_marked_minus_original_is_30_db_below_every_second() -> None:
    """Tones hit one band and noise all of them: both ends of what a sound can be."""
    time_L = np.arange(4 * RATE_HZ) / RATE_HZ
    tone_L = 0.3 * np.sin(2 * np.pi * 1031.25 * time_L)
    noise_L = 0.1 * np.random.default_rng(0).standard_normal(len(time_L))
    for sound_L in (tone_L, noise_L, step_sound(3, 4.0)[:, 0]):
        error_L = mark(sound_L[:, None])[:, 0] - sound_L.astype(np.float32)
        seconds = np.sum(error_L.reshape(4, -1) ** 2, axis=1) / np.sum(
            sound_L.reshape(4, -1) ** 2, axis=1
        )
        level_db = 10 * np.log10(seconds.max())
        assert -40 < level_db < -30, f"a second's error is at {level_db:.2f} dB"


def test_streaming_gives_the_same_samples_for_any_pieces() -> None:
    sound_LC, random = step_sound(4, 2.0), np.random.default_rng(0)
    for start in (0, 700, -12_345):
        marker, done, position = Watermarker(start), [], 0
        while position < len(sound_LC):
            size = int(random.integers(0, 4000))
            done.append(marker.push(sound_LC[position : position + size]))
            position += size
        done.append(marker.flush())
        streamed_LC = np.concatenate(done)
        assert streamed_LC.shape == sound_LC.shape, f"{streamed_LC.shape} from start {start}"
        assert np.array_equal(streamed_LC, mark(sound_LC, start)), f"start {start}"


def test_the_mark_depends_on_the_absolute_position_alone() -> None:
    sound_LC, skipped = step_sound(5, 2.0), 31_111
    whole_LC, part_LC = mark(sound_LC), mark(sound_LC[skipped:], skipped)
    assert np.array_equal(whole_LC[skipped + EDGE_SAMPLES :], part_LC[EDGE_SAMPLES:])
    assert np.array_equal(whole_LC, mark(sound_LC, 3 * PERIOD_SAMPLES)), "not periodic"
    assert not np.array_equal(whole_LC, mark(sound_LC, 1000)), "the position has no effect"


def test_marked_stems_add_up_to_the_marked_mix() -> None:
    one_LC, other_LC = step_sound(6, 2.0), step_sound(7, 2.0)
    sum_LC = mark(one_LC) + mark(other_LC)
    worst = np.abs(sum_LC - mark(one_LC + other_LC)).max()
    assert worst < 1e-6, f"stems and mix differ by {worst:g}"


def test_mono_stays_mono_and_the_mark_is_not_shifted() -> None:
    mono_L = step_sound(8, 2.0)[:, 0]
    marked_LC = mark(np.stack([mono_L, mono_L], axis=1))
    assert np.array_equal(marked_LC[:, 0], marked_LC[:, 1])
    assert np.array_equal(marked_LC[:, :1], mark(mono_L[:, None])), "channels are not alone"
    quarter_LC = mark(np.stack([mono_L, 0.25 * mono_L], axis=1))
    assert np.array_equal(quarter_LC[:, 1], 0.25 * quarter_LC[:, 0]), "the pan has changed"
    match = np.correlate(marked_LC[:, 0], mono_L[100:-100], "valid")
    assert np.argmax(match) == 100, f"shifted by {np.argmax(match) - 100} samples"


def test_silence_stays_silence_and_is_too_little_to_tell() -> None:
    silence_LC = np.zeros((3 * RATE_HZ, 2), np.float32)
    assert not mark(silence_LC).any()
    for sound_LC in (silence_LC, step_sound(9, 0.5), np.zeros((10, 2)), np.zeros((0, 2))):
        finding = detect_watermark(sound_LC, RATE_HZ)
        assert not finding.is_marked and not finding.has_enough_sound, f"{len(sound_LC)} samples"


def test_a_marked_part_of_a_long_file_is_found(tmp_path: Path) -> None:
    sound_LC = np.concatenate([step_sound(10 + n) for n in range(4)])
    sound_LC[16 * RATE_HZ : 28 * RATE_HZ] = mark(sound_LC[16 * RATE_HZ : 28 * RATE_HZ])
    path = tmp_path / "part.flac"
    soundfile.write(path, sound_LC, RATE_HZ)
    finding = detect_file(path)
    assert finding.is_marked, f"score {finding.score:.1f}"
    assert finding.num_seconds < len(sound_LC) / RATE_HZ, "the silence between steps was counted"


def test_command_exits_with_0_when_all_are_marked_and_1_when_one_is_not(
    tmp_path: Path, marked_LC: np.ndarray
) -> None:
    sounds = {"marked": marked_LC, "plain": step_sound(1), "short": step_sound(1, 3.0)}
    paths = {name: str(tmp_path / f"{name}.wav") for name in sounds}
    for name, sound_LC in sounds.items():
        soundfile.write(paths[name], sound_LC, RATE_HZ)
    runner = CliRunner()
    one = runner.invoke(watermark_app, ["detect", paths["marked"]])
    assert (one.exit_code, one.stdout.count("\n")) == (0, 1), one.stdout
    assert f"{paths['marked']}: watermark found (score" in one.stdout
    every = runner.invoke(watermark_app, ["detect", *paths.values()])
    assert every.exit_code == 1
    assert "plain.wav: no watermark found" in every.stdout
    assert "short.wav: too short to tell (3.0 s; it takes 5 s; score" in every.stdout
    rows = json.loads(runner.invoke(watermark_app, ["detect", *paths.values(), "--json"]).stdout)
    assert [row["is_marked"] for row in rows["files"]] == [True, False, False]


def test_what_is_no_sound_is_a_user_error(tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("this is not a sound")
    with pytest.raises(UserError, match="text.wav is not a readable sound or video file"):
        detect_file(text)
    with pytest.raises(UserError, match="no such file"):
        detect_file(tmp_path / "missing.wav")
