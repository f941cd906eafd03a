"""JSON that every parser reads: numbers with six digits, null for what is not finite."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def json_text(values: object) -> str:
    """The JSON text of numbers, texts, paths, and lists and mappings of them."""
    return json.dumps(_plain(values), indent=1, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
