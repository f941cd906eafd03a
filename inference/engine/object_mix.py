"""Hears several objects apart: while two are in view, the sum of what each sounds like alone.

One stream that hears two objects draws both sounds to a place between them. So beside the stream
that hears everything there is one for each object, and while two or more have a box their plain sum
is heard in its place. Between the two the sound crossfades. The stream of an object gets the whole
picture and the box of its object only (`allocator.py`). All streams draw from one noise, so that an
object alone sounds as it does beside others.

    mix = ObjectMix(Engine(model, num_streams=4, streams_per_noise=4))
    audio_LC = mix.step(features, boxes).mix_NLC[0]

Legend: K box slots, S object streams, N takes, B = N (1 + S) streams, L samples, C audio channels,
    D latent width.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from spatial_v2a.conditioning.boxes import Box, slots_of
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.engine.allocator import (
    FADE_TICKS,
    LINGER_TICKS,
    Allocation,
    Allocator,
    Part,
)
from spatial_v2a.inference.engine.engine import Engine

# How several objects are heard: each by a stream of its own, or all by one.
Objects = Literal["apart", "together"]
DEFAULT_OBJECTS: Objects = "apart"
# More than three sounding objects in view are rare, and every stream costs.
NUM_OBJECT_STREAMS = 3


@dataclass(frozen=True)
class Heard:
    """The sound of a tick.

    Attributes:
        mix_NLC: of every take, float32.
        objects_SLC: of the first take, whether heard or not.
        weight_SL: how much of an object stream is its objects' own: all while it is not summed, and
            then as much as is heard.
        begun: which object streams begin to play which objects.
    """

    mix_NLC: np.ndarray
    objects_SLC: np.ndarray
    weight_SL: np.ndarray
    begun: list[Part]

    @property
    def alone_SLC(self) -> np.ndarray:
        """What each object stream's objects sound like in the first take."""
        return self.objects_SLC * self.weight_SL[..., None]


@dataclass(frozen=True)
class Assigned:
    """The streams in one tick.

    Attributes:
        features: what each sees, [B, 1].
        fresh_B: those that begin anew, bool [B].
        num_objects: how many objects have a box.
        allocation: who hears which of them.
    """

    features: FrameFeatures
    fresh_B: Tensor
    num_objects: int
    allocation: Allocation


class ObjectStreams:
    """Says what each stream sees, tick by tick.

    Args:
        num_object_streams: S; with as many as box slots hardly an object shares its stream. 0
            leaves the stream that hears everything.
    """

    def __init__(self, num_object_streams: int) -> None:
        self.num_object_streams = num_object_streams
        self._allocator = Allocator(num_object_streams)

    def assign(self, features: FrameFeatures, boxes: tuple[Box, ...]) -> Assigned:
        """What the streams see in a tick.

        Args:
            features: of the whole tick, [1, 1].
            boxes: the tick's boxes, in the order in which `features` was made of them.
        """
        num_slots = features.box_mask_BTK.shape[-1]
        in_slots = [boxes[i] for i in slots_of(boxes, num_slots)]
        slot_of = {box.track_id: slot for slot, box in enumerate(in_slots)}
        allocation = self._allocator.step({box.track_id: box.w * box.h for box in in_slots})
        mask_BK = torch.zeros(1 + self.num_object_streams, num_slots, dtype=torch.bool)
        mask_BK[0] = features.box_mask_BTK[0, 0]
        for object_stream, objects in enumerate(allocation.objects_S, start=1):
            mask_BK[object_stream, [slot_of[track_id] for track_id in objects]] = True
        return Assigned(
            features=_with_boxes(features, mask_BK),
            fresh_B=torch.tensor([False, *allocation.fresh_S]),
            num_objects=len(slot_of),
            allocation=allocation,
        )


