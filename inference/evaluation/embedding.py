"""Fixed embeddings of sound for Frechet distances: nothing is learned, drawn or downloaded.

`timbre_embedding` says what a mono signal sounds like: band levels, their spread over time and
their modulation, the statistics of McDermott and Simoncelli (Neuron 2011) on log-mel bands.
`stereo_embedding` says where sound lies and is blind to what it is. `ClapEmbedding` runs a CLAP
model that the user has.
Legend: L samples, C audio channels, F frequency bins, J spectrum frames, M bands, W windows,
D width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchaudio
from transformers import ClapFeatureExtractor, ClapModel

from spatial_v2a.audio.panning import MAX_LEVEL_DIFFERENCE_DB
from spatial_v2a.conditioning.hub import cached_repository, load_published
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING

FFT_SAMPLES = 2048
# 10 ms: a window of 1 s has 100 frames, so modulation is seen up to 50 Hz in steps of 1 Hz.
HOP_SAMPLES = 480
WINDOW_FRAMES, WINDOW_HOP_FRAMES = 100, 50
WINDOW_SAMPLES = WINDOW_FRAMES * HOP_SAMPLES
# Power of a band, full-scale sine about 1, under which nothing is heard: -80 dB.
FLOOR_POWER = 1e-8

NUM_MELS = 48
BANDS_PER_GROUP = 6
MODULATION_EDGES_HZ = (1, 2, 4, 8, 16, 32, 50)
# Divisors that bring the three kinds of numbers to about the same spread over recorded clips.
LEVEL_SCALE_DB, SPREAD_SCALE_DB, MODULATION_SCALE_DB = 13.0, 5.5, 2.2
TIMBRE_WIDTH = 2 * NUM_MELS + NUM_MELS // BANDS_PER_GROUP * (len(MODULATION_EDGES_HZ) - 1)

NUM_STEREO_BANDS = 16
# Delays of -1 .. 1 ms in steps of 1/16 ms; only sound under 8 kHz takes part, so no step is missed.
DELAY_STEP_SAMPLES, NUM_DELAY_STEPS = 3, 16
DELAY_LIMIT_HZ = 8000.0
STEREO_WIDTH = 3 * NUM_STEREO_BANDS + 2 * NUM_DELAY_STEPS + 1

VIEWS = ("left", "right", "mid", "side")


def view(audio_LC: np.ndarray, name: str) -> np.ndarray:
    """One mono signal [L] of a stereo sound [L, 2]; mid is (L + R) / 2 and side (L - R) / 2."""
    left_L, right_L = audio_LC[:, 0], audio_LC[:, 1]
    signals = {"left": left_L, "right": right_L}
    signals |= {"mid": (left_L + right_L) / 2, "side": (left_L - right_L) / 2}
    return signals[name]


def timbre_embedding(mono_L: np.ndarray) -> np.ndarray:
    """What it sounds like: 1 s windows every 0.5 s, [W, 144] float64, of a 48 kHz signal [L].

    Per window: mean level of 48 log-mel bands, their standard deviation over time, and the RMS of
    8 band groups' level in octaves of modulation from 1 to 50 Hz. Sounds under 1 s have no window.
    """
    level_JM = _log_mel_db(mono_L)
    windows_WJM = _windows(level_JM)
    grouped = (*windows_WJM.shape[:2], NUM_MELS // BANDS_PER_GROUP, BANDS_PER_GROUP)
    groups_WJG = windows_WJM.reshape(grouped).mean(axis=-1)
    modulation_WG = _modulation_db(groups_WJG)
    return np.concatenate(
        [
            windows_WJM.mean(axis=1) / LEVEL_SCALE_DB,
            windows_WJM.std(axis=1) / SPREAD_SCALE_DB,
            modulation_WG / MODULATION_SCALE_DB,
        ],
        axis=1,
    )


def stereo_embedding(audio_LC: np.ndarray) -> np.ndarray:
    """Where it lies: 1 s windows every 0.5 s, [W, 81] float64, of a 48 kHz sound [L, 2].

    Per window: level difference of 16 mel bands in units of 30 dB, its standard deviation over
    time, the channels' correlation per band, and the phase-transformed cross-correlation at 33
    delays up to 1 ms (weighted as in GCC-PHAT). Gain changes none of them above the floor.
    """
    spectra_CFJ = _spectra(audio_LC)
    bank_FM = _mel_bank(NUM_STEREO_BANDS)
    left_JM, right_JM = (_power(spectra_FJ).T @ bank_FM for spectra_FJ in spectra_CFJ)
    cross_JF = (spectra_CFJ[1] * spectra_CFJ[0].conj()).T
    difference_JM = 10 * np.log10((left_JM + FLOOR_POWER) / (right_JM + FLOOR_POWER))
    limit = MAX_LEVEL_DIFFERENCE_DB
    difference_WJM = _windows(np.clip(difference_JM, -limit, limit)) / limit
    product_WM = _windows(cross_JF.real @ bank_FM).mean(axis=1)
    powers_WM = (_windows(left_JM).mean(axis=1), _windows(right_JM).mean(axis=1))
    correlation_WM = product_WM / np.sqrt(
        (powers_WM[0] + FLOOR_POWER) * (powers_WM[1] + FLOOR_POWER)
    )
    return np.concatenate(
        [
            difference_WJM.mean(axis=1),
            difference_WJM.std(axis=1),
            correlation_WM,
            _delay_correlation(cross_JF),
        ],
        axis=1,
    )


def _spectra(audio_LC: np.ndarray) -> np.ndarray:
    """Complex spectra [C, F, J] by Hann windows; a full-scale sine peaks at 1."""
    audio_CL = torch.from_numpy(np.ascontiguousarray(audio_LC.T, dtype=np.float32))
    window_L = torch.hann_window(FFT_SAMPLES)
    padded_CL = torch.nn.functional.pad(audio_CL, (FFT_SAMPLES // 2, FFT_SAMPLES // 2))
    spectra_CFJ = torch.stft(
        padded_CL, FFT_SAMPLES, HOP_SAMPLES, window=window_L, center=False, return_complex=True
    )
    # The window sums to FFT_SAMPLES / 2, and a sine is half positive, half negative frequency.
    return spectra_CFJ.numpy() * np.float32(4 / FFT_SAMPLES)


def _power(spectra_FJ: np.ndarray) -> np.ndarray:
    return spectra_FJ.real**2 + spectra_FJ.imag**2


def _mel_bank(num_bands: int) -> np.ndarray:
    """Triangular mel filters from 40 Hz to 20 kHz, [F, M]."""
    bank_FM = torchaudio.functional.melscale_fbanks(
        FFT_SAMPLES // 2 + 1, 40.0, 20_000.0, num_bands, TIMING.sample_rate_hz
    )
    return bank_FM.numpy()


def _log_mel_db(mono_L: np.ndarray) -> np.ndarray:
    """Band levels [J, M] in dB, at least -80."""
    power_FJ = _power(_spectra(mono_L[:, None])[0])
    level_JM = 10 * np.log10(power_FJ.T @ _mel_bank(NUM_MELS) + FLOOR_POWER)
    return level_JM.astype(np.float64)


def _windows(values_JM: np.ndarray) -> np.ndarray:
    """Whole windows of 100 frames every 50, [W, 100, M], without the frame after the last hop."""
    num_frames = max(0, len(values_JM) - 1)
    if num_frames < WINDOW_FRAMES:
        return np.zeros((0, WINDOW_FRAMES, values_JM.shape[1]), dtype=values_JM.dtype)
    views_WMJ = np.lib.stride_tricks.sliding_window_view(
        values_JM[:num_frames], WINDOW_FRAMES, axis=0
    )
    return np.swapaxes(views_WMJ[::WINDOW_HOP_FRAMES], 1, 2)


def _modulation_db(level_WJG: np.ndarray) -> np.ndarray:
    """RMS of each column's changes in octaves of modulation frequency, [W, G * octaves] in dB."""
    centred_WJG = level_WJG - level_WJG.mean(axis=1, keepdims=True)
    # Parseval: 2 |X_k|^2 / J^2 is the mean square of a real signal's k-th frequency.
    power_WKG = 2 * np.abs(np.fft.rfft(centred_WJG, axis=1)) ** 2 / WINDOW_FRAMES**2
    octaves = zip(MODULATION_EDGES_HZ[:-1], MODULATION_EDGES_HZ[1:], strict=True)
    rms = [np.sqrt(power_WKG[:, low:high].sum(axis=1)) for low, high in octaves]
    return np.concatenate(rms, axis=1)


