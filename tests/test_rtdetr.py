"""The detector of a permissive licence: transformers' RT-DETR, trained and run like YOLO."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
    YolosConfig,
    YolosForObjectDetection,
)

from spatial_v2a.concepts import CLASS_NAMES, vocabulary_names
from spatial_v2a.conditioning.compiled import has_openvino
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.rtdetr import RtDetrDetector, build_rtdetr, load_published_rtdetr
from spatial_v2a.conditioning.weights import write_weights
from spatial_v2a.conditioning.yolo import YoloDetector
from spatial_v2a.config import RtDetrSettings, load_config
from spatial_v2a.errors import UserError
from spatial_v2a.inference.bench.subject import load_subject
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.evaluation.generate import load_system
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.checkpoint import read_config
from spatial_v2a.training.loop import Ema, set_rate
from spatial_v2a.training.perception import rate_at, rtdetr_loss, rtdetr_network
from tests.tiny_checkpoint import shaken, write_tiny_checkpoint

NUM_CLASSES = len(CLASS_NAMES)


@pytest.fixture(scope="module")
def settings() -> RtDetrSettings:
    """The tiny preset's, with thresholds at which random weights do report boxes."""
    return load_config("tiny").perception.rtdetr.model_copy(update={"score_threshold": 0.0})


@pytest.fixture(scope="module")
def detector(settings: RtDetrSettings) -> RtDetrDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = shaken(build_rtdetr(settings, num_classes=NUM_CLASSES), scale=0.3)
    return RtDetrDetector(settings, model, names=CLASS_NAMES)


@pytest.fixture
def frame_BHWC() -> torch.Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8))


def test_boxes_are_those_of_the_published_processor(
    detector: RtDetrDetector, frame_BHWC: torch.Tensor
) -> None:
    """Pictures of the network's own size, where no letterbox comes between."""
    processor = RTDetrImageProcessor(size={"height": 64, "width": 64})
    inputs = processor(frame_BHWC[0].numpy(), return_tensors="pt")
    with torch.inference_mode():
        outputs = detector.model(**inputs)
    wanted = processor.post_process_object_detection(outputs, threshold=0.0)[0]
    (found,) = detector.detect(frame_BHWC)
    assert len(found.score_K) > 0
    # The processor ranks queries times classes, we take each query's best class.
    best = int(wanted["scores"].argmax())
    np.testing.assert_allclose(found.score_K[0], wanted["scores"][best], atol=1e-5)
    np.testing.assert_allclose(
        found.corners_K4[0], wanted["boxes"][best].clamp(0, 1).numpy(), atol=1e-4
    )
    assert found.class_K[0] == int(wanted["labels"][best])


@pytest.mark.skipif(not has_openvino(), reason="needs OpenVINO")
def test_the_compiled_network_finds_the_same(
    settings: RtDetrSettings, detector: RtDetrDetector, frame_BHWC: torch.Tensor
) -> None:
    compiled = RtDetrDetector(settings, detector.model, names=CLASS_NAMES)
    compiled.optimize()
    (plain,), (fast,) = detector.detect(frame_BHWC), compiled.detect(frame_BHWC)
    np.testing.assert_allclose(fast.corners_K4, plain.corners_K4, atol=1e-4)
    np.testing.assert_allclose(fast.score_K, plain.score_K, atol=1e-5)
    assert np.array_equal(fast.class_K, plain.class_K)


