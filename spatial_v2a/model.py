"""The whole model: autoencoder, generator and the statistics that join them.

Legend: B streams, T ticks, D latent dimensions.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor, nn

from spatial_v2a.audio.panning import widened
from spatial_v2a.config import Config
from spatial_v2a.frame_stream import DubbedVideo, FrameStream, find_dub, find_frame_stream
from spatial_v2a.models.autoencoder import StereoAutoencoder, split_latents
from spatial_v2a.models.checkpoint import (
    CONFIG_FILE,
    MODEL,
    find_checkpoint,
    read_card,
    read_config,
    read_encoders,
    upload_checkpoint,
    write_checkpoint,
)
from spatial_v2a.models.generator import Generator
from spatial_v2a.processes import use_one_thread_in_forks
from spatial_v2a.tensor_files import load_network


class SpatialV2A(nn.Module):
    """Causal video to stereo model; `inference.Engine` runs it tick by tick.

    Attributes:
        config: every setting, immutable.
        autoencoder, generator: the two trained parts.
        latent_mean_D, latent_std_D: statistics of the posterior means over the training set.
        folder: checkpoint the weights came from, or None for a fresh model.
        detector_weights: your own weights for the detector of the checkpoint, to be set before
            `stream`: a YOLO11 `.pt`, or a folder of an RT-DETR that transformers wrote; None is the
            checkpoint's.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.timing = config.timing
        self.folder: Path | None = None
        self.detector_weights: Path | None = None
        self.autoencoder = StereoAutoencoder(config.autoencoder, config.timing)
        self.generator = Generator(config.generator, perception_shapes=config.perception.shapes)
        self.register_buffer("latent_mean_D", torch.zeros(config.autoencoder.latent_dim))
        self.register_buffer("latent_std_D", torch.ones(config.autoencoder.latent_dim))

    def normalize(self, latents: Tensor) -> Tensor:
        """Latents [..., D] of the autoencoder to zero mean and unit deviation."""
        return (latents - self.latent_mean_D) / self.latent_std_D

    def denormalize(self, latents: Tensor, *, pan_strength: float = 1.0) -> Tensor:
        """Latents to decode, of normalised ones [..., D] as they are drawn.

        The inverse of `normalize`, with the pan widened as the sampler says (`audio/panning.py`)
        and then `pan_strength` times; 0 makes both channels the same.
        """
        even, odd = split_latents(latents, self.config.autoencoder.num_odd_latents)
        wide = torch.cat((even, pan_strength * widened(odd, self.config.sampler)), dim=-1)
        return wide * self.latent_std_D + self.latent_mean_D

    @torch.no_grad()
    def set_latent_statistics(self, mean_D: Tensor, std_D: Tensor) -> None:
        """Stores the statistics that `normalize` uses; `std_D` must be positive."""
        if not bool((std_D > 0).all()):
            raise ValueError(f"latent deviation must be positive, smallest is {std_D.min():.3g}")
        self.latent_mean_D.copy_(mean_D)
        self.latent_std_D.copy_(std_D)

    @classmethod
    def from_pretrained(
        cls, path_or_id: str | Path = "stage", *, detector: str | None = None
    ) -> Self:
        """Rebuilds a model from a checkpoint folder, on the CPU, in float32, in eval mode.

        Args:
            path_or_id: a folder, the name of a bundled checkpoint, or a hub id.
            detector: who finds the boxes, "yolo" (AGPL-3.0) or "rtdetr" (Apache-2.0); None is the
                checkpoint's own choice.

        Raises:
            UserError: missing or damaged files, a pickle in the checkpoint, weights that do not
                fit the config or are not finite, an unknown detector.
        """
        use_one_thread_in_forks()
        folder = find_checkpoint(path_or_id)
        config = read_config(folder, detector=detector)
        settings = str(folder / CONFIG_FILE)
        model = load_network(lambda: cls(config), folder, MODEL, settings=settings)
        model.folder = folder
        return model.eval()

    def stream(
        self,
        *,
        seed: int = 0,
        nfe: int | None = None,
        guidance: float | None = None,
        spatial_guidance: float = 1.0,
        without: tuple[str, ...] = (),
        fov_deg: float | None = None,
        weights: Literal["float32", "int8", "bfloat16"] = "float32",
        objects: Literal["apart", "together"] = "apart",
        detector: str = "stage",
    ) -> FrameStream:
        """Opens a stream: `with model.stream() as s: audio = s.push(frame)`, 30 times a second.

        Args:
            seed: same seed, same frames, same machine: same samples.
            nfe: evaluations of the head per tick; None is the checkpoint's own number.
            guidance: weight of everything seen, 0..20; 1 is plain, None the checkpoint's own.
            spatial_guidance: weight of depth and boxes, 0..20; 1 is plain.
            without: what to leave out, of "depth", "boxes" and "dino".
            fov_deg: horizontal field of view of the frames in degrees, 1..175; None is the
                checkpoint's own.
            weights: "int8" is faster on a CPU with OpenVINO, near the
                samples of "float32"; it is what `spatial-v2a live` runs. "bfloat16" is for a GPU.
            objects: several objects in view heard each by a stream of its own, or all "together".
            detector: "stage" is the model's own, "auto" a general one where its weights are on
                this machine, or a name that `spatial-v2a detectors` lists.

        Returns:
            A stream that takes uint8 RGB frames [H, W, 3] and gives float32 sound [1600, 2].

        Raises:
            UserError: an option out of range, a model without a checkpoint folder, or no engine
                installed.
        """
        return find_frame_stream()(
            self,
            seed=seed,
            nfe=nfe,
            guidance=guidance,
            spatial_guidance=spatial_guidance,
            without=without,
            fov_deg=fov_deg,
            weights=weights,
            objects=objects,
            detector=detector,
        )

    def dub(
        self,
        video: str | Path,
        out: str | Path | None = None,
        *,
        seed: int = 0,
        nfe: int | None = None,
        guidance: float | None = None,
        spatial_guidance: float = 1.0,
        pan_strength: float = 1.0,
        without: Sequence[str] = (),
        detector: str = "auto",
        sound: str | None = None,
        fov_deg: float | None = None,
        objects: Literal["apart", "together"] | None = None,
        original: Literal["drop", "keep", "duck"] = "drop",
        original_gain: float = 0.0,
        gain: float = 0.0,
        loudness: float | None = None,
        track: bool = False,
        annotations: str | Path | None = None,
        mute: Sequence[int] = (),
        solo: Sequence[int] = (),
        move: Mapping[int, float] | None = None,
        stems: str | Path | None = None,
        takes: int = 1,
        redo: tuple[float, float] | None = None,
        previous: str | Path | None = None,
        report: bool = False,
        overwrite: bool = False,
        watermark: bool = True,
        provenance: bool = True,
        on_tick: Callable[[int], None] | None = None,
    ) -> DubbedVideo:
        """Writes a video's picture, untouched, with generated sound; as `spatial-v2a dub` does.

        Args:
            video: file to dub.
            out: output file (mp4, m4v, mov, mkv, webm, wav, flac) or folder; None writes
                `NAME.dubbed` beside the video.
            seed: same seed, same video, same machine: same samples.
            nfe: evaluations of the head per tick; None is the checkpoint's own number.
            guidance: weight of everything seen, 0..20; 1 is plain, None the checkpoint's own.
            spatial_guidance: weight of depth and boxes, 0..20; 1 is plain.
            pan_strength: width of the pan, 0..2; 0 is mono, 1 the checkpoint's own.
            without: what to leave out, of "depth", "boxes" and "dino".
            detector: who finds the boxes: "auto" looks which one knows more of the video, "stage"
                is the model's own, or a name that `spatial-v2a detectors` lists.
            sound: what things sound like, as `car=engine,tv=silent`.
            fov_deg: horizontal field of view of the picture in degrees, 1..175.
            objects: several objects heard "apart" (None is this), or "together"; for a redo None
                is as in the earlier dub.
            original: the video's own sound left out, kept, or kept with the new one ducked.
            original_gain, gain: gain of the original and of the generated sound, dB.
            loudness: programme loudness of the result, LUFS; None leaves it.
            track: whether the sound is a further track beside the others.
            annotations: JSONL of boxes and depth used instead of detected ones.
            mute, solo: ids of objects in `annotations`, to silence or to keep alone.
            move: degrees by id that an object of `annotations` is shifted by, positive to the left.
            stems: folder for one sound per object.
            takes: soundtracks with seeds one after another, ranked.
            redo: only this range is made again, from and to in seconds.
            previous: the earlier dub whose sound stays around `redo`.
            report: whether the pan picture is drawn, too.
            overwrite: whether files that exist are replaced.
            watermark, provenance: whether the samples are marked, and the file's origin signed.
            on_tick: called with the number of ticks of 1/30 s that are done.

        Returns:
            The files written, how long it took, and what was seen.

        Raises:
            UserError: an option out of range, a video that cannot be dubbed, outputs that exist, a
                model without a checkpoint folder.
        """
        return find_dub()(
            self,
            video,
            out,
            seed=seed,
            nfe=nfe,
            guidance=guidance,
            spatial_guidance=spatial_guidance,
            pan_strength=pan_strength,
            without=without,
            detector=detector,
            sound=sound,
            fov_deg=fov_deg,
            objects=objects,
            original=original,
            original_gain=original_gain,
            gain=gain,
            loudness=loudness,
            track=track,
            annotations=annotations,
            mute=mute,
            solo=solo,
            move=move,
            stems=stems,
            takes=takes,
            redo=redo,
            previous=previous,
            report=report,
            overwrite=overwrite,
            watermark=watermark,
            provenance=provenance,
            on_tick=on_tick,
        )

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        card: str | None = None,
        perception: dict[str, Tensor] | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes a checkpoint folder from which `from_pretrained` gives this model again.

        Args:
            folder: where to write.
            card: text of card.md; None keeps the card of the checkpoint this model came from.
            perception: weights of the compact encoders; None keeps those it came with.
            overwrite: replace a folder that exists.
        """
        if card is None:
            card = (read_card(self.folder) if self.folder else "") or self._plain_card()
        if perception is None and self.folder:
            perception = read_encoders(self.folder)
        return write_checkpoint(
            folder,
            config=self.config,
            tensors=self.state_dict(),
            card=card,
            perception=perception,
            overwrite=overwrite,
        )

    def push_to_hub(self, repo_id: str, *, private: bool = False, card: str | None = None) -> str:
        """Uploads the checkpoint to the hub as `repo_id`; returns its address."""
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "checkpoint", card=card)
            return upload_checkpoint(folder, repo_id, private=private)

    def _plain_card(self) -> str:
        num_params = sum(p.numel() for p in self.parameters())
        return (
            f"# {self.config.name}\n\nA spatial-v2a checkpoint with {num_params:,} parameters.\n"
            "Nobody has written down its data, licence or scores yet.\n"
        )
