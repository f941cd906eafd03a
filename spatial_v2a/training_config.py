"""Settings of the training runs: one section a stage, all sharing one set of optimiser keys."""

from typing import Annotated, Literal

from pydantic import Field

from spatial_v2a.objective_config import ConsistencyObjectiveConfig, DiffusionObjectiveConfig
from spatial_v2a.strict import Count, Long, Share, StrictConfig

BatchSize = Annotated[int, Field(ge=1, le=65_536)]
CropTicks = Annotated[int, Field(ge=1, le=108_000)]
Rate = Annotated[float, Field(gt=0, le=10)]


class StageTraining(StrictConfig):
    """What every training run needs.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: crops per step and process.
        crop_ticks: length of a crop in ticks.
        learning_rate: peak rate, reached after `warmup_steps`.
        ema_decay: decay of the averaged weights per step.
        grad_clip: largest gradient norm.
        weight_decay: of AdamW.
        decay_share: share of the run, at its end, over which the rate falls to zero (cosine).
        save_every, log_every: steps between checkpoints and between log lines.
        num_workers: loader processes; 0 reads in the training process.
        precision: arithmetic of the forward pass, as Accelerate names it.
    """

    steps: Long
    batch_size: BatchSize
    crop_ticks: CropTicks
    learning_rate: Rate
    warmup_steps: int = Field(default=200, ge=0, le=10**9)
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    grad_clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    decay_share: Share = 0.3
    seed: int = Field(default=0, ge=0, lt=2**62)
    save_every: Long = 500
    log_every: Long = 20
    num_workers: int = Field(default=0, ge=0, le=1024)
    precision: Literal["no", "bf16", "fp16"] = "no"


class VaeTraining(StageTraining):
    """Training of the audio autoencoder.

    Attributes:
        kl_weight: weight of the Kullback-Leibler divergence per tick (sum over dimensions).
        level_difference_weight: weight of the level-difference error, per dB.
        band_level_weight: weight of the level error per channel and band, per dB.
        freeze_encoder: train the decoder only; a generator trained on the latents stays valid.
        latent_noise: largest deviation of noise on the even dimensions before decoding, in
            deviations of each dimension; drawn anew per crop. 0: none.
        adversarial_weight: weight of the hinge loss against a discriminator. 0: none is built.
        feature_matching_weight: weight of the distance of the discriminator's hidden outputs.
        adversarial_after: steps in which the discriminator learns alone.
        bank_share: share of the crops that are sounds of the concept bank and mixtures of them;
            all of them where no recordings are given.
    """

    steps: Long = 4000
    batch_size: BatchSize = 12
    crop_ticks: CropTicks = 15
    learning_rate: Rate = 6e-4
    kl_weight: float = Field(default=5e-4, ge=0)
    level_difference_weight: float = Field(default=0.05, ge=0)
    band_level_weight: float = Field(default=0.05, ge=0)
    freeze_encoder: bool = False
    latent_noise: float = Field(default=0.0, ge=0)
    adversarial_weight: float = Field(default=0.0, ge=0)
    feature_matching_weight: float = Field(default=0.1, ge=0)
    adversarial_after: int = Field(default=200, ge=0, le=10**9)
    bank_share: Share = 0.0


class GeneratorTraining(StageTraining):
    """What both generator stages share.

    Attributes:
        warm_start: begin with the generator of the checkpoint given by --init.
        detected_share: share of the rows drawn from the clips that have detected features.
        num_given_views: views of the engine's geometry kept per clip; the first is exact, the
            others are degraded like detections.
        clip_start_share: share of the crops that begin where a clip begins; the others begin
            anywhere that is silent or shows an object.
        scene_cut_share: share of the rows in which the picture and its sound are cut to those of
            another clip, so that what sounded does not outlast what is seen.
        late_box_share: share of the rows that are silent and without boxes until a box is seen
            somewhere in their middle, so that an object which is found late sounds all the same.
        lost_box_share: share of the rows, of those that are left, whose boxes go while the sound
            stays, so that an object which is lost or has left is remembered.
        tracks_share: share of the rows that come from simulated tracks (`training/tracks`); all of
            them where no recordings are given.
        num_tracks, fresh_tracks: simulated clips to draw from, and how many of them are replaced
            every step.
    """

    steps: Long = 6000
    batch_size: BatchSize = 16
    crop_ticks: CropTicks = 96
    learning_rate: Rate = 6e-4
    warm_start: bool = False
    detected_share: Share = 0.5
    num_given_views: Count = 3
    clip_start_share: Share = 0.3
    scene_cut_share: Share = 0.5
    late_box_share: Share = 0.2
    lost_box_share: Share = 0.2
    tracks_share: Share = 0.0
    num_tracks: Long = 600
    fresh_tracks: float = Field(default=1.0, ge=0, le=1000)


class DiffusionTraining(GeneratorTraining):
    """Training of the generator with the denoising loss."""

    objective: DiffusionObjectiveConfig = DiffusionObjectiveConfig()


class ConsistencyTraining(GeneratorTraining):
    """Consistency tuning of a trained generator."""

    steps: Long = 2000
    learning_rate: Rate = 1e-4
    warm_start: bool = True
    objective: ConsistencyObjectiveConfig = ConsistencyObjectiveConfig()


class TrainingConfig(StrictConfig):
    """All training stages of one model."""

    vae: VaeTraining = VaeTraining()
    diffusion: DiffusionTraining = DiffusionTraining()
    consistency: ConsistencyTraining = ConsistencyTraining()
