"""Trains the stereo autoencoder: `spatial-v2a-train vae --data DIR --out DIR`."""

from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from spatial_v2a.config import Config
from spatial_v2a.errors import UserError
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.autoencoder import StereoAutoencoder
from spatial_v2a.timing import Timing
from spatial_v2a.training.audio_data import AudioCrops, read_sound, step_rng
from spatial_v2a.training.discriminator import SpectrogramDiscriminator, adversarial_losses
from spatial_v2a.training.loop import Losses, Task, train
from spatial_v2a.training.shards import ShardIndex
from spatial_v2a.training.sounds.bank import Bank, ProceduralBank
from spatial_v2a.training.sounds.crops import BankCrops, MixedCrops, held_out_mixtures
from spatial_v2a.training.spectral_loss import BandLevel, LevelDifference, MultiResolutionStft
from spatial_v2a.training.vae_metrics import latent_statistics, reconstruction_metrics
from spatial_v2a.training_config import VaeTraining

STFT_SIZES = (2048, 512, 128)  # every second size of the metric: the loss is a third of a step
BAND_LEVELS = ((2048, 64), (512, 32))  # (window in samples, number of bands)
# AdamW does not mind the scale of the discriminator's loss, but the common gradient clipping does.
DISCRIMINATOR_SCALE = 0.1


class VaeObjective(nn.Module):
    """Reconstruction on left, right, mid and side, levels and level differences, divergence.

    With `section.adversarial_weight` also a discriminator's losses (`training/discriminator.py`).
    """

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
        self.discriminator = SpectrogramDiscriminator() if section.adversarial_weight else None

    def forward(self, batch: dict[str, Tensor], *, step: int, rng: torch.Generator) -> Losses:
        """Losses of `batch['audio']`, float [B, 2, L]."""
        audio_BCL = batch["audio"]
        posterior = self.autoencoder.encode(audio_BCL)
        noise = torch.randn(posterior.mean_BTD.shape, generator=rng).to(audio_BCL)
        latents_BTD = posterior.sample(noise)
        if self.section.latent_noise:
            latents_BTD = self._noisy(latents_BTD, rng)
        output_BCL = self.autoencoder.decode(latents_BTD)
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
        losses = {
            "mrstft": spectral,
            "level_difference_db": level,
            "band_level_db": band_level,
            "kl": kl,
        }
        if self.discriminator is not None:
            against = adversarial_losses(self.discriminator, output_BCL, audio_BCL)
            if step >= self.section.adversarial_after:
                total = total + self.section.adversarial_weight * against.adversarial
                total = total + self.section.feature_matching_weight * against.feature_matching
            total = total + DISCRIMINATOR_SCALE * against.discriminator
            losses |= against._asdict()
        return {"loss": total, **losses}

    def _noisy(self, latents_BTD: Tensor, rng: torch.Generator) -> Tensor:
        """Noise on the even dimensions, of a deviation drawn per crop.

        The odd ones stay: a decoder that doubts the pan would pull it to the middle.
        """
        num_even = latents_BTD.shape[-1] - self.autoencoder.config.num_odd_latents
        spread_D = latents_BTD.detach().std((0, 1))
        spread_D = torch.cat([spread_D[:num_even], torch.zeros_like(spread_D[num_even:])])
        share_B11 = torch.rand(len(latents_BTD), 1, 1, generator=rng) * self.section.latent_noise
        noise_BTD = share_B11 * torch.randn(latents_BTD.shape, generator=rng)
        return latents_BTD + spread_D * noise_BTD.to(latents_BTD)


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

    def export(averaged: nn.Module, step: int) -> None:
        del step
        model.autoencoder.load_state_dict(averaged.state_dict())
        if not section.freeze_encoder:  # else the latents stay, and so does what a generator learnt
            stats = latent_statistics(model.autoencoder, crops)
            model.set_latent_statistics(stats.mean_D, stats.std_D)
        model.save_pretrained(run_dir / "checkpoint", overwrite=True)

    objective = VaeObjective(
        StereoAutoencoder(config.autoencoder, config.timing), config.timing, section
    )
    objective.autoencoder.load_state_dict(model.autoencoder.state_dict())
    task = Task(
        name="vae",
        objective=objective,
        make_batch=make_batch,
        section=section,
        averaged=lambda module: module.autoencoder,
        export=export,
    )
    losses = train(task, run_dir)
    if val:
        index = ShardIndex(val)
        recorded = (read_sound(index, key) for key in index.keys)
        losses |= reconstruction_metrics(model.autoencoder, recorded, config.timing)
    if section.bank_share:
        mixtures = held_out_mixtures(bank, config.timing)
        figures = reconstruction_metrics(model.autoencoder, mixtures, config.timing)
        losses |= {f"bank_{name}": value for name, value in figures.items()}
    return losses
