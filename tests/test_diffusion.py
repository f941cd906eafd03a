"""EDM and consistency mathematics against closed forms."""

import pytest
import torch

from spatial_v2a.config import SamplerConfig
from spatial_v2a.models.diffusion import (
    consistency_stage,
    consistency_weight,
    lognormal_sigma,
    loss_weight,
    nearer_sigma,
    precondition,
    pseudo_huber,
    uncertainty_weighted,
)
from spatial_v2a.models.samplers import (
    karras_sigmas,
    num_noises,
    plain_pan_denoise,
    sample,
    sample_consistency,
    sample_euler,
    sample_heun,
    sampler_sigmas,
    shape_noise,
    symmetric_denoise,
)

SIGMA = torch.tensor([0.0, 0.002, 0.5, 1.0, 80.0], dtype=torch.float64)


def test_preconditioning_gives_unit_variance_and_the_boundary():
    c_skip, c_out, c_in, c_noise = precondition(SIGMA, 1.0)
    assert torch.allclose(c_in.square() * (SIGMA.square() + 1), torch.ones(5).double())
    # Variance of the training target (x0 - c_skip x) / c_out is sigma_data^2 = 1 (eq. 125).
    target = ((1 - c_skip).square() + c_skip.square() * SIGMA.square())[1:] / c_out[1:].square()
    assert torch.allclose(target, torch.ones(4).double())
    assert c_skip[0] == 1 and c_out[0] == 0 and torch.isfinite(c_noise).all()
    assert torch.allclose(loss_weight(SIGMA[1:], 1.0), c_out[1:].square().reciprocal())


def test_lognormal_and_uncertainty():
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    logs = lognormal_sigma(normal, p_mean=-0.5, p_std=1.2).log()
    assert abs(logs.mean() + 0.5) < 0.03 and abs(logs.std() - 1.2) < 0.03
    error = torch.tensor(0.3)
    u = torch.tensor(0.3).log().requires_grad_()
    (grad,) = torch.autograd.grad(uncertainty_weighted(error, u), u)
    assert abs(grad) < 1e-6, "the best u is the log of the error"


def test_nearer_sigma_approaches_from_zero():
    t = torch.logspace(-3, 2, 50, dtype=torch.float64)
    gaps = [t - nearer_sigma(t, stage) for stage in range(8)]
    assert torch.equal(gaps[0][t < 0.3], t[t < 0.3]), "the first stage is plain denoising there"
    assert all((b <= a).all() and (b > 0).all() for a, b in zip(gaps, gaps[1:], strict=False))
    assert (gaps[-1] / t).max() < 0.001
    assert [consistency_stage(f, 4) for f in (0.0, 0.24, 0.25, 0.99, 1.0)] == [0, 0, 1, 3, 3]
    with pytest.raises(ValueError, match="fraction 1.5"):
        consistency_stage(1.5, 4)


def test_pseudo_huber_is_a_norm_far_out_and_square_near():
    far, near = torch.tensor([[300.0, 400.0]]), torch.tensor([[0.003, 0.004]])
    assert torch.allclose(pseudo_huber(far, 0.1), torch.tensor([499.9]), rtol=1e-5)
    assert torch.allclose(pseudo_huber(near, 0.1), torch.tensor([1.25e-4]), rtol=0.01)
    assert consistency_weight(torch.tensor(80.0), 1.0) == pytest.approx(1.0, abs=1e-3)


def _gaussian(x, sigma):
    """The exact denoiser of N(2, 0.5^2) data."""
    return (0.25 * x + sigma**2 * 2.0) / (0.25 + sigma**2)


def test_solvers_carry_noise_to_the_data_distribution():
    noise = torch.randn(5000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigmas = karras_sigmas(64, sigma_min=0.002, sigma_max=80.0)
    exact = 2.0 + 0.5 * (80.0 * noise - 2.0) / (0.25 + 80.0**2) ** 0.5
    euler, heun = (solver(_gaussian, noise, sigmas) for solver in (sample_euler, sample_heun))
    errors = [(x - exact).abs().max().item() for x in (euler, heun)]
    assert errors[1] < 0.01 < errors[0] < 0.3, f"Euler and Heun are off by {errors}"


def test_one_step_is_the_denoiser():
    noise = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(2))
    for kind in ("diffusion", "consistency"):
        config = SamplerConfig(kind=kind, nfe=1)
        out = sample(_gaussian, noise, sampler_sigmas(config), config=config)
        assert torch.allclose(out, _gaussian(noise[0] * 80, torch.tensor(80.0)), atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "solver"), [("diffusion", "heun"), ("diffusion", "euler"), ("consistency", "heun")]
)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 9])
def test_evaluations_are_counted(kind, solver, nfe):
    calls = []

    def denoise(x, sigma):
        calls.append(float(sigma))
        return _gaussian(x, sigma)

    config = SamplerConfig(kind=kind, solver=solver, nfe=4)
    noises = torch.randn(num_noises(config, nfe=nfe), 3, 2)
    sample(denoise, noises, sampler_sigmas(config, nfe=nfe), config=config)
    is_heun = kind == "diffusion" and solver == "heun"
    expected = nfe - (nfe + 1) % 2 if is_heun else nfe
    assert len(calls) == expected, f"{len(calls)} evaluations at {calls}"
    assert all(a >= b for a, b in zip(calls, calls[1:], strict=False))


def test_consistency_sampling_refuses_too_few_noises():
    with pytest.raises(ValueError, match="2 noise levels"):
        sample_consistency(_gaussian, torch.zeros(1, 3), torch.tensor([80.0, 0.8]))


def test_shaped_noise_scales_the_pan_and_shortens_only_long_even_vectors():
    """Even width 16: the expected length is 4, and 1.5 times that is 6."""
    noise = torch.ones(3, 18)
    noise[1, :16] = 2.0
    noise[2, :16] = 0.0
    shaped = shape_noise(noise, SamplerConfig(odd_noise=0.3, max_radius=1.5), num_odd_latents=2)
    assert torch.allclose(shaped[:, :16].norm(dim=1), torch.tensor([4.0, 6.0, 0.0]))
    assert torch.allclose(shaped[:, 16:], torch.full((3, 2), 0.3))
    assert torch.equal(shape_noise(noise, SamplerConfig(), num_odd_latents=2), noise)


def test_the_odd_dimensions_come_from_the_plain_rows():
    both = plain_pan_denoise(
        lambda x, sigma: x * sigma + torch.arange(4)[:, None], num_odd_latents=1
    )
    drawn = both(torch.ones(2, 3), torch.tensor(2.0))
    assert drawn.tolist() == [[2.0, 2.0, 4.0], [3.0, 3.0, 5.0]]


def test_symmetric_denoising_is_odd_in_the_odd_dimensions():
    sign_D = torch.tensor([1.0, 1.0, -1.0])
    weight = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    both = symmetric_denoise(lambda x, sigma: (x @ weight + 1) / sigma, sign_D)
    x_BD, sigma = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor(2.0)
    assert torch.allclose(both(sign_D * x_BD, sigma), sign_D * both(x_BD, sigma))
