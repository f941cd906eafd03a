"""A user's own recordings as the bank: what is heard from them, and bad files in one line each."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING
from spatial_v2a.training.sounds.crops import BankCrops, item_rng
from spatial_v2a.training.sounds.folder import FolderBank

RATE_HZ = 44_100


def _write(path: Path, audio: np.ndarray, rate_hz: int = RATE_HZ) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, audio, rate_hz)
    return path


def _clicks(*, num: int, stereo: bool = False) -> np.ndarray:
    """Decaying noises half a second apart after a second of silence."""
    rng = np.random.default_rng(0)
    audio = np.zeros(RATE_HZ * 4)
    for n in range(num):
        start = RATE_HZ + n * RATE_HZ // 2
        audio[start : start + 8_000] += rng.normal(0, 0.2, 8_000) * np.exp(-np.arange(8_000) / 900)
    return np.stack([0 * audio, audio], -1) if stereo else audio


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    _write(folder / "footsteps" / "walk.wav", _clicks(num=4, stereo=True))
    t = np.arange(3 * RATE_HZ) / RATE_HZ
    _write(folder / "Sports car" / "idle.flac", 0.05 * np.sin(2 * np.pi * 441 * t))
    return folder


def test_recordings_replace_the_procedures_of_their_concepts(library: Path) -> None:
    bank = FolderBank(library)
    assert bank.recorded == ("car", "footsteps") and "rain" in bank.concepts
    sound = bank.generate("car", np.random.default_rng(0), 2.0)
    power = np.abs(np.fft.rfft(sound.audio_L)) ** 2
    assert abs(np.argmax(power) / 2 - 441) < 45  # it is played up to 7 % faster or slower
    again = bank.generate("car", np.random.default_rng(0), 2.0)
    assert (sound.audio_L == again.audio_L).all()


def test_every_event_is_one_recorded_event_at_its_time(library: Path) -> None:
    asked = [0.3, 0.9, 1.45]
    sound = FolderBank(library).generate("footsteps", np.random.default_rng(1), 2.0, events_s=asked)
    np.testing.assert_allclose(sound.onsets_s, asked)
    loud = np.abs(sound.audio_L) > 0.03 * np.abs(sound.audio_L).max()
    starts = np.flatnonzero(
        loud & ~np.r_[False, np.convolve(loud, np.ones(9_600))[: len(loud) - 1] > 0]
    )
    np.testing.assert_allclose(starts / TIMING.sample_rate_hz, asked, atol=1e-3)


def test_crops_of_recordings_feed_the_autoencoder(library: Path) -> None:
    crops = BankCrops(FolderBank(library), TIMING, seed=0, num_sounds=4)
    batch = crops.batch(np.random.default_rng(0), 2, 6)
    assert batch.shape == (2, 2, 6 * TIMING.samples_per_tick)
    assert batch.abs().max() <= 1


def test_splits_share_no_chance() -> None:
    draws = {item_rng(0, split, 7).random() for split in ("train", "validation", "test")}
    assert len(draws) == 3


def _text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no sound at all")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: _text(f / "car" / "a.wav"), "a.wav cannot be read"),
        (lambda f: _write(f / "car" / "a.wav", np.zeros(RATE_HZ)), "a.wav is silent"),
        (lambda f: _write(f / "car" / "a.wav", np.ones((RATE_HZ, 9))), "has 9 channels"),
        (lambda f: _write(f / "car" / "a.wav", np.ones(400), 4_000), "at 4000 Hz"),
        (lambda f: _text(f / "car" / "a.txt"), "holds no .wav, .flac or .ogg"),
        (lambda f: _write(f / "footstep_s" / "a.wav", _clicks(num=1)), "did you mean 'footsteps'"),
        (lambda f: f.mkdir(), "holds no folder"),
        (lambda f: None, "is no folder"),
    ],
)
def test_a_bad_library_is_refused_in_one_line(tmp_path: Path, break_it, message: str) -> None:
    folder = tmp_path / "library"
    break_it(folder)
    with pytest.raises(UserError, match=message) as refused:
        FolderBank(folder)
    assert "\n" not in str(refused.value)
