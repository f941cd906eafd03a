"""Spatial AV-Align and AV-Align: the literature's metrics of sound against boxes and motion.

Each `_sums` function returns the sums of one clip, which pool over clips with `metrics.ratio`.
Legend: S sounds, N onsets or peaks, P pictures, T ticks, D detection frames, K boxes, L samples,
C channels.
Sign: picture columns grow to the RIGHT; azimuth and level difference are positive to the left.
"""

from collections.abc import Sequence

import cv2
import numpy as np

from spatial_v2a.audio.onsets import match_onsets
from spatial_v2a.audio.panning import law_azimuth_deg
from spatial_v2a.audio.stereo import level_dbfs, level_difference_db, window_energies
from spatial_v2a.timing import TIMING
from spatial_v2a.truth import AUDIBLE_DBFS

# Spatial AV-Align (SAVGBench, 2412.13462, and its published code).
PICTURE_WIDTH_PX = 256
NEAR_PX = 40
DETECTION_HZ = 4
SOUND_HZ = 10
SOUND_WINDOW_SAMPLES = TIMING.sample_rate_hz // SOUND_HZ

# AV-Align (TempoTokens, 2309.16429): mean optical flow under this is camera noise, no peak.
STILL_FLOW_PX = 0.1
# Wider pictures are made smaller before their motion is measured.
MOTION_WIDTH = 200


def sound_columns_px(audio_LC: np.ndarray, *, fov_deg: float) -> np.ndarray:
    """Picture column the sound comes from, every 0.1 s, [S] in px of 256; NaN where silent.

    In place of SAVGBench's trained localiser: level difference, the engine's panning law, a
    pinhole camera; beyond the picture's edge it stays at the edge, as that localiser does.
    """
    energies_SE = window_energies(audio_LC, window_samples=SOUND_WINDOW_SAMPLES)
    azimuth_S = law_azimuth_deg(level_difference_db(energies_SE))
    half = np.tan(np.radians(fov_deg) / 2)
    column_S = (1.0 - np.tan(np.radians(azimuth_S)) / half) / 2 * PICTURE_WIDTH_PX
    audible_S = level_dbfs(energies_SE) >= AUDIBLE_DBFS
    return np.where(audible_S, np.clip(column_S, 0.0, PICTURE_WIDTH_PX), np.nan)


def detection_frames(edges_px_T: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The ticks nearest to every quarter of a second, from one array of boxes [K, 2] per tick."""
    num_frames = -(-len(edges_px_T) * DETECTION_HZ // TIMING.tick_hz)
    ticks = [
        (2 * d * TIMING.tick_hz + DETECTION_HZ) // (2 * DETECTION_HZ) for d in range(num_frames)
    ]
    return [edges_px_T[min(tick, len(edges_px_T) - 1)] for tick in ticks]


def spatial_av_align_sums(sound_px_S: np.ndarray, edges_px_D: Sequence[np.ndarray]) -> np.ndarray:
    """Spatial AV-Align (SAVGBench): sums [sounds, sounds near a box] of one clip; recall.

    A sound is near when a box of its detection frame, or of the one before or after it, reaches
    within 40 px of it. Boxes that make no sound count all the same, so a wide or crowded picture
    makes any column right: centred mono scores about 0.5.

    Args:
        sound_px_S: columns every 0.1 s, 0 (left) .. 256; NaN where nothing sounds.
        edges_px_D: left and right edge in px of every box, [K, 2] per detection frame (4 a second);
            twice the box centre for the stricter variant by centres.
    """
    sounding_S = np.flatnonzero(~np.isnan(sound_px_S))
    num_near = 0
    for index in sounding_S:
        frame = min(round(index * DETECTION_HZ / SOUND_HZ), len(edges_px_D) - 1)
        around = edges_px_D[max(frame - 1, 0) : frame + 2]
        edges_K2 = np.concatenate([np.zeros((0, 2)), *around])
        left_px, right_px = sound_px_S[index] - NEAR_PX, sound_px_S[index] + NEAR_PX
        num_near += bool(((edges_K2[:, 1] >= left_px) & (edges_K2[:, 0] <= right_px)).any())
    return np.array([len(sounding_S), num_near], dtype=np.float64)


class MotionMeter:
    """Motion of a picture while it streams by: optical flow between pictures that differ.

    The measure and parameters published with AV-Align: mean length of Farneback's optical flow (cv2
    comes with the object detector). A held picture is no standstill: it is left out, and peaks are
    sought among the pictures that the file stores. One small picture and two numbers per stored
    picture are kept.
    """

    def __init__(self) -> None:
        self._shown: np.ndarray | None = None
        self._grey: np.ndarray | None = None
        self._flow_px: list[float] = []
        self._ticks: list[int] = []
        self._num_ticks = 0

    def add(self, image_HWC: np.ndarray) -> None:
        """Adds the uint8 RGB picture of the next tick; the same array again is a held picture."""
        if image_HWC is not self._shown:
            grey = cv2.cvtColor(_shrunk(image_HWC), cv2.COLOR_RGB2GRAY)
            if self._grey is not None:
                flow = cv2.calcOpticalFlowFarneback(
                    self._grey, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0
                )
                self._flow_px.append(float(np.hypot(flow[..., 0], flow[..., 1]).mean()))
            self._ticks.append(self._num_ticks)
            self._shown, self._grey = image_HWC, grey
        self._num_ticks += 1

    @property
    def flow_px_P(self) -> np.ndarray:
        """Flow of each stored picture from the one before; the first takes the second's value."""
        return np.array([*self._flow_px[:1], *self._flow_px] or [0.0] * len(self._ticks))

    def peaks_s(self) -> list[float]:
        """Times at which the motion peaks, on the clock of ticks."""
        ticks_P = np.array(self._ticks)[motion_peaks(self.flow_px_P)]
        return [round(float(tick / TIMING.tick_hz), 6) for tick in ticks_P]


def motion_peaks(flow_px_P: np.ndarray) -> np.ndarray:
    """Indices of the pictures that move more than both neighbours and at least 0.1 px."""
    middle = flow_px_P[1:-1]
    is_peak = (middle > flow_px_P[:-2]) & (middle > flow_px_P[2:]) & (middle >= STILL_FLOW_PX)
    return np.flatnonzero(is_peak) + 1


def _shrunk(image_HWC: np.ndarray) -> np.ndarray:
    height, width = image_HWC.shape[:2]
    if width <= MOTION_WIDTH:
        return image_HWC
    size = (MOTION_WIDTH, max(1, round(height * MOTION_WIDTH / width)))
    return cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)


def av_align_sums(
    onsets_s_N: np.ndarray, peaks_s_N: np.ndarray, *, frame_hz: float = TIMING.tick_hz
) -> np.ndarray:
    """AV-Align (TempoTokens): sums [clips, intersection over union of the peaks] of one clip.

    An onset and a motion peak intersect when less than one frame apart, each used once; the
    figure is the mean over clips, as published. Flow of a walking camera or of a walker peaks at
    every other picture, whatever sounds: many onsets score well by chance.

    Args:
        onsets_s_N: onsets of the sound (`onset_times_s`, in place of librosa's).
        peaks_s_N: `MotionMeter.peaks_s` of the picture.
    """
    # Strictly less than a frame: exactly one frame apart is outside, unlike in the onset F1.
    pairs = match_onsets(onsets_s_N, peaks_s_N, tolerance_s=1.0 / frame_hz - 2e-9)
    union = len(onsets_s_N) + len(peaks_s_N) - len(pairs)
    return np.array([1.0, len(pairs) / union]) if union else np.zeros(2)
