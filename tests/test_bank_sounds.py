"""The bank's own audio: every concept has a sound, the same each time, and events where it says."""

import numpy as np
import pytest

from spatial_v2a.concepts import CONCEPTS
from spatial_v2a.errors import UserError
from spatial_v2a.training.sounds.bank import LEVEL_DBFS, ProceduralBank
from spatial_v2a.training.sounds.synthesis import RATE_HZ
from spatial_v2a.training.stage.sounds import loop_for

BANK = ProceduralBank()
# Their events are blows with silence between, so that the sound itself tells when they come.
STRUCK = ("footsteps", "horse", "hammer", "ball", "racket", "gunshot", "impact", "drum")


def _made(concept: str, *, seed: int = 3, seconds: float = 0.7, **motion):
    return BANK.generate(concept, np.random.default_rng(seed), seconds, **motion)


def test_every_concept_has_a_sound_and_no_sound_is_without_one() -> None:
    assert set(BANK.concepts) == {concept.name for concept in CONCEPTS}


@pytest.mark.parametrize("concept", BANK.concepts)
def test_a_sound_is_whole_and_the_same_each_time(concept: str) -> None:
    sound, again, other = _made(concept), _made(concept), _made(concept, seed=4)
    assert sound.audio_L.shape == (round(0.7 * RATE_HZ),) and sound.audio_L.dtype == np.float32
    assert np.isfinite(sound.audio_L).all() and np.abs(sound.audio_L).max() <= 0.5
    assert (sound.audio_L == again.audio_L).all() and (sound.onsets_s == again.onsets_s).all()
    assert not np.array_equal(sound.audio_L, other.audio_L)
    assert ((sound.onsets_s >= 0) & (sound.onsets_s < 0.7)).all()


@pytest.mark.parametrize("concept", STRUCK)
def test_events_begin_where_they_are_asked_for(concept: str) -> None:
    asked = [0.31, 1.07, 2.183]
    sound = _made(concept, seconds=3.0, events_s=asked)
    np.testing.assert_allclose(sound.onsets_s, asked)
    for start_s in asked:
        # The first sample that is a fiftieth of the event's peak, against the rest before it.
        near = np.abs(sound.audio_L[round((start_s - 0.01) * RATE_HZ) :][: RATE_HZ // 5])
        heard_s = start_s - 0.01 + np.argmax(near > 0.02 * near.max()) / RATE_HZ
        assert abs(heard_s - start_s) <= 1e-3, concept


@pytest.mark.parametrize("concept", STRUCK)
def test_without_events_there_is_silence(concept: str) -> None:
    assert not _made(concept, events_s=[]).audio_L.any()


def test_all_sounds_are_about_as_loud() -> None:
    for concept in BANK.concepts:
        audio_L = _made(concept, seconds=3.0).audio_L
        blocks = audio_L[: len(audio_L) // 480 * 480].reshape(-1, 480)
        loudest = max(np.sqrt(np.square(blocks[i : i + 10]).mean()) for i in range(len(blocks) - 9))
        assert 20 * np.log10(loudest) == pytest.approx(LEVEL_DBFS, abs=2.5), concept


def test_an_engine_turns_as_fast_as_it_is_driven() -> None:
    centres = []
    for drive in (0.0, 1.0):
        audio_L = _made("motorcycle", seconds=2.0, drive_T=np.full(60, drive)).audio_L
        power = np.abs(np.fft.rfft(audio_L)) ** 2
        centres.append((power * np.arange(power.size)).sum() / power.sum() / 2)
    assert centres[1] > 1.8 * centres[0]


def test_an_unknown_concept_is_refused() -> None:
    with pytest.raises(UserError, match="no sound for 'teapot'"):
        _made("teapot")


def test_the_stages_own_loops_stay_what_recordings_were_made_with() -> None:
    assert float(np.abs(loop_for("footsteps")).sum()) == pytest.approx(8_646.770_006, rel=1e-8)
