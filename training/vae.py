"""Trains the stereo autoencoder: `spatial-v2a-train vae --data DIR --out DIR`.

Legend: B items, C channels, L samples, J frames, F bins, N bands, D latent width.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torchaudio
from accelerate.utils import set_seed
from numpy.typing import NDArray
from torch import Tensor, nn

from spatial_v2a.audio.spectral import band_matrix
from spatial_v2a.config import Config, VaeTraining
from spatial_v2a.errors import UserError
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.autoencoder import StereoAutoencoder
from spatial_v2a.timing import Timing
from spatial_v2a.training.loop import Losses, stage_recipe, train
from spatial_v2a.training.shards import AudioCrops, ShardIndex, read_sound, step_rng
from spatial_v2a.training.sounds.bank import Bank, ProceduralBank
from spatial_v2a.training.sounds.crops import BankCrops, MixedCrops, held_out_mixtures

STFT_SIZES = (2048, 512, 128)  # every second size of the metric: the loss is a third of a step
BAND_LEVELS = ((2048, 64), (512, 32))  # (window in samples, number of bands)
STD_FLOOR = 0.1  # of the root mean square over dimensions: unused dimensions stay small
AUDIBLE_RMS = 1e-3
SILENCE = 1e-3  # rms magnitude below which a target counts as silent in the convergence term


def with_mid_side(audio_BCL: Tensor) -> Tensor:
    """[B, 2, L] to [B, 4, L]: left, right, mid and side (orthonormal)."""
    left_BL, right_BL = audio_BCL.unbind(1)
    mid_BL, side_BL = (left_BL + right_BL) / 2**0.5, (left_BL - right_BL) / 2**0.5
    return torch.stack([left_BL, right_BL, mid_BL, side_BL], dim=1)


class MultiResolutionStft(nn.Module):
    """Spectral convergence plus log-magnitude L1, averaged over scales (1910.11480).

    Spectral convergence is normalised per item over all four channels, so that a channel that is
    silent in the target does not explode the loss. auraloss 0.4 cannot: 3.9 for our 3.1 where one
    side is silent, 16 165 for 19 where all is, and 1.36 for 0.30 at -60 dB (noise: 1.37 for 1.30).
    """

    def __init__(self, sizes: tuple[int, ...] = (2048, 1024, 512, 256, 128)) -> None:
        super().__init__()
        self.sizes = sizes
        for size in sizes:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def magnitudes(self, audio_BCL: Tensor, size: int) -> Tensor:
        """[B, C, F, J] magnitudes scaled so that a full-scale sine peaks near one."""
        spectra = torch.stft(
            audio_BCL.flatten(0, 1),
            n_fft=size,
            hop_length=size // 2,
            window=getattr(self, f"window_{size}").to(audio_BCL.dtype),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectra.real.square() + spectra.imag.square()
        magnitude = (power + 1e-12).sqrt() * (4.0 / size)
        return magnitude.unflatten(0, audio_BCL.shape[:2])

    def forward(self, output_BCL: Tensor, target_BCL: Tensor) -> Tensor:
        """Scalar distance; 0 when equal."""
        output_BCL, target_BCL = with_mid_side(output_BCL), with_mid_side(target_BCL)
        total = output_BCL.new_zeros(())
        for size in self.sizes:
            output = self.magnitudes(output_BCL, size)
            target = self.magnitudes(target_BCL, size)
            dims = (1, 2, 3)
            convergence = (output - target).square().sum(dims).sqrt() / (
                target.square().sum(dims).sqrt() + SILENCE * target[0].numel() ** 0.5
            )
            logs = ((output + 1e-5).log() - (target + 1e-5).log()).abs().mean(dims)
            total = total + (convergence + logs).mean()
        return total / len(self.sizes)


class BandPower(nn.Module):
    """Power of a signal per ERB-spaced band and frame."""

    def __init__(self, sample_rate_hz: int, *, size: int = 2048, num_bands: int = 24) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        bands = band_matrix(size // 2 + 1, num_bands, sample_rate_hz / 2)
        self.register_buffer("bands_FN", bands, persistent=False)

    def band_power(self, audio_BCL: Tensor) -> Tensor:
        """[B, C, J, N] power per band, full-scale sine near one."""
        spectra = torch.stft(
            audio_BCL.flatten(0, 1),
            n_fft=self.size,
            hop_length=self.size // 2,
            window=self.window.to(audio_BCL.dtype),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        power = (spectra.real.square() + spectra.imag.square()) * (4.0 / self.size) ** 2
        power = power.transpose(1, 2) @ self.bands_FN.to(power.dtype)
        return power.unflatten(0, audio_BCL.shape[:2])


class BandLevel(BandPower):
    """Error of the level per channel, band and frame.

    The log-magnitude term of `MultiResolutionStft` is smallest at the median of a bin, which for
    noise lies below its mean; bands average over bins, so this term keeps the energy right.
    """

    FLOOR = 1e-8  # -80 dB of a full-scale sine

    def forward(self, output_BCL: Tensor, target_BCL: Tensor) -> Tensor:
        """Mean absolute error in dB."""
        output, target = (self.band_power(x) + self.FLOOR for x in (output_BCL, target_BCL))
        return 10 * (torch.log10(output) - torch.log10(target)).abs().mean()


class LevelDifference(BandPower):
    """Error of the level difference between the channels, per band and frame, weighted by level."""

    @staticmethod
    def difference_db(power_BCJN: Tensor, floor: float = 1e-8, limit_db: float = 30.0) -> Tensor:
        """Left minus right in dB, softly limited at +-`limit_db`, [B, J, N]."""
        levels = 10 * torch.log10(power_BCJN + floor)
        return limit_db * torch.tanh((levels[:, 0] - levels[:, 1]) / limit_db)

    def forward(self, output_BCL: Tensor, target_BCL: Tensor) -> Tensor:
        """Level-weighted mean absolute error in dB."""
        target_BCJN = self.band_power(target_BCL)
        error = (
            self.difference_db(self.band_power(output_BCL)) - self.difference_db(target_BCJN)
        ).abs()
        weight = (target_BCJN.sum(1) + 1e-12).pow(0.25)
        return (error * weight).sum() / (weight.sum() + 1e-6)


class VaeObjective(nn.Module):
    """Reconstruction on left, right, mid and side, levels and level differences, divergence."""

    def __init__(
        self, autoencoder: StereoAutoencoder, timing: Timing, section: VaeTraining
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        if section.freeze_encoder:
            autoencoder.encoder.requires_grad_(False)
        self.section = section
        self.spectral = MultiResolutionStft(STFT_SIZES)
        self.level_difference = LevelDifference(timing.sample_rate_hz)
        self.band_levels = nn.ModuleList(
            BandLevel(timing.sample_rate_hz, size=size, num_bands=num_bands)
            for size, num_bands in BAND_LEVELS
        )

    def forward(self, batch: dict[str, Tensor], *, step: int, rng: torch.Generator) -> Losses:
        """Losses of `batch['audio']`, float [B, 2, L]."""
        del step
        audio_BCL = batch["audio"]
        posterior = self.autoencoder.encode(audio_BCL)
        noise = torch.randn(posterior.mean_BTD.shape, generator=rng).to(audio_BCL)
        output_BCL = self.autoencoder.decode(posterior.sample(noise))
        # The first hop has no predecessor to overlap with; the last lacks its future.
        hop = self.autoencoder.config.hop
        output_BCL, audio_BCL = output_BCL[..., hop:-hop], audio_BCL[..., hop:-hop]
        spectral = self.spectral(output_BCL, audio_BCL)
        level = self.level_difference(output_BCL, audio_BCL)
        band_level = sum(term(output_BCL, audio_BCL) for term in self.band_levels)
        band_level = band_level / len(self.band_levels)
        mean, logvar = posterior
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1).mean()
        total = (
            spectral
            + self.section.level_difference_weight * level
            + self.section.band_level_weight * band_level
            + self.section.kl_weight * kl
        )
        return {
            "loss": total,
            "mrstft": spectral,
            "level_difference_db": level,
            "band_level_db": band_level,
            "kl": kl,
        }


def train_vae(
    config: Config,
    data: list[Path],
    val: list[Path],
    run_dir: Path,
    *,
    init: Path | None,
    bank: Bank | None = None,
) -> dict[str, float]:
    """Runs the stage and leaves `run_dir/checkpoint`, with validation figures when `val` is given.

    Args:
        config: the model and its training section `training.vae`.
        data, val: folders of shards; without data all crops come from the bank.
        run_dir: states, logs and the checkpoint.
        init: checkpoint to start the weights from.
        bank: its sounds make `training.vae.bank_share` of the crops; None is the procedural one.
    """
    section = config.training.vae
    bank = bank or ProceduralBank()
    if section.freeze_encoder and init is None:
        raise UserError("freeze_encoder keeps an encoder that --init must name; give --init FOLDER")
    set_seed(section.seed)
    model = SpatialV2A.from_pretrained(init) if init else SpatialV2A(config)
    crops = MixedCrops(
        AudioCrops(ShardIndex(data), config.timing) if data else None,
        BankCrops(bank, config.timing, seed=section.seed) if section.bank_share else None,
        bank_share=section.bank_share,
    )

    def make_batch(step: int, process_index: int) -> dict[str, Tensor]:
        rng = step_rng(section.seed, step, process_index)
        return {"audio": crops.batch(rng, section.batch_size, section.crop_ticks, step=step)}

    def export(averaged: nn.Module) -> None:
        model.autoencoder.load_state_dict(averaged.state_dict())
        if not section.freeze_encoder:  # else the latents stay, and so does what a generator learnt
            stats = latent_statistics(model.autoencoder, crops)
            model.set_latent_statistics(stats.mean_D, stats.std_D)
        model.save_pretrained(run_dir / "checkpoint", overwrite=True)

    objective = VaeObjective(
        StereoAutoencoder(config.autoencoder, config.timing), config.timing, section
    )
    objective.autoencoder.load_state_dict(model.autoencoder.state_dict())
    recipe = stage_recipe(
        "vae",
        objective,
        section,
        make_batch,
        averaged=lambda module: module.autoencoder,
        export=export,
    )
    losses = train(recipe, run_dir)
    if val:
        index = ShardIndex(val)
        recorded = (read_sound(index, key) for key in index.keys)
        losses |= reconstruction_metrics(model.autoencoder, recorded, config.timing)
    if section.bank_share:
        mixtures = held_out_mixtures(bank, config.timing)
        figures = reconstruction_metrics(model.autoencoder, mixtures, config.timing)
        losses |= {f"bank_{name}": value for name, value in figures.items()}
    return losses


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
