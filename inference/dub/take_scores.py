"""Scores takes against their scene - sync, direction, artefacts - and ranks them.

Legend: H, W, C picture rows, columns, colours; T ticks, B noted boxes, K box slots, F box fields,
E energies (left^2, right^2, product), G shifts from -MAX_SHIFT_TICKS to MAX_SHIFT_TICKS, positive
when sound is late. Bearings in degrees, POSITIVE TO THE LEFT.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from spatial_v2a.audio.panning import law_azimuth_deg, law_level_difference_db, pan_gains
from spatial_v2a.audio.stereo import pan_curve
from spatial_v2a.features import BOX_FIELDS, FrameFeatures
from spatial_v2a.inference.dub.take_meter import TakeMeter
from spatial_v2a.timing import TIMING

# Motion is measured on pictures this small: film grain averages out, a step of a walker does not.
GREY_SIZE = (40, 30)
# A cut to another scene would otherwise be the only motion of a video.
MOTION_PERCENTILE = 99.0
# Weaker boxes are guesses, as in the pan picture.
MIN_SCORE = 0.3

THUMBNAIL_WIDTH = 128
# Between half of this and this many are kept, whatever the length turns out to be.
MAX_THUMBNAILS = 16

BOX_NOTES = ("tick", "slot", "class", "bearing_deg", "area", "score")


class SceneNotes:
    """Notes the picture tick by tick: 4 bytes a tick, 24 a box and at most 16 thumbnails.

    Attributes:
        thumbnails: (tick, small RGB picture), evenly spread.
    """

    def __init__(self) -> None:
        self.thumbnails: list[tuple[int, np.ndarray]] = []
        self._motion, self._boxes = array("f"), array("f")
        self._last_HW: np.ndarray | None = None
        self._stride = 1

    def add(self, image_HWC: np.ndarray, features: FrameFeatures) -> None:
        """Notes one tick.

        Args:
            image_HWC: picture, RGB uint8, of any size.
            features: its perception, [1, 1] leading; without boxes none are noted.
        """
        image = Image.fromarray(image_HWC)
        small = image.resize(GREY_SIZE, Image.Resampling.BOX).convert("L")
        grey_HW = np.asarray(small, dtype=np.float32)
        tick = len(self._motion)
        moved = 0.0 if self._last_HW is None else np.abs(grey_HW - self._last_HW).mean()
        self._motion.append(float(moved))
        self._last_HW = grey_HW
        self._note_boxes(tick, features)
        self._note_thumbnail(tick, image)

    @property
    def num_ticks(self) -> int:
        """Ticks noted so far."""
        return len(self._motion)

    @property
    def motion_T(self) -> np.ndarray:
        """Mean absolute change of each picture from the one before, grey levels of 255 [T]."""
        motion_T = np.array(self._motion)
        if len(motion_T) == 0:
            return motion_T
        return np.minimum(motion_T, np.percentile(motion_T, MOTION_PERCENTILE))

    @property
    def boxes_BF(self) -> np.ndarray:
        """All noted boxes, columns as in BOX_NOTES; the area is a fraction of the picture."""
        return np.array(self._boxes).reshape(-1, len(BOX_NOTES))

    @property
    def has_box_T(self) -> np.ndarray:
        """Ticks with a box."""
        has_box_T = np.zeros(self.num_ticks, bool)
        has_box_T[self.boxes_BF[:, 0].astype(int)] = True
        return has_box_T

    @property
    def bearing_deg_T(self) -> np.ndarray:
        """Bearing at which the sound of the boxes should be heard [T]; NaN without a box.

        The panning law puts a lone box at its bearing. Of several, nobody knows which one sounds:
        each adds its energies by its area, as the power of a source and the area of its picture
        both fall with the square of its distance. The result goes through the very smoothing and
        clipping of a sound's pan curve, so that both can be compared.
        """
        tick_B = self.boxes_BF[:, BOX_NOTES.index("tick")].astype(int)
        area_B = self.boxes_BF[:, BOX_NOTES.index("area")]
        bearing_B = self.boxes_BF[:, BOX_NOTES.index("bearing_deg")]
        gains_BC = pan_gains(law_level_difference_db(bearing_B))
        energies_TE, area_T = np.zeros((self.num_ticks, 3)), np.zeros(self.num_ticks)
        np.add.at(energies_TE[:, :2], tick_B, gains_BC**2 * area_B[:, None])
        np.add.at(area_T, tick_B, area_B)
        has_box_T = area_T > 0
        energies_TE[has_box_T] /= area_T[has_box_T, None]
        return np.where(has_box_T, law_azimuth_deg(pan_curve(energies_TE)), np.nan)

    def _note_boxes(self, tick: int, features: FrameFeatures) -> None:
        if not bool(features.has_boxes_BT[0, 0]):
            return
        fields_KF = features.boxes_BTKF[0, 0].float().cpu().numpy()
        class_K = features.class_BTK[0, 0].cpu().numpy()
        field = {name: fields_KF[:, index] for index, name in enumerate(BOX_FIELDS)}
        is_sure_K = features.box_mask_BTK[0, 0].cpu().numpy() & (field["score"] >= MIN_SCORE)
        for slot in np.flatnonzero(is_sure_K):
            bearing_deg = np.degrees(field["azimuth"][slot])
            area = max(field["w"][slot] * field["h"][slot], 1e-6)
            values = (tick, slot, class_K[slot], bearing_deg, area, field["score"][slot])
            self._boxes.extend(float(value) for value in values)

    def _note_thumbnail(self, tick: int, image: Image.Image) -> None:
        """Keeps every 2^k-th picture, with k growing as the video turns out longer."""
        if tick % self._stride:
            return
        if len(self.thumbnails) == MAX_THUMBNAILS:
            self.thumbnails = self.thumbnails[::2]
            self._stride *= 2
        if tick % self._stride:
            return
        height = max(1, round(THUMBNAIL_WIDTH * image.height / image.width))
        small = image.resize((THUMBNAIL_WIDTH, height), Image.Resampling.BOX)
        self.thumbnails.append((tick, np.asarray(small)))


MAX_SHIFT_TICKS = TIMING.tick_hz
# Sound up to 45 ms early and 125 ms late passes unnoticed (ITU-R BT.1359): -1 .. 3 ticks.
EARLIEST_TICKS, LATEST_TICKS = -1, 3
# Shifts that are compared with: clearly out of time.
MIN_FAR_TICKS = 6
# Fewer shared ticks make wild correlations.
MIN_SHARED_TICKS = TIMING.tick_hz
# Both ends of a change: 0.1 s before and after.
SPEED_TICKS = 3


def shifted_correlation(picture_T: np.ndarray, sound_T: np.ndarray) -> np.ndarray:
    """Pearson's r of two curves with holes (NaN) at every shift of the sound [G].

    0 where too little is shared or a curve does not move: no agreement.
    """
    shifts = range(-MAX_SHIFT_TICKS, MAX_SHIFT_TICKS + 1)
    return np.array([_correlation(*_overlap(picture_T, sound_T, shift)) for shift in shifts])


def contrast(r_G: np.ndarray) -> float:
    """Agreement in time minus the mean agreement out of time; 0 for what is unrelated.

    In time is the best of the shifts that pass unnoticed; every other shift gets the best of as
    many neighbours, so that chance has no advantage.
    """
    width = LATEST_TICKS - EARLIEST_TICKS + 1
    best_G = np.lib.stride_tricks.sliding_window_view(r_G, width).max(axis=-1)
    shift_G = np.arange(len(best_G)) - MAX_SHIFT_TICKS - EARLIEST_TICKS
    return float(best_G[shift_G == 0][0] - best_G[np.abs(shift_G) >= MIN_FAR_TICKS].mean())


def speed(curve_T: np.ndarray) -> np.ndarray:
    """Absolute change over 2 SPEED_TICKS around each tick [T]; NaN at the ends and beside holes.

    Without its sign it does not know left from right: swapped channels stay in time.
    """
    speed_T = np.full(len(curve_T), np.nan)
    reach = SPEED_TICKS
    if len(curve_T) > 2 * reach:
        speed_T[reach:-reach] = np.abs(curve_T[2 * reach :] - curve_T[: -2 * reach])
    return speed_T


def _overlap(x_T: np.ndarray, y_T: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    length = min(len(x_T), len(y_T))
    first, last = max(0, -shift), length - max(0, shift)
    if last <= first:
        return x_T[:0], y_T[:0]
    return x_T[first:last], y_T[first + shift : last + shift]


def _correlation(x_T: np.ndarray, y_T: np.ndarray) -> float:
    is_shared_T = ~np.isnan(x_T) & ~np.isnan(y_T)
    if is_shared_T.sum() < MIN_SHARED_TICKS:
        return 0.0
    x, y = x_T[is_shared_T], y_T[is_shared_T]
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale > 1e-9 else 0.0


# Less motion than this, standard deviation in grey levels of 255, is a still picture.
STILL_GREY = 0.25
# A box whose bearing never changes by this much within 0.2 s does not move.
STILL_DEG = 1.0
# Curves that agree less than this even at their best shift name no shift: it would be chance.
MIN_AGREEMENT = 0.3
# Fewer ticks with a box, half a second, say nothing about direction.
MIN_BOX_TICKS = TIMING.tick_hz // 2
# As near to the box as makes no difference; also what keeps a source straight ahead defined.
TOLERANCE_DEG = 5.0
# One damaged tick in twenty halves the score.
HALF_DAMAGED_SHARE = 0.05
# Barks, bells and crows pause for up to 0.4 s in 40 game sounds; silence that lasts longer than
# this beside a box is a missing sound.
MISSING_TICKS = TIMING.tick_hz


@dataclass(frozen=True)
class TakeScore:
    """Three scores of one take, 0 (bad) to 1 (good), and the figures behind them.

    Whether sync or direction can be told depends on the scene alone: None for one take is None
    for all of them.

    Attributes:
        sync: 0.5 is what an unrelated sound gets; None when nothing moves.
        direction: 1 on the boxes, 0.5 in the middle, 0 mirrored; None without boxes.
        artefacts: 1 without a fault; None without sound.
        onset_contrast: correlation of onsets and motion, in time minus out of time; None when
            the picture stands still.
        movement_contrast: the same of how fast pan and boxes move; None when no box moves.
        shift_ms: shift of the sound at which both together agree most, up to a second; positive
            is late; None where they agree nowhere.
        pan_correlation: of the bearing heard and the boxes' bearing; None where undefined.
        pan_error_deg: mean absolute difference of the two.
        num_heard_ticks: ticks with a box and audible sound, on which direction rests.
        num_clicks, num_clipped_samples, num_cuts: faults, see take_meter.py.
        damaged_share: share of the ticks with one of them.
        silent_share: share of the ticks below SILENT_DBFS.
        missing_share: share of the ticks in over a second of silence beside a box.
    """

    sync: float | None
    direction: float | None
    artefacts: float | None
    onset_contrast: float | None
    movement_contrast: float | None
    shift_ms: float | None
    pan_correlation: float | None
    pan_error_deg: float | None
    num_heard_ticks: int
    num_clicks: int
    num_clipped_samples: int
    num_cuts: int
    damaged_share: float
    silent_share: float
    missing_share: float

    @property
    def total(self) -> float:
        """Plain mean of the scores that can be told; 0 when none can.

        A mean, so that each part moves the rank by as much as the takes differ in it. A product
        would let one zero hide all other differences.
        """
        told = [part for part in (self.sync, self.direction, self.artefacts) if part is not None]
        return float(np.mean(told)) if told else 0.0


def score_take(scene: SceneNotes, meter: TakeMeter) -> TakeScore:
    """Scores one take; a take that is silent throughout gets 0 for sync and for direction.

    Args:
        scene: the picture, all ticks.
        meter: the take, as many ticks (the shorter of the two counts).
    """
    count = min(scene.num_ticks, len(meter.is_audible_T))
    expected_T = scene.bearing_deg_T[:count]
    heard_T = heard_bearing_deg(meter)[:count]
    return TakeScore(
        **_sync(scene.motion_T[:count], expected_T, meter, heard_T),
        **_direction(expected_T, heard_T),
        **_artefacts(scene, meter, count),
    )


def rank_takes(scores: Sequence[TakeScore]) -> list[int]:
    """Indices of the takes by total, best first; equal ones keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index].total)


