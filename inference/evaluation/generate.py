"""Runs a checkpoint over clips: perception, engine, codec.

It runs the engine users run, tick by tick, one stream per clip.
Legend: B streams, T ticks, C channels, L samples, K box slots, F box fields.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spatial_v2a.clip import Clip
from spatial_v2a.conditioning.bundle import Perception
from spatial_v2a.conditioning.given import clip_features, overlay_given
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.inference.dub import Dubber
from spatial_v2a.inference.engine import Engine, EngineSettings, engine_threads
from spatial_v2a.inference.evaluation.store import file_digest, stamp_of
from spatial_v2a.model import SpatialV2A


@dataclass
class System:
    """A loaded checkpoint, ready to dub.

    Attributes:
        digest: hash of the checkpoint's files; part of every stamp.
        device: where it runs.
    """

    model: SpatialV2A
    perception: Perception
    settings: EngineSettings
    digest: str
    device: str


def detect(system: System, clip: Clip, *, mirrored: bool = False) -> list[FrameFeatures]:
    """Runs the perception of the engine over a clip's frames, [1, 1] features per tick.

    Encoders see the frames in batches: the same numbers to rounding, in half the time.
    """
    frames = (frame[:, ::-1] if mirrored else frame for frame in clip.frames())
    with engine_threads(system.device):
        features = system.perception.extract(frames, fov_deg=clip.meta["fov_deg"])
    num_ticks = features.has_boxes_BT.shape[1]
    return [features.map(lambda x, n=n: x[:, n : n + 1]) for n in range(num_ticks)]


def give_geometry(
    detected: list[FrameFeatures], clip: Clip, system: System
) -> Iterator[FrameFeatures]:
    """Replaces the detected boxes and depth by the engine's own; the picture features stay."""
    given = clip_features(clip, system.model.config.perception)
    for tick, features in enumerate(detected):
        yield overlay_given(features, given.map(lambda x, tick=tick: x[:, tick : tick + 1]))


@torch.inference_mode()
def dub_together(
    system: System, features_by_clip: list[list[FrameFeatures]], *without: str
) -> list[np.ndarray]:
    """Sounds of several clips as streams of one engine, float32 [L, 2] each.

    The clip in slot b draws from seed + b: it sounds as `dub --seed` with that number does,
    whoever its neighbours are. One stream leaves most of a core idle; eight cost a fifth each.

    Args:
        system: the loaded checkpoint.
        features_by_clip: features [1, 1] per tick of each clip; lengths may differ.
        without: streams of perception to switch off, beside those of the settings.
    """
    dropped = tuple(dict.fromkeys((*system.settings.without, *without)))
    settings = system.settings.model_copy(update={"without": dropped})
    engine = Engine(system.model, num_streams=len(features_by_clip), settings=settings)
    lengths = torch.tensor([len(ticks) for ticks in features_by_clip])
    parts = []
    with engine_threads(engine.device):
        for tick in range(int(lengths.max())):
            active_B = tick < lengths
            rows = [ticks[min(tick, len(ticks) - 1)] for ticks in features_by_clip]
            parts.append(
                engine.step(_stack(rows), None if bool(active_B.all()) else active_B).numpy()
            )
    sound_BLC = np.concatenate(parts, axis=1)
    samples = engine.samples_per_tick
    return [sound_LC[: int(n) * samples] for sound_LC, n in zip(sound_BLC, lengths, strict=True)]


def _stack(rows: list[FrameFeatures]) -> FrameFeatures:
    """Joins features along the batch."""
    names = vars(rows[0])
    return FrameFeatures(**{name: torch.cat([vars(row)[name] for row in rows]) for name in names})


@torch.inference_mode()
def codec_round_trip(system: System, audio_LC: np.ndarray) -> np.ndarray:
    """Ground truth through the autoencoder: the best any sound of this model can be."""
    autoencoder = system.model.autoencoder
    device = next(autoencoder.parameters()).device
    audio_BCL = torch.from_numpy(np.ascontiguousarray(audio_LC.T))[None].to(device)
    decoded_BCL = autoencoder.decode(autoencoder.encode(audio_BCL).mean_BTD)
    return decoded_BCL[0].T.cpu().numpy()


def largest_box_azimuth_deg(features: list[FrameFeatures]) -> list[float | None]:
    """Bearing of the largest box of each tick in degrees, positive left; None without a box."""
    width, height, azimuth = (BOX_FIELDS.index(name) for name in ("w", "h", "azimuth"))
    bearings: list[float | None] = []
    for tick in features:
        boxes_KF = tick.boxes_BTKF[0, 0].cpu()
        mask_K = tick.box_mask_BTK[0, 0].cpu()
        if not bool(mask_K.any()):
            bearings.append(None)
            continue
        area_K = torch.where(mask_K, boxes_KF[:, width] * boxes_KF[:, height], -1.0)
        bearings.append(float(torch.rad2deg(boxes_KF[int(area_K.argmax()), azimuth])))
    return bearings


def checkpoint_digest(folder: Path) -> str:
    """Hash over names and bytes of a checkpoint's weights and configuration."""
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".yaml"})
    return stamp_of([(path.name, file_digest(path)) for path in files])


def load_system(name: str, *, settings: EngineSettings, device: str = "cpu") -> System:
    """Loads a checkpoint by folder, bundled name or hub id.

    Raises:
        UserError: missing or damaged checkpoint, unusable device.
    """
    dubber = Dubber(name, settings=settings, device=device)
    digest = checkpoint_digest(dubber.model.folder)
    return System(dubber.model, dubber.perception, settings, digest, dubber.device)
