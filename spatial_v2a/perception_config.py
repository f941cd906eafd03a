"""Settings of the frozen perception: which encoder, at which size, and how its output is shaped."""

from typing import Literal

from pydantic import Field, PositiveInt

from spatial_v2a.class_names import CLASS_NAMES
from spatial_v2a.conditioner import PerceptionShapes
from spatial_v2a.strict import StrictConfig

DetectorName = Literal["yolo", "rtdetr"]
# How much larger the detector sees a part of the picture in its closer look.
CLOSER_LOOK_MAGNIFICATION = 2
VOCABULARY_SIZES = {"stage": len(CLASS_NAMES), "coco": 80}


class DinoSettings(StrictConfig):
    """DINOv2 with registers; `source` None means the compact weights of the checkpoint folder.

    Attributes:
        source: hub name or folder for transformers' `from_pretrained`, or None.
        image_height, image_width: input in pixels, multiples of `patch_size`.
        hidden_size: feature width (384 for ViT-S); must agree with `source` when that is set.
        num_layers, num_heads, num_registers: shape of the compact encoder, unused with `source`.
    """

    source: str | None = None
    image_height: int = 84
    image_width: int = 112
    patch_size: int = 14
    hidden_size: int = 96
    num_layers: int = 4
    num_heads: int = 3
    num_registers: int = 4

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_height // self.patch_size, self.image_width // self.patch_size


class DepthSettings(StrictConfig):
    """Depth-Anything; `source` None means the compact weights of the checkpoint folder.

    Attributes:
        grid: rows and columns of the nearness grid handed to the model.
        neck_sizes, fusion_size, head_size: widths of the compact network's neck and head.
        max_depth_m: range of the compact (metric) network.
        every_ticks: it looks at the first picture and then at every so-many-th; between, the last
            grid is held.
    """

    source: str | None = None
    image_height: int = 84
    image_width: int = 112
    patch_size: int = 14
    grid: tuple[int, int] = (12, 16)
    hidden_size: int = 96
    num_layers: int = 4
    num_heads: int = 3
    neck_sizes: tuple[int, int, int, int] = (16, 24, 32, 48)
    fusion_size: int = 16
    head_size: int = 8
    max_depth_m: int = 64
    every_ticks: PositiveInt = 1


class BoxSettings(StrictConfig):
    """What the settings of every detector have in common.

    Attributes:
        vocabulary: whose class names the detector and the given boxes use.
        image_height, image_width: letterboxed input in pixels, multiples of 32.
        score_threshold: boxes below it are never reported.
        new_track_score: a box needs it to begin a track; weaker boxes only extend tracks.
        nms_iou: overlap above which the weaker of two boxes is dropped, whatever its class.
        every_ticks: it looks at the first picture and then at every so-many-th; between, tracks
            move on by themselves.
        closer_look_weight: what the scores of a second look count that sees a part of the picture
            at twice the size, another part every time (`conditioning/closer_look.py`); 0 looks
            once.
    """

    vocabulary: Literal["stage", "coco"] = "stage"
    image_height: int = 192
    image_width: int = 256
    score_threshold: float = 0.1
    new_track_score: float = 0.3
    nms_iou: float = 0.5
    every_ticks: PositiveInt = 1
    closer_look_weight: float = Field(default=0.0, ge=0, le=1)


class DetectorSettings(BoxSettings):
    """YOLO11; `source` None means the compact weights of the checkpoint folder.

    Attributes:
        source: a YOLO11 .pt file or published name (yolo11n.pt), or None.
        depth_multiple, width_multiple: YOLO11's compound scaling of the compact network.
        num_distance_bins: bins of its box distances (YOLO11 has 16); times the stride they must
            span half the picture.
    """

    source: str | None = None
    depth_multiple: float = 0.5
    width_multiple: float = 0.125
    num_distance_bins: int = 8


class RtDetrSettings(BoxSettings):
    """RT-DETR; `source` None means the compact weights of the checkpoint folder.

    Attributes:
        source: hub name or folder of an RT-DETR, RT-DETRv2 or D-FINE for transformers'
            `from_pretrained`, or None.
        backbone_widths, backbone_depths: channels and blocks of the four stages of its ResNet.
        hidden_size, num_heads, num_decoder_layers, num_queries: shape of its transformer.
    """

    source: str | None = None
    backbone_widths: tuple[int, int, int, int] = (24, 40, 64, 96)
    backbone_depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    hidden_size: int = 64
    num_heads: int = 4
    num_decoder_layers: int = 3
    num_queries: int = 30


class PerceptionConfig(StrictConfig):
    """Everything `Perception` needs besides its weights.

    Attributes:
        dino, depth: encoders of patches and depth.
        detector, rtdetr: the two detectors, YOLO11 and RT-DETR.
        boxes_from: which of them finds the boxes.
        max_boxes: box slots of the features.
        default_fov_deg: horizontal field of view where none is told, degrees.
        hold_s: how long at most an object is still shown to the model after its box vanished,
            seconds; 0 switches that off.
        scene_cut_threshold: how sudden and complete a change of the picture is a cut to another
            scene, at which what was seen and heard before is forgotten
            (`conditioning/scene_cuts.py`); 0 sees no cuts.
    """

    dino: DinoSettings = DinoSettings()
    depth: DepthSettings = DepthSettings()
    detector: DetectorSettings = DetectorSettings()
    rtdetr: RtDetrSettings = RtDetrSettings()
    boxes_from: DetectorName = "yolo"
    max_boxes: int = 8
    default_fov_deg: float = 90.0
    hold_s: float = Field(default=1.0, ge=0, le=10)
    scene_cut_threshold: float = Field(default=2.0, ge=0)

    @property
    def boxes(self) -> BoxSettings:
        """Settings of the detector that finds the boxes."""
        return self.detector if self.boxes_from == "yolo" else self.rtdetr

    @property
    def num_classes(self) -> int:
        """Size of the class vocabulary."""
        return VOCABULARY_SIZES[self.boxes.vocabulary]

    @property
    def max_image_width(self) -> int:
        """Widest picture an encoder takes; wider ones are scaled down to it where they are read."""
        times = CLOSER_LOOK_MAGNIFICATION if self.boxes.closer_look_weight else 1
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
            num_classes=self.num_classes,
        )
