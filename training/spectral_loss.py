"""Spectral distances between stereo signals: multi-resolution STFT and level difference.

Legend: B items, C channels, L samples, J frames, F bins, N bands.
"""

import torch
from torch import Tensor, nn

from spatial_v2a.audio.spectral import band_matrix

SILENCE = 1e-3  # rms magnitude below which a target counts as silent in the convergence term


def with_mid_side(audio_BCL: Tensor) -> Tensor:
    """[B, 2, L] to [B, 4, L]: left, right, mid and side (orthonormal)."""
    left_BL, right_BL = audio_BCL.unbind(1)
    mid_BL, side_BL = (left_BL + right_BL) / 2**0.5, (left_BL - right_BL) / 2**0.5
    return torch.stack([left_BL, right_BL, mid_BL, side_BL], dim=1)


class MultiResolutionStft(nn.Module):
    """Spectral convergence plus log-magnitude L1, averaged over scales (1910.11480).

    Spectral convergence is normalised per item over all four channels, so that a channel that is
    silent in the target does not explode the loss.
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
