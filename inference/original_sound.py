"""The sound that a video already has, measured tick by tick for comparison while it streams."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.conditioning.video_scan import open_input
from spatial_v2a.stereo import StereoMeter


def original_energies(source: VideoSource, *, sound: Path | None = None) -> np.ndarray | None:
    """Stereo energies [T, 3] of the video's first sound track, on the picture's clock.

    Args:
        source: the video.
        sound: a file with the video's true sound, when the video itself comes without.

    Returns:
        One row per tick of the picture (silence where the track does not reach), or None when
        there is no stereo track.
    """
    timing = source.timing
    meter, num_done = StereoMeter(), 0
    waiting_LC = np.zeros((0, timing.num_channels), np.float32)
    with open_input(sound or source.path) as container:
        if not container.streams.audio or container.streams.audio[0].channels < 2:
            return None
        track = container.streams.audio[0]
        for time_s, piece_LC in _pieces(container, track, timing.sample_rate_hz):
            offset = round((time_s - source.extent.start_s) * timing.sample_rate_hz)
            expected = num_done * timing.samples_per_tick + len(waiting_LC)
            # Gaps become silence, what lies before the picture or overlaps is cut.
            missing = offset - expected
            if missing > 0:
                waiting_LC = np.pad(waiting_LC, ((0, missing), (0, 0)))
            waiting_LC = np.concatenate([waiting_LC, piece_LC[max(0, -missing) :]])
            while len(waiting_LC) >= timing.samples_per_tick and num_done < source.num_ticks:
                meter.add(waiting_LC[: timing.samples_per_tick])
                waiting_LC = waiting_LC[timing.samples_per_tick :]
                num_done += 1
            if num_done == source.num_ticks:
                break
    energies_TE = meter.energies_TE
    return np.pad(energies_TE, ((0, source.num_ticks - len(energies_TE)), (0, 0)))


def _pieces(container, track, sample_rate_hz: int):
    """(time of the first sample in seconds, float32 [L, 2]) of decoded, resampled sound."""
    resampler = av.AudioResampler(format="flt", layout="stereo", rate=sample_rate_hz)
    for frame in container.decode(track):
        for piece in resampler.resample(frame):
            if piece.pts is not None:
                samples_LC = piece.to_ndarray().reshape(-1, 2)
                yield piece.pts * Fraction(piece.time_base), samples_LC
