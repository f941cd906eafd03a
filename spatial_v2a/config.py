"""One strict configuration for the whole model: every section, its presets, YAML in and out.

The parts of the model keep their sizes with them (`spatial_v2a/models`).
"""

import difflib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from spatial_v2a.bounded import MAX_YAML_BYTES, parse_yaml, read_text
from spatial_v2a.concepts import CLASS_NAMES, CONCEPTS, find_concept, sound_index, vocabulary_names
from spatial_v2a.errors import UserError, as_tuple
from spatial_v2a.models.autoencoder import AutoencoderConfig
from spatial_v2a.models.conditioner import CueDropout, PerceptionShapes
from spatial_v2a.models.generator import GeneratorConfig
from spatial_v2a.strict import Count, Long, Pixels, Share, StrictConfig, Width, check_heads
from spatial_v2a.timing import TIMING, Timing

FORMAT_VERSION = 1
# What keys of older checkpoints and commands are called today, by their old path.
RENAMED = {
    "perception.hold_s": "persistence_s",
    "perception.detector.closer_look_weight": "zoom_weight",
    "perception.rtdetr.closer_look_weight": "zoom_weight",
    "sampler.pan_bend": "pan_curve",
}
# Keys of earlier releases that brought nothing (docs/notes), and their values when off; None where
# a key counted only together with another.
RETIRED = {
    "generator.positions": "interleaved",
    "training.vae.latent_noise": 0,
    "training.vae.adversarial_weight": 0,
    "training.vae.feature_matching_weight": None,
    "training.vae.adversarial_after": None,
    "training.diffusion.objective.odd_weight": 1,
    "training.consistency.objective.odd_weight": 1,
}
# Owner and name of a hub repository: never a path, and never fetched (conditioning/weights.py).
HubId = Annotated[
    str, Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")
]
# Encoders compare every patch with every other.
MAX_PATCHES = 4096
GridSide = Annotated[int, Field(ge=1, le=64)]
EveryTicks = Annotated[int, Field(ge=1, le=300)]

DetectorName = Literal["yolo", "rtdetr"]
# How much larger the detector sees a part of the picture in zoomed detection.
ZOOM_MAGNIFICATION = 2
VOCABULARY_SIZES = {"stage": len(CLASS_NAMES), "coco": 80}
BatchSize = Annotated[int, Field(ge=1, le=65_536)]
CropTicks = Annotated[int, Field(ge=1, le=108_000)]
Rate = Annotated[float, Field(gt=0, le=10)]


def _check_patches(settings: "DinoSettings | DepthSettings") -> None:
    """Refuses pictures that are not a grid of whole patches, or of too many."""
    height, width, patch = settings.image_height, settings.image_width, settings.patch_size
    if height % patch or width % patch:
        raise ValueError(f"a picture of {width} x {height} is not made of whole patches of {patch}")
    if height * width // patch**2 > MAX_PATCHES:
        raise ValueError(
            f"a picture of {width} x {height} has more than {MAX_PATCHES} patches of {patch}; take"
            " a smaller one"
        )
    check_heads(settings.hidden_size, settings.num_heads)


class DinoSettings(StrictConfig):
    """DINOv2 with registers, or another ViT; `source` None means the compact weights of the
    checkpoint folder.

    Attributes:
        source: hub id of published safetensors, or None. A DINOv2 with registers by transformers,
            or any vision transformer by timm, as timm/vit_small_patch14_reg4_dinov2.lvd142m.
        image_height, image_width: input in pixels, multiples of `patch_size`.
        hidden_size: feature width (384 for ViT-S); must agree with `source` when that is set.
        num_layers, num_heads, num_registers: shape of the compact encoder, unused with `source`.
    """

    source: HubId | None = None
    image_height: Pixels = 84
    image_width: Pixels = 112
    patch_size: Pixels = 14
    hidden_size: Width = 96
    num_layers: Count = 4
    num_heads: Count = 3
    num_registers: int = Field(default=4, ge=0, le=64)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _check_patches(self)
        return self

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_height // self.patch_size, self.image_width // self.patch_size


