"""Makes the sounds of a report: the ground truth, the codec, the model in all its variants.

It runs the engine users run, tick by tick, on one stream per clip.
Legend: B streams, T ticks, C channels, L samples, K box slots, F box fields.
"""

import time
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
from spatial_v2a.inference.evaluation import rows
from spatial_v2a.inference.evaluation.store import SoundStore, clip_digest, file_digest, stamp_of
from spatial_v2a.model import SpatialV2A


@dataclass
class System:
    """A loaded checkpoint, ready to dub.

    Attributes:
        digest: hash of the checkpoint's files; part of every stamp.
    """

    model: SpatialV2A
    perception: Perception
    settings: EngineSettings
    digest: str


@dataclass(frozen=True)
class Plan:
    """Which variants of the model to run."""

    given: bool
    mirror: bool

    @property
    def row_names(self) -> list[str]:
        """Rows the model itself makes, in order."""
        optional = [(rows.GIVEN, self.given), (rows.MIRRORED, self.mirror)]
        return [rows.MODEL, rows.WITHOUT, *(name for name, wanted in optional if wanted)]


def detect(system: System, clip: Clip, *, mirrored: bool = False) -> list[FrameFeatures]:
    """Runs the perception of the engine over a clip's frames, [1, 1] features per tick."""
    perception = system.perception
    perception.init_state(1)
    features = []
    with engine_threads(system.model.latent_mean_D.device):
        for frame_HWC in clip.frames():
            if mirrored:
                frame_HWC = frame_HWC[:, ::-1]
            frames_BHWC = torch.from_numpy(frame_HWC.copy())[None]
            features.append(perception.step(frames_BHWC, fov_deg=clip.meta["fov_deg"]))
    return features


def give_geometry(
    detected: list[FrameFeatures], clip: Clip, system: System
) -> Iterator[FrameFeatures]:
    """Replaces the detected boxes and depth by the engine's own; the picture features stay."""
    given = clip_features(clip, system.model.config.perception)
    for tick, features in enumerate(detected):
        yield overlay_given(features, given.map(lambda x, tick=tick: x[:, tick : tick + 1]))


@torch.inference_mode()
def dub(
    system: System, features: Iterator[FrameFeatures] | list[FrameFeatures], *without: str
) -> np.ndarray:
    """Sound of a clip from its features, float32 [L, 2]; `without` switches streams off."""
    settings = system.settings.model_copy(update={"without": without})
    engine = Engine(system.model, num_streams=1, settings=settings)
    with engine_threads(engine.device):
        return np.concatenate([engine.step(tick)[0].numpy() for tick in features])


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


def generate_clip(system: System, clip: Clip, store: SoundStore, *, plan: Plan) -> float:
    """Makes every missing sound of one clip; returns the seconds of compute it took.

    The notes beside the model's sound hold the bearings of the largest detected box.
    """
    stamp = clip_stamp(system, clip)
    key = clip.meta["key"]

    def missing(row: str) -> bool:
        return store.notes(row, key, stamp=stamp) is None

    started_s = time.monotonic()
    if missing(rows.CODEC):
        store.save(
            rows.CODEC, key, codec_round_trip(system, clip.audio_LC()), stamp=stamp, notes={}
        )
    wanted = [row for row in plan.row_names if missing(row)]
    if set(wanted) - {rows.MIRRORED}:
        detected = detect(system, clip)
        variants = {
            rows.MODEL: lambda: dub(system, detected),
            rows.WITHOUT: lambda: dub(system, detected, "depth", "boxes"),
            rows.GIVEN: lambda: dub(system, give_geometry(detected, clip, system)),
        }
        notes = {"largest_box_azimuth_deg": largest_box_azimuth_deg(detected)}
        for row, make in variants.items():
            if row in wanted:
                store.save(row, key, make(), stamp=stamp, notes=notes if row == rows.MODEL else {})
    if rows.MIRRORED in wanted:
        mirrored = dub(system, detect(system, clip, mirrored=True))
        store.save(rows.MIRRORED, key, mirrored, stamp=stamp, notes={})
    return time.monotonic() - started_s


def clip_stamp(system: System, clip: Clip) -> str:
    """Stamp of every sound the system makes for a clip."""
    return stamp_of(system.digest, str(system.settings), clip_digest(clip))


def checkpoint_digest(folder: Path) -> str:
    """Hash over names and bytes of a checkpoint's weights and configuration."""
    files = sorted(p for p in folder.iterdir() if p.suffix in {".safetensors", ".yaml"})
    return stamp_of([(path.name, file_digest(path)) for path in files])


def load_system(name: str, *, seed: int, nfe: int | None, device: str) -> System:
    """Loads a checkpoint by folder, bundled name or hub id, with the engine's usual settings.

    Raises:
        UserError: missing or damaged checkpoint, unknown device.
    """
    dubber = Dubber(name, settings=EngineSettings(seed=seed, nfe=nfe), device=device)
    digest = checkpoint_digest(dubber.model.folder)
    return System(dubber.model, dubber.perception, dubber.settings, digest)
