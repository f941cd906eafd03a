"""Feature store: what frozen perception saw in each clip, computed once and kept in a folder.

One uncompressed .npz per clip (16-bit floats), and `perception.json` with the fingerprint of the
encoders and settings that made them, so that two kinds of features are never mixed.
"""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch

from spatial_v2a.bounded import read_arrays, read_json
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.errors import UserError
from spatial_v2a.features import FrameFeatures
from spatial_v2a.files import write_text, written_whole

IDENTITY_NAME = "perception.json"


class FeatureStore:
    """Features of clips by key.

    Args:
        folder: where the files lie; it need not exist yet.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def claim(self, perception: Perception) -> None:
        """Marks the folder as made by these encoders.

        Raises:
            UserError: the folder holds features of other encoders or settings, or cannot be
                written.
        """
        identity = {name: perception.fingerprint(name) for name in perception.cues}
        path = self.folder / IDENTITY_NAME
        if path.is_file():
            if read_json(path) != identity:
                raise UserError(
                    f"{self.folder} holds features of other encoders or perception settings; "
                    "give another --store folder"
                )
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(identity, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose a folder") from error

    def has(self, key: str) -> bool:
        """Whether the clip's features are there."""
        return self._path(key).is_file()

    def save(self, key: str, features: FrameFeatures) -> None:
        """Keeps features [1, T] of a clip; a killed process leaves no half-written file."""
        arrays = {}
        for name, tensor in vars(features).items():
            value = tensor.half() if tensor.is_floating_point() else tensor
            arrays[name] = value.cpu().numpy()
        arrays["class_BTK"] = arrays["class_BTK"].astype(np.int16)
        with written_whole(self._path(key), overwrite=True) as draft:
            np.savez(draft, **arrays)

    def load(self, key: str) -> FrameFeatures:
        """Features [1, T] of a clip, float32.

        Raises:
            UserError: the clip is not in the store, or its file is corrupt.
        """
        path = self._path(key)
        try:
            arrays = read_arrays(path, where=str(path))
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder} lacks clip {key}; fill it with spatial-v2a-train extract"
            ) from error
        except TypeError as error:
            raise UserError(f"{path} is corrupt; delete it and extract again") from error
        missing = {field.name for field in fields(FrameFeatures)} - {"is_cut_BT"} - set(tensors)
        if missing:
            raise UserError(f"{path} lacks {min(missing)}; delete it and extract again")
        tensors["class_BTK"] = tensors["class_BTK"].long()
        # Files from before cuts were looked for have no such entry.
        tensors.setdefault("is_cut_BT", torch.zeros_like(tensors["has_boxes_BT"]))
        features = FrameFeatures(**tensors)
        return features.map(lambda x: x.float() if x.is_floating_point() else x)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
