"""The adversarial loss of the autoencoder: who moves by which loss, and whether it tells apart."""

import pytest
import torch

from spatial_v2a.config import load_config
from spatial_v2a.models.autoencoder import StereoAutoencoder
from spatial_v2a.training.discriminator import SpectrogramDiscriminator, adversarial_losses
from spatial_v2a.training.vae import VaeObjective

NUM_SAMPLES = 9600


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def audio(scale: float) -> torch.Tensor:
    return scale * torch.randn(2, 2, NUM_SAMPLES)


def gradients(discriminator: SpectrogramDiscriminator) -> list[torch.Tensor | None]:
    return [p.grad for p in discriminator.parameters()]


def test_decoders_terms_move_the_audio_and_not_the_discriminator() -> None:
    discriminator = SpectrogramDiscriminator(sizes=(512,), width=4)
    output = audio(0.1).requires_grad_()
    losses = adversarial_losses(discriminator, output, audio(0.1))
    (losses.adversarial + losses.feature_matching).backward()
    assert output.grad is not None and output.grad.abs().sum() > 0
    assert all(gradient is None for gradient in gradients(discriminator))


def test_discriminators_term_moves_the_discriminator_and_not_the_audio() -> None:
    discriminator = SpectrogramDiscriminator(sizes=(512,), width=4)
    output = audio(0.1).requires_grad_()
    adversarial_losses(discriminator, output, audio(0.1)).discriminator.backward()
    assert output.grad is None
    # Before anything is learnt the two halves of the hinge cancel in the last bias.
    still = [name for name, p in discriminator.named_parameters() if not p.grad.abs().any()]
    assert still in ([], ["windows.0.last.bias"])


def test_discriminator_learns_to_tell_noise_from_tones() -> None:
    discriminator = SpectrogramDiscriminator(sizes=(512,), width=4)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=3e-3)
    time_L = torch.arange(NUM_SAMPLES) / 48000
    for _ in range(60):
        pitch_B11 = 200 + 2000 * torch.rand(2, 1, 1)
        tones = 0.1 * torch.sin(2 * torch.pi * pitch_B11 * time_L).expand(2, 2, -1)
        loss = adversarial_losses(discriminator, audio(0.07), tones).discriminator
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        noise_score, tone_score = (
            discriminator(x).scores[0].mean().item() for x in (audio(0.07), tones)
        )
    assert tone_score > noise_score + 0.5, (tone_score, noise_score)


def test_latent_noise_leaves_the_pan_alone() -> None:
    config = load_config("tiny", ["training.vae.latent_noise=2.0"])
    autoencoder = StereoAutoencoder(config.autoencoder, config.timing)
    objective = VaeObjective(autoencoder, config.timing, config.training.vae)
    latents = torch.randn(3, 5, config.autoencoder.latent_dim)
    noisy = objective._noisy(latents, torch.Generator().manual_seed(1))
    num_odd = config.autoencoder.num_odd_latents
    assert torch.equal(noisy[..., -num_odd:], latents[..., -num_odd:])
    assert not torch.allclose(noisy[..., :-num_odd], latents[..., :-num_odd], atol=0.05)


def test_discriminator_begins_alone() -> None:
    """Until `adversarial_after` the decoder's gradient is that of the reconstruction."""
    plain = load_config("tiny")
    against = load_config(
        "tiny", ["training.vae.adversarial_weight=1.0", "training.vae.adversarial_after=5"]
    )
    gradient = {}
    for name, config, step in (("plain", plain, 0), ("before", against, 4), ("after", against, 5)):
        torch.manual_seed(3)
        autoencoder = StereoAutoencoder(config.autoencoder, config.timing)
        objective = VaeObjective(autoencoder, config.timing, config.training.vae)
        rng = torch.Generator().manual_seed(2)
        objective({"audio": 0.1 * torch.ones(1, 2, NUM_SAMPLES)}, step=step, rng=rng)[
            "loss"
        ].backward()
        gradient[name] = autoencoder.decoder.input.weight.grad
    torch.testing.assert_close(gradient["before"], gradient["plain"])
    assert not torch.allclose(gradient["after"], gradient["plain"])
