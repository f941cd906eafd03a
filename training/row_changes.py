"""What is done to a training row: cut to another scene, an object found late, an object lost.

A recording shows its object from the first to the last moment that it can be seen, and sounds
throughout; a detector finds it late and loses it, and people cut.

Legend: T ticks, D latent width, K box slots, F box fields.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spatial_v2a.features import BOX_FIELDS, MAX_AGE_S, FrameFeatures
from spatial_v2a.timing import TIMING

AGE = BOX_FIELDS.index("age")

# Features [1, T] and latents [T, D] of a stretch of a clip.
Row = tuple[FrameFeatures, Tensor]


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

    What was seen last is held for `persistence_ticks` as `TrackPersistence` does, but not
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
