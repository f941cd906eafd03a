"""Trains backbone and head: `spatial-v2a-train diffusion`, then `spatial-v2a-train consistency`."""

import copy
from dataclasses import fields
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn import functional

from spatial_v2a.concepts import CLASS_NAMES, CONCEPTS, sound_index
from spatial_v2a.conditioning.store import FeatureStore
from spatial_v2a.config import Config, ConsistencyTraining, DiffusionTraining
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.autoencoder import mirror_latents
from spatial_v2a.models.generator import Generator
from spatial_v2a.models.samplers import num_noises, sample, sampler_sigmas, shape_noise
from spatial_v2a.training.generator_data import GeneratorData, autoencoder_digest
from spatial_v2a.training.loop import Losses, stage_recipe, train
from spatial_v2a.training.objectives import consistency_loss, diffusion_loss
from spatial_v2a.training.shards import ShardIndex, step_rng
from spatial_v2a.training.sounds.bank import Bank, ProceduralBank
from spatial_v2a.training.tracks.pool import TrackClips
from spatial_v2a.training.tracks.simulate import SimulatedTracks

# Layers whose last inputs are the waves of a box's proportions (`conditioner.shape_octaves`).
BOX_INPUT_WEIGHTS = tuple(
    f"conditioner.{layer}.weight" for layer in ("box_in.0", "box_gate", "box_direct")
)

CLASS_WEIGHTS = "conditioner.class_embedding.weight"
AUDIBLE_POWER = 1e-6


def unpack(batch: dict[str, Tensor]) -> tuple[FrameFeatures, Tensor]:
    """Splits a flat batch into features and latents."""
    features = FrameFeatures(**{f.name: batch[f.name] for f in fields(FrameFeatures)})
    return features, batch["latents_BTD"]


class DiffusionObjective(nn.Module):
    """Stage 1: denoising under teacher forcing.

    Args:
        generator: learns.
        section: of the training config.
        teacher: as for `diffusion_loss`.
    """

    def __init__(
        self,
        generator: Generator,
        section: DiffusionTraining,
        *,
        teacher: Generator | None = None,
    ) -> None:
        super().__init__()
        self.generator = generator
        self.section = section
        # Not a submodule: it is neither trained nor saved with the objective.
        self._teacher = [teacher]

    def forward(self, batch: dict[str, Tensor], *, step: int, rng: torch.Generator) -> Losses:
        """Losses of one batch."""
        del step
        features, latents_BTD = unpack(batch)
        teacher = self._teacher[0]
        out = diffusion_loss(
            self.generator,
            features,
            latents_BTD,
            rng=rng,
            config=self.section.objective,
            is_timed_B=batch.get("is_timed_B"),
            teacher=teacher.to(latents_BTD.device) if teacher else None,
        )
        return {"loss": out["loss"], **out["parts"]}


class ConsistencyObjective(nn.Module):
    """Stage 2: easy consistency tuning of head and backbone, against an averaged target."""

    def __init__(self, generator: Generator, section: ConsistencyTraining) -> None:
        super().__init__()
        self.generator = generator
        self.section = section
        # Not a submodule: the target is neither trained nor saved with the objective.
        self._target = [copy.deepcopy(generator).requires_grad_(False)]

    def set_target(self, step: int, averaged: nn.Module) -> None:
        """Takes the averaged weights as the target of the next step."""
        del step
        self._target[0].load_state_dict(averaged.state_dict())

    def forward(self, batch: dict[str, Tensor], *, step: int, rng: torch.Generator) -> Losses:
        """Losses of one batch; the two noise levels approach each other with `step`."""
        features, latents_BTD = unpack(batch)
        out = consistency_loss(
            self.generator,
            self._target[0].to(latents_BTD.device),
            features,
            latents_BTD,
            rng=rng,
            fraction=step / self.section.steps,
            config=self.section.objective,
            is_timed_B=batch.get("is_timed_B"),
        )
        return {"loss": out["loss"], **out["parts"]}


def warm_start(generator: Generator, weights: dict[str, Tensor], *, option: str = "--init") -> None:
    """Takes over trained weights; inputs of a box that they do not know begin without effect.

    Raises:
        UserError: the weights are of another size.
    """
    own = generator.state_dict()
    grown = dict(weights)
    for name in BOX_INPUT_WEIGHTS:
        num_new = own[name].shape[1] - weights[name].shape[1]
        # From no waves to all of them: other changes would give old columns another meaning.
        if num_new == generator.config.conditioner.num_waves:
            grown[name] = functional.pad(weights[name], (0, num_new))
    classes, own_classes = weights[CLASS_WEIGHTS], own[CLASS_WEIGHTS]
    if (len(classes), len(own_classes)) == (len(CLASS_NAMES), len(CONCEPTS)):
        # From the Stage's classes to the bank's concepts: each begins as the sound it had.
        grown[CLASS_WEIGHTS] = own_classes.clone()
        for row, concept in enumerate(CONCEPTS):
            if (before := sound_index(concept)) is not None:
                grown[CLASS_WEIGHTS][row] = classes[before]
    odd = [k for k in own.keys() | grown.keys() if k not in own or k not in grown]
    odd += [k for k in own.keys() & grown.keys() if own[k].shape != grown[k].shape]
    if odd:
        remedy = ", or set training.diffusion.warm_start=false" if option == "--init" else ""
        raise UserError(
            f"{option} holds a generator of another size: {len(odd)} of its tensors do not fit, "
            f"such as {min(odd)}; use a checkpoint made with this config{remedy}"
        )
    generator.load_state_dict(grown)


