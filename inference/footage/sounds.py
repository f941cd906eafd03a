"""Makes the sounds of footage: the engine users run, tick by tick, on the picture or its mirror.

Legend: T ticks, K boxes, P pictures, L samples, C audio channels.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
import torch

from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.inference.engine.engine import Engine, engine_threads
from spatial_v2a.inference.evaluation import av_align, rows
from spatial_v2a.inference.evaluation.generate import System, largest_box_azimuth_deg
from spatial_v2a.inference.evaluation.literature_scoring import MOTION_WIDTH
from spatial_v2a.inference.evaluation.store import SoundStore, stamp_of
from spatial_v2a.inference.footage.item import Item
from spatial_v2a.timing import TIMING

PROGRESS_TICKS = 60 * TIMING.tick_hz

Progress = Callable[[str], None]


class MotionMeter:
    """Motion of a picture while it streams by: optical flow between pictures that differ.

    A held picture is no standstill: it is left out, and peaks are sought among the pictures that
    the file stores. One small picture and two numbers per stored picture are kept.
    """

    def __init__(self) -> None:
        self._shown: np.ndarray | None = None
        self._small: np.ndarray | None = None
        self._flow_px: list[float] = []
        self._ticks: list[int] = []
        self._num_ticks = 0

    def add(self, image_HWC: np.ndarray) -> None:
        """Adds the picture of the next tick."""
        if image_HWC is not self._shown:
            small = _shrunk(image_HWC)
            if self._small is not None:
                self._flow_px.append(float(av_align.mean_flow_px((self._small, small))[-1]))
                self._ticks.append(self._num_ticks)
            self._shown, self._small = image_HWC, small
        self._num_ticks += 1

    def peaks_s(self) -> list[float]:
        """Times at which the motion peaks, on the clock of ticks."""
        if not self._flow_px:
            return []
        # As in mean_flow_px: the first picture takes the value of the second.
        flow_px_P = np.array([self._flow_px[0], *self._flow_px])
        ticks_P = np.array([0, *self._ticks])
        peaks = av_align.motion_peaks_s(flow_px_P, frame_hz=1).astype(int)
        return [round(float(tick / TIMING.tick_hz), 6) for tick in ticks_P[peaks]]


@dataclass(frozen=True)
class Dubbed:
    """What one run of the engine over an item gives.

    Attributes:
        audio_LC: float32, exactly as long as the picture.
        notes: largest box per tick, edges of all boxes at 4 Hz, and when the motion peaks.
    """

    audio_LC: np.ndarray
    notes: dict[str, Any]


def keep_sounds(
    system: System, item: Item, store: SoundStore, *, fov_deg: float, progress: Progress
) -> dict[str, dict[str, Any]]:
    """Makes the missing sounds of an item and gives the notes of each by row name.

    Raises:
        UserError: the picture is damaged; nothing of it is kept.
    """
    stamp = stamp_of(system.digest, str(system.settings), item.digest(), fov_deg)
    kept = {}
    for row in (rows.MODEL, rows.MIRRORED):
        notes = store.notes(row, item.key, stamp=stamp)
        if notes is None:
            begin = time.monotonic()
            dubbed = dub(
                system, item, fov_deg=fov_deg, mirrored=row == rows.MIRRORED, progress=progress
            )
            store.save(row, item.key, dubbed.audio_LC, stamp=stamp, notes=dubbed.notes)
            notes = dubbed.notes
            spent_s = time.monotonic() - begin
            progress(f"{item.key}: {row}, {float(item.duration_s):.1f} s made in {spent_s:.1f} s")
        kept[row] = notes
    return kept


@torch.inference_mode()
def dub(
    system: System, item: Item, *, fov_deg: float, mirrored: bool, progress: Progress
) -> Dubbed:
    """Hears an item from its start, with the same seed whether mirrored or not.

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
    motion, bearings, edges_T = MotionMeter(), [], []
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
    return Dubbed(audio_LC[: item.num_samples], notes)


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


def _shrunk(image_HWC: np.ndarray) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if width <= MOTION_WIDTH:
        return image_HWC
    size = (MOTION_WIDTH, max(1, round(height * MOTION_WIDTH / width)))
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
