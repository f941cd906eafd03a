"""Quick figures of a generator on validation clips with given geometry: does the pan follow?"""

import torch

from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.autoencoder import mirror_latents
from spatial_v2a.models.samplers import num_noises, sample, sampler_sigmas, shape_noise
from spatial_v2a.training.generator_data import GeneratorData

AUDIBLE_POWER = 1e-6


@torch.inference_mode()
def validation_metrics(
    model: SpatialV2A, data: GeneratorData, *, num_clips: int = 16, num_ticks: int = 240
) -> dict[str, float]:
    """Rolls clips out and compares level differences per tick with the recordings'.

    Returns:
        pan_correlation: generated against true level difference (dB, limited to +-30), over ticks
            where the truth is audible.
        level_error_db: mean difference of the levels there.
        latent_distance: mean absolute difference of generated and true latents, normalised.
        mirrored_latent_distance: the same after swapping the generated channels; larger when the
            sides are right.
    """
    clips = data.clips[:: max(1, len(data.clips) // num_clips)][:num_clips]
    config = model.config.sampler
    sigmas = sampler_sigmas(config)
    state = model.generator.init_state(len(clips), device="cpu", dtype=torch.float32)
    rng = torch.Generator().manual_seed(0)
    clips_D = (len(clips), model.config.autoencoder.latent_dim)
    drawn = []
    for tick in range(num_ticks):
        parts = [c.given[0].map(lambda x, t=tick: x[:, t : t + 1]) for c in clips]
        batch = {k: torch.cat([vars(p)[k] for p in parts]) for k in vars(parts[0])}
        batch = {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}
        condition = model.generator.observe_frame(type(parts[0])(**batch), state)
        noises = torch.randn(num_noises(config), *clips_D, generator=rng)
        noises = shape_noise(noises, config, num_odd_latents=data.num_odd_latents)
        x_BD = sample(model.generator.denoiser(condition), noises, sigmas, config=config)
        model.generator.observe_latent(x_BD, state)
        drawn.append(x_BD)
    generated_BTD = torch.stack(drawn, dim=1)
    true_BTD = torch.stack([c.latents_TD[:num_ticks].float() for c in clips])
    output, target = (_levels(model, latents) for latents in (generated_BTD, true_BTD))
    is_audible = target.exp().sum(1) > AUDIBLE_POWER
    pans = [
        (4.343 * (levels[:, 0] - levels[:, 1])).clamp(-30, 30)[is_audible]
        for levels in (output, target)
    ]
    loudness = [4.343 * levels.exp().sum(1).log()[is_audible] for levels in (output, target)]
    flipped = mirror_latents(generated_BTD, data.num_odd_latents)
    return {
        "pan_correlation": torch.corrcoef(torch.stack(pans))[0, 1].item(),
        "level_error_db": (loudness[0] - loudness[1]).mean().item(),
        "latent_distance": (generated_BTD - true_BTD).abs().mean().item(),
        "mirrored_latent_distance": (flipped - true_BTD).abs().mean().item(),
    }


def _levels(model: SpatialV2A, latents_BTD: torch.Tensor) -> torch.Tensor:
    """Natural log of the power per channel and tick, [B, 2, T]."""
    audio_BCL = model.autoencoder.decode(model.denormalize(latents_BTD))
    power = audio_BCL.unflatten(-1, (-1, model.timing.samples_per_tick)).square().mean(-1)
    return (power + 1e-10).log()
