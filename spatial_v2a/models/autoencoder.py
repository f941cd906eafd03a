"""Causal stereo variational autoencoder: 48 kHz stereo <-> one latent per tick.

The decoder predicts one shared complex spectrum and, per frequency band, a level and a phase
difference between the channels. The latent has even dimensions (unchanged when the channels are
swapped) and odd ones (negated): the encoder's odd path and the decoder's difference path are odd
functions by construction, so a mirrored scene is exactly a sign change of the odd dimensions.

Legend: B streams, T ticks, C audio channels, L samples, J frames, F bins, N bands, D width.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from einops import rearrange
from pydantic import model_validator
from torch import Tensor, nn

from spatial_v2a.audio.spectral import Analysis, OverlapState, Synthesis, band_matrix
from spatial_v2a.models.streaming import write_
from spatial_v2a.strict import Count, Factor, StrictConfig, Width
from spatial_v2a.timing import TIMING, Timing


@dataclass
class ConvState:
    """The last kernel - 1 inputs, [B, S, D]; zeros are the offline padding."""

    tail_BSD: Tensor


class CausalDepthwiseConv(nn.Module):
    """out[t] = bias + sum_k weight[k] * x[t - (K - 1) + k], per channel.

    Written as K shifted products: at widths of a few hundred this is faster on a CPU core than a
    grouped convolution, and offline and streaming share every operation.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight_KD = nn.Parameter(torch.randn(kernel, width) / kernel**0.5)
        self.bias_D = nn.Parameter(torch.zeros(width))

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> ConvState:
        """Zero history for `batch_size` streams."""
        del max_chunk  # the tail does not grow with the chunk
        shape = (batch_size, self.kernel - 1, self.weight_KD.shape[1])
        return ConvState(torch.zeros(shape, device=device, dtype=dtype))

    def forward(
        self, x_BTD: Tensor, state: ConvState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """Filters [B, T, D]; idle rows of `state` are left as they are."""
        num_past, num_steps = self.kernel - 1, x_BTD.shape[1]
        if state is None:
            past_BSD = x_BTD.new_zeros(x_BTD.shape[0], num_past, x_BTD.shape[2])
        else:
            past_BSD = state.tail_BSD
        padded_BTD = torch.cat([past_BSD, x_BTD], dim=1)
        out_BTD = self.bias_D + sum(
            self.weight_KD[k] * padded_BTD[:, k : k + num_steps] for k in range(self.kernel)
        )
        if state is not None:
            write_(state.tail_BSD, padded_BTD[:, padded_BTD.shape[1] - num_past :], active)
        return out_BTD


class ConvBlock(nn.Module):
    """Residual block: causal depthwise conv, RMSNorm, two-layer MLP (ConvNeXt, 2201.03545)."""

    def __init__(self, width: int, *, kernel: int, expansion: int) -> None:
        super().__init__()
        self.conv = CausalDepthwiseConv(width, kernel)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.scale_D = nn.Parameter(torch.full((width,), 0.3))

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> ConvState:
        """State of the convolution."""
        return self.conv.init_state(batch_size, max_chunk=max_chunk, device=device, dtype=dtype)

    def forward(
        self, x_BTD: Tensor, state: ConvState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        hidden_BTD = self.norm(self.conv(x_BTD, state, active))
        hidden_BTD = self.down(nn.functional.gelu(self.up(hidden_BTD), approximate="tanh"))
        return x_BTD + self.scale_D * hidden_BTD


class ConvStack(nn.Module):
    """Several `ConvBlock`s in a row; its state is a list of theirs."""

    def __init__(self, width: int, *, depth: int, kernel: int, expansion: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ConvBlock(width, kernel=kernel, expansion=expansion) for _ in range(depth)
        )

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> list[ConvState]:
        """One `ConvState` per block."""
        return [
            block.init_state(batch_size, max_chunk=max_chunk, device=device, dtype=dtype)
            for block in self.blocks
        ]

    def forward(
        self,
        x_BTD: Tensor,
        state: list[ConvState] | None = None,
        active: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        for index, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, None if state is None else state[index], active)
        return x_BTD


MAX_LEVEL_DIFFERENCE_DB = 60.0
_EPS = 1e-9


class AutoencoderConfig(StrictConfig):
    """Sizes of the autoencoder.

    Attributes:
        latent_dim: dimensions of a latent; the last `num_odd_latents` are odd under channel swap.
        hop: samples per spectral frame (the window has two hops).
        num_bands: bands of the level and phase differences.
        frame_width, tick_width: widths at the frame rate (120 Hz) and at the tick rate (30 Hz).
        *_depth, *_kernel: convolution blocks at each rate.
        pan_width: width of the odd paths.
        expansion: hidden size of a block's MLP over its width.
    """

    latent_dim: Width = 64
    num_odd_latents: Width = 12
    hop: Width = 400
    num_bands: Width = 40
    frame_width: Width = 320
    tick_width: Width = 448
    encoder_frame_depth: Count = 2
    encoder_tick_depth: Count = 2
    decoder_tick_depth: Count = 3
    decoder_frame_depth: Count = 4
    frame_kernel: Factor = 5
    tick_kernel: Factor = 3
    pan_width: Width = 64
    expansion: Factor = 3

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.num_odd_latents >= self.latent_dim:
            raise ValueError(
                f"num_odd_latents is {self.num_odd_latents} of latent_dim {self.latent_dim}; "
                "take fewer"
            )
        if TIMING.samples_per_tick % self.hop:
            raise ValueError(
                f"hop is {self.hop}, no divisor of the {TIMING.samples_per_tick} samples of a "
                "tick; take 400 or another divisor"
            )
        if self.num_bands > self.hop:
            raise ValueError(f"num_bands {self.num_bands} is over hop {self.hop}; take fewer")
        return self


class Posterior(NamedTuple):
    """Gaussian over latents: mean and log variance, [B, T, D] each."""

    mean_BTD: Tensor
    logvar_BTD: Tensor

    def sample(self, noise_BTD: Tensor) -> Tensor:
        """mean + std * noise."""
        return self.mean_BTD + (0.5 * self.logvar_BTD).exp() * noise_BTD


@dataclass
class EncoderState:
    """Streaming state of the encoder."""

    overlap: OverlapState
    frame: list[ConvState]
    tick: list[ConvState]


@dataclass
class DecoderState:
    """Streaming state of the decoder."""

    tick: list[ConvState]
    frame: list[ConvState]
    overlap: OverlapState


class SpectralFeatures(NamedTuple):
    """What the encoder sees of a frame: swap-invariant and swap-negated parts."""

    even_BJD: Tensor
    odd_BJD: Tensor


class Encoder(nn.Module):
    """Stereo audio to a posterior per tick, strictly causal."""

    def __init__(self, config: AutoencoderConfig, timing: Timing) -> None:
        super().__init__()
        self.config = config
        self.frames_per_tick = timing.samples_per_tick // config.hop
        num_bins = config.hop + 1
        self.analysis = Analysis(config.hop, timing.num_channels)
        bands_FN = band_matrix(num_bins, config.num_bands, timing.sample_rate_hz / 2)
        self.register_buffer("bands_FN", bands_FN, persistent=False)
        self.input = nn.Linear(3 * num_bins, config.frame_width)
        self.frame_stack = ConvStack(
            config.frame_width,
            depth=config.encoder_frame_depth,
            kernel=config.frame_kernel,
            expansion=config.expansion,
        )
        self.fold = nn.Linear(self.frames_per_tick * config.frame_width, config.tick_width)
        self.tick_stack = ConvStack(
            config.tick_width,
            depth=config.encoder_tick_depth,
            kernel=config.tick_kernel,
            expansion=config.expansion,
        )
        self.norm = nn.RMSNorm(config.tick_width, eps=1e-6)
        num_even = config.latent_dim - config.num_odd_latents
        self.even_mean = nn.Linear(config.tick_width, num_even)
        self.logvar = nn.Linear(config.tick_width, config.latent_dim)
        # Odd path: no bias anywhere, gates depend on even features only.
        self.pan_gate = nn.Linear(config.frame_width, config.pan_width)
        self.pan_in = nn.Linear(2 * config.num_bands, config.pan_width, bias=False)
        self.pan_out = nn.Linear(
            self.frames_per_tick * config.pan_width, config.num_odd_latents, bias=False
        )

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> EncoderState:
        """State for chunks of at most `max_chunk` ticks."""
        frames = max_chunk * self.frames_per_tick
        kind = {"device": device, "dtype": dtype}
        return EncoderState(
            overlap=self.analysis.init_state(batch_size, max_chunk=frames, **kind),
            frame=self.frame_stack.init_state(batch_size, max_chunk=frames, **kind),
            tick=self.tick_stack.init_state(batch_size, max_chunk=max_chunk, **kind),
        )

    def features(self, spectra_BCJF: Tensor) -> SpectralFeatures:
        """Log power, compressed shared spectrum (even) and level differences (odd)."""
        power_BCJF = spectra_BCJF.real.square() + spectra_BCJF.imag.square()
        total_BJF = power_BCJF.sum(1) + _EPS
        shared_BJF = (spectra_BCJF * power_BCJF.sqrt()).sum(1)
        shared_BJF = shared_BJF / (shared_BJF.abs() + _EPS) * total_BJF.pow(0.15)
        log_power_BJF = 0.2 * total_BJF.log()
        even_BJD = torch.cat([log_power_BJF, shared_BJF.real, shared_BJF.imag], dim=-1)
        left_BJN, right_BJN = (power_BCJF @ self.bands_FN.to(power_BCJF.dtype)).unbind(1)
        contrast_BJN = (left_BJN - right_BJN) / (left_BJN + right_BJN + 1e-5)
        log_ratio_BJN = ((left_BJN + 1e-4) / (right_BJN + 1e-4)).log() / 4
        return SpectralFeatures(even_BJD, torch.cat([contrast_BJN, log_ratio_BJN], dim=-1))

    def forward(
        self, audio_BCL: Tensor, state: EncoderState | None = None, active: Tensor | None = None
    ) -> Posterior:
        """[B, 2, T * samples_per_tick] to a `Posterior` of T ticks."""
        spectra = self.analysis(audio_BCL, None if state is None else state.overlap, active)
        even_BJD, odd_BJD = self.features(spectra)
        hidden_BJD = self.input(even_BJD)
        hidden_BJD = self.frame_stack(hidden_BJD, None if state is None else state.frame, active)
        pan_BJD = self.pan_in(odd_BJD) * self.pan_gate(hidden_BJD).sigmoid()
        fold = {"pattern": "b (t j) d -> b t (j d)", "j": self.frames_per_tick}
        odd_mean_BTD = self.pan_out(rearrange(pan_BJD, **fold))
        hidden_BTD = self.fold(rearrange(hidden_BJD, **fold))
        hidden_BTD = self.tick_stack(hidden_BTD, None if state is None else state.tick, active)
        hidden_BTD = self.norm(hidden_BTD)
        mean_BTD = torch.cat([self.even_mean(hidden_BTD), odd_mean_BTD], dim=-1)
        return Posterior(mean_BTD, self.logvar(hidden_BTD).clamp(-12.0, 2.0))


class Decoder(nn.Module):
    """Latents to stereo audio, without look-ahead."""

    def __init__(self, config: AutoencoderConfig, timing: Timing) -> None:
        super().__init__()
        self.config = config
        self.frames_per_tick = timing.samples_per_tick // config.hop
        num_bins = config.hop + 1
        num_even = config.latent_dim - config.num_odd_latents
        bands_FN = band_matrix(num_bins, config.num_bands, timing.sample_rate_hz / 2)
        self.register_buffer("bands_FN", bands_FN, persistent=False)
        self.input = nn.Linear(num_even, config.tick_width)
        self.tick_stack = ConvStack(
            config.tick_width,
            depth=config.decoder_tick_depth,
            kernel=config.tick_kernel,
            expansion=config.expansion,
        )
        self.unfold = nn.Linear(config.tick_width, self.frames_per_tick * config.frame_width)
        self.frame_stack = ConvStack(
            config.frame_width,
            depth=config.decoder_frame_depth,
            kernel=config.frame_kernel,
            expansion=config.expansion,
        )
        self.norm = nn.RMSNorm(config.frame_width, eps=1e-6)
        self.magnitude = nn.Linear(config.frame_width, num_bins)
        self.phase = nn.Linear(config.frame_width, 2 * num_bins)
        # Odd path: no bias, tanh, gates from even features: negating z_odd negates the differences.
        self.pan_in = nn.Linear(
            config.num_odd_latents, self.frames_per_tick * config.pan_width, bias=False
        )
        self.pan_gate = nn.Linear(config.frame_width, config.pan_width)
        self.level = nn.Linear(config.pan_width, config.num_bands, bias=False)
        self.phase_difference = nn.Linear(config.pan_width, config.num_bands, bias=False)
        nn.init.zeros_(self.phase_difference.weight)
        self.synthesis = Synthesis(config.hop, timing.num_channels)

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> DecoderState:
        """State for chunks of at most `max_chunk` ticks."""
        frames = max_chunk * self.frames_per_tick
        kind = {"device": device, "dtype": dtype}
        return DecoderState(
            tick=self.tick_stack.init_state(batch_size, max_chunk=max_chunk, **kind),
            frame=self.frame_stack.init_state(batch_size, max_chunk=frames, **kind),
            overlap=self.synthesis.init_state(batch_size, max_chunk=frames, **kind),
        )

    def shared_spectrum(self, hidden_BJD: Tensor) -> tuple[Tensor, Tensor]:
        """exp(magnitude) times a unit phasor (Vocos, 2306.00814): real and imaginary [B, J, F]."""
        magnitude_BJF = self.magnitude(hidden_BJD).clamp(max=7.0).exp()
        cosine_BJF, sine_BJF = self.phase(hidden_BJD).chunk(2, dim=-1)
        length_BJF = (cosine_BJF.square() + sine_BJF.square() + 1e-6).sqrt()
        scale_BJF = magnitude_BJF / length_BJF
        return cosine_BJF * scale_BJF, sine_BJF * scale_BJF

    def pan(self, shared_BJF: tuple[Tensor, Tensor], odd_BTD: Tensor, hidden_BJD: Tensor) -> Tensor:
        """Applies level and phase differences; total power per bin is kept.

        In real numbers: few compilers know complex ones.

        Returns:
            [B, 2, J, F, 2]: channels, and real and imaginary part last.
        """
        odd_BJD = rearrange(self.pan_in(odd_BTD), "b t (j d) -> b (t j) d", j=self.frames_per_tick)
        odd_BJD = torch.tanh(odd_BJD * self.pan_gate(hidden_BJD).sigmoid())
        to_bins_NF = self.bands_FN.to(odd_BJD.dtype).T
        level_BJF = torch.tanh(self.level(odd_BJD)) @ to_bins_NF  # -1 .. 1
        turn_BJF = 0.5 * (self.phase_difference(odd_BJD) @ to_bins_NF)
        # dB difference d: left power share = 1 / (1 + 10^(-d / 10)), right = the rest.
        nepers_BJF = level_BJF * (MAX_LEVEL_DIFFERENCE_DB * 0.230258509)
        nepers_BCJF = torch.stack([nepers_BJF, -nepers_BJF], dim=1)
        gain_BCJF = torch.nn.functional.logsigmoid(nepers_BCJF).mul(0.5).exp()
        cosine_BCJF = turn_BJF.cos()[:, None] * gain_BCJF
        sine_BCJF = torch.stack([turn_BJF, -turn_BJF], dim=1).sin() * gain_BCJF
        real_BCJF, imag_BCJF = (part.unsqueeze(1) for part in shared_BJF)
        return torch.stack(
            [
                real_BCJF * cosine_BCJF - imag_BCJF * sine_BCJF,
                real_BCJF * sine_BCJF + imag_BCJF * cosine_BCJF,
            ],
            dim=-1,
        )

    def spectra(
        self, latents_BTD: Tensor, state: DecoderState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """[B, T, D] to spectra [B, 2, J, F, 2], real and imaginary part last."""
        num_odd = self.config.num_odd_latents
        even_BTD, odd_BTD = latents_BTD[..., :-num_odd], latents_BTD[..., -num_odd:]
        hidden_BTD = self.input(even_BTD)
        hidden_BTD = self.tick_stack(hidden_BTD, None if state is None else state.tick, active)
        hidden_BJD = rearrange(
            self.unfold(hidden_BTD), "b t (j d) -> b (t j) d", j=self.frames_per_tick
        )
        hidden_BJD = self.frame_stack(hidden_BJD, None if state is None else state.frame, active)
        hidden_BJD = self.norm(hidden_BJD)
        return self.pan(self.shared_spectrum(hidden_BJD), odd_BTD, hidden_BJD)

    def sound(
        self, spectra_BCJF2: Tensor, state: DecoderState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """Result of `spectra` to [B, 2, T * samples_per_tick]."""
        spectra_BCJF = torch.view_as_complex(spectra_BCJF2)
        return self.synthesis(spectra_BCJF, None if state is None else state.overlap, active)

    def forward(
        self, latents_BTD: Tensor, state: DecoderState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """[B, T, D] to [B, 2, T * samples_per_tick]."""
        return self.sound(self.spectra(latents_BTD, state, active), state, active)


class StereoAutoencoder(nn.Module):
    """Encoder and decoder; `encode` and `decode` are what callers use."""

    def __init__(self, config: AutoencoderConfig, timing: Timing = TIMING) -> None:
        super().__init__()
        if timing.samples_per_tick % config.hop:
            raise ValueError(f"hop {config.hop} does not divide {timing.samples_per_tick} samples")
        if not 0 < config.num_odd_latents < config.latent_dim:
            raise ValueError(
                f"num_odd_latents {config.num_odd_latents} must lie in 1..{config.latent_dim - 1}"
            )
        self.config = config
        self.timing = timing
        self.encoder = Encoder(config, timing)
        self.decoder = Decoder(config, timing)

    @property
    def encoder_lookahead_samples(self) -> int:
        """Samples beyond the end of a tick that its latent describes (one hop, 8.3 ms)."""
        return self.config.hop

    def encode(self, audio_BCL: Tensor) -> Posterior:
        """Posterior of every tick of a whole recording.

        The audio is advanced by one hop, so that `decode(encode(x).mean_BTD)` lines up with x.

        Args:
            audio_BCL: float [B, 2, T * samples_per_tick] in -1..1.
        Raises:
            ValueError: if the number of samples is not a whole number of ticks.
        """
        if audio_BCL.shape[-1] % self.timing.samples_per_tick:
            raise ValueError(
                f"{audio_BCL.shape[-1]} samples are not a multiple of "
                f"{self.timing.samples_per_tick} (one tick); pad or trim them"
            )
        hop = self.config.hop
        return self.encoder(torch.nn.functional.pad(audio_BCL[..., hop:], (0, hop)))

    def decode(
        self, latents_BTD: Tensor, state: DecoderState | None = None, active: Tensor | None = None
    ) -> Tensor:
        """Audio [B, 2, T * samples_per_tick] of latents [B, T, D] (not normalised)."""
        return self.decoder(latents_BTD, state, active)

    def init_state(
        self, batch_size: int, *, max_chunk: int, device: torch.device | str, dtype: torch.dtype
    ) -> DecoderState:
        """State of the decoder, for `decode`."""
        return self.decoder.init_state(batch_size, max_chunk=max_chunk, device=device, dtype=dtype)


def split_latents(latents: Tensor, num_odd_latents: int) -> tuple[Tensor, Tensor]:
    """Even and odd dimensions of latents [..., D]."""
    even, odd = latents.split([latents.shape[-1] - num_odd_latents, num_odd_latents], dim=-1)
    return even, odd


def mirror_latents(latents_BTD: Tensor, num_odd_latents: int) -> Tensor:
    """Latents of the same sound with its channels swapped."""
    even_BTD, odd_BTD = split_latents(latents_BTD, num_odd_latents)
    return torch.cat([even_BTD, -odd_BTD], dim=-1)
