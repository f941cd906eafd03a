"""Samples that are not finite, or far beyond full scale, are an error and reach no file."""

from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.audio.stereo import checked_sound
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.errors import NotSound
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import plan_jobs
from spatial_v2a.inference.dub.mux import open_sink
from spatial_v2a.inference.dub.sound_file import SoundFile
from spatial_v2a.inference.live.session import run_fast
from spatial_v2a.inference.live.sinks import FileSink
from spatial_v2a.model import SpatialV2A
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    write_video(path, np.zeros((4, 48, 64, 3), np.uint8), 30)
    return path


def spoil(model: SpatialV2A) -> None:
    """What a fault of the memory does to weights that were sound when they were loaded."""
    with torch.no_grad():
        model.autoencoder.decoder.magnitude.bias.fill_(torch.nan)


@pytest.mark.parametrize("suffix", [".mp4", ".wav"])
def test_what_is_no_sound_is_not_written(
    suffix: str, checkpoint: Path, clip: Path, tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    dubber = Dubber(checkpoint)
    spoil(dubber.model)
    (job,) = plan_jobs([clip], out=tmp_path / f"out{suffix}", stems=tmp_path / "stems")
    with pytest.raises(NotSound, match="not finite or 40 dB over full scale"):
        dubber.dub(job)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} <= before


def test_a_stream_gives_no_sample_that_is_no_sound(checkpoint: Path) -> None:
    model = SpatialV2A.from_pretrained(checkpoint)
    spoil(model)
    with model.stream() as stream, pytest.raises(NotSound, match="damaged checkpoint"):
        stream.push(np.zeros((48, 64, 3), np.uint8))


def test_live_ends_where_there_is_no_sound(checkpoint: Path, clip: Path, tmp_path: Path) -> None:
    """What came before stays; `live` says why and exits with 1."""
    model = SpatialV2A.from_pretrained(checkpoint)
    spoil(model)
    with model.stream() as stream, closing(FileSink(tmp_path / "a.wav")) as sink:
        figures = run_fast(stream, open_video(clip), sink)
    assert figures.is_cut_short and "damaged checkpoint" in figures.ended
    assert figures.counts.ticks == sink.num_samples == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 101.0, -1e30], ids=str)
def test_no_sink_takes_what_is_no_sound(value: float, tmp_path: Path, clip: Path) -> None:
    sound_LC = np.zeros((1600, 2), np.float32)
    sound_LC[7, 1] = value
    with SoundFile(tmp_path / "a.wav", open_video(clip)) as file, pytest.raises(NotSound):
        file.write(sound_LC)
    with pytest.raises(NotSound), open_sink(tmp_path / "a.mp4", open_video(clip)) as sink:
        sink.write(sound_LC)
    checked_sound(np.full((4, 2), 99.0), where="a loud sound")


def test_an_original_sound_that_is_not_finite_is_refused(
    checkpoint: Path, tmp_path: Path, capsys
) -> None:
    path = tmp_path / "clip.mkv"
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=30)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_f32le", rate=48_000, layout="stereo")
        for number in range(6):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            container.mux(picture.encode(frame))
            samples = np.full((1, 3200), np.nan if number == 3 else 0.1, np.float32)
            block = av.AudioFrame.from_ndarray(samples, "flt", "stereo")
            block.sample_rate, block.pts = 48_000, 1600 * number
            container.mux(sound.encode(block))
        container.mux(picture.encode(None))
    arguments = ["dub", str(path), "--checkpoint", str(checkpoint), "--original", "keep"]
    assert run(arguments) == 2
    assert "not finite at 0.1" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["clip.mkv"]