def test_it_learns_one_picture(settings: RtDetrSettings, tmp_path: Path) -> None:
    """Its loss falls, and the box it then finds is the one that was shown."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = rtdetr_network(settings)
        x_BCHW = torch.rand(4, 3, 64, 64) * 0.2
        x_BCHW[:, :, 16:48, 32:56] = 1.0
        x_BCHW[3] = 0.1
        boxes_K5 = torch.tensor([[5.0, 44 / 64, 0.5, 24 / 64, 0.5]]).repeat(3, 1)
        batch = {"x_BCHW": x_BCHW, "index_K": torch.arange(3.0), "boxes_K5": boxes_K5}
        optimizer, sums = torch.optim.AdamW(model.parameters(), lr=4e-3), []
        averaged = Ema(model, 0.9)
        for step in range(120):
            loss = torch.stack(list(rtdetr_loss(model.train(), batch).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            set_rate(optimizer, rate_at(step / 120, 4e-3))
            optimizer.step()
            averaged.update(model, step)
            sums.append(float(loss.detach()))
        before, after = sums[0], sums[-1]
    assert after < 0.5 * before
    picture_BHWC = (x_BCHW[:1].permute(0, 2, 3, 1) * 255).to(torch.uint8)
    found = RtDetrDetector(settings, averaged.module, names=CLASS_NAMES).detect(picture_BHWC)[0]
    assert found.class_K[0] == 5
    np.testing.assert_allclose(found.corners_K4[0], [0.5, 0.25, 0.875, 0.75], atol=0.1)


def test_a_batch_without_boxes_has_a_loss(settings: RtDetrSettings) -> None:
    batch = {"x_BCHW": torch.rand(2, 3, 64, 64), "index_K": torch.zeros(0)}
    batch["boxes_K5"] = torch.zeros(0, 5)
    losses = rtdetr_loss(rtdetr_network(settings).train(), batch)
    assert all(torch.isfinite(value) for value in losses.values()) and losses["vfl"] > 0


def _backbone() -> RTDetrResNetConfig:
    return RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 8, 8],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )


def _shape(num_labels: int) -> dict:
    return {
        "encoder_in_channels": [8, 8, 8],
        "encoder_hidden_dim": 16,
        "encoder_ffn_dim": 16,
        "encoder_attention_heads": 2,
        "d_model": 16,
        "decoder_in_channels": [16, 16, 16],
        "decoder_layers": 2,
        "decoder_ffn_dim": 16,
        "decoder_attention_heads": 2,
        "num_queries": 6,
        "num_labels": num_labels,
    }


def _rtdetr_v2(num_labels: int) -> torch.nn.Module:
    return RTDetrV2ForObjectDetection(
        RTDetrV2Config(backbone_config=_backbone(), **_shape(num_labels))
    )


def _d_fine(num_labels: int) -> torch.nn.Module:
    backbone = HGNetV2Config(
        stem_channels=[3, 8, 8],
        hidden_sizes=[8, 8, 8, 8],
        stage_in_channels=[8, 8, 8, 8],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 8, 8, 8],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    return DFineForObjectDetection(DFineConfig(backbone_config=backbone, **_shape(num_labels)))


@pytest.mark.parametrize("make", [_rtdetr_v2, _d_fine], ids=["RT-DETRv2", "D-FINE"])
def test_published_networks_load_from_a_folder(
    make, settings: RtDetrSettings, frame_BHWC: torch.Tensor, tmp_path: Path
) -> None:
    make(80).save_pretrained(tmp_path)
    coco = settings.model_copy(update={"vocabulary": "coco"})
    detector = RtDetrDetector(coco, load_published_rtdetr(tmp_path), names=vocabulary_names("coco"))
    (found,) = detector.detect(frame_BHWC)
    assert found.corners_K4.shape == (len(found.score_K), 4) and len(found.score_K) > 0
    with pytest.raises(UserError, match="knows 80 classes"):
        RtDetrDetector(settings, detector.model, names=CLASS_NAMES)


def test_other_networks_and_missing_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read .*config.json"):
        load_published_rtdetr(tmp_path / "none")
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = YolosConfig(**tiny, intermediate_size=8, image_size=[32, 32], num_detection_tokens=4)
    YolosForObjectDetection(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a yolos"):
        load_published_rtdetr(tmp_path)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("", {"attn_implementation": "owner/code"}),
        ("", {"_attn_implementation": "owner/code"}),
        ("", {"experts_implementation": "owner/code"}),
        ("", {"quantization_config": {"quant_method": "gptq", "bits": 4}}),
        ("backbone_config", {"_attn_implementation": "owner/code"}),
        ("backbone_config", {"model_type": "timm_backbone", "backbone": "resnet18"}),
        ("", {"num_labels": 10**9}),
        ("backbone_config", {"num_labels": 10**9}),
        ("", {"anchor_image_size": [10**9, 10**9]}),
        ("", {"anchor_image_size": [10**5, 10**5]}),
        ("", {"anchor_image_size": [1e5, 1e5]}),
        ("", {"backbone_config": 5}),
        ("", {"id2label": 5}),
        ("", {"feat_strides": ["x"]}),
    ],
    ids=str,
)
def test_settings_of_a_stranger_fetch_nothing_and_have_bounds(
    place: str, change: dict, tmp_path: Path
) -> None:
    """transformers takes code that computes attention from the hub, where settings name it."""
    _rtdetr_v2(80).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text())
    (data[place] if place else data).update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(UserError) as caught:
        load_published_rtdetr(tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_are_whole_numbers_are_bounded_too(tmp_path: Path) -> None:
    _rtdetr_v2(80).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layer_norm.weight"))
    tensors[name] = torch.full_like(tensors[name], 2**62, dtype=torch.int64)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds a value that is large"):
        load_published_rtdetr(tmp_path)


def test_it_comes_without_ultralytics() -> None:
    """In a process of its own: who needs the permissive licence must not load the other."""
    words = (
        "import sys, spatial_v2a.conditioning.rtdetr, spatial_v2a.training.perception;"
        "print(sorted(name for name in sys.modules if 'ultralytics' in name))"
    )
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that holds YOLO11 alone."""
    return write_tiny_checkpoint(
        tmp_path_factory.mktemp("tiny") / "checkpoint", load_config("tiny")
    )


