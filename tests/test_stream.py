"""The library's stream: the samples of `dub`, frames it refuses, reset, threads, registration."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from spatial_v2a import Config, SpatialV2A, UserError
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.frame_stream import find_frame_stream
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import DubOptions, plan_jobs
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.engine.stream import Stream
from spatial_v2a.timing import TIMING
from tests.tiny_checkpoint import write_tiny_checkpoint

NUM_TICKS = 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> SpatialV2A:
    return SpatialV2A.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def opened(model: SpatialV2A) -> Iterator[Stream]:
    """Opening traces every network, a second or two: one serves the file."""
    with model.stream(seed=2, nfe=1) as stream:
        yield stream


@pytest.fixture
def stream(opened: Stream) -> Stream:
    opened.reset()
    return opened


def pictures(height: int = 48, width: int = 64, *, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(0, 255, (NUM_TICKS, height, width, 3), dtype=np.uint8)


def heard(stream: Stream, frames) -> np.ndarray:
    return np.concatenate([stream.push(frame) for frame in frames])


def test_a_tick_is_1600_float_samples_of_two_channels(stream: Stream) -> None:
    sounds = [stream.push(frame) for frame in pictures()]
    for audio_LC in sounds:
        assert (audio_LC.shape, audio_LC.dtype) == ((TIMING.samples_per_tick, 2), np.float32)
    assert TIMING.samples_per_tick == 1600
    whole = np.concatenate(sounds)
    assert np.abs(whole).max() > 1e-4, "the random model is silent, the test says nothing"
    # A tick belongs to the caller: the next one does not write to it.
    kept = sounds[0].copy()
    stream.push(pictures()[0])
    assert np.array_equal(sounds[0], kept)


def test_the_samples_are_those_of_dub(tmp_path: Path, checkpoint: Path, stream: Stream) -> None:
    clip = tmp_path / "clip.mp4"
    write_video(clip, pictures(), 30)
    unmarked = DubOptions(watermark=False)
    (job,) = plan_jobs([clip], out=tmp_path / "clip.wav", options=unmarked)
    Dubber(checkpoint, settings=EngineSettings(seed=2, nfe=1), device="cpu").dub(job)
    dubbed = soundfile.read(job.out, dtype="float32")[0]
    pushed = heard(stream, open_video(clip).ticks(max_width=stream.max_width))
    # The file holds 24 bits; beside that nothing may differ.
    assert len(dubbed) == len(pushed)
    assert np.abs(dubbed - np.clip(pushed, -1, 1)).max() <= 2**-23


def test_reset_is_a_new_stream(stream: Stream) -> None:
    frames = pictures()
    first = heard(stream, frames)
    heard(stream, pictures(seed=5))
    stream.reset()
    assert np.array_equal(first, heard(stream, frames))


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:, ::-1], lambda x: np.asfortranarray(x), lambda x: x[..., ::-1]],
    ids=["mirrored", "fortran", "bgr"],
)
def test_views_are_the_same_picture_as_their_copies(stream: Stream, change) -> None:
    frames = [change(frame) for frame in pictures()[:3]]
    for frame in frames:
        frame.flags.writeable = False
    views = heard(stream, frames)
    stream.reset()
    assert np.array_equal(views, heard(stream, [frame.copy("C") for frame in frames]))


def test_the_size_may_change_between_frames(stream: Stream) -> None:
    sizes = [(48, 64), (30, 200), (1, 1), (300, 20), (48, 64)]
    frames = [pictures(*size)[0] for size in sizes]
    sound = heard(stream, frames)
    assert sound.shape == (len(sizes) * TIMING.samples_per_tick, 2) and np.isfinite(sound).all()


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((48, 64, 3), np.float32), "got float32"),
        (np.zeros((48, 64, 3), np.int64), "got int64"),
        (np.zeros((48, 64), np.uint8), r"got shape \(48, 64\)"),
        (np.zeros((48, 64, 4), np.uint8), r"got shape \(48, 64, 4\)"),
        (np.zeros((3, 48, 64), np.uint8), r"got shape \(3, 48, 64\)"),
        (np.zeros((1, 48, 64, 3), np.uint8), r"got shape \(1, 48, 64, 3\)"),
        (np.zeros((0, 64, 3), np.uint8), r"has pixels, got shape \(0, 64, 3\)"),
        (torch.zeros(48, 64, 3, dtype=torch.uint8), "numpy array, got Tensor"),
        (None, "numpy array, got NoneType"),
    ],
    ids=["float", "int64", "grey", "alpha", "channels_first", "batch", "empty", "tensor", "none"],
)
def test_bad_frames_are_refused_and_change_nothing(stream: Stream, frame, words: str) -> None:
    good = pictures()
    first = heard(stream, good)
    stream.reset()
    with pytest.raises(UserError, match=words):
        stream.push(frame)
    assert np.array_equal(first, heard(stream, good))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": -1}, "seed=-1"),
        ({"nfe": 0}, "nfe=0"),
        ({"guidance": 21.0}, "guidance=21"),
        ({"spatial_guidance": -1.0}, "spatial_guidance=-1"),
        ({"without": ("sky",)}, "without.0='sky'"),
        ({"fov_deg": 180}, "field of view 180"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_options_are_refused(model: SpatialV2A, options: dict, words: str) -> None:
    before = torch.get_num_threads()
    with pytest.raises(UserError, match=words):
        model.stream(**options)
    assert torch.get_num_threads() == before


def test_options_threads_and_the_end(model: SpatialV2A, stream: Stream) -> None:
    """Another stream with other options sounds different, runs on one thread, and then is over."""
    frames = pictures()
    first = heard(stream, frames)
    options = {"seed": 3, "nfe": 3, "guidance": 1.5, "spatial_guidance": 2.0, "without": ("dino",)}
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with model.stream(**options, fov_deg=60.0) as other:
            assert torch.get_num_threads() == 1
            assert other.settings == EngineSettings(**options) and other.fov_deg == 60.0
            second = heard(other, frames)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert second.shape == first.shape and not np.array_equal(second, first)
    other.close()
    for call in (lambda: other.push(frames[0]), other.reset, other.__enter__):
        with pytest.raises(UserError, match="closed; open another"):
            call()


def test_a_model_of_no_checkpoint_has_no_stream(tiny_config: Config) -> None:
    with pytest.raises(UserError, match="from_pretrained"):
        SpatialV2A(tiny_config).stream()


def test_the_engine_is_found_by_its_entry_point() -> None:
    assert find_frame_stream() is Stream
    with pytest.raises(UserError, match="registered under spatial_v2a.nothing .*make setup"):
        find_frame_stream("spatial_v2a.nothing")