def _delay_correlation(cross_JF: np.ndarray) -> np.ndarray:
    """Phase-transformed cross-correlation of each window at 33 delays, [W, 33], at most 1."""
    limit = int(DELAY_LIMIT_HZ / TIMING.sample_rate_hz * FFT_SAMPLES)
    # Weighting by |cross| + floor instead of |cross| keeps silence at 0 (its phase is noise).
    phase_JF = cross_JF[:, :limit] / (np.abs(cross_JF[:, :limit]) + FLOOR_POWER)
    mean_WF = _windows(phase_JF).mean(axis=1)
    steps = np.arange(-NUM_DELAY_STEPS, NUM_DELAY_STEPS + 1) * DELAY_STEP_SAMPLES
    turns_FK = np.outer(np.arange(limit), steps) / FFT_SAMPLES
    return (mean_WF @ np.exp(2j * np.pi * turns_FK)).real / limit


@dataclass(frozen=True)
class ClapEmbedding:
    """A CLAP model's audio side (2211.06687), frozen.

    Attributes:
        model: in evaluation mode.
        extractor: its feature extractor; says rate and longest window.
    """

    model: ClapModel
    extractor: ClapFeatureExtractor

    @classmethod
    def load(cls, source: str) -> "ClapEmbedding":
        """Loads a folder, or a hub id (as laion/clap-htsat-unfused) from the hub's cache.

        Raises:
            UserError: it cannot be loaded, is another kind of model, lacks weights, or listens at
                another rate than 48 kHz.
        """
        folder = Path(source) if Path(source).is_dir() else cached_repository(source)
        model = load_published(folder, {"clap": ClapModel})
        try:
            extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} has no settings of its hearing; give a complete CLAP checkpoint"
            ) from error
        if extractor.sampling_rate != TIMING.sample_rate_hz:
            raise UserError(
                f"{source} listens at {extractor.sampling_rate} Hz; "
                f"give a CLAP model for {TIMING.sample_rate_hz} Hz"
            )
        return cls(model.eval(), extractor)

    @torch.inference_mode()
    def embed(self, mono_L: np.ndarray) -> np.ndarray:
        """Unit vectors [W, D] of consecutive windows as long as the model hears at once (10 s).

        A shorter rest is a window of its own when it has 1 s: the extractor repeats it to length.
        Windows are never longer than the extractor takes, because it would crop them at random.
        """
        longest = int(self.extractor.nb_max_samples)
        parts = [mono_L[start : start + longest] for start in range(0, len(mono_L), longest)]
        parts = [part for part in parts if len(part) >= min(TIMING.sample_rate_hz, longest)]
        if not parts:
            return np.zeros((0, self.model.config.projection_dim))
        inputs = self.extractor(
            [np.asarray(part, dtype=np.float32) for part in parts],
            sampling_rate=TIMING.sample_rate_hz,
            return_tensors="pt",
        )
        # Where no window is longer, the extractor declares one at random to be.
        inputs["is_longer"] = torch.zeros(len(parts), 1, dtype=torch.bool)
        return self.model.get_audio_features(**inputs).pooler_output.double().numpy()
