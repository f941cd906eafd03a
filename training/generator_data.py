"""Batches for the generator: latents of the audio and what perception saw, ready in memory.

Every clip is held as its latents and one or more views of its picture: the engine's geometry made
imperfect (training.degrade), and detected features where a feature store has them. A batch mixes
views and mirrors half of its rows (picture flipped, odd latents negated).

A recording shows its object from the first to the last moment that it can be seen, and sounds
throughout; a detector finds it late and loses it, and people cut: some rows are changed so.

Legend: B sequences, T ticks, D latent width, K box slots, F box fields.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from spatial_v2a.bounded import read_arrays
from spatial_v2a.clip import Clip
from spatial_v2a.conditioning.annotations import clip_features, clip_slides
from spatial_v2a.conditioning.store import FeatureStore
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS, MAX_AGE_S, FrameFeatures, mirror_features
from spatial_v2a.files import written_whole
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.autoencoder import mirror_latents
from spatial_v2a.timing import TIMING
from spatial_v2a.training.degrade import Degrader
from spatial_v2a.training.shards import ShardIndex, read_sound

log = logging.getLogger(__name__)

SLIDES_NAME = "slides.npz"
MADE_BY = "__autoencoder__"  # entry of the latents' cache: which autoencoder made them
SILENT_DISTANCE = 0.4  # from the latent of silence, root mean square over dimensions
TIMED_SCENARIOS = ("third-person",)  # the picture tells when it sounds: a walker's stride
AGE = BOX_FIELDS.index("age")

# Features [1, T] and latents [T, D] of a stretch of a clip.
Row = tuple[FrameFeatures, Tensor]


@dataclass
class View:
    """One look at a clip's picture: features [1, T], and where a crop of it may open, [T] bool.

    A crop opens where the clip is silent or the view shows an object. A stream that opened on an
    empty picture and any sound would learn to open on any sound.
    """

    features: FrameFeatures
    opens_T: Tensor


@dataclass
class TrainingClip:
    """One clip in memory: latents [T, D], views of its picture, whether that tells the moments."""

    latents_TD: Tensor
    given: list[View]
    detected: View | None
    is_timed: bool


def half(features: FrameFeatures) -> FrameFeatures:
    """Floating tensors as 16-bit; patches that are absent throughout as one zero, shown often."""
    small = features.map(lambda x: x.half() if x.is_floating_point() else x)
    if features.has_dino_BT.any():
        return small
    nothing = small.dino_BTND.new_zeros(()).expand(small.dino_BTND.shape)
    return replace(small, dino_BTND=nothing)


@torch.no_grad()
def encode_clips(model: SpatialV2A, index: ShardIndex, cache: Path) -> dict[str, Tensor]:
    """Normalised posterior means [T, D] of every clip, kept in `cache` (npz) for the next start.

    A cache of another autoencoder is not used.
    """

    def encode(key: str) -> np.ndarray:
        audio_BCL = torch.from_numpy(read_sound(index, key)).float().div(32768).T.unsqueeze(0)
        return model.normalize(model.autoencoder.encode(audio_BCL).mean_BTD)[0].half().numpy()

    made_by = {MADE_BY: np.array(autoencoder_digest(model))}
    known = _cached(index, "audio.flac", cache, encode, "encoding audio", made_by)
    return {key: torch.from_numpy(latents_TD) for key, latents_TD in known.items()}


def read_slides(index: ShardIndex, cache: Path) -> dict[str, np.ndarray]:
    """How far the picture of every clip slid in every tick [T], kept in `cache` (npz)."""

    def read(key: str) -> np.ndarray:
        clip = Clip(key, {name: index.read(key, name) for name in ("json", "frames.npz")})
        return np.array(clip_slides(clip), np.float32)

    return _cached(index, "frames.npz", cache, read, "reading turns", {})


def _cached(
    index: ShardIndex,
    part: str,
    cache: Path,
    make: Callable[[str], np.ndarray],
    description: str,
    made_by: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """What `make` says of every clip, from `cache` where it is there and was `made_by` the same.

    An entry is named after its clip and the size of the part that it is made from: a recording made
    again has the keys of the one before.
    """
    kept = read_arrays(cache, where=str(cache)) if cache.exists() else {}
    if any(name not in kept or str(kept[name]) != str(value) for name, value in made_by.items()):
        kept = {}
    entries = {key: f"{key}@{index.parts[key][part].num_bytes}" for key in index.keys}
    missing = [key for key in index.keys if entries[key] not in kept]
    for key in track(missing, description=description, disable=not missing):
        kept[entries[key]] = make(key)
    if missing:
        # A killed process leaves no half-written one.
        with written_whole(cache, overwrite=True) as draft:
            np.savez(draft, **(kept | made_by))
    return {key: kept[entry] for key, entry in entries.items()}


def autoencoder_digest(model: SpatialV2A) -> str:
    """Hash of everything that decides a latent: encoder weights and latent statistics."""
    digest = hashlib.sha256()
    tensors = {f"encoder.{k}": v for k, v in model.autoencoder.encoder.state_dict().items()}
    tensors |= {"mean": model.latent_mean_D, "std": model.latent_std_D}
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]


class GeneratorData:
    """All clips of some shard folders.

    Args:
        index: the clips; None where all are simulated.
        model: its autoencoder makes the latents, its config says what perception looks like.
        cache: file that keeps the latents; how far the pictures slid is kept next to it.
        store: feature store with detected features, or None for given geometry only.
        detected_share: share of the rows drawn from the clips that have detected features.
        num_given_views: differently degraded views of the engine's geometry kept per clip.
        clip_start_share: share of the crops that begin where their clip begins.
        scene_cut_share: share of the rows in which one clip is cut to another.
        late_box_share: share of the rows that are silent and without boxes until some box is seen.
        lost_box_share: share of the rows whose boxes go while the sound stays.
        simulated: gives a simulated clip (`training/tracks`) from a generator's state and a step;
            None where all come from the shards.
        simulated_share: share of the rows that it gives; all of them where there are no shards.

    Raises:
        UserError: neither shards nor simulated clips, or the store has no clip of the shards.
    """

    def __init__(
        self,
        index: ShardIndex | None,
        model: SpatialV2A,
        *,
        cache: Path,
        store: FeatureStore | None,
        detected_share: float,
        num_given_views: int,
        clip_start_share: float = 0.0,
        scene_cut_share: float = 0.0,
        late_box_share: float = 0.0,
        lost_box_share: float = 0.0,
        simulated: Callable[[np.random.Generator, int], TrainingClip] | None = None,
        simulated_share: float = 0.0,
    ) -> None:
        if index is None and simulated is None:
            raise UserError(
                "nothing to train on; give --data, or set training.diffusion.tracks_share"
            )
        self._simulated = simulated
        self._simulated_share = 1.0 if index is None else simulated_share
        self.clip_start_share = clip_start_share
        self.scene_cut_share = scene_cut_share
        self.late_box_share = late_box_share
        self.lost_box_share = lost_box_share
        self.persistence_ticks = round(model.config.perception.persistence_s * TIMING.tick_hz)
        self.detected_share = detected_share
        self.grid_width = model.config.perception.shapes.grid_width
        self.num_odd_latents = model.config.autoencoder.num_odd_latents
        self.silence_D = silent_latent(model)
        self.clips: list[TrainingClip] = []
        self.seen: list[TrainingClip] = []
        if index is None:
            return
        latents = encode_clips(model, index, cache)
        slides = read_slides(index, cache.with_name(SLIDES_NAME))
        classes = torch.from_numpy(model.config.perception.stage_classes)
        for key in track(index.keys, description="reading geometry"):
            distance_T = (latents[key].float() - self.silence_D).square().mean(-1).sqrt()
            silent_T = distance_T < SILENT_DISTANCE
            knows_boxes = bool(index.meta(key)["sources"]) or bool(silent_T.all())
            given = _given_views(index, key, model, num_given_views, slides[key])
            detected = store.load(key) if store and store.has(key) else None
            if detected is not None:
                detected = replace(detected, class_BTK=classes[detected.class_BTK.long()])
            self.clips.append(
                TrainingClip(
                    latents_TD=latents[key],
                    given=[view_of(features, silent_T, knows_boxes) for features in given],
                    detected=view_of(detected, silent_T, knows_boxes) if detected else None,
                    is_timed=index.meta(key)["scenario"] in TIMED_SCENARIOS,
                )
            )
        self.seen = [clip for clip in self.clips if clip.detected is not None]
        log.info("%d clips, %d with detected features", len(self.clips), len(self.seen))
        if detected_share > 0 and store is not None and not self.seen:
            raise UserError(
                f"feature store {store.folder} has none of the {len(self.clips)} clips; fill it "
                "with spatial-v2a-train extract"
            )

    def batch(
        self, rng: np.random.Generator, batch_size: int, crop_ticks: int, *, step: int = 0
    ) -> dict[str, Tensor]:
        """Random crops as a flat dictionary: every field of FrameFeatures, and what is heard.

        `step` says which simulated clips there are.

        `latents_BTD` is that, `is_timed_B` says where the picture tells the moments of it.
        """
        rows, is_timed = zip(
            *(self._row(rng, crop_ticks, step) for _ in range(batch_size)), strict=True
        )
        batch = {
            name: torch.cat([vars(features)[name] for features, _ in rows])
            for name in vars(rows[0][0])
        }
        batch["latents_BTD"] = torch.stack([latents for _, latents in rows])
        batch["is_timed_B"] = torch.tensor(is_timed)
        return {k: v.float() if v.is_floating_point() else v for k, v in batch.items()}

    def _row(self, rng: np.random.Generator, crop_ticks: int, step: int) -> tuple[Row, bool]:
        """A crop, or one whose object is found late or lost, or the beginnings of two."""
        first, is_timed = self._crop(rng, crop_ticks, step)
        if self.late_box_share > 0 and rng.random() < self.late_box_share:
            return begin_late(first, self.silence_D, rng), is_timed
        if self.lost_box_share > 0 and rng.random() < self.lost_box_share:
            return lose_boxes(first, rng, persistence_ticks=self.persistence_ticks), is_timed
        if self.scene_cut_share == 0 or rng.random() >= self.scene_cut_share:
            return first, is_timed
        cut = int(rng.integers(crop_ticks // 4, 3 * crop_ticks // 4 + 1))
        second, is_second_timed = self._crop(rng, crop_ticks, step)
        return join_scenes(first, second, cut), is_timed and is_second_timed

    def _crop(self, rng: np.random.Generator, crop_ticks: int, step: int) -> tuple[Row, bool]:
        """Some ticks of a clip, and whether its picture tells the moments of its sound."""
        is_detected = False
        if self._simulated is not None and rng.random() < self._simulated_share:
            clip = self._simulated(rng, step)
        else:
            is_detected = bool(self.seen) and rng.random() < self.detected_share
            pool = self.seen if is_detected else self.clips
            clip = pool[rng.integers(len(pool))]
        view = clip.detected if is_detected else clip.given[rng.integers(len(clip.given))]
        num_ticks = len(clip.latents_TD)
        if num_ticks < crop_ticks:
            raise UserError(
                f"crop_ticks {crop_ticks} exceeds a clip of {num_ticks} ticks; lower crop_ticks "
                "or record longer clips"
            )
        allowed_T = view.opens_T[: num_ticks - crop_ticks + 1]
        start = first_tick(rng, allowed_T, clip_start_share=self.clip_start_share)
        features = view.features.map(lambda x: x[:, start : start + crop_ticks])
        latents_TD = clip.latents_TD[start : start + crop_ticks]
        if rng.random() < 0.5:
            features = mirror_features(features, grid_width=self.grid_width)
            latents_TD = mirror_latents(latents_TD, self.num_odd_latents)
        return (features, latents_TD), clip.is_timed


@torch.no_grad()
def silent_latent(model: SpatialV2A) -> Tensor:
    """Normalised latent [D] of lasting digital silence."""
    silence_BCL = torch.zeros(1, model.timing.num_channels, 8 * model.timing.samples_per_tick)
    return model.normalize(model.autoencoder.encode(silence_BCL).mean_BTD)[0, -2]


def first_tick(rng: np.random.Generator, opens_T: Tensor, *, clip_start_share: float) -> int:
    """Where a crop begins, among the ticks where it may open (any tick if there is none).

    Args:
        rng: decides.
        opens_T: True where a crop may open.
        clip_start_share: share of the crops that take the first such tick.
    """
    allowed = opens_T.nonzero().flatten()
    if len(allowed) == 0:
        return int(rng.integers(len(opens_T)))
    if rng.random() < clip_start_share:
        return int(allowed[0])
    return int(allowed[rng.integers(len(allowed))])


def view_of(features: FrameFeatures, silent_T: Tensor, knows_boxes: bool) -> View:
    """A view to train on; where sounds have no boxes in truth, its boxes count as not looked for.

    Monsters and doors of the game itself sound but are no class of the detector: "no box" with
    their sound would teach that an empty picture sounds.
    """
    if not knows_boxes:
        features = features.without("boxes")
    shows_object_T = features.box_mask_BTK[0].any(-1) & features.has_boxes_BT[0]
    return View(half(features), silent_T | shows_object_T)


def _given_views(
    index: ShardIndex, key: str, model: SpatialV2A, num_views: int, slides_T: np.ndarray
) -> Iterator[FrameFeatures]:
    """Differently degraded views of a clip's engine geometry; the first one is exact."""
    parts = {name: index.read(key, name) for name in ("json", "depth.npz")}
    clip = Clip(key, parts)
    for view in range(num_views):
        seed = int.from_bytes(key.encode()[-8:], "little") + view
        degrade = Degrader(model.config.perception, np.random.default_rng(seed)) if view else None
        yield clip_features(clip, model.config.perception, degrade=degrade, slides_T=slides_T)


