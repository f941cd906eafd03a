"""The original sound kept, ducked or beside: what is in the file afterwards, by a second tool."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from pymediainfo import MediaInfo

from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
from spatial_v2a.inference.dub.mixing import (
    Extent,
    Finish,
    Limiter,
    LoudnessMeter,
    MixSettings,
    measure,
    mix_extent,
    mixed_pieces,
    plan_finish,
)
from spatial_v2a.inference.dub.mux import open_sink
from spatial_v2a.inference.dub.original_sound import original_tracks, track_pieces
from spatial_v2a.timing import TIMING
from tests.captures import OFFSET_S, RATE_HZ, decoded, picture_packets, speech_like, write_capture

LENGTH_S = 4.0


@pytest.fixture(scope="module")
def capture(tmp_path_factory) -> Path:
    return write_capture(tmp_path_factory.mktemp("capture"), length_s=LENGTH_S)


def hiss(length_s: float, level: float = 0.02) -> np.ndarray:
    values = np.random.default_rng(1).standard_normal((round(length_s * RATE_HZ), 2))
    return (level * values).astype(np.float32)


def level_db(sound_LC: np.ndarray, from_s: float, to_s: float) -> float:
    part = sound_LC[round(from_s * RATE_HZ) : round(to_s * RATE_HZ)]
    return 10 * np.log10(np.mean(part.astype(np.float64) ** 2) + 1e-12)


def mix(capture: Path, generated_LC: np.ndarray, **settings) -> np.ndarray:
    source = open_video(capture)
    chosen = MixSettings(**settings)
    track = original_tracks(capture)[0] if chosen.original != "drop" else None
    extent = mix_extent(source, track)
    pieces = mixed_pieces(iter([generated_LC]), chosen, source=source, track=track, extent=extent)
    return np.concatenate(list(pieces))


def dub(capture: Path, out: Path, sound_LC: np.ndarray, **options) -> Path:
    """What a dub does with its sound, without a model."""
    (job,) = plan_jobs([capture], out=out, options=DubOptions(**options))
    extent = job.extent(job.takes[0])
    pieces = mixed_pieces(
        iter([sound_LC]), job.options.mix, source=job.source, track=job.track, extent=extent
    )
    with open_sink(out, job.source, job.sound) as sink:
        for piece_LC in pieces:
            sink.write(piece_LC)
    return out


def tracks_by_mediainfo(path: Path) -> dict[str, list]:
    """MediaInfo reads containers with code of its own; FFmpeg wrote them."""
    found: dict[str, list] = {}
    for track in MediaInfo.parse(path).tracks:
        found.setdefault(track.track_type, []).append(track)
    return found


def test_the_originals_samples_come_at_their_time(capture: Path) -> None:
    track = original_tracks(capture)[0]
    assert (track.start_s, track.num_channels) == (OFFSET_S, 1)
    pieces = track_pieces(track, start_s=Fraction(0), num_samples=4 * RATE_HZ)
    sound_LC = np.concatenate(list(pieces))
    assert sound_LC.shape == (4 * RATE_HZ, 2)
    expected = speech_like(LENGTH_S - 1.2, from_s=1.0, to_s=2.0)
    lead = round(OFFSET_S * RATE_HZ)
    error = np.abs(sound_LC[lead : lead + len(expected)] - expected).max()
    assert error < 1e-4, f"mono is not on both sides as it is, error {error:.2g}"
    assert not sound_LC[:lead].any()


def test_keep_is_the_sum_and_gains_are_gains(capture: Path) -> None:
    generated = hiss(LENGTH_S)
    plain = mix(capture, generated, original="keep")
    alone = mix(capture, np.zeros_like(generated), original="keep")
    assert np.allclose(plain, generated + alone, atol=1e-6)
    louder = mix(capture, generated, original="keep", gain=6.0, original_gain=-6.0)
    expected = 10 ** (6 / 20) * generated + 10 ** (-6 / 20) * alone
    assert np.allclose(louder, expected, atol=1e-5)


def test_ducking_turns_down_under_speech_only(capture: Path) -> None:
    generated = hiss(LENGTH_S)
    ducked = mix(capture, generated, original="duck")
    theirs = mix(capture, np.zeros_like(generated), original="keep")
    ours = ducked - theirs
    change_db = lambda a, b: level_db(ours, a, b) - level_db(generated, a, b)  # noqa: E731
    # Speech of -20 dBFS stands from 1.2 + 1 to 1.2 + 2 s.
    assert change_db(0.0, 2.19) == pytest.approx(0, abs=0.05), "turned down before speech"
    assert -16 < change_db(2.3, 3.1) < -8, f"under speech {change_db(2.3, 3.1):.1f} dB"
    assert change_db(3.7, 4.0) > -1, f"0.5 s after speech still {change_db(3.7, 4.0):.1f} dB"
    assert np.array_equal(mix(capture, generated), generated), "dropping changes the sound"


def test_everything_is_there_after_ducking(capture: Path, tmp_path: Path) -> None:
    out = dub(capture, tmp_path / "out.mkv", hiss(LENGTH_S), mix=MixSettings(original="duck"))
    assert picture_packets(out) == picture_packets(capture)
    before, after = tracks_by_mediainfo(capture), tracks_by_mediainfo(out)
    assert len(after["Audio"]) == len(before["Audio"]) == 2
    assert [t.language for t in after["Audio"]] == ["en", "de"]
    assert [t.title for t in after["Audio"]] == ["Game and voice", "Music"]
    assert [t.default for t in after["Audio"]] == ["Yes", "No"]
    assert [t.channel_s for t in after["Audio"]] == [2, 2]
    assert len(after["Text"]) == 1 and after["Text"][0].language == "en"
    assert len(after["Menu"]) == 1, "chapters are lost"
    menus = [{k: v for k, v in t["Menu"][0].to_data().items() if k[:3] == "00_"}
             for t in (before, after)]  # fmt: skip
    assert menus[0] == menus[1] and len(menus[0]) == 2
    assert after["General"][0].title == "a capture"
    assert after["General"][0].attachments == "note.txt"
    assert after["Video"][0].frame_rate_mode == before["Video"][0].frame_rate_mode
    # The other track is copied to its place, 1.2 s after the picture's start.
    for path in (capture, out):
        start_s, music = decoded(path, track=1)
        assert start_s == OFFSET_S, f"{path.name}: {float(start_s):.3f} s"
        assert len(music) == round((LENGTH_S - 1.2) * RATE_HZ)
    assert np.array_equal(decoded(out, 1)[1], decoded(capture, 1)[1])


def test_a_further_track_leaves_the_others(capture: Path, tmp_path: Path) -> None:
    out = dub(capture, tmp_path / "out.mkv", hiss(LENGTH_S), track=True)
    audio = tracks_by_mediainfo(out)["Audio"]
    assert [t.title for t in audio] == ["Game and voice", "Music", "spatial-v2a"]
    assert [t.default for t in audio][2] == "No"
    for track in (0, 1):
        assert np.array_equal(decoded(out, track)[1], decoded(capture, track)[1])
    start_s, ours = decoded(out, 2)
    assert start_s == 0 and np.allclose(ours[: len(hiss(LENGTH_S))], hiss(LENGTH_S), atol=1e-6)


def test_sound_that_outlasts_the_picture_is_kept_whole(tmp_path: Path) -> None:
    capture = write_capture(tmp_path, length_s=2.0, speech=(0.0, 0.8))
    longer = tmp_path / "longer.mkv"
    sound = speech_like(3.0, from_s=0.0, to_s=3.0)
    soundfile.write(tmp_path / "long.wav", sound, RATE_HZ)
    with (
        av.open(str(capture)) as video,
        av.open(str(tmp_path / "long.wav")) as wave,
        av.open(str(longer), "w") as target,
    ):
        picture = target.add_stream_from_template(video.streams.video[0])
        track = target.add_stream_from_template(wave.streams.audio[0])
        for source, stream in ((video, picture), (wave, track)):
            for packet in source.demux(source.streams[0]):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    out = dub(longer, tmp_path / "o.mkv", hiss(2.0), mix=MixSettings(original="keep"))
    kept = decoded(out)[1]
    assert len(kept) == 3 * RATE_HZ
    assert np.allclose(kept[2 * RATE_HZ :], sound[2 * RATE_HZ :], atol=1e-4)


def test_a_track_that_the_container_cannot_hold_is_refused(tmp_path: Path) -> None:
    capture = write_capture(tmp_path, length_s=2.0)
    free, both = tmp_path / "free.webm", tmp_path / "both.mkv"
    write_video(free, (np.full((32, 48, 3), 5 * n, np.uint8) for n in range(40)), 24)
    with (
        av.open(str(free)) as video,
        av.open(str(capture)) as sound,
        av.open(str(both), "w") as target,
    ):
        copies = [
            (stream.container, stream, target.add_stream_from_template(stream))
            for stream in (video.streams.video[0], sound.streams.audio[0])
        ]
        for source, stream, copy in copies:
            for packet in source.demux(stream):
                if packet.size:
                    packet.stream = copy
                    target.mux(packet)
    with pytest.raises(UserError, match="cannot hold the flac audio.*mkv"):
        plan_jobs([both], out=tmp_path / "o.webm", options=DubOptions(track=True))


def test_loudness_reaches_its_target_and_peaks_stay_below_one_db(tmp_path: Path) -> None:
    """Footsteps 14 dB over full scale when loud enough: only a limiter can hold them."""
    random, length = np.random.default_rng(0), RATE_HZ // 2
    decay = np.exp(-np.arange(length) / 400)[:, None]
    steps = np.concatenate([random.standard_normal((length, 2)) * decay for _ in range(8)])
    quiet = (0.01 * steps).astype(np.float32)[:-777]
    for target in (-23.0, -14.0):
        finish = plan_finish(
            lambda: iter([quiet]), start_sample=0, loudness=target, is_marked=False
        )
        finished = np.concatenate(list(finish.pieces(iter([quiet]), start_sample=0)))
        told = measure(iter([finished]))
        assert len(finished) == len(quiet)
        assert told.true_peak_dbtp < -1, f"{target}: {told.true_peak_dbtp:.2f} dBTP"
        if not finish.is_limited:
            assert told.integrated_lufs == pytest.approx(target, abs=0.2)
    assert finish.is_limited, "the test has no peak to hold"
    assert plan_finish(
        lambda: iter([quiet]), start_sample=0, loudness=None, is_marked=False
    ) == Finish(0.0, False, False)


@pytest.mark.parametrize("num_samples", [20 * RATE_HZ, 20 * RATE_HZ - 1, 15 * RATE_HZ + 1600])
def test_the_meter_reads_what_ebu_tech_3341_says(num_samples: int) -> None:
    """Case 1: a 1 kHz sine of -23 dBFS on both channels for 20 s reads -23 LUFS, +-0.1.

    Lengths that are no multiple of 100 ms once read -70.
    """
    time_s = np.arange(num_samples) / RATE_HZ
    tone = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * time_s)
    meter = LoudnessMeter()
    for piece in np.array_split(np.stack([tone, tone], axis=-1).astype(np.float32), 100):
        meter.add(piece)
    told = meter.finish()
    assert told.integrated_lufs == pytest.approx(-23, abs=0.1)
    # Cut in the middle of a wave, it rings between its last samples.
    assert told.true_peak_dbtp == pytest.approx(-23, abs=0.6)


def test_the_limiter_keeps_length_and_time() -> None:
    loud = 1.5 * hiss(2.0, level=0.5)
    limiter = Limiter()
    pieces = [limiter.push(p) for p in np.array_split(loud, 37)]
    held = np.concatenate([*pieces, limiter.flush()])
    assert held.shape == loud.shape
    inner = slice(100, -100)
    match = [np.corrcoef(loud[inner, 0], np.roll(held[:, 0], k)[inner])[0, 1] for k in (-1, 0, 1)]
    assert match[1] > 0.95 and match[1] > max(match[0], match[2]) + 0.5, match


def test_a_video_without_sound_is_dubbed_alone(tmp_path: Path, caplog) -> None:
    write_capture(tmp_path, length_s=2.0)
    options = DubOptions(mix=MixSettings(original="duck"))
    (job,) = plan_jobs([tmp_path / "silent.mkv"], options=options)
    assert job.track is None and "no sound of its own" in caplog.text
    assert job.extent(job.takes[0]) == Extent(0, job.source.num_samples)
    assert TIMING.num_channels == 2


def test_samples_that_a_decoder_drops_shift_nothing(tmp_path: Path) -> None:
    """AAC begins with 1024 samples before its time, which once began the mix 21 ms early."""
    silent, capture = tmp_path / "silent.mp4", tmp_path / "capture.mp4"
    write_video(silent, (np.full((32, 48, 3), 5 * n, np.uint8) for n in range(40)), 25)
    sound = hiss(1.6, level=0.1)
    (job,) = plan_jobs([silent], out=capture)
    with open_sink(capture, job.source) as sink:
        sink.write(sound)
    track = original_tracks(capture)[0]
    assert track.start_s == 0
    out = dub(capture, tmp_path / "out.mkv", np.zeros_like(sound), mix={"original": "keep"})
    assert picture_packets(out) == picture_packets(capture)
    with av.open(str(out)) as container:
        assert next(container.demux(video=0)).pts == 0
    start_s, kept = decoded(out)
    assert start_s == 0
    assert np.allclose(kept[:70_000], decoded(capture)[1][:70_000], atol=1e-6)