class DepthSettings(StrictConfig):
    """Depth-Anything; `source` None means the compact weights of the checkpoint folder.

    Attributes:
        source: hub id of published safetensors, or None.
        grid: rows and columns of the nearness grid handed to the model.
        neck_sizes, fusion_size, head_size: widths of the compact network's neck and head.
        max_depth_m: range of the compact (metric) network.
        every_ticks: it looks at the first picture and then at every so-many-th; between, the last
            grid is held.
    """

    source: HubId | None = None
    image_height: Pixels = 84
    image_width: Pixels = 112
    patch_size: Pixels = 14
    grid: tuple[GridSide, GridSide] = (12, 16)
    hidden_size: Width = 96
    # The neck reads four of them.
    num_layers: int = Field(default=4, ge=4, le=512)
    num_heads: Count = 3
    neck_sizes: tuple[Width, Width, Width, Width] = (16, 24, 32, 48)
    fusion_size: Width = 16
    head_size: int = Field(default=8, ge=2, le=16_384, multiple_of=2)
    max_depth_m: int = Field(default=64, ge=1, le=100_000)
    every_ticks: EveryTicks = 1

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        _check_patches(self)
        return self


class BoxSettings(StrictConfig):
    """What the settings of every detector have in common.

    An alias is the name in fingerprints, which must not change: feature stores are known by them.

    Attributes:
        vocabulary: whose class names the detector and the given boxes use.
        image_height, image_width: letterboxed input in pixels, multiples of 32.
        score_threshold: boxes below it are never reported.
        new_track_score: a box needs it to begin a track; weaker boxes only extend tracks.
        nms_iou: overlap above which the weaker of two boxes is dropped, whatever its class.
        every_ticks: it looks at the first picture and then at every so-many-th; between, tracks
            move on by themselves.
        zoom_weight: what the scores of a second look count that sees a part of the picture
            at twice the size, another part every time (`conditioning/detections.py`); 0 looks
            once.
    """

    vocabulary: Literal["stage", "coco"] = "stage"
    image_height: int = Field(default=192, ge=32, le=2048, multiple_of=32)
    image_width: int = Field(default=256, ge=32, le=2048, multiple_of=32)
    score_threshold: Share = 0.1
    new_track_score: Share = 0.3
    nms_iou: Share = 0.5
    every_ticks: EveryTicks = 1
    zoom_weight: Share = Field(default=0.0, serialization_alias="closer_look_weight")


class DetectorSettings(BoxSettings):
    """YOLO11, with the weights of the checkpoint folder or a file that the user names.

    Attributes:
        source: always None: published YOLO11 weights are pickles, which a configuration cannot
            name (`--detector-weights` does).
        depth_multiple, width_multiple: YOLO11's compound scaling of the compact network.
        num_distance_bins: bins of its box distances (YOLO11 has 16); times the stride they must
            span half the picture.
    """

    source: None = None
    depth_multiple: float = Field(default=0.5, gt=0, le=1)
    width_multiple: float = Field(default=0.125, gt=0, le=1.5)
    num_distance_bins: int = Field(default=8, ge=1, le=64)

    @field_validator("source", mode="before")
    @classmethod
    def _names_no_file(cls, value: object) -> object:
        if value is not None:
            raise ValueError(
                "a YOLO11 file is a pickle, which can run code; remove the line and name your own"
                " file with --detector-weights"
            )
        return value


class RtDetrSettings(BoxSettings):
    """RT-DETR; `source` None means the compact weights of the checkpoint folder.

    Attributes:
        source: hub id of published safetensors of an RT-DETR, RT-DETRv2 or D-FINE, or None.
        backbone_widths, backbone_depths: channels and blocks of the four stages of its ResNet.
        hidden_size, num_heads, num_decoder_layers, num_queries: shape of its transformer.
    """

    source: HubId | None = None
    backbone_widths: tuple[Width, Width, Width, Width] = (24, 40, 64, 96)
    backbone_depths: tuple[Count, Count, Count, Count] = (2, 2, 2, 2)
    hidden_size: Width = 64
    num_heads: Count = 4
    num_decoder_layers: Count = 3
    num_queries: Count = 30

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        check_heads(self.hidden_size, self.num_heads)
        cells = self.image_height * self.image_width // 32**2 * (16 + 4 + 1)
        if self.num_queries > cells:
            raise ValueError(
                f"num_queries {self.num_queries} is over the {cells} places of the picture; take"
                " fewer"
            )
        return self


