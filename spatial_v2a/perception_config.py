"""Settings of the frozen perception: which encoder, at which size, and how its output is shaped."""

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from spatial_v2a.concepts import CLASS_NAMES, CONCEPTS, find_concept, sound_index, vocabulary_names
from spatial_v2a.models.conditioner import PerceptionShapes
from spatial_v2a.strict import Count, Pixels, Share, StrictConfig, Width, check_heads

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
