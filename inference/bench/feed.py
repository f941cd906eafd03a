"""The pictures of a run: a 480p video made for it, decoded as the product decodes, B at once.

Legend: B streams, H W picture rows and columns, C colours.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import numpy as np
import torch
from torch import Tensor

from spatial_v2a.conditioning.video import VideoSource, open_video, write_video
from spatial_v2a.errors import UserError
from spatial_v2a.timing import TIMING

HEIGHT, WIDTH = 480, 854
# A longer run plays it again.
MAX_MADE_S = 20


def moving_pictures(num_ticks: int) -> Iterator[np.ndarray]:
    """Yields uint8 RGB [480, 854, 3]: a textured ground that pans, and shapes that cross it."""
    random = np.random.default_rng(0)
    coarse = random.integers(40, 180, (HEIGHT // 12, WIDTH // 7, 3), dtype=np.uint8)
    ground = coarse.repeat(12, axis=0).repeat(7, axis=1)
    for tick in range(num_ticks):
        image = np.roll(ground, 2 * tick, axis=1)
        for shape in range(4):
            size = 50 + 30 * shape
            left = int((0.5 + 0.45 * np.sin(tick / (11 + 7 * shape) + shape)) * (WIDTH - size))
            top = 40 + 80 * shape
            image[top : top + size, left : left + size] = 255 - 60 * shape, 70 * shape, 128
        yield image


@contextmanager
def made_video(*, seconds: float) -> Iterator[VideoSource]:
    """A video in a temporary file, at least 2 and at most 20 seconds long.

    Raises:
        UserError: no temporary file can be written.
    """
    num_ticks = int(min(MAX_MADE_S, max(2.0, seconds)) * TIMING.tick_hz)
    with TemporaryDirectory(prefix="spatial-v2a-bench-") as folder:
        path = Path(folder) / "moving.mp4"
        try:
            write_video(path, moving_pictures(num_ticks), TIMING.tick_hz)
        except (av.error.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot make a video in {folder} ({reason}); give --video") from error
        yield open_video(path)


class Feed:
    """Pictures of B decoders over one video.

    Args:
        source: the video.
        num_streams: B.
        max_width: frames are scaled down to it, as when dubbing.
    """

    def __init__(self, source: VideoSource, *, num_streams: int, max_width: int) -> None:
        self._source, self._max_width = source, max_width
        self._decoders: list[Iterator[np.ndarray]] = []
        self._num_streams, self._num_left = num_streams, 0

    def prepare(self) -> None:
        """Starts the video anew where it has ended; call before a tick, outside its time.

        The first picture is dropped: opening a file belongs to no tick.
        """
        if self._num_left:
            return
        self.close()
        self._decoders = [
            self._source.ticks(max_width=self._max_width) for _ in range(self._num_streams)
        ]
        self._num_left = self._source.num_ticks
        if self._num_left > 1:
            self.read()

    def read(self) -> Tensor:
        """The next picture of every stream, uint8 [B, H, W, C]."""
        self._num_left -= 1
        images = [next(decoder) for decoder in self._decoders]
        if len(images) == 1:
            return torch.from_numpy(images[0])[None]
        return torch.from_numpy(np.stack(images))

    def close(self) -> None:
        """Closes the decoders."""
        for decoder in self._decoders:
            decoder.close()
        self._decoders = []
