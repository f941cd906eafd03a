"""From generated sound to the sound of the file: mixed, levelled, marked, its peaks held.

The original sound is dropped, kept, or kept with the generated one turned down under it. The mix
is made twice: once to measure it, once to write it, so that nothing of it is kept. Loudness by EBU
R 128: integrated loudness by ITU-R BS.1770-4, true peak of the oversampled signal, both by FFmpeg's
`ebur128`. Legend: L samples, C audio channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.filter import Graph
from pydantic import Field

from spatial_v2a.conditioning.video import VideoSource
from spatial_v2a.inference.dub.original_sound import OriginalTrack, track_pieces
from spatial_v2a.inference.marking.watermark import Watermarker
from spatial_v2a.strict import StrictConfig
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


# EBU R 128, recommendation (h): no programme above -1 dBTP.
MAX_TRUE_PEAK_DBTP = -1.0
# What the limiter aims at: resampling back from its rate overshoots a little.
LIMIT_DBTP = -2.0
OVERSAMPLING = 4
# `ebur128` measures in blocks of 100 ms.
BLOCK_SAMPLES = TIMING.sample_rate_hz // 10
# What `ebur128` says of silence.
SILENT_LUFS = -70.0


@dataclass(frozen=True)
class Loudness:
    """EBU R 128 figures of a whole sound.

    Attributes:
        integrated_lufs: gated loudness; -70 for silence.
        true_peak_dbtp: highest oversampled peak, dB relative to full scale.
    """

    integrated_lufs: float
    true_peak_dbtp: float

    @property
    def is_silent(self) -> bool:
        """Whether nothing passed the gate of -70 LUFS."""
        return self.integrated_lufs <= SILENT_LUFS


class LoudnessMeter:
    """Measures what streams by; memory does not grow."""

    def __init__(self) -> None:
        self._filter = SoundFilter(("ebur128", "peak=true:metadata=1:framelog=quiet"))
        self._loudest = 0.0
        self._num_samples = 0

    def add(self, audio_LC: np.ndarray) -> None:
        """Takes the next piece [L, 2]."""
        if len(audio_LC):
            self._loudest = max(self._loudest, float(np.abs(audio_LC).max()))
            self._num_samples += len(audio_LC)
            self._filter.push(audio_LC)

    def finish(self) -> Loudness:
        """Figures of all that was added."""
        # Silence completes the last block, or its peaks between samples would not be seen.
        missing = -self._num_samples % BLOCK_SAMPLES
        if missing:
            self._filter.push(np.zeros((missing, TIMING.num_channels), np.float32))
        self._filter.flush()
        told = self._filter.metadata
        peak = max(float(told.get("lavfi.r128.true_peak", 0.0)), self._loudest)
        return Loudness(
            integrated_lufs=max(float(told.get("lavfi.r128.I", SILENT_LUFS)), SILENT_LUFS),
            true_peak_dbtp=20 * math.log10(max(peak, 1e-6)),
        )


class Limiter:
    """Holds true peaks below -1 dBTP by turning down for some milliseconds around them.

    FFmpeg's look-ahead limiter at four times the rate, where the peaks between samples are seen;
    length and times stay.
    """

    def __init__(self) -> None:
        rate_hz = OVERSAMPLING * TIMING.sample_rate_hz
        limit = 10 ** (LIMIT_DBTP / 20)
        self._filter = SoundFilter(
            ("aresample", str(rate_hz)),
            ("alimiter", f"level=0:limit={limit:.6f}:attack=5:release=50:latency=1"),
            ("aresample", str(TIMING.sample_rate_hz)),
        )
        self._num_in = self._num_out = 0

    def push(self, audio_LC: np.ndarray) -> np.ndarray:
        """Takes a piece [L, 2] and returns what is ready [L', 2]."""
        self._num_in += len(audio_LC)
        return self._counted(self._filter.push(audio_LC))

    def flush(self) -> np.ndarray:
        """The rest; after it as many samples have come out as went in."""
        rest_LC = self._filter.flush()[: self._num_in - self._num_out]
        missing = self._num_in - self._num_out - len(rest_LC)
        return self._counted(np.pad(rest_LC, ((0, missing), (0, 0))))

    def _counted(self, audio_LC: np.ndarray) -> np.ndarray:
        self._num_out += len(audio_LC)
        return audio_LC


Original = Literal["drop", "keep", "duck"]

# The side chain: speech of -20 dBFS turns the generated sound down by about 12 dB, at once enough
# for the first syllable to be heard, and slowly enough afterwards not to pump between words.
DUCKING: Step = (
    "sidechaincompress",
    "threshold=0.015:ratio=2:attack=15:release=400:knee=4:detection=rms:link=maximum",
)


class MixSettings(StrictConfig):
    """How the generated sound and the original one become one.

    Attributes:
        original: leave the original sound out, keep it, or keep it and turn the generated sound
            down under it.
        original_gain, gain: of the original and of the generated sound, dB.
        loudness: EBU R 128 programme loudness of the result in LUFS; None leaves it as it is.
    """

    original: Original = "drop"
    original_gain: float = Field(default=0.0, ge=-60, le=24)
    gain: float = Field(default=0.0, ge=-60, le=40)
    loudness: float | None = Field(default=None, ge=-50, le=-5)


@dataclass(frozen=True)
class Extent:
    """Where the finished sound lies, in samples from the start of the picture.

    Attributes:
        start: its first sample; negative when the original sound begins before the picture.
        stop: one past its last sample.
    """

    start: int
    stop: int

    @property
    def num_samples(self) -> int:
        """Length of the sound."""
        return self.stop - self.start


def mix_extent(source: VideoSource, track: OriginalTrack | None) -> Extent:
    """The picture's extent, and that of the original sound where it is kept: none of it is lost."""
    if track is None:
        return Extent(0, source.num_samples)
    rate_hz = TIMING.sample_rate_hz
    starts, ends = ((t - source.extent.start_s) * rate_hz for t in (track.start_s, track.end_s))
    return Extent(min(0, round(starts)), max(source.num_samples, round(ends)))


def mixed_pieces(
    generated: Iterator[np.ndarray],
    settings: MixSettings,
    *,
    source: VideoSource,
    track: OriginalTrack | None,
    extent: Extent,
    generated_start: int = 0,
) -> Iterator[np.ndarray]:
    """The mix over `extent`, piece by piece.

    Args:
        generated: the generated sound in pieces of any length; what reaches past `extent` is cut,
            what is missing is silence.
        settings: gains and what happens to the original.
        source: the video.
        track: the original sound to mix in; None leaves it out.
        extent: from `mix_extent`, or the picture's alone.
        generated_start: sample at which the generated sound begins, not before `extent`.

    Yields:
        float32 [L, 2], at most a tick long.
    """
    gain = 10 ** (settings.gain / 20)
    ours = ticks_of(generated, extent, first=generated_start)
    if track is None:
        yield from (piece_LC if gain == 1 else gain * piece_LC for piece_LC in ours)
        return
    start_s = source.extent.start_s + Fraction(extent.start, TIMING.sample_rate_hz)
    theirs = track_pieces(track, start_s=start_s, num_samples=extent.num_samples)
    loud = np.float32(10 ** (settings.original_gain / 20))
    if settings.original == "keep":
        for our_LC, their_LC in zip(ours, theirs, strict=True):
            yield np.float32(gain) * our_LC + loud * their_LC
        return
    yield from _ducked(ours, theirs, np.float32(gain), loud)


def ticks_of(
    pieces: Iterator[np.ndarray], extent: Extent, *, first: int = 0
) -> Iterator[np.ndarray]:
    """Sound that begins at sample `first` in pieces of a tick over `extent`, else silence."""
    assert first >= extent.start, f"sound from {first} begins before {extent}"
    step, num_left = TIMING.samples_per_tick, extent.num_samples
    waiting_LC = np.zeros((first - extent.start, TIMING.num_channels), np.float32)
    while num_left > 0:
        while len(waiting_LC) < min(step, num_left):
            piece_LC = next(pieces, None)
            if piece_LC is None:
                piece_LC = np.zeros((step, TIMING.num_channels), np.float32)
            waiting_LC = np.concatenate([waiting_LC, piece_LC])
        length = min(step, num_left)
        yield waiting_LC[:length]
        waiting_LC = waiting_LC[length:]
        num_left -= length


def _ducked(
    ours: Iterator[np.ndarray], theirs: Iterator[np.ndarray], gain: np.float32, loud: np.float32
) -> Iterator[np.ndarray]:
    """Both summed, ours turned down where theirs is loud."""
    chain = SoundFilter(DUCKING, num_inputs=2)
    waiting_LC = np.zeros((0, TIMING.num_channels), np.float32)
    for our_LC, their_LC in zip(ours, theirs, strict=True):
        their_LC = loud * their_LC
        waiting_LC = np.concatenate([waiting_LC, their_LC])
        turned_LC = chain.push(gain * our_LC, their_LC)
        yield turned_LC + waiting_LC[: len(turned_LC)]
        waiting_LC = waiting_LC[len(turned_LC) :]
    rest_LC = chain.flush()[: len(waiting_LC)]
    missing = len(waiting_LC) - len(rest_LC)
    yield np.pad(rest_LC, ((0, missing), (0, 0))) + waiting_LC


Pieces = Iterator[np.ndarray]


@dataclass(frozen=True)
class Finish:
    """What is done to a mix, fixed before it is written.

    Attributes:
        gain_db: constant gain that brings it to the wanted loudness.
        is_limited: whether its peaks must be held.
        is_marked: whether the watermark goes in.
    """

    gain_db: float = 0.0
    is_limited: bool = False
    is_marked: bool = True

    def pieces(self, mix: Pieces, *, start_sample: int) -> Pieces:
        """The finished sound, as long as `mix`, in pieces of any length.

        Args:
            mix: float32 [L, 2] pieces.
            start_sample: where they begin, from the start of the picture.
        """
        gain = np.float32(10 ** (self.gain_db / 20))
        pieces = mix if self.gain_db == 0 else (gain * piece_LC for piece_LC in mix)
        if self.is_marked:
            pieces = _through(Watermarker(start_sample=start_sample), pieces)
        return _through(Limiter(), pieces) if self.is_limited else pieces


def plan_finish(
    make_mix: Callable[[], Pieces],
    *,
    start_sample: int,
    loudness: float | None,
    is_marked: bool,
    gain_db: float | None = None,
) -> Finish:
    """Measures a mix and says what it takes to reach a loudness with peaks below -1 dBTP.

    Args:
        make_mix: gives the mix anew, as often as it is called.
        start_sample: as in `Finish.pieces`.
        loudness: programme loudness to reach in LUFS; None leaves it.
        is_marked: whether the watermark goes in.
        gain_db: a gain that is fixed already, instead of `loudness`.
    """
    measured = measure(Finish(is_marked=is_marked).pieces(make_mix(), start_sample=start_sample))
    if gain_db is None:
        gain_db = 0.0
        if loudness is not None and not measured.is_silent:
            gain_db = loudness - measured.integrated_lufs
    is_limited = measured.true_peak_dbtp + gain_db > MAX_TRUE_PEAK_DBTP
    return Finish(gain_db=gain_db, is_limited=is_limited, is_marked=is_marked)


def measure(pieces: Pieces) -> Loudness:
    """Loudness and true peak of a whole sound."""
    meter = LoudnessMeter()
    for piece_LC in pieces:
        meter.add(piece_LC)
    return meter.finish()


def _through(stage: Limiter | Watermarker, pieces: Pieces) -> Pieces:
    for piece_LC in pieces:
        yield stage.push(piece_LC)
    yield stage.flush()
