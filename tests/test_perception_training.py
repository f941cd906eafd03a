"""Training of the compact encoders: crops keep boxes in place, a killed run ends the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from safetensors.torch import load_file

from spatial_v2a.clip import clip_to_sample, jpeg_bytes
from spatial_v2a.concepts import CLASS_NAMES
from spatial_v2a.conditioning.detections import Detections
from spatial_v2a.conditioning.weights import FILE_OF
from spatial_v2a.config import load_config
from spatial_v2a.errors import UserError
from spatial_v2a.training.cli import perception
from spatial_v2a.training.loop import Budget, Recipe, set_rate, train
from spatial_v2a.training.perception import (
    SETTINGS,
    SummedLosses,
    matrices_decay,
    rate_at,
    score_detections,
    train_part,
)
from spatial_v2a.training.perception_data import FramePool, LabelledFrame, crop

NUM_TICKS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips with a bright box each, in one shard."""
    folder = tmp_path_factory.mktemp("shards")
    with webdataset.TarWriter(str(folder / "stage-000000.tar")) as writer:
        for number, name in enumerate(CLASS_NAMES[:2]):
            frame = np.full((240, 320, 3), 40, np.uint8)
            frame[60:180, 80:160] = 220
            box = {"id": 1, "class": name, "x": 0.25, "y": 0.25, "w": 0.25, "h": 0.5}
            ticks = [{"boxes": [box], "sources": []}] * NUM_TICKS
            meta = {"key": f"test-{number}", "num_ticks": NUM_TICKS, "fov_deg": 90.0}
            sample = clip_to_sample(
                meta | {"ticks": ticks, "sources": []},
                jpegs=[jpeg_bytes(frame)] * NUM_TICKS,
                depth_THW=np.full((NUM_TICKS, 60, 80), 35, np.uint8),
                audio_LC=np.zeros((NUM_TICKS * 1600, 2), np.float32),
            )
            writer.write(sample)
    return folder


def test_pool_reads_frames_boxes_and_depth(shards: Path) -> None:
    pool = FramePool([shards], frames_per_clip=3)
    assert len(pool.frames) == 6 and pool.num_clips == 2 and pool.refresh() == 0
    np.testing.assert_allclose(pool.frames[0].boxes_K5, [[0, 0.375, 0.5, 0.25, 0.5]])
    assert pool.weights().sum() == pytest.approx(1.0)


@pytest.mark.parametrize("is_flipped", [False, True], ids=["straight", "mirrored"])
def test_a_crop_moves_boxes_with_the_picture(is_flipped: bool) -> None:
    image = np.zeros((192, 256, 3), np.uint8)
    image[48:144, 64:128] = 255
    frame = LabelledFrame(
        image, np.array([[3, 0.375, 0.5, 0.25, 0.5]], np.float32), np.zeros((60, 80), np.uint8)
    )
    window, boxes = crop(
        frame, scale=0.8, centre=(0.45, 0.55), height=192, width=256, is_flipped=is_flipped
    )
    rows, columns = np.nonzero(window[..., 0] > 200)
    label, cx, cy, w, h = boxes[0]
    assert label == 3
    assert cx * 256 == pytest.approx((columns.min() + columns.max() + 1) / 2, abs=1.5)
    assert cy * 192 == pytest.approx((rows.min() + rows.max() + 1) / 2, abs=1.5)
    assert w * 256 == pytest.approx(columns.max() - columns.min() + 1, abs=2.5)
    assert h * 192 == pytest.approx(rows.max() - rows.min() + 1, abs=2.5)


@pytest.mark.parametrize("part", ["dino", "depth", "detector", "rtdetr"])
def test_each_part_trains_scores_and_resumes(part, shards: Path, tmp_path: Path) -> None:
    config = load_config("tiny").perception
    pool = FramePool([shards], frames_per_clip=2)
    common = {"pool": pool, "out": tmp_path, "seed": 0, "batch_size": 2}
    train_part(part, config, val=None, budget=Budget(num_steps=1), **common)
    train_part(part, config, val=shards, budget=Budget(num_steps=2), **common)
    assert [p.name for p in (tmp_path / "checkpoint").glob("*.safetensors")] == [FILE_OF[part]]
    assert '"steps": 2' in (tmp_path / "checkpoint" / "perception_metrics.json").read_text()