class PerceptionConfig(StrictConfig):
    """Everything `Perception` needs besides its weights.

    Attributes:
        dino, depth: encoders of patches and depth.
        detector, rtdetr: the two detectors, YOLO11 and RT-DETR.
        boxes_from: which of them finds the boxes.
        sounds: what the generator's classes are: those of the Stage, or the concepts of the bank.
        max_boxes: box slots of the features.
        default_fov_deg: horizontal field of view where none is told, degrees.
        persistence_s: how long at most an object is still shown to the model after its box
            vanished, seconds; 0 switches that off.
        scene_cut_threshold: how sudden and complete a change of the picture is a cut to another
            scene, at which what was seen and heard before is forgotten
            (`conditioning/scene.py`); 0 sees no cuts.
    """

    dino: DinoSettings = DinoSettings()
    depth: DepthSettings = DepthSettings()
    detector: DetectorSettings = DetectorSettings()
    rtdetr: RtDetrSettings = RtDetrSettings()
    boxes_from: DetectorName = "yolo"
    sounds: Literal["stage", "concepts"] = "stage"
    max_boxes: int = Field(default=8, ge=1, le=64)
    default_fov_deg: float = Field(default=90.0, ge=1, le=175)
    persistence_s: float = Field(default=1.0, ge=0, le=10, serialization_alias="hold_s")
    scene_cut_threshold: float = Field(default=2.0, ge=0, le=1e6)

    @property
    def boxes(self) -> BoxSettings:
        """Settings of the detector that finds the boxes."""
        return self.detector if self.boxes_from == "yolo" else self.rtdetr

    @property
    def num_classes(self) -> int:
        """Size of the class vocabulary."""
        return VOCABULARY_SIZES[self.boxes.vocabulary]

    @property
    def concept_classes(self) -> np.ndarray:
        """The generator's class of every concept, int64; -1 where it knows no sound for it."""
        if self.sounds == "concepts":
            return np.arange(len(CONCEPTS))
        indices = [sound_index(concept) for concept in CONCEPTS]
        return np.array([-1 if index is None else index for index in indices])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the generator's classes; the position is the class index."""
        if self.sounds == "concepts":
            return tuple(concept.name for concept in CONCEPTS)
        return vocabulary_names(self.boxes.vocabulary)

    @property
    def class_indices(self) -> dict[str, int]:
        """The generator's class of every name that may be given, those of the Stage among them."""
        indices = {name: index for index, name in enumerate(self.class_names)}
        if self.sounds == "concepts":
            indices |= dict(zip(CLASS_NAMES, self.stage_classes.tolist(), strict=True))
        return indices

    @property
    def stage_classes(self) -> np.ndarray:
        """The generator's class of every class of the Stage, int64."""
        if self.sounds == "stage":
            return np.arange(self.num_classes)
        return np.array([CONCEPTS.index(find_concept(name)) for name in CLASS_NAMES])

    @property
    def max_image_width(self) -> int:
        """Widest picture an encoder takes; wider ones are scaled down to it where they are read."""
        times = ZOOM_MAGNIFICATION if self.boxes.zoom_weight else 1
        return max(self.dino.image_width, self.depth.image_width, times * self.boxes.image_width)

    @property
    def shapes(self) -> PerceptionShapes:
        """Shapes of the features the generator sees."""
        rows, columns = self.dino.grid
        return PerceptionShapes(
            num_patches=rows * columns,
            grid_width=columns,
            dino_dim=self.dino.hidden_size,
            depth_grid=self.depth.grid,
            max_boxes=self.max_boxes,
            num_classes=len(CONCEPTS) if self.sounds == "concepts" else self.num_classes,
        )


