"""Sound through FFmpeg's filters, piece by piece: numpy in, numpy out.

Legend: L samples, C audio channels (left, right).
"""

from fractions import Fraction

import av
import numpy as np
from av.filter import Graph

from spatial_v2a.timing import TIMING

# A filter and its options as FFmpeg writes them: ("volume", "volume=-6dB").
Step = tuple[str, str]
_TIME_BASE_S = Fraction(1, TIMING.sample_rate_hz)


class SoundFilter:
    """A chain of FFmpeg filters over stereo sound; the first one may take several inputs.

    Args:
        steps: filters in their order.
        num_inputs: sounds that the first filter takes, e.g. 2 for a side chain.
    """

    def __init__(self, *steps: Step, num_inputs: int = 1) -> None:
        self._graph = Graph()
        self._inputs = [
            self._graph.add_abuffer(
                sample_rate=TIMING.sample_rate_hz,
                format="flt",
                layout="stereo",
                time_base=_TIME_BASE_S,
                name=f"input{number}",
            )
            for number in range(num_inputs)
        ]
        last = self._graph.add(*steps[0])
        for place, source in enumerate(self._inputs):
            source.link_to(last, 0, place)
        # Whatever a filter prefers inside, float stereo at our rate comes out.
        rate = f"sample_fmts=flt:channel_layouts=stereo:sample_rates={TIMING.sample_rate_hz}"
        for step in (*steps[1:], ("aformat", rate)):
            following = self._graph.add(*step)
            last.link_to(following)
            last = following
        self._output = self._graph.add("abuffersink")
        last.link_to(self._output)
        self._graph.configure()
        self._num_pushed = 0
        self.metadata: dict[str, str] = {}

    def push(self, *pieces_LC: np.ndarray) -> np.ndarray:
        """Takes one piece [L, 2] per input, all of one length; returns what is ready, [L', 2]."""
        for source, piece_LC in zip(self._inputs, pieces_LC, strict=True):
            source.push(_frame(piece_LC, self._num_pushed))
        self._num_pushed += len(pieces_LC[0])
        return self._pull()

    def flush(self) -> np.ndarray:
        """Ends the inputs; returns what the filters still held [L', 2]."""
        for source in self._inputs:
            source.push(None)
        return self._pull()

    def _pull(self) -> np.ndarray:
        pieces = [np.zeros((0, TIMING.num_channels), np.float32)]
        while True:
            try:
                frame = self._output.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return np.concatenate(pieces)
            assert isinstance(frame, av.AudioFrame)
            # A filter measures in blocks of its own: a last, incomplete one says nothing.
            self.metadata = dict(frame.metadata) or self.metadata
            pieces.append(frame.to_ndarray().reshape(-1, TIMING.num_channels))


def _frame(piece_LC: np.ndarray, pts: int) -> av.AudioFrame:
    packed = np.ascontiguousarray(piece_LC, dtype=np.float32).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout="stereo")
    frame.sample_rate = TIMING.sample_rate_hz
    frame.time_base = _TIME_BASE_S
    frame.pts = pts
    return frame
