"""One item where several are taken is refused, not read letter by letter."""

from collections.abc import Callable
from pathlib import Path

import pytest

from spatial_v2a import SpatialV2A, UserError, load_config
from spatial_v2a.clip import read_shards
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.track_edits import parse_edits
from spatial_v2a.inference.dub.jobs import plan_jobs
from spatial_v2a.inference.dub.many import find_videos
from spatial_v2a.inference.engine.stream import Stream
from spatial_v2a.inference.inspect.report import plan_inspection
from spatial_v2a.training.shards import ShardIndex

CALLS: dict[str, Callable[[], object]] = {
    "without": lambda: Stream(SpatialV2A(load_config("tiny")), without="depth"),
    "overrides": lambda: load_config("tiny", "sampler.steps=3"),
    "cues": lambda: Perception.from_checkpoint(
        "stage", load_config("tiny").perception, cues="boxes"
    ),
    "mute": lambda: parse_edits(mute=3),
    "solo": lambda: parse_edits(solo="12"),
    "move": lambda: parse_edits(move="3:-20"),
    "words": lambda: find_videos(Path("clip.mp4")),
    "videos": lambda: plan_jobs("clip.mp4"),
    "files": lambda: plan_inspection("clip.wav"),
    "paths": lambda: list(read_shards("shard.tar")),
    "folders": lambda: ShardIndex("data"),
}


@pytest.mark.parametrize("name", CALLS)
def test_one_for_several(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name} takes several items, got .*; write {name}=\["):
        CALLS[name]()
