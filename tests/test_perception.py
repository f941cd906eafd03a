"""Frozen perception: the published architectures at tiny size, step by step equals at once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from spatial_v2a.concepts import vocabulary_names
from spatial_v2a.conditioning import tracker
from spatial_v2a.conditioning.boxes import slots_of
from spatial_v2a.conditioning.detections import Detections, letterbox, select_boxes
from spatial_v2a.conditioning.encoders import (
    DepthEncoder,
    DinoEncoder,
    build_depth,
    build_dino,
    load_depth,
    load_dino,
    nearness_of_prediction,
)
from spatial_v2a.conditioning.perception import EXTRACT_BATCH, Perception
from spatial_v2a.conditioning.store import FeatureStore
from spatial_v2a.conditioning.tracker import BoxTracker
from spatial_v2a.conditioning.weights import WEIGHTS_NAME, write_weights
from spatial_v2a.conditioning.yolo import YoloDetector, build_yolo11, import_ultralytics
from spatial_v2a.config import DinoSettings, PerceptionConfig, load_config
from spatial_v2a.errors import UserError


@pytest.fixture(scope="module")
def config() -> PerceptionConfig:
    """The tiny preset with thresholds at which random weights do report boxes."""
    tiny = load_config("tiny").perception
    sensitive = {"score_threshold": 0.0, "new_track_score": 0.0}
    detector = tiny.detector.model_copy(update=sensitive)
    return tiny.model_copy(update={"detector": detector})


@pytest.fixture(scope="module")
def folder(config: PerceptionConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with random weights of all three encoders."""
    path = tmp_path_factory.mktemp("checkpoint")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_weights(path, "dino", build_dino(config.dino))
        write_weights(path, "depth", build_depth(config.depth))
        model = build_yolo11(config.detector, num_classes=config.num_classes)
        write_weights(path, "detector", model)
    return path


@pytest.fixture(scope="module")
def perception(folder: Path, config: PerceptionConfig) -> Perception:
    return Perception.from_checkpoint(folder, config)


@pytest.fixture(params=[1, 2], ids=["every tick", "every second tick"])
def seeing(request: pytest.FixtureRequest, folder: Path, config: PerceptionConfig) -> Perception:
    """Perception whose detector and depth network look at each or at every second picture.

    It sees no cuts: to it, each of the pictures of noise would be another scene.
    """
    turns = {"every_ticks": request.param}
    taken = {name: getattr(config, name).model_copy(update=turns) for name in ("detector", "depth")}
    seen = config.model_copy(update=taken | {"scene_cut_threshold": 0.0})
    return Perception.from_checkpoint(folder, seen)


@pytest.fixture
def frames_THWC() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 48, 64, 3), dtype=np.uint8)


def test_steps_give_what_a_whole_clip_gives(seeing: Perception, frames_THWC: np.ndarray) -> None:
    whole = seeing.extract(frames_THWC, fov_deg=90.0)
    seeing.init_state(1)
    steps = [seeing.step(frame[None], fov_deg=90.0) for frame in frames_THWC]
    assert bool(whole.has_dino_BT.all() and whole.has_depth_BT.all() and whole.has_boxes_BT.all())
    assert bool(whole.box_mask_BTK.any())
    for name, value in vars(whole).items():
        stepped = torch.cat([getattr(step, name) for step in steps], dim=1)
        torch.testing.assert_close(stepped, value, atol=1e-4, rtol=1e-4, msg=name)


