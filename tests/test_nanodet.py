"""NanoDet: its decoding against a slow reference, its shapes, and its published weights."""

import numpy as np
import pytest
import torch
from torch import Tensor

from spatial_v2a.conditioning.compiled import has_openvino
from spatial_v2a.conditioning.detections import input_size
from spatial_v2a.conditioning.detectors import NANODET_FULL, load_detector
from spatial_v2a.conditioning.nanodet import (
    NANODET,
    STRIDES,
    NanoDet,
    NanoDetDetector,
    decode,
    is_present,
    load_weights,
    weights_path,
)
from spatial_v2a.config import BoxSettings
from spatial_v2a.errors import UserError
from tests.tiny_checkpoint import shaken

SETTINGS = BoxSettings(
    vocabulary="coco", image_height=64, image_width=64, score_threshold=0.0, new_track_score=0.3
)


@pytest.fixture(scope="module")
def detector() -> NanoDetDetector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NanoDetDetector(SETTINGS, shaken(NanoDet(), scale=0.1))


def _noise_frame(height: int, width: int) -> Tensor:
    random = np.random.default_rng(0)
    return torch.from_numpy(random.integers(0, 256, (1, height, width, 3), dtype=np.uint8))


def test_decoding_is_the_expected_distance_from_each_cell() -> None:
    """Against one cell and one side at a time, in plain Python."""
    num_classes, rows, columns = 3, 8, 12
    generator = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(2, num_classes + 44, rows // k, columns // k, generator=generator)
        for k in (1, 2, 4)
    ]
    found_BCN = decode(logits, num_classes=num_classes)
    assert found_BCN.shape == (2, 4 + num_classes, 96 + 24 + 6)
    n = 0
    for stride, map_BCHW in zip(STRIDES, logits, strict=True):
        for y in range(map_BCHW.shape[2]):
            for x in range(map_BCHW.shape[3]):
                cell_C = map_BCHW[1, :, y, x].double()
                left, top, right, bottom = (
                    stride * sum(k * p for k, p in enumerate(side.softmax(0).tolist()))
                    for side in cell_C[num_classes:].view(4, 11)
                )
                cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                wanted = [cx + (right - left) / 2, cy + (bottom - top) / 2]
                wanted += [left + right, top + bottom, *cell_C[:num_classes].sigmoid().tolist()]
                np.testing.assert_allclose(found_BCN[1, :, n].numpy(), wanted, rtol=1e-5, atol=1e-5)
                n += 1


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        pytest.param(576, 768, (320, 416), id="4:3"),
        pytest.param(1080, 1920, (256, 416), id="16:9"),
        pytest.param(1920, 1080, (416, 256), id="portrait"),
        pytest.param(416, 416, (416, 416), id="square"),
        pytest.param(8, 4000, (32, 416), id="a strip"),
    ],
)
def test_the_input_takes_the_shape_of_the_pictures(height: int, width: int, wanted) -> None:
    assert input_size(height, width, longer_side=416) == wanted


def test_pictures_of_any_shape_are_seen(detector: NanoDetDetector) -> None:
    """One after the other, so that nothing is kept of the shape before."""
    for height, width in ((48, 64), (90, 40), (48, 64)):
        (found,) = detector.detect(_noise_frame(height, width))
        assert len(found.score_K) > 0 and found.class_K.max() < len(detector.names) == 80
        assert (found.corners_K4 >= 0).all() and (found.corners_K4 <= 1).all()
    assert (detector.settings.image_height, detector.settings.image_width) == (64, 64)


