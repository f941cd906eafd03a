"""Lines of a tracks file: read, written and made up."""

import json
from pathlib import Path

from spatial_v2a.features import BOX_FIELDS

FIELD = {name: i for i, name in enumerate(BOX_FIELDS)}


def read(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def write_lines(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def box(track_id: int, x: float = 0.4, **more) -> dict:
    place = {"x": x, "y": 0.4, "w": 0.1, "h": 0.2}
    return {"id": track_id, "class": "bell", **place, **more}


def cx_of(features) -> list[float]:
    mask_K = features.box_mask_BTK[0, 0]
    return features.boxes_BTKF[0, 0, mask_K, FIELD["cx"]].tolist()