def test_a_look_gives_the_boxes_of_every_tick_with_its_features(
    seeing: Perception, frames_THWC: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over more than one batch of the encoders; what has no slot is among the boxes, too."""
    monkeypatch.setattr(tracker, "SURE_SHARE", 0.0)  # random weights are sure of nothing
    frames_THWC = np.concatenate([frames_THWC] * 7)
    assert len(frames_THWC) > EXTRACT_BATCH
    seen = list(seeing.look(iter(frames_THWC), fov_deg=90.0))
    whole = seeing.extract(frames_THWC, fov_deg=90.0)
    assert whole.has_boxes_BT.shape == (1, len(seen))
    assert max(len(boxes) for _, boxes in seen) > seeing.config.max_boxes
    for tick, (features, boxes) in enumerate(seen):
        for name, value in vars(whole).items():
            assert torch.equal(vars(features)[name], value[:, tick : tick + 1]), name
        chosen = [boxes[i] for i in slots_of(boxes, seeing.config.max_boxes)]
        expected = torch.tensor([[box.cx, box.cy, box.w, box.h] for box in chosen])
        assert torch.equal(features.boxes_BTKF[0, 0, : len(chosen), :4], expected), tick


def test_a_vanished_box_is_held_for_a_second_and_a_reset_drops_it(
    folder: Path, config: PerceptionConfig, frames_THWC: np.ndarray
) -> None:
    """Seen for ten ticks, carried on by the tracker for five, held for thirty."""
    perception = Perception.from_checkpoint(folder, config, cues=["boxes"])

    def shown(num_ticks: int) -> str:
        marks = {(): ".", (False,): "s", (True,): "h"}
        found = ""
        for tick in range(num_ticks):
            seen = [(0.3, 0.5, 0.9, 2)] if tick < 10 else []
            perception.detector.detect = lambda _, seen=seen: [detections(*seen)]
            features = perception.step(frames_THWC[:1], fov_deg=90.0)
            boxes = perception.boxes_B[0]
            assert int(features.box_mask_BTK.sum()) == len(boxes)
            found += marks[tuple(box.is_persisted for box in boxes)]
        return found

    perception.init_state(1)
    assert shown(50) == "s" * 15 + "h" * 30 + "." * 5
    perception.reset()
    assert shown(20) == "s" * 15 + "h" * 5
    perception.reset()
    perception.detector.detect = lambda _: [detections()]
    perception.step(frames_THWC[:1], fov_deg=90.0)
    assert perception.boxes_B == ((),)


def test_streams_do_not_meet_and_reset_forgets_one(
    seeing: Perception, frames_THWC: np.ndarray
) -> None:
    seeing.init_state(2)
    pairs = np.stack([frames_THWC, frames_THWC[::-1]], axis=1)
    for pair in pairs:
        both = seeing.step(pair, fov_deg=90.0)
    alone = seeing.extract(frames_THWC[::-1], fov_deg=90.0)
    torch.testing.assert_close(both.boxes_BTKF[1, 0], alone.boxes_BTKF[0, -1], atol=1e-4, rtol=0)
    seeing.reset(torch.tensor([True, False]))
    again = seeing.step(pairs[0], fov_deg=90.0)
    fresh = seeing.extract(frames_THWC[:1], fov_deg=90.0)
    torch.testing.assert_close(again.boxes_BTKF[0, 0], fresh.boxes_BTKF[0, 0], atol=1e-4, rtol=0)
    assert float(again.boxes_BTKF[1, ..., -1].max()) > 0


def test_detector_and_depth_take_turns(seeing: Perception, frames_THWC: np.ndarray) -> None:
    """Both see the first picture; with every second tick they never meet again."""
    features, depths, looks, every = [], [], [], seeing.config.depth.every_ticks
    depth, detect = seeing.depth.encode, seeing.detector.detect

    def see_depth(frames_BHWC):
        depths.append(len(features))
        return depth(frames_BHWC)

    def look(frames_BHWC):
        looks.append(len(features))
        return detect(frames_BHWC)

    seeing.depth.encode, seeing.detector.detect = see_depth, look
    for frame in frames_THWC:
        features.append(seeing.step(frame[None], fov_deg=90.0))
    assert (looks, depths) == {
        1: ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]),
        2: ([0, 2, 4], [0, 1, 3]),
    }[every]
    assert all(bool(one.has_depth_BT.all() and one.has_boxes_BT.all()) for one in features)
    if every == 2:
        assert torch.equal(features[2].depth_BTHW, features[1].depth_BTHW)


def test_frozen_encoders_cannot_be_trained(perception: Perception) -> None:
    for encoder in (perception.dino, perception.depth, perception.detector):
        encoder.train()
        assert not encoder.training and not any(m.training for m in encoder.model.modules())
        assert not any(p.requires_grad for p in encoder.parameters())


def test_published_layouts_load_through_transformers(
    config: PerceptionConfig, tmp_path: Path
) -> None:
    """The real classes, on folders saved at tiny size."""
    build_dino(config.dino).save_pretrained(tmp_path / "dino")
    build_depth(config.depth).save_pretrained(tmp_path / "depth")
    frame_BHWC = torch.zeros(1, 48, 64, 3, dtype=torch.uint8)
    dino, depth = config.dino, config.depth
    patches = DinoEncoder(dino, load_dino(dino, tmp_path / "dino")).encode(frame_BHWC)
    assert patches.shape == (1, config.shapes.num_patches, config.shapes.dino_dim)
    grid = DepthEncoder(depth, load_depth(depth, tmp_path / "depth")).encode(frame_BHWC)
    assert grid.shape == (1, *config.shapes.depth_grid)
    assert 0 <= float(grid.min()) and float(grid.max()) <= 1
    with pytest.raises(UserError, match="hidden_size"):
        load_dino(dino.model_copy(update={"hidden_size": 20}), tmp_path / "dino")


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    """A tiny vision transformer with random weights, as timm's repositories on the hub are."""
    vit = timm.create_model("test_vit", pretrained=False, num_classes=0)
    described = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.25, 0.5]}
    data = {"architecture": "test_vit", "num_classes": 0, "pretrained_cfg": described}
    (tmp_path / "config.json").write_text(json.dumps(data))
    save_file(vit.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


VIT = DinoSettings(image_height=64, image_width=96, patch_size=16, hidden_size=64, num_heads=4)


def test_vision_transformers_of_timm_load(timm_folder: Path) -> None:
    """The features are the library's own, for a picture normalised as the network was trained."""
    frame_BHWC = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    encoder = DinoEncoder(VIT, load_dino(VIT, timm_folder))
    vit = encoder.model.vit
    x_BCHW = frame_BHWC.permute(0, 3, 1, 2) / 255.0 - 0.5
    x_BCHW = x_BCHW / torch.tensor([0.5, 0.25, 0.5]).view(3, 1, 1)
    expected_BND = vit.forward_features(x_BCHW)[:, vit.num_prefix_tokens :]
    assert expected_BND.shape == (1, 4 * 6, 64)
    torch.testing.assert_close(encoder.encode(frame_BHWC), expected_BND)
    encoder.optimize()
    torch.testing.assert_close(encoder.encode(frame_BHWC), expected_BND, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"architecture": "hf-hub:timm/test_vit"}, "use a vision transformer"),
        ({"architecture": ["test_vit"]}, "use a vision transformer"),
        ({"architecture": "resnet18"}, "use a vision transformer"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [0.5]}}, "no mean and std"),
        ({"pretrained_cfg": None}, "no mean and std"),
        ({"architecture": "vit_small_patch16_224"}, "larger than its weights|is missing"),
        ({"architecture": "test_vit3"}, "larger than its weights|is missing|shape|unknown"),
        ({"num_classes": 2**20}, "larger than its weights"),
        ({"num_classes": "all"}, "make no network"),
        ({"num_classes": 2**21}, "no size is"),
    ],
)
def test_what_is_no_vision_transformer_of_timm_is_refused(
    timm_folder: Path, change: dict, reason: str
) -> None:
    path = timm_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=reason):
        load_dino(VIT, timm_folder)


