"""Settings of the generator's losses; the losses themselves are in training/objectives.py."""

from pydantic import Field

from spatial_v2a.models.conditioner import CueDropout
from spatial_v2a.strict import Count, Share, StrictConfig


class DiffusionObjectiveConfig(StrictConfig):
    """Denoising loss with a spoilt history.

    Attributes:
        p_mean, p_std: ln sigma ~ N(p_mean, p_std^2), for latents of unit variance (EDM's -1.2
            for sigma_data 0.5 is -0.5 here).
        num_draws: noise levels per item; the condition is shared between them.
        max_history_noise: a sequence's history gets noise of a level uniform in [0, this].
        drop_latent: chance that a single past latent is replaced by the null embedding.
        drop_history: chance that all past latents of a sequence are.
        shift_history: chance that the past latents of a sequence whose picture tells when it sounds
            (a walker's stride) are out of step with that: rotated by a random number of ticks.
            They still say what it sounds like, but no longer when.
        odd_weight: weight of the error of an odd dimension against that of an even one.
        streams: chances of losing perception streams.
    """

    p_mean: float = -0.5
    p_std: float = Field(default=1.2, gt=0)
    num_draws: Count = 4
    max_history_noise: float = Field(default=0.5, ge=0)
    drop_latent: Share = 0.15
    drop_history: Share = 0.1
    shift_history: Share = 0.0
    odd_weight: float = Field(default=1.0, gt=0)
    streams: CueDropout = CueDropout()


class ConsistencyObjectiveConfig(DiffusionObjectiveConfig):
    """Consistency tuning on top of the same spoilt history.

    Attributes:
        num_stages: steps in which the two noise levels approach each other.
        q: base of the approach; the distance shrinks by q per stage.
        huber: c of the pseudo-Huber distance, times the square root of the latent width.
    """

    # ECT's -1.1 and 2.0 for sigma_data 0.5, moved to unit variance.
    p_mean: float = -0.4
    p_std: float = Field(default=2.0, gt=0)
    num_draws: Count = 2
    num_stages: Count = 6
    q: float = Field(default=4.0, gt=1)
    huber: float = Field(default=0.03, gt=0)
