"""Dubs video files with a checkpoint: frames in, sound beside the untouched picture, tick by tick.

dubber = Dubber("stage")
result = dubber.dub(plan_jobs([Path("clip.mp4")])[0])
"""

import time
from array import array
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import soundfile
import torch

from spatial_v2a.conditioning.bundle import Perception
from spatial_v2a.conditioning.given import given_features, overlay_given
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.ahead import ahead
from spatial_v2a.inference.engine import Engine, EngineSettings, engine_threads
from spatial_v2a.inference.files import written_whole
from spatial_v2a.inference.jobs import DubJob
from spatial_v2a.inference.mux import open_sink
from spatial_v2a.inference.original_sound import original_energies
from spatial_v2a.inference.report import PanReport
from spatial_v2a.model import SpatialV2A
from spatial_v2a.stereo import StereoMeter, StereoSummary, summarize


@dataclass(frozen=True)
class DubResult:
    """What a dub made and how long it took.

    Attributes:
        out, report: the files written.
        duration_s: length of the picture.
        wall_s: time from the first frame to the finished file.
        tick_ms: time of each tick in the model (perception, generator, decoder), milliseconds;
            on a CPU the perception of the next tick runs meanwhile, on a thread of its own.
        stereo: the honest stereo figures.
    """

    out: Path
    report: Path | None
    duration_s: float
    wall_s: float
    tick_ms: np.ndarray
    stereo: StereoSummary

    @property
    def real_time_factor(self) -> float:
        """Seconds of video per second of work; above 1 is faster than real time."""
        return self.duration_s / self.wall_s


class Dubber:
    """A loaded checkpoint that dubs one file after another.

    Attributes:
        model: the model.
        perception: its frozen encoders.
        settings: how sound is drawn.
        fov_deg: horizontal field of view assumed for the pictures, degrees.
    """

    def __init__(
        self,
        checkpoint: str | Path = "stage",
        *,
        settings: EngineSettings | None = None,
        device: str = "auto",
        fov_deg: float | None = None,
    ) -> None:
        self.device = resolve_device(device)
        self.settings = settings or EngineSettings()
        self.model = SpatialV2A.from_pretrained(checkpoint).to(self.device)
        config = self.model.config.perception
        self.perception = Perception.from_checkpoint(self.model.folder, config).to(self.device)
        self.fov_deg = config.default_fov_deg if fov_deg is None else fov_deg
        if not 1 <= self.fov_deg <= 175:
            raise UserError(f"field of view {self.fov_deg:g} is not in 1..175 degrees; mend --fov")
        self._max_width = config.max_image_width

    def check(self, job: DubJob) -> None:
        """Reads the given geometry of a job to its end, so that a bad line stops nothing later."""
        if job.given is not None:
            for _ in given_features(job.given, self.model.config.perception):
                pass

    def dub(self, job: DubJob, *, on_tick: Callable[[int], None] | None = None) -> DubResult:
        """Writes a job's file, whole or not at all.

        Args:
            job: from `plan_jobs`.
            on_tick: called with the number of ticks done.

        Raises:
            UserError: the video turns out damaged, or the disk cannot take the output.
        """
        engine = Engine(self.model, settings=self.settings, is_compiled=True)
        self.perception.init_state(1)
        # A second core sees the next tick while the first hears this one.
        seen = self._perceive(job) if self.device == "cuda" else ahead(self._perceive(job))
        meter, times_ms, done = StereoMeter(), array("d"), 0
        pan = None
        if job.report is not None:
            config = self.model.config.perception
            pan = PanReport(config, is_given=job.given is not None, truth=job.truth)
        start = time.perf_counter()
        try:
            with written_whole(job.out) as partial, engine_threads(self.device):
                with open_sink(partial, job.source) as sink, closing(seen):
                    for features, seconds in seen:
                        begin = time.perf_counter()
                        audio_LC = engine.step(features)[0].numpy()
                        times_ms.append(1e3 * (seconds + time.perf_counter() - begin))
                        sink.write(audio_LC)
                        meter.add(audio_LC)
                        if pan is not None:
                            pan.add(features)
                        done += 1
                        if on_tick is not None:
                            on_tick(done)
                wall_s = time.perf_counter() - start
                # Inside, so that a failing picture leaves no video either.
                with written_whole(job.report) if job.report else nullcontext() as picture:
                    if pan is not None:
                        pan.draw(
                            picture,
                            meter.energies_TE,
                            title=job.source.path.name,
                            truth_energies_TE=original_energies(job.source, sound=job.truth_sound),
                        )
        except (av.error.FFmpegError, soundfile.SoundFileError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot write {job.out} ({reason}); free space or use -o") from error
        return DubResult(
            out=job.out,
            report=job.report,
            duration_s=float(job.source.duration),
            wall_s=wall_s,
            tick_ms=np.array(times_ms),
            stereo=summarize(meter.energies_TE),
        )

    def _perceive(self, job: DubJob) -> Generator[tuple[FrameFeatures, float], None, None]:
        """Features [1, 1] of each tick and the seconds they took, decoding not counted."""
        given = self._given(job.given)
        for image_HWC in job.source.ticks(max_width=self._max_width):
            begin = time.perf_counter()
            frames_BHWC = torch.from_numpy(image_HWC)[None]
            features = self.perception.step(frames_BHWC, fov_deg=self.fov_deg)
            if given is not None:
                features = overlay_given(features, next(given))
            yield features, time.perf_counter() - begin

    def _given(self, path: Path | None) -> Iterator[FrameFeatures] | None:
        return (
            None if path is None else _hold_last(given_features(path, self.model.config.perception))
        )


def resolve_device(name: str) -> str:
    """The device behind `auto`, `cpu` or `cuda`.

    Raises:
        UserError: `cuda` without a usable GPU, or an unknown name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda, but torch finds no usable GPU; use cpu or auto")
    if name not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is unknown; use auto, cpu or cuda")
    return name


def _hold_last(items: Iterator[FrameFeatures]) -> Iterator[FrameFeatures]:
    for item in items:
        yield item
    while True:
        yield item
