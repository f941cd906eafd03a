"""Runs a checkpoint over clips and footage: perception, engine, codec.

It runs the engine users run, tick by tick.
Legend: B streams, T ticks, C channels, L samples, K box slots, F box fields.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from spatial_v2a.clip import Clip
from spatial_v2a.conditioning.annotations import clip_ticks, overlay_annotations
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.detectors import STAGE, Perceptions
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.inference.engine.engine import Engine, EngineSettings, engine_threads
from spatial_v2a.inference.engine.object_mix import (
    DEFAULT_OBJECTS,
    NUM_OBJECT_STREAMS,
    ObjectMix,
    Objects,
)
from spatial_v2a.inference.engine.pipeline import Pipeline
from spatial_v2a.inference.evaluation import av_align
from spatial_v2a.inference.evaluation.footage import Item
from spatial_v2a.inference.evaluation.store import file_digest, stamp_of
from spatial_v2a.model import SpatialV2A
from spatial_v2a.timing import TIMING

PROGRESS_TICKS = 60 * TIMING.tick_hz


@dataclass
class System:
    """A loaded checkpoint, ready to dub.

    Attributes:
        digest: hash of the checkpoint's files and of the settings of its perception; part of every
            stamp.
        device: where it runs.
        perceptions: chooses for a video; None where there is nothing to choose.
    """

    model: SpatialV2A
    perception: Perception
    settings: EngineSettings
    digest: str
    device: str
    perceptions: Perceptions | None = None


# What is seen in a tick: features [1, 1], and the boxes they were made of.
Tick = tuple[FrameFeatures, tuple[Box, ...]]


def detect(system: System, clip: Clip, *, mirrored: bool = False) -> list[Tick]:
    """Runs the perception of the engine over a clip's frames.

    Encoders see the frames in batches: the same numbers to rounding, in half the time.
    """
    frames = (frame[:, ::-1] if mirrored else frame for frame in clip.frames())
    with engine_threads(system.device):
        return list(system.perception.look(frames, fov_deg=clip.meta["fov_deg"]))


def give_geometry(detected: list[Tick], clip: Clip, system: System) -> Iterator[Tick]:
    """Replaces the detected boxes and depth by the engine's own; the picture features stay."""
    given = clip_ticks(clip, system.model.config.perception)
    for (features, _), (annotated_features, boxes) in zip(detected, given, strict=True):
        yield overlay_annotations(features, annotated_features), boxes


@torch.inference_mode()
def dub_clips(
    system: System, clips: list[list[Tick]], *without: str, objects: Objects = DEFAULT_OBJECTS
) -> list[np.ndarray]:
    """Sounds of several clips, float32 [L, 2] each.

    The clip in slot b draws from seed + b: it sounds as `dub --seed` with that number does,
    whoever its neighbours are. Clips are streams of one engine, for one stream leaves most of a
    core idle and eight cost a fifth each; one in which objects are to be heard apart has an engine
    of its own.

    Args:
        system: the loaded checkpoint.
        clips: ticks of each clip; lengths may differ.
        without: streams of perception to switch off, beside those of the settings.
        objects: how several objects in the picture are heard.
    """
    dropped = tuple(dict.fromkeys((*system.settings.without, *without)))
    settings = system.settings.model_copy(update={"without": dropped})
    is_apart = objects == "apart" and "boxes" not in dropped
    apart = [slot for slot, ticks in enumerate(clips) if is_apart and _has_several(ticks)]
    sounds = {slot: _dub_apart(system, settings, clips[slot], slot=slot) for slot in apart}
    if len(apart) < len(clips):
        # Who is heard apart keeps an idle stream here: the others are the same without it.
        features = [[f for f, _ in ticks] for ticks in clips]
        for slot, sound_LC in enumerate(_dub_together(system, settings, features, idle=apart)):
            sounds.setdefault(slot, sound_LC)
    return [sounds[slot] for slot in range(len(clips))]


def _has_several(ticks: list[Tick]) -> bool:
    """Whether two objects have a box in any tick."""
    return any(int(features.box_mask_BTK.sum()) > 1 for features, _ in ticks)


def _dub_apart(
    system: System, settings: EngineSettings, ticks: list[Tick], *, slot: int
) -> np.ndarray:
    """Sound [L, 2] of one clip by streams for each object."""
    own = settings.model_copy(update={"seed": settings.seed + slot})
    num_streams = 1 + NUM_OBJECT_STREAMS
    engine = Engine(
        system.model, num_streams=num_streams, settings=own, streams_per_noise=num_streams
    )
    mix = ObjectMix(engine)
    with engine_threads(engine.device):
        return np.concatenate([mix.step(*tick).mix_NLC[0] for tick in ticks])