def test_an_encoder_is_trained_on_from_a_checkpoint(shards: Path, tmp_path: Path) -> None:
    """With next to no steps' size the weights stay; without --init they would be random ones."""
    config = load_config("tiny").perception
    common = {"pool": FramePool([shards], frames_per_clip=2), "val": None, "batch_size": 2}
    budget = Budget(num_steps=1)
    for name in "ab":
        (tmp_path / name).mkdir()
    train_part("rtdetr", config, out=tmp_path / "a", budget=budget, seed=0, **common)
    begin = {"init": tmp_path / "a" / "checkpoint", "learning_rate": 1e-7}
    train_part("rtdetr", config, out=tmp_path / "b", budget=budget, seed=1, **common, **begin)
    first, second = (load_file(tmp_path / name / "checkpoint" / FILE_OF["rtdetr"]) for name in "ab")
    matrices = [name for name, tensor in first.items() if tensor.dim() > 1]
    assert matrices
    for name in matrices:
        torch.testing.assert_close(second[name], first[name], atol=1e-3, rtol=0, msg=name)


def test_a_killed_run_ends_on_the_same_weights(tmp_path: Path) -> None:
    """Its optimiser has two groups; the loss of the model's own stages: test_training_loop."""

    def square(model, batch):
        return {"square": model(batch["x_BD"]).square().mean()}

    def run(name: str, *, killed_at: int = 6) -> dict[str, torch.Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, kept = torch.nn.Linear(3, 2), {}
        settings = SETTINGS["dino"].model_copy(update={"save_every": 3, "learning_rate": 0.1})

        def batches(start: int, process: int):
            for step in range(start, killed_at):
                generator = torch.Generator().manual_seed(step)
                yield {"x_BD": torch.randn(4, 3, generator=generator)}
            raise KeyboardInterrupt

        recipe = Recipe(
            name="line",
            objective=SummedLosses(
                model, lambda m, batch: {"square": m(batch["x_BD"]).square().mean()}
            ),
            batches=batches,
            settings=settings,
            budget=Budget(num_steps=6),
            optimizer=matrices_decay(model, settings),
            schedule=lambda optimizer, step, share: set_rate(optimizer, rate_at(share, 0.1)),
            averaged=lambda objective: objective.model,
            export=lambda averaged: kept.update(averaged.state_dict()),
        )
        train(recipe, tmp_path / name)
        return kept | {f"now.{name}": value for name, value in model.state_dict().items()}

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("killed", killed_at=4)
    resumed = run("killed")
    assert whole.keys() == resumed.keys() and len(whole) == 4
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_rate_warms_up_and_falls() -> None:
    rates = [rate_at(p, 1.0) for p in (0.0, 0.04, 0.5, 1.0)]
    assert rates[0] < 0.02 and rates[1] > 0.99 and rates[1] > rates[2] > rates[3] > 0


def test_perfect_detections_score_one_and_mirrored_ones_zero(shards: Path) -> None:
    frames = FramePool([shards], frames_per_clip=2).frames
    perfect, mirrored = [], []
    for frame in frames:
        boxes = frame.boxes_K5
        low, high = boxes[:, 1:3] - boxes[:, 3:] / 2, boxes[:, 1:3] + boxes[:, 3:] / 2
        scores, labels = np.ones(len(boxes), np.float32), boxes[:, 0].astype(np.int64)
        perfect.append(Detections(np.concatenate([low, high], axis=1), scores, labels))
        flipped = np.stack([1 - high[:, 0], low[:, 1], 1 - low[:, 0], high[:, 1]], axis=1)
        mirrored.append(Detections(flipped, scores, labels))
    assert score_detections(perfect, frames)["map50_95"] == pytest.approx(0.995, abs=0.01)
    assert score_detections(mirrored, frames)["map50"] == 0.0


def test_command_names_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no clip found"):
        perception([tmp_path], tmp_path / "out", steps=1, config="tiny", threads=1)