def join_scenes(before: Row, after: Row, cut: int) -> Row:
    """Features [1, T] and latents [T, D]: `before` for `cut` ticks, then `after` from its start."""
    rest = len(after[1]) - cut
    features = {
        name: torch.cat((seen[:, :cut], vars(after[0])[name][:, :rest]), dim=1)
        for name, seen in vars(before[0]).items()
    }
    return FrameFeatures(**features), torch.cat((before[1][:cut], after[1][:rest]))


def begin_late(row: Row, silence_D: Tensor, rng: np.random.Generator) -> Row:
    """Features [1, T] and latents [T, D] of an object that is found late: silence until then.

    In a recording what is seen late has sounded before, so its sound is in the history; a model
    that has been silent for want of a box must learn to begin all the same. A row stays as it is
    where no box is seen in the middle two thirds.
    """
    features, latents_TD = row
    num_ticks = len(latents_TD)
    begin = _tick_with_box(features, rng, num_ticks // 6, 5 * num_ticks // 6)
    if begin is None:
        return row
    mask_BTK, boxes_BTKF = features.box_mask_BTK.clone(), features.boxes_BTKF.clone()
    mask_BTK[:, :begin] = False
    _begin_age(boxes_BTKF, begin)
    latents_TD = latents_TD.clone()
    latents_TD[:begin] = silence_D.to(latents_TD)
    return replace(features, box_mask_BTK=mask_BTK, boxes_BTKF=boxes_BTKF), latents_TD


def lose_boxes(row: Row, rng: np.random.Generator, *, persistence_ticks: int) -> Row:
    """Features [1, T] and latents [T, D] of a row whose boxes go early while the sound stays.

    What was seen last is held for `persistence_ticks` as `conditioning.persistence` does, but not
    moved to an edge, then nothing has a box: to the end in half of the rows, in the others for a
    random time from then on. A row stays as it is where no box is seen in the second to third
    sixth.
    """
    features, latents_TD = row
    num_ticks = len(latents_TD)
    last = _tick_with_box(features, rng, num_ticks // 6, num_ticks // 2)
    if last is None:
        return row
    gone = min(last + 1 + persistence_ticks, num_ticks)
    back = num_ticks
    if rng.random() < 0.5:
        back = int(rng.integers(min(gone + 1, num_ticks), num_ticks + 1))
    mask_BTK, boxes_BTKF = features.box_mask_BTK.clone(), features.boxes_BTKF.clone()
    class_BTK = features.class_BTK.clone()
    held = slice(last + 1, gone)
    for tensor in (mask_BTK, boxes_BTKF, class_BTK):
        tensor[:, held] = tensor[:, last : last + 1]
    mask_BTK[:, gone:back] = False
    age_BTK = boxes_BTKF[..., AGE]
    unseen_s_T = torch.arange(1, gone - last).to(age_BTK) / TIMING.tick_hz
    age_BTK[:, held] = (age_BTK[:, held] + unseen_s_T[:, None]).clamp_max(MAX_AGE_S)
    _begin_age(boxes_BTKF, back)
    changed = {"box_mask_BTK": mask_BTK, "boxes_BTKF": boxes_BTKF, "class_BTK": class_BTK}
    return replace(features, **changed), latents_TD


def _tick_with_box(
    features: FrameFeatures, rng: np.random.Generator, first: int, end: int
) -> int | None:
    """One of the ticks from `first` to before `end` in which some box is seen, if there is one."""
    shows_T = features.box_mask_BTK[0].any(-1) & features.has_boxes_BT[0]
    ticks = shows_T[first:end].nonzero().flatten() + first
    return int(ticks[rng.integers(len(ticks))]) if len(ticks) else None


def _begin_age(boxes_BTKF: Tensor, begin: int) -> None:
    """Lets the age of the boxes from tick `begin` on count from there at most, in place."""
    age_BTK = boxes_BTKF[:, begin:, :, AGE]
    known_s_T = torch.arange(age_BTK.shape[1]).to(age_BTK) / TIMING.tick_hz
    age_BTK.clamp_(max=known_s_T[None, :, None])
