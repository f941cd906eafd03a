"""Redo: one range anew, every other sample as it was, in files with and without loss."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spatial_v2a import Config, SpatialV2A
from spatial_v2a.conditioning.compiled import SWITCH
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
from spatial_v2a.inference.dub.redo import history_latents, redo
from spatial_v2a.inference.dub.redo_plan import next_version, parse_range, plan_redo
from spatial_v2a.inference.dub.splice import AAC_BLOCK, Splice
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.marking.reading import read_provenance
from spatial_v2a.models.autoencoder import split_latents
from spatial_v2a.timing import TIMING
from tests.captures import RATE_HZ, decoded, picture_packets, write_capture
from tests.tiny_checkpoint import write_tiny_checkpoint

FROM_S, TO_S = 0.93, 1.71


@pytest.fixture(scope="module", autouse=True)
def no_openvino() -> Iterator[None]:
    """It would compile longer than these moments take to hear."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0")
        yield


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def dubber(checkpoint: Path) -> Dubber:
    return Dubber(checkpoint, settings=EngineSettings(nfe=1), device="cpu")


@pytest.fixture(scope="module")
def other(checkpoint: Path) -> Dubber:
    return Dubber(checkpoint, settings=EngineSettings(nfe=1, seed=9), device="cpu")


def write_clip(folder: Path, length_s: int = 3) -> Path:
    clip = folder / "clip.mp4"
    shades = (np.full((32, 48, 3), 5 * n % 250, np.uint8) for n in range(24 * length_s))
    write_video(clip, shades, 24)
    return clip


def make(dubber: Dubber, other: Dubber, clip: Path, suffix: str, **options) -> tuple[Path, Path]:
    """A dub and its redo with another seed."""
    chosen = DubOptions(**options)
    first = clip.with_name(f"clip.dubbed{suffix}")
    (job,) = plan_jobs([clip], out=first, options=chosen)
    dubber.dub(job)
    plan = plan_redo(
        clip, f"{FROM_S}-{TO_S}", previous=first, out=None, overwrite=False, options=chosen
    )
    return first, redo(other, plan).out


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mkv", ".mp4", ".mov"])
def test_outside_the_range_every_sample_stays(tmp_path, dubber, other, suffix: str) -> None:
    clip = write_clip(tmp_path)
    first, second = make(dubber, other, clip, suffix)
    assert second.name == f"clip.dubbed.v2{suffix}"
    (start_a, old), (start_b, new) = decoded(first), decoded(second)
    assert start_a == start_b and old.shape == new.shape
    changed = np.flatnonzero((old != new).any(axis=1)) / RATE_HZ + float(start_a)
    assert len(changed) > 0.6 * (TO_S - FROM_S) * RATE_HZ, f"only {len(changed)} samples are new"
    assert FROM_S <= changed[0] and changed[-1] < TO_S, f"{changed[0]:.4f}..{changed[-1]:.4f} s"
    if suffix in (".mkv", ".mp4", ".mov"):
        digests = [[digest for _, digest in picture_packets(path)] for path in (clip, second)]
        assert digests[0] == digests[1]


def test_the_joins_do_not_jump(tmp_path, dubber, other) -> None:
    """The change of the sound grows from nothing at the first join, and ends so at the second."""
    first, second = make(dubber, other, write_clip(tmp_path), ".wav")
    change_L2 = np.abs(soundfile.read(second)[0] - soundfile.read(first)[0])
    start, stop, millisecond = round(FROM_S * RATE_HZ), round(TO_S * RATE_HZ), RATE_HZ // 1000
    usual = np.quantile(change_L2[start:stop], 0.95)
    assert usual > 1e-3, "both seeds sound the same, the test says nothing"
    for near in (slice(start, start + millisecond), slice(stop - millisecond, stop)):
        jump = change_L2[near].max()
        assert jump < 0.3 * usual, f"{jump:.4f} at once, {usual:.4f} within"


def test_other_seed_other_sound_and_same_seed_same_sound(tmp_path, dubber, other) -> None:
    clip = write_clip(tmp_path)
    first, second = make(dubber, other, clip, ".wav")
    plan = plan_redo(
        clip, f"{FROM_S}-{TO_S}", previous=first, out=None, overwrite=False, options=DubOptions()
    )
    third = redo(other, plan).out
    assert third.name == "clip.dubbed.v3.wav"
    assert np.array_equal(soundfile.read(second)[0], soundfile.read(third)[0])


@pytest.mark.parametrize("context_ticks", [300, 15], ids=["from the start", "half a second"])
def test_a_ducked_dub_keeps_its_dialogue_in_the_range(
    tmp_path, dubber, other, monkeypatch, context_ticks: int
) -> None:
    """Speech stands from 1.3 to 1.6 s, within the range: it must be in the new version, too."""
    monkeypatch.setattr("spatial_v2a.inference.dub.redo_plan.CONTEXT_TICKS", context_ticks)
    capture = write_capture(tmp_path, length_s=3.0, name="clip.mkv", speech=(0.1, 0.4))
    first, second = make(dubber, other, capture, ".mkv", mix={"original": "duck", "gain": -20.0})
    old, new = decoded(first)[1], decoded(second)[1]
    spoken = slice(round(1.35 * RATE_HZ), round(1.55 * RATE_HZ))
    match = np.corrcoef(old[spoken, 0], new[spoken, 0])[0, 1]
    assert match > 0.9, f"correlation of the dialogue {match:.2f}"
    assert not np.array_equal(old[spoken], new[spoken])


