"""Runs a checkpoint over clips and footage: perception, engine, codec.

It runs the engine users run, tick by tick.
Legend: B streams, T ticks, C channels, L samples, K box slots, F box fields.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch

from spatial_v2a.clip import Clip
from spatial_v2a.conditioning.annotations import clip_ticks, overlay_annotations
from spatial_v2a.conditioning.boxes import Box
from spatial_v2a.conditioning.detectors import STAGE
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.inference.engine.engine import (
    EngineSettings,
    engine_threads,
    fastest_weights,
)
from spatial_v2a.inference.engine.object_mix import DEFAULT_OBJECTS, Objects
from spatial_v2a.inference.engine.pipeline import Pipeline, resolve_device
from spatial_v2a.inference.evaluation import av_align
from spatial_v2a.inference.evaluation.footage import Item
from spatial_v2a.inference.evaluation.store import file_digest, stamp_of
from spatial_v2a.timing import TIMING

PROGRESS_TICKS = 60 * TIMING.tick_hz


# The command whose sound is measured to the last bit of its engine.
RunAs = Literal["dub", "live"]


class System(Pipeline):
    """A pipeline that is measured; from `load_system`.

    Attributes:
        run_as: the command that it runs as; None is dub to rounding, by PyTorch alone.
    """

    run_as: RunAs | None = None

    @cached_property
    def digest(self) -> str:
        """Hash of the checkpoint's files, the settings of perception and what runs: of stamps."""
        # With the defaults that the folder does not name, and with the choice of the detector.
        parts = [
            checkpoint_digest(self.model.folder),
            self.model.config.perception.model_dump_json(),
            self.perceptions.detector,
        ]
        if self.model.detector_weights is not None:
            parts.append(self.perception.fingerprint("boxes"))
        return stamp_of(*parts, *([self.run_as] if self.run_as else []))


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
def dub_clips(system: System, clips: list[list[Tick]], *without: str) -> list[np.ndarray]:
    """Sounds of several clips, float32 [L, 2] each.

    The clip in slot b draws from seed + b: it sounds as `dub --seed` with that number does,
    whoever its neighbours are. Clips are streams of one engine, for one stream leaves most of a
    core idle and eight cost a fifth each; one in which objects are to be heard apart has an engine
    of its own, and so have all where the system runs as a command does.

    Args:
        system: the loaded checkpoint.
        clips: ticks of each clip; lengths may differ.
        without: streams of perception to switch off, beside those of the settings.
    """
    dropped = tuple(dict.fromkeys((*system.settings.without, *without)))
    drawn = system.with_settings(without=dropped)
    alone = [
        slot
        for slot, ticks in enumerate(clips)
        if system.run_as or (drawn.is_apart and _has_several(ticks))
    ]
    sounds = {slot: _dub_alone(drawn, clips[slot], slot=slot) for slot in alone}
    if len(alone) < len(clips):
        # Who is heard alone keeps an idle stream here: the others are the same without it.
        features = [[f for f, _ in ticks] for ticks in clips]
        for slot, sound_LC in enumerate(_dub_together(drawn, features, idle=alone)):
            sounds.setdefault(slot, sound_LC)
    return [sounds[slot] for slot in range(len(clips))]


def _has_several(ticks: list[Tick]) -> bool:
    """Whether two objects have a box in any tick."""
    return any(int(features.box_mask_BTK.sum()) > 1 for features, _ in ticks)


def _dub_alone(system: System, ticks: list[Tick], *, slot: int) -> np.ndarray:
    """Sound [L, 2] of one clip as the pipeline hears it."""
    own = system.with_settings(seed=system.settings.seed + slot)
    own.begin()
    with engine_threads(own.device):
        return np.concatenate([own.mix.step(*tick).mix_NLC[0] for tick in ticks])


def _dub_together(
    system: System, clips: list[list[FrameFeatures]], *, idle: list[int]
) -> list[np.ndarray]:
    """Sounds [L, 2] of clips as streams of one engine; those of idle ones say nothing."""
    engine = system.engine(len(clips))
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
    system: System, item: Item, *, mirrored: bool, progress: Callable[[str], None]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Hears footage from its start, with the same seed whether mirrored or not.

    Returns:
        Sound, float32 [L, 2], exactly as long as the picture; and notes: largest box per tick,
        edges of all boxes at 4 Hz, and when the motion peaks.

    Raises:
        UserError: its picture is damaged.
    """
    system.begin(item.source)
    samples = TIMING.samples_per_tick
    audio_LC = np.zeros((item.num_ticks * samples, TIMING.num_channels), np.float32)
    motion, bearings, edges_T = av_align.MotionMeter(), [], []

    def shown() -> Iterator[np.ndarray]:
        for image_HWC in _checked(item, max_width=system.max_width):
            if not mirrored:
                motion.add(image_HWC)
            yield image_HWC[:, ::-1] if mirrored else image_HWC

    with closing(system.run(shown())) as ticks:
        for number, tick in enumerate(ticks):
            bearings += largest_box_azimuth_deg([tick.seen.features])
            edges_T.append(box_edges_px(tick.seen.features))
            audio_LC[number * samples : (number + 1) * samples] = tick.audio_LC
            if (number + 1) % PROGRESS_TICKS == 0:
                progress(f"{item.key}: {(number + 1) // TIMING.tick_hz} s heard")
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
    objects: Objects = DEFAULT_OBJECTS,
    fov_deg: float | None = None,
    detector: str | None = None,
    detector_weights: Path | None = None,
    run_as: RunAs | None = None,
) -> System:
    """Loads a checkpoint by folder, bundled name or hub id.

    Args:
        name: of the checkpoint.
        settings: how sound is drawn; `live` brings weights of its own.
        device: cpu, cuda or auto.
        objects, fov_deg: as for `Pipeline`; clips have a field of view of their own.
        detector: who finds the boxes; None is the checkpoint's own choice.
        detector_weights: the user's own weights for it; None is the checkpoint's.
        run_as: see `System`.

    Raises:
        UserError: missing or damaged checkpoint, unusable device.
    """
    if run_as == "live":
        weights = fastest_weights(resolve_device(device))
        settings = settings.model_copy(update={"weights": weights})
    system = System(
        name,
        settings=settings,
        device=device,
        objects=objects,
        fov_deg=fov_deg,
        detector=detector or STAGE,
        detector_weights=detector_weights,
        is_live=run_as == "live",
        is_compiled=run_as is not None,
    )
    system.run_as = run_as
    return system