def test_a_mirrored_picture_has_mirrored_boxes(detector: NanoDetDetector) -> None:
    """As published it sees other things in it, and then the sound is not the mirrored one."""
    x_BCHW = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for is_symmetric in (True, False):
        network = NanoDetDetector(SETTINGS, detector.model, is_symmetric=is_symmetric)
        with torch.no_grad():
            plain_BCN, other_BCN = network(x_BCHW), network(x_BCHW.flip(3))
        other_BCN[:, 0] = 96 - other_BCN[:, 0]
        grids = other_BCN.split([8 * 12, 4 * 6, 2 * 3], dim=2)
        back = [
            grid.unflatten(2, (64 // stride, -1)).flip(3).flatten(2)
            for stride, grid in zip(STRIDES, grids, strict=True)
        ]
        is_mirrored = torch.allclose(torch.cat(back, dim=2), plain_BCN, atol=1e-3)
        assert is_mirrored == is_symmetric


@pytest.mark.skipif(not has_openvino(), reason="needs OpenVINO")
def test_the_compiled_network_finds_the_same_in_every_shape(detector: NanoDetDetector) -> None:
    compiled = NanoDetDetector(SETTINGS, detector.model)
    compiled.optimize()
    for height, width in ((48, 96), (64, 64), (48, 96)):
        frame_BHWC = _noise_frame(height, width)
        (plain,), (fast,) = detector.detect(frame_BHWC), compiled.detect(frame_BHWC)
        np.testing.assert_allclose(fast.corners_K4, plain.corners_K4, atol=1e-4)
        np.testing.assert_allclose(fast.score_K, plain.score_K, atol=1e-5)
        with compiled.uncompiled():
            (slow,) = compiled.detect(frame_BHWC)
        np.testing.assert_array_equal(slow.class_K, plain.class_K)


def test_without_weights_one_line_says_how_to_get_them(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError, match="not on this machine.*spatial-v2a detectors get nanodet"):
        load_detector("nanodet")
    with pytest.raises(UserError, match="detector 'nano' is unknown"):
        load_detector("nano")


def test_damaged_weights_are_refused(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = weights_path(NANODET.name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\0" * 64)
    with pytest.raises(UserError, match="cannot read .*get it again"):
        load_detector("nanodet")


def _road_signs() -> np.ndarray:
    """A stop sign and a traffic light, drawn: uint8 RGB [416, 416, 3]."""
    y, x = np.mgrid[:416, :416].astype(np.float64)
    picture = np.empty((416, 416, 3))
    picture[:] = (120, 160, 200)
    picture[y > 300] = (90, 110, 70)
    u, v = abs(x - 110), abs(y - 120)
    octagon = np.maximum(np.maximum(u, v), (u + v) / 2**0.5)
    picture[(u < 4) & (y > 150) & (y < 330)] = 110
    picture[octagon < 62] = 240
    picture[octagon < 56] = (190, 20, 30)
    picture[(v < 14) & (u < 44) & ((x - 66) % 22 < 14)] = 240
    picture[(abs(x - 300) < 5) & (y > 200) & (y < 330)] = 60
    picture[(abs(x - 300) < 26) & (abs(y - 130) < 70)] = 25
    for row, colour in ((86, (230, 40, 30)), (130, (60, 50, 20)), (174, (20, 60, 30))):
        picture[np.hypot(x - 300, y - row) < 17] = colour
    return picture.astype(np.uint8)


@pytest.mark.skipif(
    not is_present(NANODET), reason="needs the weights: spatial-v2a detectors get nanodet"
)
def test_published_weights_find_what_tensorflow_js_finds() -> None:
    """Expected boxes are those of the published graph itself, run by TensorFlow.js 4."""
    model = NanoDet()
    load_weights(NANODET, model)
    detector = NanoDetDetector(NANODET_FULL, model)
    (found,) = detector.detect(torch.from_numpy(_road_signs())[None])
    assert [detector.names[index] for index in found.class_K] == ["stop sign", "traffic light"]
    np.testing.assert_allclose(found.score_K, [0.69264, 0.38086], atol=2e-5)
    wanted_K4 = [[0.11447, 0.14103, 0.41308, 0.44144], [0.64688, 0.14255, 0.79668, 0.48361]]
    np.testing.assert_allclose(found.corners_K4, wanted_K4, atol=2e-5)