def heard_bearing_deg(meter: TakeMeter) -> np.ndarray:
    """Bearing from which the panning law would sound like this [T]; NaN where silent."""
    return law_azimuth_deg(pan_curve(meter.energies_TE))


def missing_ticks(scene: SceneNotes, meter: TakeMeter) -> np.ndarray:
    """True in stretches of over MISSING_TICKS ticks that are silent although a box is there [T]."""
    count = min(scene.num_ticks, len(meter.is_audible_T))
    is_empty_T = scene.has_box_T[:count] & ~meter.is_audible_T[:count]
    edges = np.flatnonzero(np.diff(is_empty_T.astype(np.int8), prepend=0, append=0))
    is_missing_T = np.zeros(count, bool)
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        is_missing_T[first:end] = end - first > MISSING_TICKS
    return is_missing_T


def _sync(
    motion_T: np.ndarray, expected_T: np.ndarray, meter: TakeMeter, heard_T: np.ndarray
) -> dict[str, float | None]:
    """Contrasts of onsets against motion and of moving pan against moving boxes: -1..1 to 0..1."""
    nothing = dict.fromkeys(("sync", "onset_contrast", "movement_contrast", "shift_ms"))
    curves = {}
    if len(motion_T) and motion_T.std() > STILL_GREY:
        onsets_T = meter.onsets.strength_db_T[: len(motion_T)]
        curves["onset_contrast"] = shifted_correlation(motion_T, onsets_T)
    moved_T = speed(expected_T)
    if np.nan_to_num(moved_T).max(initial=0.0) > STILL_DEG:
        curves["movement_contrast"] = shifted_correlation(moved_T, speed(heard_T))
    if not curves:
        return nothing
    together_G = sum(curves.values())
    found = {name: contrast(r_G) for name, r_G in curves.items()}
    is_silent = not meter.is_audible_T.any()
    sync = 0.0 if is_silent else float(np.clip((1 + sum(found.values())) / 2, 0.0, 1.0))
    shift_ms = None
    if together_G.max() >= MIN_AGREEMENT:
        shift_ms = 1000 / TIMING.tick_hz * (int(np.argmax(together_G)) - MAX_SHIFT_TICKS)
    return nothing | found | {"sync": sync, "shift_ms": shift_ms}


