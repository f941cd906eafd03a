"""Samplers as pure functions of (denoise, noise, sigmas): EDM Euler and Heun, consistency.

Legend: N noise draws, `...` any leading axes of a latent, D latent width.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from spatial_v2a.config import SamplerConfig
from spatial_v2a.models.autoencoder import split_latents

# (x [..., D], sigma scalar tensor) -> estimate of the clean latent [..., D]
Denoise = Callable[[Tensor, Tensor], Tensor]


def sampler_sigmas(config: SamplerConfig, *, nfe: int | None = None) -> Tensor:
    """Descending noise levels of a sampler, float64 on the CPU; compute them once.

    Args:
        config: kind and noise range.
        nfe: evaluations of the head, `config.nfe` when None. Heun takes two a step and one in the
            last, so there an even number counts as the odd one below it.
    """
    nfe = config.nfe if nfe is None else nfe
    if config.kind == "consistency":
        return consistency_sigmas(nfe, sigma_max=config.sigma_max)
    num_steps = nfe if config.solver == "euler" else (nfe + 1) // 2
    return karras_sigmas(
        num_steps, sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho
    )


def num_noises(config: SamplerConfig, *, nfe: int | None = None) -> int:
    """Standard normal draws that one latent needs."""
    nfe = config.nfe if nfe is None else nfe
    return nfe if config.kind == "consistency" else 1


def shape_noise(noise: Tensor, config: SamplerConfig, *, num_odd_latents: int) -> Tensor:
    """Standard normal draws [..., D] as the sampler wants them; the odd dimensions come last.

    The odd ones are scaled by `odd_noise`, and even vectors longer than `max_radius` times their
    expected length are shortened to that (the truncation of 1809.11096, for the whole vector).
    """
    even, odd = split_latents(noise, num_odd_latents)
    if config.max_radius is not None:
        longest = config.max_radius * even.shape[-1] ** 0.5
        length = even.square().sum(-1, keepdim=True).sqrt()
        even = even * (longest / length.clamp_min(1e-6)).clamp_max(1.0)
    return torch.cat((even, config.odd_noise * odd), dim=-1)


def symmetric_denoise(denoise: Denoise, sign_D: Tensor) -> Denoise:
    """The average of two views of B streams: as seen, and mirrored and turned back.

    Args:
        denoise: takes [2 B, D], rows as seen first, then those of the mirrored pictures.
        sign_D: -1 for the odd dimensions, 1 for the others.
    """

    def both(x_BD: Tensor, sigma: Tensor) -> Tensor:
        seen_BD, turned_BD = denoise(torch.cat((x_BD, sign_D * x_BD)), sigma).chunk(2)
        return 0.5 * (seen_BD + sign_D * turned_BD)

    return both


def plain_pan_denoise(denoise: Denoise, *, num_odd_latents: int) -> Denoise:
    """What the guided condition says, except for the odd dimensions: those of the plain one.

    Args:
        denoise: takes [2 B, D], rows of the guided condition first, then those of the plain one.
        num_odd_latents: dimensions at the end of a latent that hold its pan.
    """

    def both(x_BD: Tensor, sigma: Tensor) -> Tensor:
        guided_BD, plain_BD = denoise(torch.cat((x_BD, x_BD)), sigma).chunk(2)
        even_BD, _ = split_latents(guided_BD, num_odd_latents)
        _, odd_BD = split_latents(plain_BD, num_odd_latents)
        return torch.cat((even_BD, odd_BD), dim=-1)

    return both


def karras_sigmas(
    num_steps: int, *, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> Tensor:
    """num_steps descending noise levels and a final 0, float64 (2206.00364, eq. 5)."""
    ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat(((high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)))


def consistency_sigmas(nfe: int, *, sigma_max: float, sigma_last: float = 0.4) -> Tensor:
    """nfe noise levels of multistep consistency sampling: sigma_max, then geometric to sigma_last.

    ECT's second level for sigma_data 0.5 is about 0.8 (2406.14548, appendix); between 2 and 0.4
    the levels below lie around it for unit variance.
    """
    if nfe == 1:
        return torch.tensor([sigma_max], dtype=torch.float64)
    rest = torch.logspace(0, 1, nfe, dtype=torch.float64)[:-1].flip(0) * sigma_last
    return torch.cat((torch.tensor([sigma_max], dtype=torch.float64), rest))


def sample_euler(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Integrates the probability-flow equation with Euler steps.

    Args:
        denoise: estimate of the clean latent.
        noise: standard normal [..., D].
        sigmas: descending levels [n + 1], the last one 0.
    """
    levels = sigmas.to(noise)
    x = noise * levels[0]
    for sigma, lower in zip(levels[:-1], levels[1:], strict=True):
        x = x + (lower - sigma) * (x - denoise(x, sigma)) / sigma
    return x


def sample_heun(denoise: Denoise, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Second-order deterministic sampler (2206.00364, algorithm 1); arguments as `sample_euler`."""
    levels = sigmas.to(noise)
    x = noise * levels[0]
    num_steps = len(levels) - 1
    for step, (sigma, lower) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (lower - sigma) * slope
        if step < num_steps - 1:
            slope = (slope + (euler - denoise(euler, lower)) / lower) / 2
            euler = x + (lower - sigma) * slope
        x = euler
    return x


def sample_consistency(denoise: Denoise, noises: Tensor, sigmas: Tensor) -> Tensor:
    """Multistep consistency sampling (2303.01469, algorithm 1).

    Args:
        denoise: the consistency function.
        noises: standard normal [N, ..., D]; the first starts, the others re-noise.
        sigmas: descending levels [N].
    """
    levels = sigmas.to(noises)
    if len(levels) != len(noises):
        raise ValueError(f"{len(levels)} noise levels need as many noises, got {len(noises)}")
    x0 = denoise(noises[0] * levels[0], levels[0])
    for noise, sigma in zip(noises[1:], levels[1:], strict=True):
        x0 = denoise(x0 + sigma * noise, sigma)
    return x0


def sample(denoise: Denoise, noises: Tensor, sigmas: Tensor, *, config: SamplerConfig) -> Tensor:
    """Draws a latent [..., D] with the solver that the head was trained for.

    Args:
        denoise: estimate of the clean latent.
        noises: normal draws [num_noises(config), ..., D] after `shape_noise`.
        sigmas: result of `sampler_sigmas`.
        config: kind of sampler.
    """
    if config.kind == "consistency":
        return sample_consistency(denoise, noises, sigmas)
    solve = sample_euler if config.solver == "euler" else sample_heun
    return solve(denoise, noises[0], sigmas)
