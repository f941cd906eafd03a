"""Class names of the detector vocabularies; the position is the class index."""

from typing import Literal

from spatial_v2a.class_names import CLASS_NAMES

# Names that `--detector` takes besides those of detectors: which fits the video, and the
# checkpoint's own.
AUTO, STAGE = "auto", "stage"
# The 80 classes of COCO 2017, in the order published YOLO11 weights use.
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,"
    "bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)


def vocabulary_names(vocabulary: Literal["stage", "coco"]) -> tuple[str, ...]:
    """Names of a vocabulary in index order."""
    return CLASS_NAMES if vocabulary == "stage" else tuple(_COCO_NAMES.split(","))
