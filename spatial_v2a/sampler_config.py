"""Settings of the head's sampler: the mathematics its weights were trained for, and its noise."""

from typing import Literal, Self

from pydantic import Field, model_validator

from spatial_v2a.strict import StrictConfig


class SamplerConfig(StrictConfig):
    """How one latent is drawn from the head.

    Attributes:
        kind: `diffusion` (a deterministic ODE solver) or `consistency` (few-step, after tuning).
        solver: of the diffusion kind. `heun` is more accurate in many evaluations, `euler` in few
            (below about ten; docs/notes/decisions.md has the measurement).
        nfe: evaluations of the head per latent when the caller names no other number.
        guidance: weight of everything seen when the caller names no other; 1 is plain sampling.
        guides_pan: whether `guidance` also moves the odd dimensions (the pan). A condition that
            is pushed beyond what was trained names the sound more surely and places it worse, so
            the odd dimensions may be taken from the plain condition instead.
        sigma_min, sigma_max: noise range in units of the normalised latent.
        odd_noise: scale of the noise that the odd dimensions (the pan) start from. Below 1 the side
            follows the picture rather than the dice; 1 samples the trained distribution.
        max_radius: longest vector of even noise, in units of its expected length; longer draws are
            shortened to it, None leaves them. Rare long draws start a sound where nothing is.
        is_symmetric: the picture is also seen mirrored, and both answers are averaged after turning
            the second one back (frame averaging, 2110.03336): with odd_noise 0 the mirrored
            picture then gives exactly the swapped channels. Twice the rows, no second pass.
        pan_gain: widens the odd dimensions of what is drawn. An answer that averages over what may
            be lies nearer the middle than what is; chosen by the azimuth error on validation clips.
        pan_curve: how much more that widens what lies far to a side: odd dimensions of root mean
            square r (normalised) are widened by pan_gain + pan_curve r^2 (`audio/panning.py`).
        rho: curvature of the noise schedule (Karras et al. 2022, equation 5).
    """

    kind: Literal["diffusion", "consistency"] = "diffusion"
    solver: Literal["heun", "euler"] = "heun"
    nfe: int = Field(default=15, ge=1, le=256)
    guidance: float = Field(default=1.0, ge=0, le=20)
    guides_pan: bool = True
    sigma_min: float = Field(default=0.002, ge=1e-6, le=1000)
    sigma_max: float = Field(default=80.0, ge=1e-6, le=1000)
    odd_noise: float = Field(default=1.0, ge=0, le=10)
    max_radius: float | None = Field(default=None, ge=1e-3, le=1000)
    is_symmetric: bool = False
    pan_gain: float = Field(default=1.0, ge=0, le=4)
    pan_curve: float = Field(default=0.0, ge=0, le=1)
    rho: float = Field(default=7.0, ge=0.1, le=100)

    @model_validator(mode="after")
    def _levels_descend(self) -> Self:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min {self.sigma_min:g} is not below sigma_max {self.sigma_max:g}; lower it"
            )
        return self
