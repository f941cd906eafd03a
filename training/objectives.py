"""Losses of the generator: denoising, and easy consistency tuning.

Legend: M noise draws per item, B sequences, T ticks, D latent width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from spatial_v2a.config import ConsistencyObjectiveConfig, DiffusionObjectiveConfig
from spatial_v2a.features import FrameFeatures
from spatial_v2a.models.conditioner import drop_cues
from spatial_v2a.models.diffusion import (
    consistency_stage,
    consistency_weight,
    lognormal_sigma,
    loss_weight,
    nearer_sigma,
    pseudo_huber,
    uncertainty_weighted,
)
from spatial_v2a.models.generator import Condition, Generator


@dataclass
class TrainingInputs:
    """One spoilt view of a batch: what the backbone is given."""

    features: FrameFeatures
    history_BTD: Tensor
    history_drop_BT: Tensor


def spoil_inputs(
    features: FrameFeatures,
    latents_BTD: Tensor,
    *,
    rng: torch.Generator,
    config: DiffusionObjectiveConfig,
    is_timed_B: Tensor | None = None,
) -> TrainingInputs:
    """Draws what is spoilt: streams dropped, history noised, dropped, shifted; by `rng`, on CPU.

    Only histories of sequences in `is_timed_B` are shifted; None is all.
    """
    num_sequences, num_ticks, _ = latents_BTD.shape
    level_B11 = config.max_history_noise * torch.rand(num_sequences, 1, 1, generator=rng)
    noise_BTD = level_B11 * torch.randn(latents_BTD.shape, generator=rng)
    drop_BT = torch.rand(num_sequences, num_ticks, generator=rng) < config.drop_latent
    drop_BT |= torch.rand(num_sequences, 1, generator=rng) < config.drop_history
    shifted_BTD = shift_some(latents_BTD, config.shift_history, rng=rng)
    history_BTD = shifted_BTD
    if is_timed_B is not None:
        history_BTD = torch.where(is_timed_B[:, None, None], shifted_BTD, latents_BTD)
    return TrainingInputs(
        features=drop_cues(features, config.streams, generator=rng),
        history_BTD=history_BTD + noise_BTD.to(latents_BTD),
        history_drop_BT=drop_BT.to(latents_BTD.device),
    )


def shift_some(latents_BTD: Tensor, chance: float, *, rng: torch.Generator) -> Tensor:
    """Rotates sequences in time, each with this chance by 1 to T - 1 ticks."""
    num_sequences, num_ticks, _ = latents_BTD.shape
    is_shifted_B = torch.rand(num_sequences, generator=rng) < chance
    shift_B = torch.randint(1, max(2, num_ticks), (num_sequences,), generator=rng) * is_shifted_B
    source_BT = (torch.arange(num_ticks) - shift_B[:, None]) % num_ticks
    return latents_BTD.take_along_dim(source_BT[..., None].to(latents_BTD.device), dim=1)


def diffusion_loss(
    generator: Generator,
    features: FrameFeatures,
    latents_BTD: Tensor,
    *,
    rng: torch.Generator,
    config: DiffusionObjectiveConfig,
    is_timed_B: Tensor | None = None,
    teacher: Generator | None = None,
) -> dict[str, Tensor | dict[str, Tensor]]:
    """EDM loss with learned uncertainty, lambda(sigma) e^-u |x0 - D|^2 + u.

    Args:
        generator: the model in training.
        features: perception of the batch.
        latents_BTD: normalised latents, unit variance.
        rng: CPU generator of every draw; the same state gives the same loss.
        config: noise and dropout.
        is_timed_B: sequences whose picture tells when they sound, as in `spoil_inputs`.
        teacher: what it says of the other sequences takes the place of x0 there, so that they
            stay as it has them (learning without forgetting, arXiv 1606.09282).

    Returns:
        `loss` (scalar to minimise) and `parts` (detached: `denoising` is the weighted error
        without uncertainty, 1 for a model that knows nothing; `uncertainty` is the mean of u).
    """
    inputs = spoil_inputs(features, latents_BTD, rng=rng, config=config, is_timed_B=is_timed_B)
    condition = _condition(generator, inputs)
    sigma_MBT, eps_MBTD = _draw_noise(latents_BTD, rng, config)
    noisy = latents_BTD + sigma_MBT[..., None] * eps_MBTD
    target = latents_BTD
    if teacher is not None and is_timed_B is not None:
        target = _teach(teacher, inputs, noisy, sigma_MBT, latents_BTD, ~is_timed_B)
    error_MBT = (generator.denoise(noisy, sigma_MBT, condition) - target).square().mean(-1)
    weighted_MBT = loss_weight(sigma_MBT, generator.config.head.sigma_data) * error_MBT
    u_MBT = generator.uncertainty(sigma_MBT)
    loss = uncertainty_weighted(weighted_MBT, u_MBT).mean()
    parts = {"denoising": weighted_MBT.mean(), "uncertainty": u_MBT.mean()}
    return {"loss": loss, "parts": {name: part.detach() for name, part in parts.items()}}


def consistency_loss(
    generator: Generator,
    target_generator: Generator,
    features: FrameFeatures,
    latents_BTD: Tensor,
    *,
    rng: torch.Generator,
    fraction: float,
    config: ConsistencyObjectiveConfig,
    is_timed_B: Tensor | None = None,
) -> dict[str, Tensor | dict[str, Tensor]]:
    """w(t) d(G(x + t eps), stopgrad G(x + r eps)) with the same eps (ECT, 2406.14548).

    Args:
        generator: the model in training; head and backbone both learn.
        target_generator: its average, or the same object for a plain stop-gradient.
        fraction: progress of the tuning in [0, 1]; moves r towards t.
        features, latents_BTD, rng, config, is_timed_B: as in `diffusion_loss`.

    Returns:
        `loss`, and `parts` with the unweighted `distance` and the mean `ratio` r / t.
    """
    sigma_data = generator.config.head.sigma_data
    inputs = spoil_inputs(features, latents_BTD, rng=rng, config=config, is_timed_B=is_timed_B)
    condition = _condition(generator, inputs)
    t_MBT, eps_MBTD = _draw_noise(latents_BTD, rng, config)
    stage = consistency_stage(fraction, config.num_stages)
    r_MBT = nearer_sigma(t_MBT, stage, q=config.q)
    with torch.no_grad():
        is_same = target_generator is generator
        target_condition = condition.detach() if is_same else _condition(target_generator, inputs)
        near = latents_BTD + r_MBT[..., None] * eps_MBTD
        target = target_generator.denoise(near, r_MBT, target_condition)
    guess = generator.denoise(latents_BTD + t_MBT[..., None] * eps_MBTD, t_MBT, condition)
    width = latents_BTD.shape[-1]
    distance_MBT = pseudo_huber(guess - target, config.huber * width**0.5) / width**0.5
    loss = (consistency_weight(t_MBT, sigma_data) * distance_MBT).mean()
    parts = {"distance": distance_MBT.mean(), "ratio": (r_MBT / t_MBT).mean()}
    return {"loss": loss, "parts": {name: part.detach() for name, part in parts.items()}}


@torch.no_grad()
def _teach(
    teacher: Generator,
    inputs: TrainingInputs,
    noisy_MBTD: Tensor,
    sigma_MBT: Tensor,
    latents_BTD: Tensor,
    is_taught_B: Tensor,
) -> Tensor:
    """Targets [M, B, T, D]: what the teacher makes of the taught sequences, x0 of the others."""
    target_MBTD = latents_BTD.expand_as(noisy_MBTD)
    if not is_taught_B.any():
        return target_MBTD
    taught = TrainingInputs(
        features=inputs.features.map(lambda x: x[is_taught_B]),
        history_BTD=inputs.history_BTD[is_taught_B],
        history_drop_BT=inputs.history_drop_BT[is_taught_B],
    )
    said_MBTD = teacher.denoise(
        noisy_MBTD[:, is_taught_B], sigma_MBT[:, is_taught_B], _condition(teacher, taught)
    )
    return target_MBTD.index_copy(1, is_taught_B.nonzero().flatten(), said_MBTD)


def _condition(generator: Generator, inputs: TrainingInputs) -> Condition:
    return generator(inputs.features, inputs.history_BTD, history_drop_BT=inputs.history_drop_BT)


def _draw_noise(
    latents_BTD: Tensor, rng: torch.Generator, config: DiffusionObjectiveConfig
) -> tuple[Tensor, Tensor]:
    shape = (config.num_draws, *latents_BTD.shape)
    normal_MBT = torch.randn(shape[:-1], generator=rng).to(latents_BTD)
    sigma_MBT = lognormal_sigma(normal_MBT, p_mean=config.p_mean, p_std=config.p_std)
    return sigma_MBT, torch.randn(shape, generator=rng).to(latents_BTD)