def _with_boxes(features: FrameFeatures, mask_BK: Tensor) -> FrameFeatures:
    """One stream's tick [1, 1] for B streams, each with some of its boxes."""
    batch = features.expand(len(mask_BK))
    return replace(
        batch,
        boxes_BTKF=batch.boxes_BTKF * mask_BK[:, None, :, None],
        class_BTK=batch.class_BTK * mask_BK[:, None],
        box_mask_BTK=mask_BK[:, None],
    )


class ObjectMix:
    """Makes sound of one tick after another, from the beginning of an engine.

    Args:
        engine: as if it were new, with 1 + S streams for every take that share their noise; the
            first of them hears everything.
        num_takes: N.
        is_apart: whether the object streams are summed at all; if not, they play for themselves.
            Without any, everything is heard together.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        num_takes: int = 1,
        is_apart: bool = True,
    ) -> None:
        assert engine.num_streams % num_takes == 0
        num_object_streams = engine.num_streams // num_takes - 1
        self.engine, self._object_streams = engine, ObjectStreams(num_object_streams)
        self._num_takes = num_takes
        self._is_apart = is_apart and num_object_streams > 0
        num_samples = engine.samples_per_tick
        self._sum_gain = _Ramps(1, num_samples)
        self._solo_gain = _Ramps(num_object_streams, num_samples)
        self._levels = _Levels(1 + num_object_streams, num_samples)
        self._ticks_since_two: int | None = None

    def step(self, features: FrameFeatures, boxes: tuple[Box, ...]) -> Heard:
        """Hears one tick.

        Args:
            features: perception of the tick, [1, 1].
            boxes: its boxes, in the order in which `features` was made of them.
        """
        seen = self._assign(features, boxes)
        audio_BLC = self.engine.step(self._for_all(seen)).numpy()
        audio_NTLC = audio_BLC.reshape(self._num_takes, -1, *audio_BLC.shape[1:])
        audio_NTLC = self._levels.apply(audio_NTLC, boxes, seen.allocation.objects_S)
        sum_L, solo_SL = self._gains(seen)
        owned_S1 = np.array(seen.allocation.owned_S, bool)[:, None]
        return Heard(
            mix_NLC=_mixed(audio_NTLC, sum_L, solo_SL),
            objects_SLC=audio_NTLC[0, 1:],
            weight_SL=(1 - sum_L) * owned_S1 + sum_L * solo_SL,
            begun=seen.allocation.begun,
        )

    def follow(self, features: FrameFeatures, boxes: tuple[Box, ...], x_D: Tensor) -> None:
        """Takes a tick of the mix that stands already into the history, of one take only.

        An object stream whose object is alone in the picture has made that sound; what the others
        have made of it is not known, so that they draw it anew.

        Args:
            features, boxes: as for `step`.
            x_D: normalised latent of the sound, without the engine's widening of the pan.
        """
        assert self._num_takes == 1
        seen = self._assign(features, boxes)
        sum_L, _ = self._gains(seen)
        is_alone = seen.num_objects == 1 and not sum_L.any()
        follows_B = torch.tensor([True, *(is_alone and bool(o) for o in seen.allocation.objects_S)])
        x_BD = x_D.expand(self.engine.num_streams, -1)
        self.engine.follow(seen.features, x_BD, None if bool(follows_B.all()) else follows_B)

    def restart_noise(self) -> None:
        """Begins the noise anew; the history stays."""
        self.engine.restart_noise()

    def _assign(self, features: FrameFeatures, boxes: tuple[Box, ...]) -> Assigned:
        """Who hears what in a tick; streams that change hands begin anew."""
        seen = self._object_streams.assign(features, boxes)
        if seen.fresh_B.any():
            self.engine.reset(seen.fresh_B.repeat(self._num_takes))
        if seen.num_objects > 1:
            self._ticks_since_two = 0
        elif self._ticks_since_two is not None:
            self._ticks_since_two += 1
        return seen

    def _for_all(self, seen: Assigned) -> FrameFeatures:
        """The features of a take's streams for those of all takes."""
        if self._num_takes == 1:
            return seen.features
        return seen.features.map(lambda x: x.repeat(self._num_takes, *[1] * (x.dim() - 1)))

    def _gains(self, seen: Assigned) -> tuple[np.ndarray, np.ndarray]:
        """Share of the sum [L] in a tick, and the gain of every object stream in it [S, L]."""
        since = self._ticks_since_two
        is_sum = self._is_apart and since is not None and since <= LINGER_TICKS
        sum_1L = self._sum_gain.step(np.array([is_sum]))
        # A stream that begins anew begins with silence: it needs no fade.
        fresh_S = np.array(seen.allocation.fresh_S, bool)
        solo_SL = self._solo_gain.step(np.array(seen.allocation.plays_S, bool), jumps_N=fresh_S)
        return sum_1L[0], solo_SL