def test_published_weights_that_do_not_fit_are_named(
    config: PerceptionConfig, tmp_path: Path
) -> None:
    """The tensor is named, as a user must know which file is wrong and how."""
    build_dino(config.dino).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    stored = load_file(weights)
    name = "embeddings.cls_token"
    missing = {key: tensor for key, tensor in stored.items() if key != name}
    for tensors, reason in (
        (missing, rf"make no network \(tensor {name} is missing\)"),
        ({**stored, name: torch.zeros(3, 3)}, rf"network \(tensor {name} has shape \[3, 3\], "),
    ):
        save_file(tensors, weights, metadata={"format": "pt"})
        with pytest.raises(UserError, match=reason):
            load_dino(config.dino, tmp_path)
    weights.write_bytes(b"not a tensor")
    with pytest.raises(UserError, match="is damaged"):
        load_dino(config.dino, tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="holds no model.safetensors"):
        load_dino(config.dino, tmp_path)


def test_missing_corrupt_and_misfit_weights_are_user_errors(
    folder: Path, config: PerceptionConfig, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"has no {WEIGHTS_NAME}"):
        Perception.from_checkpoint(tmp_path, config)
    (tmp_path / WEIGHTS_NAME).write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="corrupt"):
        Perception.from_checkpoint(tmp_path, config)
    wider = config.model_copy(update={"dino": replace_hidden(config, 32)})
    with pytest.raises(UserError, match="do not fit"):
        Perception.from_checkpoint(folder, wider)


