"""The pipeline in diffusers' manner: the same samples, components, saving; and its scheduler."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler

from spatial_v2a import Config, UserError
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.inference.diffusers_pipeline import SpatialV2APipeline
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.samplers import karras_sigmas, sample_euler
from tests.tiny_checkpoint import write_tiny_checkpoint

NUM_FRAMES, FPS = 12, 24


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, tiny_config: Config) -> SpatialV2APipeline:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)
    pipe = SpatialV2APipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(0, 255, (NUM_FRAMES, 48, 64, 3), dtype=np.uint8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_samples_are_those_of_dub(pipe: SpatialV2APipeline, frames, tmp_path: Path) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.wav"
    write_video(clip, frames, FPS)
    options = {"watermark": False, "provenance": False, "detector": "stage"}
    pipe.model.dub(clip, out, seed=7, nfe=2, guidance=1.5, **options)
    dubbed_LC, rate_hz = soundfile.read(out)
    result = pipe(video=clip, num_inference_steps=2, guidance_scale=1.5, generator=seeded(7),
                  detector="stage")  # fmt: skip
    assert result.audios.shape == (1, 2, 24_000) and result.audios.dtype == np.float32
    assert rate_hz == pipe.sample_rate == 48_000
    assert np.abs(result.audios).max() > 1e-3, "silence would prove nothing"
    assert np.abs(result.audios[0].T.clip(-1, 1) - dubbed_LC).max() <= 2**-23


def test_frames_have_their_own_rate_and_the_seed_counts(pipe: SpatialV2APipeline, frames) -> None:
    options = {"num_inference_steps": 1, "detector": "stage"}
    used = seeded(3)
    torch.randn(3, generator=used)
    first, again, other = (
        pipe(frames=frames, fps=FPS, generator=generator, output_type="pt", **options).audios
        for generator in (seeded(3), used, seeded(4))
    )
    assert first.shape == (1, 2, 24_000)
    assert torch.equal(first, again) and not torch.equal(first, other)
    (slower,) = pipe(frames=frames, fps=12.5, return_dict=False, **options)
    assert slower.shape == (1, 2, 46_080)
    # Frame n of 24 a second is seen first in the tick that begins at or after n / 24 s.
    shown = [int(image[0, 0, 0]) for image in pipe._ticks(numbered(6), Fraction(24))]
    assert shown == [0, 0, 1, 2, 3, 4, 4, 5]


def numbered(count: int) -> np.ndarray:
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))


def test_components_device_and_saving_are_as_in_diffusers(pipe, tmp_path: Path) -> None:
    assert isinstance(pipe, DiffusionPipeline)
    assert pipe.components == {"model": pipe.model} and pipe.to("cpu") is pipe
    assert (pipe.device.type, pipe.dtype) == ("cpu", torch.float32)
    assert SpatialV2APipeline(**pipe.components).model is pipe.model
    pipe.save_pretrained(tmp_path / "saved")
    with pytest.raises(UserError, match="exists"):
        pipe.save_pretrained(tmp_path / "saved")
    again = SpatialV2APipeline.from_pretrained(tmp_path / "saved")
    for name, tensor in SpatialV2A.from_pretrained(tmp_path / "saved").state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give a video, or frames with fps"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8)}, "frames with fps"),
        ({"video": "no.mp4", "fps": 3}, "frames with fps"),
        ({"video": "no.mp4"}, "no such file"),
        ({"frames": np.zeros((2, 4, 4, 3)), "fps": 3}, "uint8 RGB"),
        ({"frames": np.zeros((4, 4, 3), np.uint8), "fps": 3}, "uint8 RGB"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "fps": float("nan")}, "fps nan is not"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "fps": 0}, "fps 0 is not"),
        ({"video": "no.mp4", "output_type": "pil"}, "use np or pt"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "fps": 3, "num_inference_steps": 0}, "nfe"),
    ],
)
def test_bad_input_is_named(pipe: SpatialV2APipeline, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        pipe(**options)


def test_our_euler_is_the_scheduler_of_diffusers() -> None:
    """Ours stays: five lines without state or host reads, which OpenVINO and CUDA graphs trace."""
    scheduler = EDMEulerScheduler(sigma_min=0.02, sigma_max=40.0, sigma_data=1.0, rho=7.0)
    scheduler.set_timesteps(5)
    sigmas = karras_sigmas(5, sigma_min=0.02, sigma_max=40.0)
    assert (scheduler.sigmas.double() - sigmas).abs().max() < 1e-6 * 40
    mean = torch.randn(3, 8, generator=seeded(1))

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """The best estimate for a Gaussian of width 0.5 about `mean`."""
        return (0.25 * x + sigma**2 * mean) / (0.25 + sigma**2)

    noise = torch.randn(3, 8, generator=seeded(2))
    x = noise * scheduler.sigmas[0]
    for time in scheduler.timesteps:
        scheduler.scale_model_input(x, time)
        clean = denoise(x, scheduler.sigmas[scheduler.step_index])
        x = scheduler.step(clean, time, x, pred_original_sample=clean).prev_sample
    assert (x - sample_euler(denoise, noise, sigmas)).abs().max() < 1e-6
