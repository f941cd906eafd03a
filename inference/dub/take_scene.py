"""What the picture says about its sound, noted once for all takes: motion, boxes, thumbnails.

Legend: H, W, C picture rows, columns, colours; T ticks, B noted boxes, K box slots, F box fields,
E energies (left^2, right^2, product). Bearings in degrees, POSITIVE TO THE LEFT.
"""

from array import array

import numpy as np
from PIL import Image

from spatial_v2a.audio.panning import law_azimuth_deg, law_level_difference_db, pan_gains
from spatial_v2a.audio.stereo import pan_curve
from spatial_v2a.features import BOX_FIELDS, FrameFeatures

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
