"""`spatial-v2a-train extract`: runs the frozen perception over clips and keeps what it saw.

Run the same command again to go on; clips already in the store are skipped.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    from spatial_v2a.conditioning.perception import Perception
    from spatial_v2a.conditioning.store import FeatureStore
    from spatial_v2a.training.shards import ShardIndex


def extract_features(
    checkpoint: Annotated[Path, typer.Option(help="Folder with perception.safetensors.")],
    data: Annotated[list[Path], typer.Option(help="Folder of shards; repeatable.")],
    store: Annotated[Path, typer.Option(help="Feature store to fill.")],
    config: Annotated[str, typer.Option(help="Preset name or YAML file.")] = "stage",
    limit: Annotated[int | None, typer.Option(help="Stop after this many clips.")] = None,
    streams: Annotated[
        str | None, typer.Option(help="Streams to extract, with commas.", show_default="all")
    ] = None,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 keeps torch's choice.")] = 0,
    device: Annotated[str, typer.Option(help="Where the encoders run.")] = "cpu",
    detector_weights: Annotated[
        Path | None,
        typer.Option(help="Your own detector: a YOLO11 .pt, or a folder of an RT-DETR."),
    ] = None,
) -> None:
    """Fills a feature store with the detected features of clips."""
    import torch

    from spatial_v2a.conditioning.perception import CUES, Perception
    from spatial_v2a.conditioning.store import FeatureStore
    from spatial_v2a.config import load_config
    from spatial_v2a.training.shards import ShardIndex

    wanted = list(CUES) if streams is None else [name for name in streams.split(",") if name]
    if not wanted or not set(wanted) <= set(CUES):
        raise UserError(f"--streams {streams} is wrong; choose among {','.join(CUES)}")
    if threads:
        torch.set_num_threads(threads)
    settings = load_config(config).perception
    perception = Perception.from_checkpoint(
        checkpoint, settings, cues=wanted, device=device, detector_weights=detector_weights
    )
    num_new = fill_store(FeatureStore(store), perception, ShardIndex(data), limit=limit)
    print(f"{num_new} clips added: {store}")


def fill_store(
    store: "FeatureStore",
    perception: "Perception",
    index: "ShardIndex",
    *,
    limit: int | None = None,
) -> int:
    """Extracts the first `limit` clips of the index that the store lacks; returns how many."""
    from rich.progress import track

    from spatial_v2a.clip import Clip

    store.claim(perception)
    missing = [key for key in index.keys[:limit] if not store.has(key)]
    for key in track(missing, description="extracting", disable=not missing):
        parts = {name: index.read(key, name) for name in ("json", "frames.npz")}
        clip = Clip(key, parts)
        store.save(key, perception.extract(clip.frames(), fov_deg=float(clip.meta["fov_deg"])))
    return len(missing)