class SamplerConfig(StrictConfig):
    """How one latent is drawn from the head.

    Attributes:
        kind: `diffusion` (a deterministic ODE solver) or `consistency` (few-step, after tuning).
        solver: of the diffusion kind. `heun` is more accurate in many evaluations, `euler` in few
            (below about ten; docs/notes/decisions.md has the measurement).
        nfe: evaluations of the head per latent when the caller names no other number.
        guidance: weight of everything seen when the caller names no other; 1 is plain sampling.
        guides_pan: whether `guidance` also moves the odd dimensions (the pan). A condition that
            is pushed beyond what was trained names the sound more surely and places it worse, so
            the odd dimensions may be taken from the plain condition instead.
        sigma_min, sigma_max: noise range in units of the normalised latent.
        odd_noise: scale of the noise that the odd dimensions (the pan) start from. Below 1 the side
            follows the picture rather than the dice; 1 samples the trained distribution.
        max_radius: longest vector of even noise, in units of its expected length; longer draws are
            shortened to it, None leaves them. Rare long draws start a sound where nothing is.
        is_symmetric: the picture is also seen mirrored, and both answers are averaged after turning
            the second one back (frame averaging, 2110.03336): with odd_noise 0 the mirrored
            picture then gives exactly the swapped channels. Twice the rows, no second pass.
        pan_gain: widens the odd dimensions of what is drawn. An answer that averages over what may
            be lies nearer the middle than what is; chosen by the azimuth error on validation clips.
        pan_curve: how much more that widens what lies far to a side: odd dimensions of root mean
            square r (normalised) are widened by pan_gain + pan_curve r^2 (`audio/panning.py`).
        rho: curvature of the noise schedule (Karras et al. 2022, equation 5).
    """

    kind: Literal["diffusion", "consistency"] = "diffusion"
    solver: Literal["heun", "euler"] = "heun"
    nfe: int = Field(default=15, ge=1, le=256)
    guidance: float = Field(default=1.0, ge=0, le=20)
    guides_pan: bool = True
    sigma_min: float = Field(default=0.002, ge=1e-6, le=1000)
    sigma_max: float = Field(default=80.0, ge=1e-6, le=1000)
    odd_noise: float = Field(default=1.0, ge=0, le=10)
    max_radius: float | None = Field(default=None, ge=1e-3, le=1000)
    is_symmetric: bool = False
    pan_gain: float = Field(default=1.0, ge=0, le=4)
    pan_curve: float = Field(default=0.0, ge=0, le=1)
    rho: float = Field(default=7.0, ge=0.1, le=100)

    @model_validator(mode="after")
    def _levels_descend(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min {self.sigma_min:g} is not below sigma_max {self.sigma_max:g}; lower it"
            )
        return self


class DiffusionObjectiveConfig(StrictConfig):
    """Denoising loss with a spoilt history.

    Attributes:
        p_mean, p_std: ln sigma ~ N(p_mean, p_std^2), for latents of unit variance (EDM's -1.2
            for sigma_data 0.5 is -0.5 here).
        num_draws: noise levels per item; the condition is shared between them.
        max_history_noise: a sequence's history gets noise of a level uniform in [0, this].
        drop_latent: chance that a single past latent is replaced by the null embedding.
        drop_history: chance that all past latents of a sequence are.
        shift_history: chance that the past latents of a sequence whose picture tells when it sounds
            (a walker's stride) are out of step with that: rotated by a random number of ticks.
            They still say what it sounds like, but no longer when.
        streams: chances of losing perception streams.
    """

    p_mean: float = -0.5
    p_std: float = Field(default=1.2, gt=0)
    num_draws: Count = 4
    max_history_noise: float = Field(default=0.5, ge=0)
    drop_latent: Share = 0.15
    drop_history: Share = 0.1
    shift_history: Share = 0.0
    streams: CueDropout = CueDropout()


class ConsistencyObjectiveConfig(DiffusionObjectiveConfig):
    """Consistency tuning on top of the same spoilt history.

    Attributes:
        num_stages: steps in which the two noise levels approach each other.
        q: base of the approach; the distance shrinks by q per stage.
        huber: c of the pseudo-Huber distance, times the square root of the latent width.
    """

    # ECT's -1.1 and 2.0 for sigma_data 0.5, moved to unit variance.
    p_mean: float = -0.4
    p_std: float = Field(default=2.0, gt=0)
    num_draws: Count = 2
    num_stages: Count = 6
    q: float = Field(default=4.0, gt=1)
    huber: float = Field(default=0.03, gt=0)


