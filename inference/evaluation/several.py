"""Several sources at once: each one's bearing, their order, what is missed and what is invented.

A generated mix has no stems, so its power is shared out by masks shaped like the recording's exact
stems: at each time and frequency, each source's share of the power there. Where the sources'
spectra overlap this is blunt, for every row alike: the ground truth's own row is the ceiling.
Legend: N sources, C channels, L samples, F frequencies, M frames, W windows of 0.2 s.
"""

from itertools import combinations

import numpy as np
import torch
from torchaudio.functional import spectrogram

from spatial_v2a.audio.panning import law_azimuth_deg
from spatial_v2a.audio.stereo import level_dbfs, level_difference_db, window_energies
from spatial_v2a.inference.evaluation import metrics
from spatial_v2a.truth import AUDIBLE_DBFS, WINDOW_SAMPLES, WINDOW_TICKS

FFT_SIZE = 2048
HOP = 800
# Two sources closer than this have no order.
MIN_APART_DEG = 15.0
# A heard order needs at least this much between the two bearings, so mono has none.
HEARD_APART_DEG = 1.0
# A source heard this far below its own stem is missed.
MISSED_DB = 20.0
# Below this no source sounds; what is audible there is invented.
INAUDIBLE_DBFS = -60.0


def window_masks(stems_NLC: np.ndarray) -> np.ndarray:
    """Each source's share of the power at each time and frequency, [N, F, M], sums to at most 1."""
    power_NFM = np.stack([_power(stem_LC).sum(axis=0) for stem_LC in stems_NLC])
    return power_NFM / np.maximum(power_NFM.sum(axis=0), 1e-12)


def shared_power(audio_LC: np.ndarray, masks_NFM: np.ndarray) -> np.ndarray:
    """Mean square of a mix by source and channel in each window, [N, C, W]."""
    power_CFM = _power(audio_LC)
    frames = WINDOW_SAMPLES // HOP
    num_windows = min(power_CFM.shape[-1], masks_NFM.shape[-1]) // frames
    cut = slice(0, num_windows * frames)
    shared_NCM = np.einsum("nfm,cfm->ncm", masks_NFM[..., cut], power_CFM[..., cut])
    return shared_NCM.reshape(*shared_NCM.shape[:2], num_windows, frames).mean(axis=-1)


def _power(audio_LC: np.ndarray) -> np.ndarray:
    """Power spectrogram [C, F, M], frame m centred on sample (m + 1/2) HOP; Parseval: sums over F
    to the mean square."""
    window = torch.hann_window(FFT_SIZE)
    audio_CL = torch.from_numpy(np.ascontiguousarray(audio_LC.T, dtype=np.float32))
    side = FFT_SIZE // 2 - HOP // 2
    power_CFM = spectrogram(
        torch.nn.functional.pad(audio_CL, (side, side)),
        pad=0,
        window=window,
        n_fft=FFT_SIZE,
        hop_length=HOP,
        win_length=FFT_SIZE,
        power=2.0,
        normalized=False,
        center=False,
    )
    power_CFM[:, 1:-1] *= 2.0
    return (power_CFM / (FFT_SIZE * window.square().sum())).numpy()


def several_sums(
    audio_LC: np.ndarray, stems_NLC: np.ndarray, azimuths_NT: np.ndarray
) -> dict[str, np.ndarray]:
    """Sums [windows, amount] of the figures of several sources for one clip.

    Args:
        audio_LC: the mix to be scored.
        stems_NLC: each source alone.
        azimuths_NT: bearing of each source in the picture per tick, NaN elsewhere.
    """
    power_NCW = shared_power(audio_LC, window_masks(stems_NLC))
    num_windows = min(power_NCW.shape[-1], azimuths_NT.shape[-1] // WINDOW_TICKS)
    power_NCW = power_NCW[..., :num_windows]
    cut_NWT = azimuths_NT[:, : num_windows * WINDOW_TICKS].reshape(
        len(azimuths_NT), num_windows, WINDOW_TICKS
    )
    true_NW = cut_NWT.mean(axis=-1)
    level_NW = np.stack([_levels(stem_LC)[:num_windows] for stem_LC in stems_NLC])
    sounds_NW = level_NW >= AUDIBLE_DBFS
    scored_NW = sounds_NW & ~np.isnan(true_NW)
    heard_dbfs_NW = 10 * np.log10(np.maximum(power_NCW.mean(axis=1), 1e-12))
    found_NW = heard_dbfs_NW >= np.maximum(level_NW - MISSED_DB, AUDIBLE_DBFS - MISSED_DB)
    difference_NW = level_difference_db(power_NCW.swapaxes(1, 2))
    ordered = np.zeros(2)
    azimuth_NW = law_azimuth_deg(difference_NW)
    for a, b in combinations(range(len(stems_NLC)), 2):
        apart_W = np.where(scored_NW[a] & scored_NW[b], true_NW[a] - true_NW[b], 0.0)
        judged_W = np.abs(apart_W) >= MIN_APART_DEG
        heard_W = azimuth_NW[a] - azimuth_NW[b]
        right_W = (np.sign(heard_W) == np.sign(apart_W)) & (np.abs(heard_W) >= HEARD_APART_DEG)
        right_W &= found_NW[a] & found_NW[b]
        ordered += [judged_W.sum(), (judged_W & right_W).sum()]
    mix_W = _levels(audio_LC)[:num_windows]
    silent_W = (level_NW < INAUDIBLE_DBFS).all(axis=0)[: len(mix_W)]
    return {
        "source_azimuth_error_deg": metrics.azimuth_error_sums(
            difference_NW[scored_NW], true_NW[scored_NW], found_NW[scored_NW]
        ),
        "source_order": ordered,
        "source_missed": np.array([sounds_NW.sum(), (sounds_NW & ~found_NW).sum()], dtype=float),
        "source_invented": np.array(
            [silent_W.sum(), (silent_W & (mix_W >= AUDIBLE_DBFS)).sum()], dtype=float
        ),
    }


def _levels(audio_LC: np.ndarray) -> np.ndarray:
    return level_dbfs(window_energies(audio_LC, window_samples=WINDOW_SAMPLES))
