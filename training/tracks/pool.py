"""Simulated clips as the generator trains on them: made when drawn, kept for a while, never stored.

Legend: T ticks, D latent width.
"""

import numpy as np
import torch

from spatial_v2a.model import SpatialV2A
from spatial_v2a.training.generator_data import (
    SILENT_DISTANCE,
    TrainingClip,
    silent_latent,
    view_of,
)
from spatial_v2a.training.sounds.crops import RollingPool
from spatial_v2a.training.tracks.simulate import SimulatedTracks


class TrackClips:
    """Clips of an endless collection with their latents.

    Args:
        tracks: the collection.
        model: its autoencoder makes the latents.
        num_clips: how many are there to draw from at any step.
        fresh: how many of them are new every step.
    """

    def __init__(
        self, tracks: SimulatedTracks, model: SpatialV2A, *, num_clips: int, fresh: float
    ) -> None:
        self._tracks = tracks
        self._model = model
        self._silence_D = silent_latent(model)
        self._pool = RollingPool(self.training_clip, size=num_clips, fresh=fresh)

    def draw(self, rng: np.random.Generator, step: int) -> TrainingClip:
        """One clip of those of a step; a pure function of the generator's state and the step."""
        return self._pool.draw(rng, step)

    @torch.no_grad()
    def training_clip(self, index: int) -> TrainingClip:
        """Latents and features of the clip of an index."""
        clip = self._tracks.clip(index)
        audio_BCL = torch.from_numpy(clip.audio_LC.T.copy()).unsqueeze(0)
        mean_BTD = self._model.autoencoder.encode(audio_BCL).mean_BTD
        latents_TD = self._model.normalize(mean_BTD)[0]
        distance_T = (latents_TD - self._silence_D).square().mean(-1).sqrt()
        view = view_of(clip.features, distance_T < SILENT_DISTANCE, knows_boxes=True)
        return TrainingClip(latents_TD.half(), [view], detected=None, is_timed=clip.is_timed)