class LoopTraining(StrictConfig):
    """What the training loop needs.

    Attributes:
        batch_size: items per step and process.
        learning_rate: the highest.
        ema_decay: decay of the averaged weights per step.
        grad_clip: largest gradient norm.
        weight_decay: of AdamW.
        save_every, log_every: steps between checkpoints and between log lines.
        precision: arithmetic of the forward pass, as Accelerate names it.
    """

    batch_size: BatchSize
    learning_rate: Rate
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    grad_clip: float = Field(default=1.0, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**62)
    save_every: Long = 500
    log_every: Long = 20
    precision: Literal["no", "bf16", "fp16"] = "no"


class StageTraining(LoopTraining):
    """What every stage of the model's own training needs.

    Attributes:
        steps: optimiser steps of the whole run.
        crop_ticks: length of a crop in ticks.
        warmup_steps: the highest rate is reached after these.
        decay_share: share of the run, at its end, over which the rate falls to zero (cosine).
        num_workers: loader processes; 0 reads in the training process.
    """

    steps: Long
    crop_ticks: CropTicks
    warmup_steps: int = Field(default=200, ge=0, le=10**9)
    decay_share: Share = 0.3
    num_workers: int = Field(default=0, ge=0, le=1024)


class VaeTraining(StageTraining):
    """Training of the audio autoencoder.

    Attributes:
        kl_weight: weight of the Kullback-Leibler divergence per tick (sum over dimensions).
        level_difference_weight: weight of the level-difference error, per dB.
        band_level_weight: weight of the level error per channel and band, per dB.
        freeze_encoder: train the decoder only; a generator trained on the latents stays valid.
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


class Config(StrictConfig):
    """Everything that rebuilds a model and its training, and nothing else.

    Attributes:
        format_version: layout of checkpoint folders; raised when an old folder no longer loads.
        name: short name of the model, used for run folders and cards.
    """

    format_version: int = FORMAT_VERSION
    # It stands in statements of origin and on terminals.
    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")
    timing: Timing = Timing()
    autoencoder: AutoencoderConfig
    perception: PerceptionConfig
    generator: GeneratorConfig
    sampler: SamplerConfig = SamplerConfig()
    training: TrainingConfig = TrainingConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        if self.timing != TIMING:
            raise ValueError(
                f"timing is {self.timing}, this release runs at {TIMING}; leave the section out"
            )
        if self.generator.latent_dim != self.autoencoder.latent_dim:
            raise ValueError(
                f"generator.latent_dim is {self.generator.latent_dim} but autoencoder.latent_dim "
                f"is {self.autoencoder.latent_dim}; make them equal"
            )
        if self.generator.forgotten_dims >= self.generator.latent_dim:
            raise ValueError(
                f"generator.forgotten_dims is {self.generator.forgotten_dims} of a latent's "
                f"{self.generator.latent_dim} dimensions, which leaves no history; take "
                f"autoencoder.num_odd_latents, {self.autoencoder.num_odd_latents}, or fewer"
            )
        return self

    def with_detector(self, name: str) -> Self:
        """The same, with boxes found by `yolo` or by `rtdetr`.

        Raises:
            UserError: another name.
        """
        if name not in get_args(DetectorName):
            known = " or ".join(get_args(DetectorName))
            raise UserError(f"detector {name!r} is unknown; choose {known}")
        perception = self.perception.model_copy(update={"boxes_from": name})
        return self.model_copy(update={"perception": perception})


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    folder = resources.files("spatial_v2a.configs")
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def packaged_yaml(name: str) -> str:
    """Text of a YAML file below configs/, by its path there without the suffix."""
    return resources.files("spatial_v2a.configs").joinpath(f"{name}.yaml").read_text("utf-8")


def load_config(preset_or_path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads a preset by name, or a YAML file by path, and applies overrides.

    Args:
        preset_or_path: a name of `preset_names()`, a YAML file, or a checkpoint folder.
        overrides: `section.key=value` strings; the value is read as YAML.

    Raises:
        UserError: missing file, bad YAML, unknown key (with its path), wrong type or value.
    """
    text, where = _read(preset_or_path)
    return parse_config(text, where=where, overrides=overrides)