class _Ramps:
    """Gains that go between 0 and 1 in straight lines of FADE_TICKS; the first tick has none.

    Args:
        num_gains: N.
        num_samples: of a tick.
    """

    def __init__(self, num_gains: int, num_samples: int) -> None:
        self._rise_L = np.arange(1, num_samples + 1)
        self._num_fade = FADE_TICKS * num_samples
        # In samples of a rise, so that ends are reached exactly.
        self._place_N = np.zeros(num_gains, int)
        self._is_first = True

    def step(self, target_N: np.ndarray, *, jumps_N: np.ndarray | None = None) -> np.ndarray:
        """Gains [N, L] of a tick on their way to where they are to be (bool: 1 or 0).

        Args:
            target_N: where to.
            jumps_N: those that are there at once.
        """
        if self._is_first:
            jumps_N, self._is_first = np.ones(len(target_N), bool), False
        if jumps_N is not None:
            self._place_N[jumps_N] = self._num_fade * target_N[jumps_N]
        way_NL = np.where(target_N[:, None], self._rise_L, -self._rise_L)
        place_NL = np.clip(self._place_N[:, None] + way_NL, 0, self._num_fade)
        self._place_N = place_NL[:, -1]
        return (place_NL / self._num_fade).astype(np.float32)


class _Levels:
    """Brings every stream to the level of its nearest object (`Box.gain_db`), in straight lines.

    Args:
        num_streams: T, the one that hears everything first.
        num_samples: of a tick.
    """

    def __init__(self, num_streams: int, num_samples: int) -> None:
        self._gain_T = np.ones(num_streams)
        self._way_L = np.arange(1, num_samples + 1) / num_samples

    def apply(
        self, audio_NTLC: np.ndarray, boxes: tuple[Box, ...], objects_S: list[set[int]]
    ) -> np.ndarray:
        """The sound at its level; the very same where no box says anything about that.

        Args:
            audio_NTLC: of every take and stream.
            boxes: of the tick.
            objects_S: ids of the objects of every stream but the first.
        """
        gain_of = {box.track_id: 10 ** (box.gain_db / 20) for box in boxes}
        before_T, now_T = self._gain_T, self._gain_T.copy()
        for stream, objects in enumerate([set(gain_of), *objects_S]):
            # Who has no object keeps the level at which its last one dies away.
            now_T[stream] = max((gain_of[i] for i in objects & set(gain_of)), default=now_T[stream])
        self._gain_T = now_T
        if (before_T == 1.0).all() and (now_T == 1.0).all():
            return audio_NTLC
        gain_TL = before_T[:, None] + (now_T - before_T)[:, None] * self._way_L
        return (audio_NTLC * gain_TL[None, :, :, None]).astype(audio_NTLC.dtype)


def _mixed(audio_NTLC: np.ndarray, sum_L: np.ndarray, solo_SL: np.ndarray) -> np.ndarray:
    """The mix [N, L, C] of what every take's 1 + S streams sound like."""
    if not sum_L.any():
        return audio_NTLC[:, 0]
    weight_TL = np.concatenate([1 - sum_L[None], sum_L * solo_SL])
    heard_T = weight_TL.any(axis=1)
    return (audio_NTLC[:, heard_T] * weight_TL[heard_T, :, None]).sum(axis=1)
