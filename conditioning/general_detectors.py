"""Detectors of everyday objects, chosen by name: NanoDet, and those of the hub and of ultralytics.

    detector = load_detector("nanodet")
    detector.names            # its own vocabulary
    detector.settings         # its own thresholds

Nothing is downloaded here: what is not on this machine is a UserError that says how to get it.
"""

from spatial_v2a.conditioning.detections import BoxDetector
from spatial_v2a.conditioning.nanodet import NanoDet, NanoDetDetector
from spatial_v2a.conditioning.published_weights import NANODET, load
from spatial_v2a.errors import UserError
from spatial_v2a.perception_config import BoxSettings

# The longer side of NanoDet's input, pixels: what it was trained with, and what `live` can afford.
NANODET_SIDE = 416
NANODET_LIVE_SIDE = 320


def load_detector(name: str, *, is_live: bool = False) -> BoxDetector:
    """A detector with its vocabulary, settings and weights, not yet compiled.

    Args:
        name: nanodet.
        is_live: takes a smaller picture where the detector allows one, to keep up with a camera.

    Raises:
        UserError: an unknown name, or weights that are not on this machine.
    """
    if name != NANODET.name:
        raise UserError(f"detector {name!r} is unknown; choose {NANODET.name}")
    side = NANODET_LIVE_SIDE if is_live else NANODET_SIDE
    model = NanoDet()
    load(NANODET, model)
    return NanoDetDetector(_settings(side), model)


def _settings(side: int) -> BoxSettings:
    return BoxSettings(
        vocabulary="coco",
        image_height=side,
        image_width=side,
        score_threshold=0.2,
        new_track_score=0.4,
        nms_iou=0.5,
    )