def parse_config(text: str, *, where: str, overrides: list[str] | None = None) -> Config:
    """Parses YAML text; `where` names its origin in error messages."""
    data = parse_yaml(text, where=where)
    if not isinstance(data, dict):
        raise UserError(f"{where} holds {type(data).__name__}, not a mapping of sections")
    _rename(data)
    for override in as_tuple(overrides or (), name="overrides"):
        _apply(data, override)
    version = data.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise UserError(
            f"{where} has format_version {_short(version)}, this release reads {FORMAT_VERSION}; "
            "install the release that wrote it, or save the checkpoint again"
        )
    _drop_retired(data, where=where)
    try:
        # JSON mode is strict about types, yet takes lists for tuples, as YAML has no tuples.
        return Config.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, Config)}") from None


def _drop_retired(data: dict[str, Any], *, where: str) -> None:
    """Removes in place the keys of `RETIRED` that are off, and refuses those that are on."""
    for path, off in RETIRED.items():
        section, key = _parent(data, path)
        value = section.pop(key, off)
        if off is not None and value != off:
            raise UserError(
                f"{where}: '{path}' is {_short(value)}, which this release no longer has; leave the"
                f" key out and train without it, or install the release that wrote it"
            )


def config_to_yaml(config: Config) -> str:
    """Writes every resolved value; `parse_config` gives back an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def _read(preset_or_path: str | Path) -> tuple[str, str]:
    name = str(preset_or_path)
    if name in preset_names():
        return packaged_yaml(name), f"preset '{name}'"
    path = Path(preset_or_path)
    if path.is_dir():
        path = path / "config.yaml"
    if not path.exists():
        presets = ", ".join(preset_names())
        raise UserError(f"no config file {path}; give a YAML file or a preset: {presets}")
    return read_text(path, max_bytes=MAX_YAML_BYTES), str(path)


def _rename(data: dict[str, Any]) -> None:
    """Gives keys of older files the names of today, in place."""
    for path, new in RENAMED.items():
        section, old = _parent(data, path)
        if old in section:
            section[new] = section.pop(old)


def _parent(data: dict[str, Any], path: str) -> tuple[dict[str, Any], str]:
    """The section that holds a key (empty when there is none), and the key's own name."""
    *sections, key = path.split(".")
    section: Any = data
    for name in sections:
        section = section.get(name) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else {}), key


def _apply(data: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in place, making the sections on its way."""
    path, equals, value = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise UserError(f"override {override!r} is not of the form section.key=value")
    for key in keys[:-1]:
        if not isinstance(data.setdefault(key, {}), dict):
            raise UserError(f"override {override!r}: '{key}' is a value, not a section")
        data = data[key]
    data[RENAMED.get(path.strip(), keys[-1])] = parse_yaml(value, where=f"override {override!r}")


def explain(error: ValidationError, kind: type[StrictConfig]) -> str:
    """The first finding of pydantic about a `kind` in one line, with the full key path."""
    first = error.errors(include_url=False)[0]
    location = [str(part) for part in first["loc"]]
    path = ".".join(location)
    if first["type"] == "extra_forbidden":
        return f"unknown key {_short(path)}; {_suggest(location, kind)}"
    if first["type"] == "missing":
        return f"key '{path}' is missing; add it"
    message = first["msg"].removeprefix("Value error, ")
    if not path:
        return message
    return f"'{path}' is {_short(first['input'])}: {message[0].lower()}{message[1:]}"


def _short(value: object) -> str:
    """A value for a message, at most 100 characters of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _suggest(location: list[str], kind: type[StrictConfig]) -> str:
    """Names the valid key nearest to the last part of `location`."""
    section = kind
    for part in location[:-1]:
        section = _section_of(section, part)
    valid = list(section.model_fields)
    near = difflib.get_close_matches(location[-1][:100], valid, n=1, cutoff=0.0)
    return f"did you mean '{'.'.join([*location[:-1], *near])}'?"


def _section_of(section: type[StrictConfig], key: str) -> type[StrictConfig]:
    """The class of a nested section, also when its annotation is `Section | None`."""
    field = section.model_fields.get(key)
    annotation = field.annotation if field else None  # an index into a list names no section
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, StrictConfig):
            return candidate
    return section
