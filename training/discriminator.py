"""Tells recorded from decoded audio, for the adversarial loss of the autoencoder.

Legend: B items, C channels, L samples, F bins, J frames.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

COMPRESSION = 0.3  # exponent of the magnitudes: what is quiet is judged, too
_EPS = 1e-4


class Judgement(NamedTuple):
    """Scores [B, 1, F', J'] (high: recorded) and the hidden layers' outputs, per window size."""

    scores: list[Tensor]
    features: list[Tensor]


class AdversarialLosses(NamedTuple):
    """Scalars: what the decoder minimises (two terms) and what the discriminator minimises."""

    adversarial: Tensor
    feature_matching: Tensor
    discriminator: Tensor


class _WindowDiscriminator(nn.Module):
    """Convolutions over the complex spectra of both channels at one window size."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("window", torch.hann_window(size), persistent=False)
        shapes = [(4, (9, 3), (1, 1), 1), *((width, (9, 3), (2, 1), d) for d in (1, 2, 4))]
        self.layers = nn.ModuleList(
            nn.utils.parametrizations.weight_norm(
                nn.Conv2d(
                    channels,
                    width,
                    kernel,
                    stride,
                    padding=(kernel[0] // 2, dilation),
                    dilation=(1, dilation),
                )
            )
            for channels, kernel, stride, dilation in shapes
        )
        self.last = nn.utils.parametrizations.weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, audio_BCL: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores and hidden outputs of audio [B, 2, L]."""
        spectra = torch.stft(
            audio_BCL.flatten(0, 1),
            n_fft=self.size,
            hop_length=self.size // 2,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        spectra = torch.view_as_real(spectra) * (4.0 / self.size)
        power = spectra.square().sum(-1, keepdim=True)
        spectra = spectra * (power + _EPS**2).pow((COMPRESSION - 1) / 2)
        hidden = spectra.unflatten(0, audio_BCL.shape[:2]).permute(0, 1, 4, 2, 3).flatten(1, 2)
        features = []
        for layer in self.layers:
            hidden = nn.functional.leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        return self.last(hidden), features


class SpectrogramDiscriminator(nn.Module):
    """Complex spectra at several window sizes (EnCodec, 2210.13438), of both channels at once.

    Args:
        sizes: windows in samples; the hop is half of each.
        width: channels of the hidden layers.
    """

    def __init__(self, sizes: tuple[int, ...] = (2048, 1024, 512), width: int = 16) -> None:
        super().__init__()
        self.windows = nn.ModuleList(_WindowDiscriminator(size, width) for size in sizes)

    def forward(self, audio_BCL: Tensor) -> Judgement:
        """Judges audio [B, 2, L]."""
        scores, features = [], []
        for window in self.windows:
            score, hidden = window(audio_BCL)
            scores.append(score)
            features += hidden
        return Judgement(scores, features)


def adversarial_losses(
    discriminator: SpectrogramDiscriminator, output_BCL: Tensor, target_BCL: Tensor
) -> AdversarialLosses:
    """Hinge losses (1705.02894) and feature matching (1910.06711) of decoded and recorded audio.

    The decoder's terms hold the discriminator's weights fixed and the discriminator's term holds
    the audio fixed, so that one backward pass through their sum moves each by its own loss only.
    """
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    fooled: Judgement = functional_call(discriminator, frozen, (output_BCL,))
    decoded = discriminator(output_BCL.detach())
    recorded = discriminator(target_BCL)
    adversarial = sum((1 - score).relu().mean() for score in fooled.scores)
    matching = sum(
        (ours - theirs.detach()).abs().mean() / (theirs.detach().abs().mean() + _EPS)
        for ours, theirs in zip(fooled.features, recorded.features, strict=True)
    )
    hinge = sum(
        (1 - real).relu().mean() + (1 + fake).relu().mean()
        for real, fake in zip(recorded.scores, decoded.scores, strict=True)
    )
    return AdversarialLosses(
        torch.as_tensor(adversarial) / len(fooled.scores),
        torch.as_tensor(matching) / len(fooled.features),
        torch.as_tensor(hinge) / len(fooled.scores),
    )
