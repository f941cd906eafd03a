"""Short-time spectra with a 50 % overlap, forwards and backwards, that stream.

Analysis frame j of a chunk covers samples [(j - 1) * hop, (j + 1) * hop): it ends where hop j of
the chunk ends, so analysis is strictly causal. Synthesis puts frame j at [j * hop, (j + 2) * hop):
hop j is complete as soon as frame j is known, so synthesis needs no look-ahead. Analysis followed
by synthesis therefore delays by exactly one hop.

Legend: B streams, C audio channels, L samples, J spectral frames, F frequency bins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spatial_v2a.models.streaming import write_


@dataclass
class OverlapState:
    """One hop per channel, [B, C, hop]: past samples (analysis) or unfinished tail (synthesis)."""

    tail_BCL: Tensor


class Overlap(nn.Module):
    """Square-root Hann window of two hops; the square overlaps to one."""

    def __init__(self, hop: int, num_channels: int) -> None:
        super().__init__()
        self.hop = hop
        self.num_channels = num_channels
        window_L = torch.hann_window(2 * hop, periodic=True, dtype=torch.float64).sqrt()
        self.register_buffer("window_L", window_L.float(), persistent=False)

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> OverlapState:
        """Silence before the first sample."""
        del max_chunk  # one hop, whatever the chunk
        shape = (batch_size, self.num_channels, self.hop)
        return OverlapState(torch.zeros(shape, device=device, dtype=dtype))


class Analysis(Overlap):
    """Causal STFT."""

    def forward(
        self, audio_BCL: Tensor, state: OverlapState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """Spectra of every hop of the chunk.

        Args:
            audio_BCL: [B, C, J * hop] samples.
            state: samples before the chunk; None means silence.
            active: bool [B]; idle rows keep their state.
        Returns:
            Complex [B, C, J, hop + 1].
        """
        if audio_BCL.shape[-1] % self.hop:
            raise ValueError(
                f"{audio_BCL.shape[-1]} samples are not a multiple of the hop {self.hop}; pad them"
            )
        if state is None:
            past_BCL = torch.zeros_like(audio_BCL[..., : self.hop])
        else:
            past_BCL = state.tail_BCL
        padded_BCL = torch.cat([past_BCL, audio_BCL], dim=-1)
        frames_BCJL = padded_BCL.unfold(-1, 2 * self.hop, self.hop)
        if state is not None:
            write_(state.tail_BCL, padded_BCL[..., -self.hop :], active)
        return torch.fft.rfft(frames_BCJL * self.window_L.to(frames_BCJL.dtype))


class Synthesis(Overlap):
    """Overlap-add inverse of `Analysis`, without look-ahead."""

    def forward(
        self, spectra_BCJF: Tensor, state: OverlapState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """Complex [B, C, J, hop + 1] to samples [B, C, J * hop]; the last tail stays in `state`."""
        frames_BCJL = torch.fft.irfft(spectra_BCJF, n=2 * self.hop)
        frames_BCJL = frames_BCJL * self.window_L.to(frames_BCJL.dtype)
        heads_BCJL, tails_BCJL = frames_BCJL.split(self.hop, dim=-1)
        if state is None:
            before_BCJL = torch.zeros_like(tails_BCJL[:, :, :1])
        else:
            before_BCJL = state.tail_BCL.unsqueeze(2)
        previous_BCJL = torch.cat([before_BCJL, tails_BCJL[:, :, :-1]], dim=2)
        audio_BCL = (heads_BCJL + previous_BCJL).flatten(2)
        if state is not None:
            write_(state.tail_BCL, tails_BCJL[:, :, -1], active)
        return audio_BCL


def band_matrix(num_bins: int, num_bands: int, nyquist_hz: float) -> Tensor:
    """Triangular bands equally spaced on the ERB-rate scale (Glasberg and Moore 1990).

    Returns:
        [num_bins, num_bands]; rows sum to one: times bins it sums, transposed it interpolates.
    """
    hertz = torch.linspace(0, nyquist_hz, num_bins, dtype=torch.float64)
    rate = 21.4 * torch.log10(1 + 0.00437 * hertz)
    position = rate / rate[-1] * (num_bands - 1)
    band = torch.arange(num_bands, dtype=torch.float64, device=position.device)
    weights = 1 - (position[:, None] - band).abs()
    return weights.clamp(min=0).float()
