"""The model as people who know diffusers expect it: a pipeline with components and `.audios`.

    pipe = SpatialV2APipeline.from_pretrained("stage")
    audio = pipe(video="clip.mp4", num_inference_steps=4, guidance_scale=2.0,
                 generator=torch.Generator().manual_seed(7)).audios[0]    # [2, L], 48 kHz

The samples are those of `SpatialV2A.dub` with this seed, before the watermark. Its scheduler is the
model's own: `sample_euler` is EDMEulerScheduler (a test holds both to 1e-6), without its state.
Legend: T H W C frames, rows, columns, colours; B = 1 video, C audio channels, L samples.
"""

from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput, DiffusionPipeline
from numpy.typing import NDArray

from spatial_v2a.audio.stereo import checked_sound
from spatial_v2a.conditioning.video import open_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.engine.object_mix import DEFAULT_OBJECTS, Objects
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.inference.engine.stream import checked_config
from spatial_v2a.model import SpatialV2A

# Seeds of the engine; a generator may hold any 64 bits.
MAX_SEED = 2**62 - 1


class SpatialV2APipeline(DiffusionPipeline):
    """Stereo sound for a video, as a diffusers pipeline.

    Args:
        model: from `SpatialV2A.from_pretrained`; the one component.
    """

    model: SpatialV2A

    def __init__(self, model: SpatialV2A) -> None:
        super().__init__()
        self.register_modules(model=model)

    @property
    def sample_rate(self) -> int:
        """Of `audios`, Hz."""
        return self.model.timing.sample_rate_hz

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.latent_mean_D.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's weights."""
        return self.model.latent_mean_D.dtype

    def to(self, *args: torch.device | torch.dtype | str, **kwargs: object) -> Self:
        """Moves the model, as `torch.nn.Module.to`."""
        self.model.to(*args, **kwargs)
        return self

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path = "stage", *, detector: str | None = None
    ) -> Self:
        """Loads a checkpoint; arguments and errors as for `SpatialV2A.from_pretrained`."""
        return cls(SpatialV2A.from_pretrained(path_or_id, detector=detector))

    def save_pretrained(self, save_directory: str | Path, *, overwrite: bool = False) -> Path:
        """Writes the checkpoint folder; both `from_pretrained` read it."""
        return self.model.save_pretrained(save_directory, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Uploads the checkpoint to the hub as `repo_id`; returns its address."""
        return self.model.push_to_hub(repo_id, private=private)

    @torch.no_grad()
    def __call__(
        self,
        video: str | Path | None = None,
        *,
        frames: NDArray[np.uint8] | None = None,
        fps: float | Fraction | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        spatial_guidance_scale: float = 1.0,
        generator: torch.Generator | None = None,
        fov_deg: float | None = None,
        objects: Objects = DEFAULT_OBJECTS,
        detector: str = "auto",
        output_type: Literal["np", "pt"] = "np",
        return_dict: bool = True,
    ) -> AudioPipelineOutput | tuple:
        """Makes the sound of a video, as long as its picture to the sample.

        Args:
            video: a file; or give `frames` with `fps`.
            frames: uint8 RGB [T, H, W, 3].
            fps: of `frames`, per second.
            num_inference_steps: evaluations of the head per tick of 1/30 s; None is the
                checkpoint's own number.
            guidance_scale: weight of all that is seen, 1 is plain; None is the checkpoint's own.
            spatial_guidance_scale: weight of depth and boxes, 1 is plain.
            generator: the seed that it was made with counts, not how far it was drawn from; None
                draws a seed from PyTorch's own generator.
            fov_deg, objects, detector: as for `SpatialV2A.dub`.
            output_type: np for NumPy, pt for PyTorch.
            return_dict: False gives a tuple.

        Returns:
            `audios` float32 [1, 2, L], left and right, about -1..1.

        Raises:
            UserError: an option out of range, or no video that can be seen.
        """
        if output_type not in ("np", "pt"):
            raise UserError(f"output_type {output_type!r} is unknown; use np or pt")
        if (frames is None) == (video is None) or (fps is None) != (frames is None):
            raise UserError("give a video, or frames with fps")
        if video is None:
            source, (frames_THWC, rate_hz) = None, _checked(frames, fps)
            length_s = len(frames_THWC) / rate_hz
        else:
            source = open_video(Path(video))
            length_s = source.duration
        seed = int(torch.randint(MAX_SEED, ())) if generator is None else generator.initial_seed()
        pipeline = Pipeline(
            self.model,
            settings=checked_config(
                EngineSettings,
                seed=seed % (MAX_SEED + 1),
                nfe=num_inference_steps,
                guidance=guidance_scale,
                spatial_guidance=spatial_guidance_scale,
            ),
            fov_deg=fov_deg,
            objects=objects,
            detector=detector,
        )
        num_ticks = self.model.timing.num_ticks(length_s)
        pipeline.begin(source, num_ticks=num_ticks)
        if source is None:
            images = self._ticks(frames_THWC, rate_hz)
        else:
            images = source.ticks(max_width=pipeline.max_width)
        heard = []
        with self.progress_bar(total=num_ticks) as bar, closing(pipeline.run(images)) as ticks:
            for tick in ticks:
                heard.append(checked_sound(tick.audio_LC, where="generated sound"))
                bar.update()
        audio_CL = np.concatenate(heard)[: self.model.timing.num_samples(length_s)].T
        audios_BCL = np.ascontiguousarray(audio_CL)[None]
        audios = audios_BCL if output_type == "np" else torch.from_numpy(audios_BCL)
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)

    def _ticks(
        self, frames_THWC: NDArray[np.uint8], rate_hz: Fraction
    ) -> Iterator[NDArray[np.uint8]]:
        """The newest frame at the start of each tick."""
        timing = self.model.timing
        for tick in range(timing.num_ticks(len(frames_THWC) / rate_hz)):
            yield frames_THWC[int(timing.tick_time_s(tick) * rate_hz)]


def _checked(frames: object, fps: float | Fraction | None) -> tuple[NDArray[np.uint8], Fraction]:
    is_array = isinstance(frames, np.ndarray) and frames.dtype == np.uint8
    if not is_array or frames.ndim != 4 or frames.shape[3] != 3 or not frames.size:
        kind = getattr(frames, "shape", type(frames).__name__)
        raise UserError(f"frames are uint8 RGB [T, H, W, 3], got {kind}; convert them first")
    # As written: 29.97 is 2997 / 100.
    rate_hz = Fraction(str(fps)) if np.isfinite(float(fps or 0)) else Fraction(0)
    if not 0 < rate_hz <= 1000:
        raise UserError(f"fps {fps} is not in 0..1000; give the frames' rate")
    return frames, rate_hz
