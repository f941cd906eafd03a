"""Which detector looks at a video: a dozen of its pictures decide, and the choice is said.

Legend: B pictures.
"""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.concepts import SoundMap, parse_sounds
from spatial_v2a.conditioning import detectors
from spatial_v2a.conditioning.detections import BoxDetector, Detections
from spatial_v2a.conditioning.detectors import Perceptions, spread_pictures
from spatial_v2a.conditioning.perception import Perception
from spatial_v2a.conditioning.video import VideoSource, open_video, write_video
from spatial_v2a.config import BoxSettings
from spatial_v2a.errors import UserError


class Sees(BoxDetector):
    """A detector that sees one thing, as sure as told, in every picture."""

    def __init__(self, names: tuple[str, ...], label: int, score: float) -> None:
        super().__init__(torch.nn.Identity())
        self.names, self.label, self.score = names, label, score
        self.settings = BoxSettings(image_height=64, image_width=64)

    def optimize(self) -> None:
        """It has no network to compile."""

    def detect(self, frames_BHWC: torch.Tensor) -> list[Detections]:
        corners = np.array([[0.2, 0.2, 0.4, 0.6]], np.float32)
        one = Detections(corners, np.array([self.score], np.float32), np.array([self.label]))
        return [one] * len(frames_BHWC)


@pytest.fixture
def video(tmp_path: Path) -> VideoSource:
    path = tmp_path / "play.mp4"
    write_video(path, [np.full((48, 64, 3), 3 * n, np.uint8) for n in range(60)], 30)
    return open_video(path)


def choice(config: Config, *, own: float, general: float, label: str = "person") -> Perceptions:
    """`auto` over two detectors that are so sure of what they see."""
    perception, names = config.perception, ("person", "tv")
    stage = Perception(perception, dino=None, depth=None, detector=Sees(("bell",), 0, own))
    other = Perception(
        perception,
        dino=None,
        depth=None,
        detector=Sees(names, names.index(label), general),
        sounds=SoundMap(names),
    )
    loaded = {detectors.STAGE: stage, detectors.GENERAL: other}
    return Perceptions(Path("unused"), perception, _loaded=loaded)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which the general detector's file lies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = detectors.weights_path(detectors.GENERAL)
    file.parent.mkdir(parents=True)
    file.touch()
    return file


@pytest.mark.parametrize(
    ("own", "general", "label", "chosen"),
    [
        pytest.param(0.9, 0.9, "person", "yolo", id="its own game"),
        pytest.param(0.3, 0.8, "person", "nanodet", id="another world"),
        pytest.param(0.3, 0.8, "tv", "nanodet", id="only silent things"),
        pytest.param(0.3, 0.3, "person", "nanodet", id="nothing sure"),
    ],
)
def test_the_surer_detector_is_chosen(
    tiny_config: Config, video: VideoSource, weights: Path, own: float, general: float, label: str,
    chosen: str, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    perceptions = choice(tiny_config, own=own, general=general, label=label)
    assert perceptions.name_of(video) == chosen
    perceptions.of(video)
    lines = [record.getMessage() for record in caplog.records]
    assert [f"{video.path}: detector" in line for line in lines] == [True] * (own < 0.5)


def test_without_the_weights_one_line_says_how_to_get_them(
    tiny_config: Config, video: VideoSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert choice(tiny_config, own=0.1, general=0.9).name_of(video) == "yolo"
    assert "spatial-v2a detectors get nanodet" in caplog.text
    assert len(caplog.records) == 1


def test_sounds_without_a_general_detector_are_refused(tiny_config: Config) -> None:
    with pytest.raises(UserError, match="--sound is for things that a general detector names"):
        Perceptions(
            Path("unused"), tiny_config.perception, detector="stage",
            overrides=parse_sounds("car=bell"),
        )  # fmt: skip


def test_the_pictures_are_spread_over_the_video(video: VideoSource) -> None:
    shades = [int(image.mean()) for image in spread_pictures(video, num_pictures=4, max_width=64)]
    assert shades == pytest.approx([3 * 7.5, 3 * 22.5, 3 * 37.5, 3 * 52.5], abs=6)


def test_a_picture_is_looked_at_once(tmp_path: Path) -> None:
    """Of a video of three pictures the same ones were looked at four times."""
    path = tmp_path / "short.mp4"
    write_video(path, np.zeros((3, 48, 64, 3), dtype=np.uint8), 30)
    assert len(list(spread_pictures(open_video(path), max_width=64))) == 3


def test_live_pictures_are_of_the_world(
    tiny_config: Config, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A camera shows no game; without the weights of the general detector it stays with the own."""
    perceptions = choice(tiny_config, own=0.9, general=0.1)
    assert perceptions.name_of(None) == "yolo", "a folder of pictures is not live"
    perceptions.is_live = True
    assert perceptions.name_of(None) == detectors.GENERAL
    assert perceptions.of(None).sounds is not None
    weights.unlink()
    assert perceptions.name_of(None) == "yolo"


def test_live_pictures_are_looked_at_smaller(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(name: str, *, is_live: bool) -> Sees:
        asked.append(is_live)
        return Sees(("person",), 0, 0.9)

    monkeypatch.setattr("spatial_v2a.conditioning.detectors.load_detector", load)
    for is_live in (False, True):
        Perceptions(
            Path("unused"),
            tiny_config.perception,
            detector="nanodet",
            cues=("boxes",),
            is_live=is_live,
        )
    assert asked == [False, True]