def replace_hidden(config: PerceptionConfig, width: int):
    return config.dino.model_copy(update={"hidden_size": width})


def test_wrong_detector_sources_and_vocabularies(config: PerceptionConfig, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no .pt file"):
        Perception.from_checkpoint(
            tmp_path, config, cues=["boxes"], detector_weights=tmp_path / "none.pt"
        )
    model = build_yolo11(config.detector, num_classes=3)
    with pytest.raises(UserError, match="knows 3 classes"):
        YoloDetector(config.detector, model, names=vocabulary_names(config.detector.vocabulary))


def test_relative_depth_does_not_depend_on_scale() -> None:
    inverse = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    near = nearness_of_prediction(inverse, is_metric=False)
    torch.testing.assert_close(near, nearness_of_prediction(7 * inverse, is_metric=False))
    assert 0 <= float(near.min()) and float(near.max()) < 1


def test_letterbox_is_undone_in_the_boxes() -> None:
    """A box drawn in the middle of a wide picture comes back at its place."""
    settings = PerceptionConfig().detector
    assert letterbox(torch.zeros(1, 90, 160, 3, dtype=torch.uint8), 192, 256).shape[-2:] == (
        192,
        256,
    )
    y_BCN = torch.zeros(1, 24, 1)
    # 16:9 fills 256 x 144 of 256 x 192: 24 rows of padding above and below.
    y_BCN[0, :4, 0] = torch.tensor([64.0, 24 + 72.0, 32.0, 36.0])
    y_BCN[0, 9, 0] = 0.9
    (found,) = select_boxes(y_BCN, settings, aspect=16 / 9)
    np.testing.assert_allclose(found.corners_K4, [[0.1875, 0.375, 0.3125, 0.625]], atol=1e-6)
    assert found.class_K.tolist() == [5]


def detections(*rows: tuple[float, float, float, int]) -> Detections:
    """Boxes of size 0.1 from (cx, cy, score, class)."""
    corners = [(cx - 0.05, cy - 0.05, cx + 0.05, cy + 0.05) for cx, cy, _, _ in rows]
    return Detections(
        np.array(corners, np.float32).reshape(-1, 4),
        np.array([score for _, _, score, _ in rows], np.float32),
        np.array([label for *_, label in rows], np.int64),
    )


def test_a_new_object_shows_in_its_first_tick_and_keeps_its_id() -> None:
    tracker = BoxTracker(new_track_score=0.3)
    ids = [tracker.step(detections((0.2 + 0.05 * t, 0.5, 0.9, 2)))[0].track_id for t in range(10)]
    assert ids == [1] * 10
    both = tracker.step(detections((0.7, 0.5, 0.9, 2), (0.1, 0.2, 0.8, 3)))
    assert {box.track_id: box.class_index for box in both} == {1: 2, 2: 3}


def test_weak_boxes_extend_tracks_but_begin_none_and_gaps_are_bridged() -> None:
    tracker = BoxTracker(new_track_score=0.3)
    assert tracker.step(detections((0.5, 0.5, 0.2, 1))) == []
    for t in range(4):
        tracker.step(detections((0.5 + 0.01 * t, 0.5, 0.9, 1)))
    (weak,) = tracker.step(detections((0.54, 0.5, 0.15, 1)))
    assert weak.track_id == 1
    gap = [tracker.step(detections()) for _ in range(7)]
    assert [len(boxes) for boxes in gap] == [1, 1, 1, 1, 1, 0, 0]
    assert gap[2][0].score < gap[0][0].score < weak.score
    (back,) = tracker.step(detections((0.60, 0.5, 0.9, 1)))
    assert back.track_id == 1


def test_weak_boxes_alone_carry_a_track_on_for_a_second() -> None:
    """What looked like an object once, and only faintly since, is no object any more."""
    tracker = BoxTracker(new_track_score=0.75)
    tracker.step(detections((0.5, 0.5, 0.9, 1)))
    shown = [len(tracker.step(detections((0.5, 0.5, 0.4, 1)))) for _ in range(60)]
    assert shown == [1] * 30 + [0] * 30
    (strong,) = tracker.step(detections((0.5, 0.5, 0.8, 1)))
    assert strong.track_id == 1, "it was hidden, not forgotten"
    assert len(tracker.step(detections((0.5, 0.5, 0.4, 1)))) == 1


def test_what_is_hardly_an_object_is_not_shown_beside_a_sure_one() -> None:
    """Alone it is: far objects have such scores, too."""
    tracker = BoxTracker(new_track_score=0.7)
    sure, doubtful = (0.2, 0.5, 0.9, 1), (0.7, 0.5, 0.55, 2)
    tracker.step(detections(sure, (0.7, 0.5, 0.75, 2)))
    shown = [[b.class_index for b in tracker.step(detections(sure, doubtful))] for _ in range(20)]
    assert shown[0] == [1, 2], "one look is not enough to doubt it"
    assert shown[-1] == [1]
    for _ in range(10):
        alone = tracker.step(detections(doubtful))
    assert [b.class_index for b in alone] == [2]
    surer = (0.7, 0.5, 0.8, 2)
    shown = [[b.class_index for b in tracker.step(detections(sure, surer))] for _ in range(20)]
    assert sorted(shown[-1]) == [1, 2], "looked at well it counts again"


def test_what_is_looked_for_in_vain_goes_on_more_slowly() -> None:
    tracker = BoxTracker(new_track_score=0.3)
    for tick in range(20):
        tracker.step(detections((0.2 + 0.01 * tick, 0.5, 0.9, 1)))
    unseen = [tracker.step(detections())[0].cx for _ in range(5)]
    steps = np.diff(unseen)
    assert steps == pytest.approx(0.01 * 0.8 ** np.arange(1, 5), rel=0.05)


def test_tracks_move_on_while_nobody_looks() -> None:
    """Every second tick without the detector: the same ids, on the same path, to a pixel or two."""
    asked, resting = (BoxTracker(new_track_score=0.3) for _ in range(2))
    for tick in range(40):
        found = detections((0.1 + 0.015 * tick, 0.5, 0.9, 1), (0.9 - 0.01 * tick, 0.4, 0.9, 2))
        every = asked.step(found)
        second = resting.step(found if tick % 2 == 0 else None)
        assert [box.track_id for box in second] == [box.track_id for box in every] == [1, 2]
        if tick > 10:
            for a, b in zip(every, second, strict=True):
                assert abs(a.cx - b.cx) < 0.002 and abs(a.w - b.w) < 0.002


def test_an_unseen_track_ends_as_soon_with_half_the_looks() -> None:
    tracker = BoxTracker(new_track_score=0.3)
    for tick in range(20):
        tracker.step(detections((0.5, 0.5, 0.9, 1)) if tick % 2 == 0 else None)
    shown = [len(tracker.step(detections() if tick % 2 == 0 else None)) for tick in range(6)]
    assert shown == [1, 1, 1, 1, 0, 0]  # unseen for 2 to 5 ticks, then longer than COAST_TICKS


def test_a_single_wrong_class_does_not_change_a_track() -> None:
    tracker = BoxTracker(new_track_score=0.3)
    labels = [4, 4, 4, 7, 4]
    boxes = [tracker.step(detections((0.5, 0.5, 0.9, label)))[0] for label in labels]
    assert [box.class_index for box in boxes] == [4] * 5


def test_importing_ultralytics_leaves_the_environment_alone() -> None:
    before = dict(os.environ)
    import_ultralytics("ultralytics.utils")
    assert dict(os.environ) == before


def test_store_keeps_features_and_refuses_other_encoders(
    perception: Perception,
    config: PerceptionConfig,
    frames_THWC: np.ndarray,
    tmp_path: Path,
) -> None:
    store = FeatureStore(tmp_path)
    store.claim(perception)
    features = perception.extract(frames_THWC, fov_deg=90.0)
    store.save("walkers-1", features)
    assert store.has("walkers-1") and not store.has("walkers-2")
    loaded = store.load("walkers-1")
    for name, value in vars(features).items():
        torch.testing.assert_close(getattr(loaded, name), value, atol=2e-2, rtol=2e-3, msg=name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        other = DinoEncoder(config.dino, build_dino(config.dino))
    swapped = Perception(config, dino=other, depth=perception.depth, detector=perception.detector)
    with pytest.raises(UserError, match="other encoders"):
        store.claim(swapped)
    parts = {"dino": perception.dino, "depth": perception.depth, "detector": perception.detector}
    unheld = Perception(config.model_copy(update={"persistence_s": 0.0}), **parts)
    with pytest.raises(UserError, match="other encoders or perception settings"):
        store.claim(unheld)
    with pytest.raises(UserError, match="lacks clip"):
        store.load("walkers-2")
