"""Who looks at a video: the checkpoint's own detector, or one that knows things of any world.

The bundled detector knows one game. In that game it is sure of what it sees in most pictures; in
any other video hardly ever, where a detector of everyday objects is. So a dozen pictures decide.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray

from spatial_v2a.concepts import Concept, SoundMap
from spatial_v2a.conditioning.bundle import STREAMS, Perception
from spatial_v2a.conditioning.detections import BoxDetector
from spatial_v2a.conditioning.published_weights import NANODET, weights_path
from spatial_v2a.conditioning.sounding import as_concepts
from spatial_v2a.conditioning.video import VideoSource, display_matrix, to_rgb
from spatial_v2a.conditioning.video_scan import open_input, picture_stream
from spatial_v2a.conditioning.vocabulary import AUTO, STAGE
from spatial_v2a.errors import UserError
from spatial_v2a.perception_config import PerceptionConfig
from spatial_v2a.timing import TIMING

log = logging.getLogger(__name__)

# Ten looks a second: between them the tracker moves the boxes on.
LOOK_EVERY_TICKS = TIMING.tick_hz // 10
# What `auto` takes in other worlds.
GENERAL = NANODET.name
NUM_PICTURES = 12
# Up to a picture that is wanted so many are decoded from the key picture before it.
MAX_DECODED = 300
# A detector is sure of a picture whose best box has this score. In its own game YOLO11 has it in
# 75 % of the pictures, in others in 0 to 5 %; NanoDet in 9 % of that game's, and 95 to 100 %.
SURE_SCORE, GENERAL_SURE_SCORE = 0.65, 0.5


@dataclass
class Perceptions:
    """The perception of every video: loads what is asked for once.

    Args:
        folder: of the checkpoint.
        config: its settings.
        detector: auto, stage (the checkpoint's own), or the name of a general one.
        overrides: what things sound like (`parse_sounds`).
        streams: which of dino, depth and boxes to load.
        device: where the encoders run.
        detector_weights: the user's own, for the checkpoint's own detector.
        is_live: a general detector takes a smaller picture, to keep up with a camera.

    Raises:
        UserError: an unknown detector, or one whose weights are not on this machine.
    """

    folder: Path
    config: PerceptionConfig
    detector: str = AUTO
    overrides: Mapping[str, Concept | None] | None = None
    streams: tuple[str, ...] = STREAMS
    device: torch.device | str = "cpu"
    detector_weights: Path | None = None
    is_live: bool = False
    _loaded: dict[str, Perception] = field(default_factory=dict)
    _choices: dict[VideoSource, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.detector_weights is not None and self.detector == AUTO:
            # Who brings weights has chosen.
            self.detector = STAGE
        if self.detector_weights is not None:
            if self.detector not in (AUTO, STAGE):
                raise UserError(
                    f"--detector-weights is for the checkpoint's own detector, not for"
                    f" {self.detector}; leave one of them out"
                )
            self.detector = STAGE
        if self.detector not in (AUTO, STAGE):
            self.named(self.detector)
        elif self.overrides and self.detector == STAGE:
            raise UserError("--sound is for things that a general detector names; add --detector")

    def named(self, name: str) -> Perception:
        """Perception with the detector of that name, stage being the checkpoint's own."""
        if name not in self._loaded:
            # The hub's library takes half a second to import.
            from spatial_v2a.conditioning.general_detectors import load_detector

            general = None if name == STAGE else load_detector(name, is_live=self.is_live)
            if general is not None:
                update = {"every_ticks": LOOK_EVERY_TICKS}
                general.settings = general.settings.model_copy(update=update)
            self._loaded[name] = Perception.from_checkpoint(
                self.folder,
                self.config,
                streams=self.streams,
                device=self.device,
                general=general,
                overrides=self.overrides,
                detector_weights=self.detector_weights,
            )
        return self._loaded[name]

    @property
    def default(self) -> Perception:
        """Perception where no video decides: `auto` takes the checkpoint's own detector."""
        return self.named(STAGE if self.detector == AUTO else self.detector)

    def of(self, source: VideoSource | None) -> Perception:
        """The perception of a video; `auto` says what it chose.

        Pictures that are no file (None) are of the world: there `auto` takes the general detector
        where its weights are on this machine.
        """
        return self.named(self._choice(source))

    def name_of(self, source: VideoSource | None) -> str:
        """The name of the detector that looks at a video: yolo or rtdetr for a checkpoint's own."""
        name = self._choice(source)
        return self.config.boxes_from if name == STAGE else name

    def _choice(self, source: VideoSource | None) -> str:
        if self.detector != AUTO:
            return self.detector
        if source is None:
            is_general = self._knows_sounds and weights_path(GENERAL).is_file()
            return GENERAL if is_general else STAGE
        if source not in self._choices:
            # One video at a time: what was chosen for others is not asked for again.
            self._choices = {source: self._chosen(source)}
        return self._choices[source]

    @property
    def _knows_sounds(self) -> bool:
        """Whether the generator knows the sounding classes, so that another detector fits it."""
        return "boxes" in self.streams and self.config.boxes.vocabulary == "stage"

    def _chosen(self, source: VideoSource) -> str:
        if not self._knows_sounds:
            return STAGE
        own = self.named(STAGE)
        pictures = list(spread_pictures(source, max_width=own.max_image_width))
        own_share = _sure_share(own.detector, pictures, SURE_SCORE)
        if own_share > 0.5:
            return STAGE
        if not weights_path(GENERAL).is_file():
            log.warning(
                "%s: hardly anything that the bundled detector knows (sure of %d of %d pictures);"
                " a detector of everyday objects may: spatial-v2a detectors get %s",
                source.path, round(own_share * len(pictures)), len(pictures), GENERAL,
            )  # fmt: skip
            return STAGE
        general = self.named(GENERAL)
        general_share = _sure_share(
            general.detector, pictures, GENERAL_SURE_SCORE, sounds=general.sounds
        )
        name = GENERAL if general_share > own_share else STAGE
        # No warning, but who dubs without a flag must be told.
        log.warning(
            "%s: detector %s (sure of %d of %d pictures, the checkpoint's own of %d)",
            source.path, name, round(general_share * len(pictures)), len(pictures),
            round(own_share * len(pictures)),
        )  # fmt: skip
        return name


def spread_pictures(
    source: VideoSource, *, num_pictures: int = NUM_PICTURES, max_width: int
) -> Iterator[NDArray]:
    """A few pictures spread over a video, uint8 RGB [H, W, 3]; fewer where it is damaged."""
    start_s, duration_s = source.extent.start_s, source.duration
    try:
        with open_input(source.path) as container:
            stream = picture_stream(container, source.path)
            matrix = None
            for number in range(num_pictures):
                time_s = start_s + duration_s * (2 * number + 1) / (2 * num_pictures)
                container.seek(int(time_s / stream.time_base), stream=stream)
                frame = _frame_at(container, stream, float(time_s))
                if frame is None:
                    return
                if number == 0:
                    matrix = display_matrix(frame)
                yield to_rgb(frame, matrix=matrix, max_width=max_width)
    except av.error.FFmpegError as error:
        log.debug("%s: looked at fewer pictures: %s", source.path, error)


def _frame_at(container, stream, time_s: float) -> av.VideoFrame | None:
    """The first decoded frame that is not before a time, or the last of MAX_DECODED."""
    frame = None
    for number, frame in enumerate(container.decode(stream)):
        if frame.time is None or frame.time >= time_s or number >= MAX_DECODED:
            break
    return frame


def _sure_share(
    detector: BoxDetector | None,
    pictures: list[NDArray],
    needed: float,
    *,
    sounds: SoundMap | None = None,
) -> float:
    """Share of pictures in which a detector is sure of a thing that sounds."""
    if detector is None or not pictures:
        return 0.0
    num_sure = 0
    for image_HWC in pictures:
        (found,) = detector.detect(torch.from_numpy(np.ascontiguousarray(image_HWC))[None])
        if sounds is not None:
            found = as_concepts(found, sounds)
        num_sure += bool((found.score_K >= needed).any())
    return num_sure / len(pictures)
