"""Cuts to another scene: which changes of a picture are one, and what is forgotten there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from spatial_v2a import Config
from spatial_v2a.conditioning.annotations import annotated_ticks, overlay_annotations
from spatial_v2a.conditioning.perception import EXTRACT_BATCH
from spatial_v2a.conditioning.scene import SceneCuts
from spatial_v2a.conditioning.store import FeatureStore
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.config import PerceptionConfig
from spatial_v2a.errors import UserError
from spatial_v2a.inference.dub.track_writer import TrackWriter, plan_tracks
from tests.scenes import WIDTH, OneObject, looking, perception, scene, view
from tests.tiny_checkpoint import write_tiny_checkpoint
from tests.track_lines import box, read, write_lines


def cuts_of(frames: list[np.ndarray], threshold: float = 2.0) -> list[int]:
    """The ticks at which a cut is seen."""
    cuts = SceneCuts(threshold=threshold)
    return [tick for tick, frame in enumerate(frames) if cuts.step(frame)]


@pytest.mark.parametrize("height", [60, 120, 480])
def test_another_scene_is_a_cut_at_once_whatever_the_size(height: int) -> None:
    found = []
    for seed in range(20):
        pictures = [scene(2 * seed + n, height=height, width=height * 4 // 3) for n in (0, 1)]
        found.append(cuts_of([view(pictures[0])] * 3 + [view(pictures[1])] * 3) == [3])
    assert sum(found) >= 19


@pytest.mark.parametrize("step", [4, 20, 60])
def test_a_turn_of_the_camera_is_none(step: int) -> None:
    """Of 160 columns 4, 20 or 60 in a tick, from a stand and to one."""
    for seed in range(10):
        places = [0, 0, 0, *range(0, 2 * WIDTH, step), 2 * WIDTH, 2 * WIDTH]
        assert cuts_of([view(scene(seed), x) for x in places]) == [], seed


def test_a_fade_is_none_and_a_flicker_one_at_most() -> None:
    one, other = view(scene(1)), view(scene(2))
    dissolve = [((1 - w) * one + w * other).astype(np.uint8) for w in np.linspace(0, 1, 30)]
    assert cuts_of(dissolve) == []
    brighter = [(one * (0.5 + 0.5 * w)).astype(np.uint8) for w in np.linspace(0, 1, 10)]
    assert cuts_of(brighter) == []
    assert cuts_of([one] * 5 + [other, one] * 10) == [5]
    assert cuts_of([one] * 5 + [other] * 60 + [one] * 5) == [5, 65], "later it is a cut again"


def test_the_first_picture_is_none_and_a_threshold_of_0_sees_none() -> None:
    one, other = view(scene(1)), view(scene(2))
    assert cuts_of([one, other], threshold=0.0) == []
    cuts = SceneCuts(threshold=2.0)
    assert not cuts.step(one)
    cuts.reset()
    assert not cuts.step(other)
    assert cuts.step(one)
    with pytest.raises(ValidationError, match="scene_cut_threshold"):
        PerceptionConfig(scene_cut_threshold=-1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config: Config) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)


def test_a_cut_ends_what_is_held_and_ids_go_on(folder: Path, tiny_config: Config) -> None:
    one, other = view(scene(1)), view(scene(2))
    shown = {}
    for name, frames in {"stays": [one] * 8, "cuts": [one] * 5 + [other] * 3}.items():
        seeing = perception(folder, tiny_config, OneObject(5))
        features = [seeing.step(frame[None]) for frame in frames]
        shown[name] = [int(tick.box_mask_BTK.sum()) for tick in features]
        assert [bool(tick.is_cut_BT) for tick in features] == [
            name == "cuts" and tick == 5 for tick in range(8)
        ]
    assert shown == {"stays": [1] * 8, "cuts": [1] * 5 + [0] * 3}
    seeing = perception(folder, tiny_config, OneObject(8))
    ids = []
    for frame in [one] * 5 + [other] * 3:
        features = seeing.step(frame[None])
        ids.append(seeing.boxes_B[0][0].track_id)
    assert ids == [1] * 5 + [2] * 3
    assert float(features.boxes_BTKF[0, 0, 0, -1]) == pytest.approx(2 / 30), "its age begins anew"
    seeing.reset()
    assert not bool(seeing.step(one[None]).is_cut_BT), "nothing was there before"


def test_streams_cut_apart_and_a_whole_clip_is_its_steps(folder: Path, tiny_config: Config) -> None:
    """Also where the cut lies in the middle of a batch of the encoders, and where depth waits."""
    depth = tiny_config.perception.depth.model_copy(update={"every_ticks": 2})
    config = tiny_config.model_copy(
        update={"perception": tiny_config.perception.model_copy(update={"depth": depth})}
    )
    seeing = perception(folder, config)
    cut = EXTRACT_BATCH + 5
    frames = [view(scene(1))] * cut + [view(scene(2))] * 4
    whole = seeing.extract(frames)
    assert whole.is_cut_BT[0].nonzero().flatten().tolist() == [cut]
    seeing.init_state(2)
    for tick, frame in enumerate(frames):
        both = seeing.step(np.stack([frame, frames[0]]))
        for name, value in vars(both).items():
            expected = vars(whole)[name][:, tick : tick + 1]
            torch.testing.assert_close(value[:1], expected, atol=1e-4, rtol=1e-4, msg=name)
        assert not bool(both.is_cut_BT[1])


def test_detector_and_depth_look_at_the_first_picture_of_a_scene(
    folder: Path, tiny_config: Config
) -> None:
    """Where both look at every third picture only, they look at it all the same."""
    detector = OneObject(100)
    seeing = perception(folder, tiny_config, detector)
    every = {"every_ticks": 3}
    boxes = seeing.config.detector.model_copy(update=every)
    depth = seeing.config.depth.model_copy(update=every)
    seeing.config = seeing.config.model_copy(update={"detector": boxes, "depth": depth})
    looks, tick = {"depth": [], "boxes": []}, 0
    encode, detect = seeing.depth.encode, detector.detect

    def noting(name: str, call):
        def noted(frames_BHWC: torch.Tensor):
            looks[name].append(tick)
            return call(frames_BHWC)

        return noted

    seeing.depth.encode, detector.detect = noting("depth", encode), noting("boxes", detect)
    for tick, seed in enumerate([1] * 5 + [2] * 5):  # noqa: B007
        seeing.step(view(scene(seed))[None])
    assert looks == {"depth": [0, 2, 5, 7], "boxes": [0, 3, 5, 8]}


def test_a_line_of_given_boxes_may_cut(tmp_path: Path) -> None:
    config = PerceptionConfig()

    def ticks(**marks: object) -> list:
        lines = [{"t": n / 30, "boxes": [box(1)]} for n in range(5)]
        lines += [{"t": 5 / 30, "boxes": [], **marks}, {"t": 8 / 30, "boxes": []}]
        return list(annotated_ticks(write_lines(tmp_path / "tracks.jsonl", lines), config))

    held = ticks()
    assert len(held) == 36 and not any(bool(tick.features.is_cut_BT) for tick in held)
    cut = ticks(cut=True)
    assert [len(tick.boxes) for tick in cut] == [1] * 5 + [0] * 4
    assert [bool(tick.features.is_cut_BT) for tick in cut] == [False] * 5 + [True] + [False] * 3
    seen = cut[5].features.without("boxes")
    for given, picture in ((cut[5], cut[4]), (cut[4], cut[5])):
        assert bool(overlay_annotations(picture.features, given.features).is_cut_BT), (
            "either is one"
        )
    assert not bool(overlay_annotations(seen, cut[4].features).box_mask_BTK.logical_not().all())
    with pytest.raises(UserError, match=r"line 6: cut 'yes' is not true or false"):
        ticks(cut="yes")


def test_a_cut_between_two_shown_lines_is_not_lost(tmp_path: Path) -> None:
    lines = [{"t": 0.0, "boxes": [box(1)]}, {"t": 0.04, "cut": True}, {"t": 0.05, "boxes": []}]
    path = write_lines(tmp_path / "tracks.jsonl", lines)
    cuts = [bool(tick.features.is_cut_BT) for tick in annotated_ticks(path, PerceptionConfig())]
    assert cuts == [False, False, True]


def test_written_tracks_say_where_it_cuts(
    tmp_path: Path, folder: Path, tiny_config: Config
) -> None:
    video = tmp_path / "cut.mp4"
    write_video(video, [view(scene(1))] * 6 + [view(scene(2))] * 6, 30)
    writer = TrackWriter(looking(folder, tiny_config, OneObject(6)))
    out = writer.write(plan_tracks(video)).out
    assert [line.get("cut") for line in read(out)] == [None] * 6 + [True] + [None] * 5
    seeing = perception(folder, tiny_config, OneObject(6))
    images = open_video(video).ticks(max_width=seeing.config.max_image_width)
    for told, image in zip(annotated_ticks(out, seeing.config), images, strict=True):
        seen = seeing.step(image[None], fov_deg=90.0)
        for name in ("boxes_BTKF", "class_BTK", "box_mask_BTK", "depth_BTHW", "is_cut_BT"):
            assert torch.equal(vars(seen)[name], vars(told.features)[name]), name


def test_a_feature_store_from_before_is_read_as_without_cuts(
    tmp_path: Path, folder: Path, tiny_config: Config
) -> None:
    features = perception(folder, tiny_config).extract([view(scene(1)), view(scene(2))])
    assert features.is_cut_BT.tolist() == [[False, True]]
    store = FeatureStore(tmp_path)
    store.save("clip", features)
    assert torch.equal(store.load("clip").is_cut_BT, features.is_cut_BT)
    with np.load(tmp_path / "clip.npz") as arrays:
        before = {name: arrays[name] for name in arrays.files if name != "is_cut_BT"}
    np.savez(tmp_path / "clip.npz", **before)
    assert store.load("clip").is_cut_BT.tolist() == [[False, False]]