def test_a_checkpoint_with_both_takes_the_one_that_is_named(folder: Path, tmp_path: Path) -> None:
    config = read_config(folder, detector="rtdetr").perception
    with pytest.raises(UserError, match="no detector-rtdetr.safetensors"):
        Perception.from_checkpoint(folder, config)
    shutil.copytree(folder, tmp_path / "both")
    model = build_rtdetr(config.rtdetr, num_classes=config.num_classes)
    write_weights(tmp_path / "both", "rtdetr", model)
    seen = Perception.from_checkpoint(tmp_path / "both", config)
    assert isinstance(seen.detector, RtDetrDetector)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            kept = seen.detector.model.state_dict()[name]
            torch.testing.assert_close(kept, tensor, atol=2e-3, rtol=2e-3, msg=name)
    plain = Perception.from_checkpoint(tmp_path / "both", read_config(folder).perception)
    assert isinstance(plain.detector, YoloDetector)
    assert seen.fingerprint("boxes") != plain.fingerprint("boxes")
    systems = [
        load_system(str(tmp_path / "both"), settings=EngineSettings(), detector=name)
        for name in ("yolo", "rtdetr", None)
    ]
    first, second, default = (system.digest for system in systems)
    assert first == default != second, "sounds of one would be taken for those of the other"


def test_without_the_other_detectors_file_this_one_still_runs(folder: Path, tmp_path: Path) -> None:
    """Who may not ship AGPL-3.0 deletes one file."""
    shutil.copytree(folder, tmp_path / "free")
    config = read_config(folder, detector="rtdetr").perception
    model = build_rtdetr(config.rtdetr, num_classes=config.num_classes)
    write_weights(tmp_path / "free", "rtdetr", model)
    (tmp_path / "free" / "detector-yolo.safetensors").unlink()
    frame_BHWC = np.zeros((1, 48, 64, 3), np.uint8)
    features = Perception.from_checkpoint(tmp_path / "free", config).step(frame_BHWC)
    assert bool(features.has_boxes_BT.all() and features.has_dino_BT.all())
    with pytest.raises(UserError, match="no detector-yolo.safetensors"):
        Perception.from_checkpoint(tmp_path / "free", read_config(folder).perception)


def test_a_folder_from_when_all_encoders_were_in_one_file_is_read(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "old")
    own = tmp_path / "old" / "detector-yolo.safetensors"
    shared = tmp_path / "old" / "perception.safetensors"
    save_file(load_file(shared) | load_file(own), shared)
    own.unlink()
    config = read_config(folder).perception
    old, new = (Perception.from_checkpoint(path, config) for path in (tmp_path / "old", folder))
    assert old.fingerprint("boxes") == new.fingerprint("boxes")


def test_an_unknown_detector_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="'detr' is unknown; choose yolo or rtdetr"):
        SpatialV2A.from_pretrained(folder, detector="detr")


def test_bench_times_it_with_random_weights() -> None:
    subject = load_subject(checkpoint=None, preset="tiny", device="cpu", detector="rtdetr")
    assert isinstance(subject.perception.detector, RtDetrDetector)
    frame_BHWC = np.zeros((1, 48, 64, 3), np.uint8)
    assert bool(subject.perception.step(frame_BHWC).has_boxes_BT.all())


def test_a_saved_model_keeps_its_detectors(folder: Path, tmp_path: Path) -> None:
    """Training saves the model anew, stage after stage: its encoders go along."""
    shutil.copytree(folder, tmp_path / "both")
    config = read_config(folder).perception
    model = build_rtdetr(config.rtdetr, num_classes=config.num_classes)
    write_weights(tmp_path / "both", "rtdetr", model)
    saved = SpatialV2A.from_pretrained(tmp_path / "both").save_pretrained(tmp_path / "saved")
    for name in ("yolo", "rtdetr"):
        before, after = (
            load_file(where / f"detector-{name}.safetensors")
            for where in (tmp_path / "both", saved)
        )
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
