"""Figures of the autoencoder: latent statistics, and reconstruction on validation audio."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torchaudio
from numpy.typing import NDArray
from torch import Tensor

from spatial_v2a.models.autoencoder import StereoAutoencoder
from spatial_v2a.timing import Timing
from spatial_v2a.training.audio_data import step_rng
from spatial_v2a.training.sounds.crops import MixedCrops
from spatial_v2a.training.spectral_loss import LevelDifference, MultiResolutionStft

STD_FLOOR = 0.1  # of the root mean square over dimensions: unused dimensions stay small
AUDIBLE_RMS = 1e-3


class LatentStatistics(NamedTuple):
    """Mean and standard deviation of posterior means, [D] each."""

    mean_D: Tensor
    std_D: Tensor


@torch.no_grad()
def latent_statistics(
    autoencoder: StereoAutoencoder, crops: MixedCrops, *, num_crops: int = 256, ticks: int = 30
) -> LatentStatistics:
    """Statistics over random crops; odd dimensions have mean zero by symmetry.

    The deviation is floored at STD_FLOOR of the root mean square over all dimensions, so that
    normalising does not blow up dimensions that the autoencoder does not use.
    """
    latents = []
    for block in range(num_crops // 32):
        audio_BCL = crops.batch(step_rng(7, block, 0), 32, ticks)
        latents.append(autoencoder.encode(audio_BCL).mean_BTD.flatten(0, 1))
    latents_ND = torch.cat(latents)
    mean_D, std_D = latents_ND.mean(0), latents_ND.std(0)
    mean_D[-autoencoder.config.num_odd_latents :] = 0
    floor = STD_FLOOR * std_D.square().mean().sqrt()
    return LatentStatistics(mean_D, std_D.clamp(min=floor))


@torch.no_grad()
def reconstruction_metrics(
    autoencoder: StereoAutoencoder, sounds: Iterable[NDArray[np.int16]], timing: Timing
) -> dict[str, float]:
    """Distances between sounds, int16 [L, 2], and their reconstruction through posterior means.

    Returns:
        mrstft; si_sdr_db; log_mel (mean absolute, nepers); level_difference_error_db (per band
        and frame, level-weighted); tick_level_difference_error_db (broadband, per audible tick,
        limited to +-30 dB); side_energy_kept (output over target; 1 is ideal); the same mrstft
        for silence, as the floor to beat.
    """
    spectral = MultiResolutionStft()
    level = LevelDifference(timing.sample_rate_hz)
    mel = torchaudio.transforms.MelSpectrogram(
        timing.sample_rate_hz, n_fft=2048, hop_length=512, n_mels=80
    )
    rows: list[dict[str, float]] = []
    side = torch.zeros(2)
    for audio in sounds:
        target_BCL = torch.from_numpy(audio).float().div(32768).T.unsqueeze(0)
        if target_BCL.square().mean().sqrt() < AUDIBLE_RMS:
            continue
        output_BCL = autoencoder.decode(autoencoder.encode(target_BCL).mean_BTD)
        side += torch.stack([(x[:, 0] - x[:, 1]).square().sum() for x in (output_BCL, target_BCL)])
        rows.append(
            {
                "mrstft": spectral(output_BCL, target_BCL).item(),
                "mrstft_of_silence": spectral(0 * target_BCL, target_BCL).item(),
                "si_sdr_db": si_sdr_db(output_BCL, target_BCL).item(),
                "log_mel": (
                    ((mel(output_BCL) + 1e-5).log() - (mel(target_BCL) + 1e-5).log()).abs().mean()
                ).item(),
                "level_difference_error_db": level(output_BCL, target_BCL).item(),
                "tick_level_difference_error_db": tick_error_db(
                    output_BCL, target_BCL, timing
                ).item(),
            }
        )
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    return means | {"side_energy_kept": (side[0] / side[1]).item(), "clips": float(len(rows))}


def si_sdr_db(output_BCL: Tensor, target_BCL: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio (1811.02508) over both channels, mean over B."""
    output_BN, target_BN = output_BCL.flatten(1), target_BCL.flatten(1)
    scale_B1 = (output_BN * target_BN).sum(1, keepdim=True) / target_BN.square().sum(
        1, keepdim=True
    )
    projection_BN = scale_B1 * target_BN
    noise_B = (output_BN - projection_BN).square().sum(1) + 1e-12
    return (10 * torch.log10(projection_BN.square().sum(1) / noise_B + 1e-12)).mean()


def tick_error_db(output_BCL: Tensor, target_BCL: Tensor, timing: Timing) -> Tensor:
    """Mean absolute error of the broadband level difference per audible tick, in dB."""

    def difference(audio_BCL: Tensor) -> tuple[Tensor, Tensor]:
        power_BCT = audio_BCL.unflatten(-1, (-1, timing.samples_per_tick)).square().mean(-1)
        levels = 10 * torch.log10(power_BCT + 1e-9)
        return (levels[:, 0] - levels[:, 1]).clamp(-30, 30), power_BCT.sum(1)

    (output_BT, _), (target_BT, power_BT) = difference(output_BCL), difference(target_BCL)
    is_audible = power_BT > AUDIBLE_RMS**2
    return (output_BT - target_BT).abs()[is_audible].mean()