def _dub_together(
    system: System,
    settings: EngineSettings,
    clips: list[list[FrameFeatures]],
    *,
    idle: list[int],
) -> list[np.ndarray]:
    """Sounds [L, 2] of clips as streams of one engine; those of idle ones say nothing."""
    engine = Engine(system.model, num_streams=len(clips), settings=settings)
    lengths = torch.tensor([0 if slot in idle else len(ticks) for slot, ticks in enumerate(clips)])
    parts = []
    with engine_threads(engine.device):
        for tick in range(int(lengths.max())):
            active_B = tick < lengths
            rows = [ticks[min(tick, len(ticks) - 1)] for ticks in clips]
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
def dub_item(
    system: System, item: Item, *, fov_deg: float, mirrored: bool, progress: Callable[[str], None]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Hears footage from its start, with the same seed whether mirrored or not.

    Returns:
        Sound, float32 [L, 2], exactly as long as the picture; and notes: largest box per tick,
        edges of all boxes at 4 Hz, and when the motion peaks.

    Raises:
        UserError: its picture is damaged.
    """
    perception = system.perception
    if system.perceptions is not None and item.source is not None:
        perception = system.perceptions.of(item.source)
    width = perception.max_image_width
    engine = Engine(system.model, num_streams=1, settings=system.settings)
    perception.init_state(1)
    samples = engine.samples_per_tick
    audio_LC = np.zeros((item.num_ticks * samples, TIMING.num_channels), np.float32)
    motion, bearings, edges_T = av_align.MotionMeter(), [], []
    with engine_threads(engine.device):
        for tick, image_HWC in enumerate(_checked(item, max_width=width)):
            if not mirrored:
                motion.add(image_HWC)
            shown_HWC = image_HWC[:, ::-1] if mirrored else image_HWC
            frames_BHWC = torch.from_numpy(shown_HWC.copy())[None]
            features = perception.step(frames_BHWC, fov_deg=fov_deg)
            bearings += largest_box_azimuth_deg([features])
            edges_T.append(box_edges_px(features))
            audio_LC[tick * samples : (tick + 1) * samples] = engine.step(features)[0].numpy()
            if (tick + 1) % PROGRESS_TICKS == 0:
                progress(f"{item.key}: {(tick + 1) // TIMING.tick_hz} s heard")
    notes = {
        "largest_box_azimuth_deg": bearings,
        "box_edges_px": [edges.round(2).tolist() for edges in av_align.detection_frames(edges_T)],
        "motion_peaks_s": motion.peaks_s(),
    }
    return audio_LC[: item.num_samples], notes


def box_edges_px(features: FrameFeatures) -> np.ndarray:
    """Left and right edge in px of 256 of every box of one tick, [K, 2]."""
    fields_KF = features.boxes_BTKF[0, 0].cpu().numpy()[features.box_mask_BTK[0, 0].cpu().numpy()]
    middle_K, width_K = (fields_KF[:, BOX_FIELDS.index(name)] for name in ("cx", "w"))
    edges_K2 = np.stack([middle_K - width_K / 2, middle_K + width_K / 2], axis=-1)
    return edges_K2 * av_align.PICTURE_WIDTH_PX


def _checked(item: Item, *, max_width: int) -> Iterator[np.ndarray]:
    """Its pictures; what a decoder may raise becomes one line that names the item."""
    try:
        yield from item.ticks(max_width=max_width)
    except av.error.FFmpegError as error:
        raise UserError(f"{item.key} cannot be decoded ({error}); copy it again") from error


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


def load_system(
    name: str,
    *,
    settings: EngineSettings,
    device: str = "cpu",
    detector: str | None = None,
    detector_weights: Path | None = None,
) -> System:
    """Loads a checkpoint by folder, bundled name or hub id.

    Args:
        name: of the checkpoint.
        settings: how sound is drawn.
        device: cpu, cuda or auto.
        detector: who finds the boxes; None is the checkpoint's own choice.
        detector_weights: the user's own weights for it; None is the checkpoint's.

    Raises:
        UserError: missing or damaged checkpoint, unusable device.
    """
    pipeline = Pipeline(
        name,
        settings=settings,
        device=device,
        detector=detector or STAGE,
        detector_weights=detector_weights,
    )
    perception = pipeline.model.config.perception
    # With the defaults that the folder does not name, and with the choice of the detector.
    parts = [
        checkpoint_digest(pipeline.model.folder),
        perception.model_dump_json(),
        pipeline.perceptions.detector,
    ]
    if detector_weights is not None:
        parts.append(pipeline.perception.fingerprint("boxes"))
    digest = stamp_of(*parts)
    return System(
        pipeline.model, pipeline.perception, settings, digest, pipeline.device, pipeline.perceptions
    )