def _direction(expected_T: np.ndarray, heard_T: np.ndarray) -> dict[str, float | int | None]:
    """Concordance of both bearings (Lin 1989, Biometrics 45) about straight ahead, as 0..1.

    2 sum(e h) / (sum(e^2) + sum(h^2)) is 1 only when both are the same, 0 for mono and -1
    mirrored; about the mean it could not tell the side of a box that stands still.
    """
    has_box_T, is_used_T = ~np.isnan(expected_T), ~np.isnan(expected_T) & ~np.isnan(heard_T)
    expected, heard = expected_T[is_used_T], heard_T[is_used_T]
    found: dict[str, float | int | None] = dict.fromkeys(
        ("direction", "pan_correlation", "pan_error_deg")
    )
    found["num_heard_ticks"] = len(heard)
    if has_box_T.sum() < MIN_BOX_TICKS:
        return found
    if len(heard) == 0:
        return found | {"direction": 0.0}
    slack = TOLERANCE_DEG**2 * len(heard)
    shared = 2 * (expected * heard).sum() + slack
    concordance = shared / ((expected**2).sum() + (heard**2).sum() + slack)
    if expected.std() > 0 and heard.std() > 0:
        found["pan_correlation"] = float(np.corrcoef(expected, heard)[0, 1])
    found["pan_error_deg"] = float(np.abs(expected - heard).mean())
    return found | {"direction": float(np.clip((1 + concordance) / 2, 0.0, 1.0))}


def _artefacts(scene: SceneNotes, meter: TakeMeter, count: int) -> dict[str, float | int | None]:
    """Halved for every twentieth of damaged ticks, times the share that is not missing."""
    faults = meter.faults
    damaged = float(faults.is_damaged_T[:count].mean()) if count else 0.0
    missing = float(missing_ticks(scene, meter).mean()) if count else 0.0
    return {
        "artefacts": 0.5 ** (damaged / HALF_DAMAGED_SHARE) * (1.0 - missing) if count else None,
        "num_clicks": int(faults.clicks_T[:count].sum()),
        "num_clipped_samples": int(faults.clipped_T[:count].sum()),
        "num_cuts": int(faults.cuts_T[:count].sum()),
        "damaged_share": damaged,
        "silent_share": float(1.0 - meter.is_audible_T[:count].mean()) if count else 0.0,
        "missing_share": missing,
    }