def read_teacher(folder: Path, model: SpatialV2A) -> Generator:
    """The generator of a checkpoint, of the same size and latents as `model`; it does not learn.

    Raises:
        UserError: it is of another size, or of another autoencoder's latents.
    """
    source = SpatialV2A.from_pretrained(folder)
    if autoencoder_digest(source) != autoencoder_digest(model):
        raise UserError(
            f"--teacher {folder} speaks of the latents of another autoencoder than --init; choose "
            "one that was trained with the same"
        )
    teacher = copy.deepcopy(model.generator)
    warm_start(teacher, source.generator.state_dict(), option="--teacher")
    return teacher.requires_grad_(False)


def train_generator(
    config: Config,
    stage: str,
    data: list[Path],
    val: list[Path],
    run_dir: Path,
    *,
    init: Path,
    store_dir: Path | None,
    latents: Path | None = None,
    teacher: Path | None = None,
    bank: Bank | None = None,
) -> dict[str, float]:
    """Runs one stage and leaves `run_dir/checkpoint`.

    Args:
        config: the model; `training.diffusion` or `training.consistency` is used.
        stage: 'diffusion' or 'consistency'.
        data, val: folders of shards; without data all clips are simulated.
        run_dir: states, logs and the checkpoint.
        init: checkpoint with a trained autoencoder (and generator, for a warm start).
        store_dir: feature store with detected features; None trains on given geometry.
        latents: file that keeps the latents of the clips; below `run_dir` if absent.
        teacher: checkpoint that says what the clips sound like whose picture does not tell when
            they do ('diffusion' only); None takes all from their recordings.

    Raises:
        UserError: a checkpoint that does not fit.
    """
    section = getattr(config.training, stage)
    set_seed(section.seed)
    source = SpatialV2A.from_pretrained(init)
    model = SpatialV2A(config)
    model.autoencoder.load_state_dict(source.autoencoder.state_dict())
    model.set_latent_statistics(source.latent_mean_D, source.latent_std_D)
    if section.warm_start:
        warm_start(model.generator, source.generator.state_dict())
    model.folder = source.folder
    store = FeatureStore(store_dir) if store_dir else None
    simulated = None
    if section.tracks_share:
        tracks = SimulatedTracks(bank or ProceduralBank(), config.perception, seed=section.seed)
        simulated = TrackClips(
            tracks, model, num_clips=section.num_tracks, fresh=section.fresh_tracks
        ).draw
    dataset = GeneratorData(
        ShardIndex(data) if data else None,
        model,
        cache=latents or run_dir / "latents.npz",
        store=store,
        detected_share=section.detected_share,
        num_given_views=section.num_given_views,
        clip_start_share=section.clip_start_share,
        scene_cut_share=section.scene_cut_share,
        late_box_share=section.late_box_share,
        lost_box_share=section.lost_box_share,
        simulated=simulated,
        simulated_share=section.tracks_share,
    )

    def make_batch(step: int, process_index: int) -> dict[str, Tensor]:
        rng = step_rng(section.seed, step, process_index)
        return dataset.batch(rng, section.batch_size, section.crop_ticks, step=step)

    def export(averaged: nn.Module) -> None:
        model.generator.load_state_dict(averaged.state_dict())
        model.save_pretrained(run_dir / "checkpoint", overwrite=True)

    generator = copy.deepcopy(model.generator).train()
    if stage == "diffusion":
        said_before = read_teacher(teacher, model) if teacher else None
        objective, on_step = DiffusionObjective(generator, section, teacher=said_before), None
    else:
        objective = ConsistencyObjective(generator, section)
        on_step = objective.set_target
    recipe = stage_recipe(
        stage,
        objective,
        section,
        make_batch,
        averaged=lambda module: module.generator,
        export=export,
        on_step=on_step,
    )
    losses = train(recipe, run_dir)
    if val:
        held_out = GeneratorData(
            ShardIndex(val),
            model,
            cache=run_dir / "latents-val.npz",
            store=None,
            detected_share=0.0,
            num_given_views=1,
        )
        losses |= validation_metrics(model, held_out)
    return losses


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


def _levels(model: SpatialV2A, latents_BTD: Tensor) -> Tensor:
    """Natural log of the power per channel and tick, [B, 2, T]."""
    audio_BCL = model.autoencoder.decode(model.denormalize(latents_BTD))
    power = audio_BCL.unflatten(-1, (-1, model.timing.samples_per_tick)).square().mean(-1)
    return (power + 1e-10).log()