@pytest.mark.parametrize("pan_strength", [0.5, 1.0])
def test_history_is_what_the_generator_remembers(pan_strength: float) -> None:
    """Latents that were drawn, decoded with their pan widened, come back near themselves."""
    model = SpatialV2A.from_pretrained("stage")
    # Noise in bursts that crosses from left to right.
    at_L = np.arange(40 * TIMING.samples_per_tick)
    burst_L = np.random.default_rng(0).normal(size=len(at_L)) * 0.1 * np.exp(-(at_L % 12800) / 4800)
    right_L = np.linspace(0.1, 0.9, len(at_L))
    audio_LC = (burst_L * np.sqrt([1 - right_L, right_L])).T.astype(np.float32)
    drawn_TD = history_latents(model, audio_LC, pan_strength=1.0)
    with torch.inference_mode():
        wide_1TD = model.denormalize(drawn_TD, pan_strength=pan_strength)[None]
        heard_LC = model.autoencoder.decode(wide_1TD)[0].T.numpy()
    told_TD = history_latents(model, heard_LC, pan_strength=pan_strength)
    assert told_TD.shape == drawn_TD.shape
    num_odd = model.config.autoencoder.num_odd_latents
    (even, told_even), (odd, told_odd) = zip(
        split_latents(drawn_TD, num_odd), split_latents(told_TD, num_odd), strict=True
    )
    assert np.corrcoef(even.flatten(), told_even.flatten())[0, 1] > 0.75
    # The pan is neither widened twice nor not at all.
    assert (odd - told_odd).norm() < 0.4 * odd.norm()
    assert not history_latents(model, audio_LC, pan_strength=0.0).isnan().any()


def test_aac_packets_that_bear_on_the_outside_stay() -> None:
    splice = Splice(start=10_000, stop=60_000, extent_start=-500, is_aac=True)
    for packet in splice.packets:
        first = -500 + AAC_BLOCK * (packet - 1)
        assert first >= 10_000 and first + 2 * AAC_BLOCK <= 60_000, packet
    assert splice.changed.start >= 10_000 + AAC_BLOCK and splice.changed.stop <= 60_000 - AAC_BLOCK
    assert len(splice.changed) > 45_000


@pytest.mark.parametrize("text", ["3", "a-b", "5-4", "2-2", "-1-2", "1--2", ""])
def test_what_is_not_a_range_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="--redo"):
        parse_range(text)


def test_ranges_are_exact() -> None:
    assert parse_range("12.5-14.0") == (Fraction(25, 2), Fraction(14))


def test_versions_are_numbered(tmp_path: Path) -> None:
    first = tmp_path / "clip.dubbed.mp4"
    assert next_version(first).name == "clip.dubbed.v2.mp4"
    (tmp_path / "clip.dubbed.v2.mp4").touch()
    assert next_version(first).name == "clip.dubbed.v3.mp4"
    assert next_version(tmp_path / "clip.dubbed.v2.mp4").name == "clip.dubbed.v3.mp4"


def test_bad_redos_are_one_line(tmp_path, dubber, checkpoint, capsys) -> None:
    clip = write_clip(tmp_path, length_s=2)
    command = ["dub", str(clip), "--checkpoint", str(checkpoint), "--nfe", "1"]

    def refuses(*words: str) -> str:
        assert run([*command, *words]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said
        return said

    assert "--previous" in refuses("--redo", "0.5-1")
    (job,) = plan_jobs([clip], out=tmp_path / "clip.dubbed.mp4")
    dubber.dub(job)
    before = job.out.read_bytes()
    assert "past the end" in refuses("--redo", "1.5-2.5")
    assert "widen" in refuses("--redo", "0.5-0.6")
    assert "not a range" in refuses("--redo", "x")
    assert "the earlier dub itself" in refuses("--redo", "0.5-1", "-o", str(job.out), "--overwrite")
    assert "--takes" in refuses("--redo", "0.5-1", "--takes", "2")
    assert "belongs to --redo" in refuses("--previous", str(job.out))
    assert ".webm" in refuses("--redo", "0.5-1", "-o", str(tmp_path / "o.webm"))
    assert job.out.read_bytes() == before
    assert run([*command, "--redo", "0.5-1.2"]) == 0
    report = read_provenance(tmp_path / "clip.dubbed.v2.mp4")
    assert report is not None and report.provenance is not None
    assert report.provenance.settings["redone"] == "0.5-1.2"
    assert "wrote" in capsys.readouterr().out and (tmp_path / "clip.dubbed.v2.mp4").exists()
