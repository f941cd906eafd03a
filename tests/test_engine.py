"""The engine: streaming equals the offline formula, seeds, idle streams, reset, guidance."""

import copy

import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.conditioning.compiled import SWITCH, has_openvino
from spatial_v2a.features import BOX_FIELDS, FrameFeatures, empty_features, mirror_features
from spatial_v2a.inference.engine.compiled import GraphedPasses, TracedPasses
from spatial_v2a.inference.engine.engine import Engine, EngineSettings, engine_threads
from spatial_v2a.inference.engine.openvino_passes import OpenVinoPasses
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.autoencoder import split_latents
from spatial_v2a.models.samplers import sample, sampler_sigmas
from spatial_v2a.models.streaming import state_tensors


@pytest.fixture(scope="module")
def model(tiny_config: Config) -> SpatialV2A:
    """A random tiny model whose every part has an effect (zero-initialised layers are moved)."""
    random = torch.Generator().manual_seed(1)
    model = SpatialV2A(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * 0.05)
    return model


def random_features(config: Config, *, num_streams: int, num_ticks: int, seed: int = 0):
    shapes = config.perception.shapes
    random = torch.Generator().manual_seed(seed)
    features = empty_features(
        num_streams,
        num_ticks,
        num_patches=shapes.num_patches,
        dino_dim=shapes.dino_dim,
        depth_grid=shapes.depth_grid,
        max_boxes=shapes.max_boxes,
    )
    features.dino_BTND.normal_(generator=random)
    features.depth_BTHW.uniform_(generator=random)
    features.boxes_BTKF[:, :, :2].uniform_(generator=random)
    features.boxes_BTKF[..., BOX_FIELDS.index("azimuth")] -= 0.5
    features.box_mask_BTK[:, :, :2] = True
    for flag in (features.has_dino_BT, features.has_depth_BT, features.has_boxes_BT):
        flag.fill_(True)
    return features


def tick(features: FrameFeatures, n: int) -> FrameFeatures:
    return features.map(lambda x: x[:, n : n + 1])


@torch.no_grad()
def offline(model: SpatialV2A, features: FrameFeatures, settings: EngineSettings) -> torch.Tensor:
    """The same sound without any state: every tick from the whole past, one decoder pass."""
    num_ticks = features.has_boxes_BT.shape[1]
    dtype = model.latent_mean_D.dtype
    sampler = model.config.sampler
    sigmas = sampler_sigmas(sampler, nfe=settings.nfe).to(dtype)
    random = torch.Generator().manual_seed(settings.seed)
    num_draws = len(sigmas) if sampler.kind == "consistency" else 1
    latents_BTD = torch.zeros(1, num_ticks, model.config.autoencoder.latent_dim, dtype=dtype)
    for n in range(num_ticks):
        past = features.map(lambda x, n=n: x[:, : n + 1])
        condition = model.generator(past, latents_BTD[:, : n + 1]).map(lambda x: x[:, -1:])
        noise = torch.randn(num_draws, latents_BTD.shape[-1], generator=random)[:, None].to(dtype)
        noise[..., -model.config.autoencoder.num_odd_latents :] *= sampler.odd_noise
        denoise = model.generator.denoiser(condition)
        latents_BTD[:, n] = sample(denoise, noise, sigmas, config=sampler)
    return model.autoencoder.decode(model.denormalize(latents_BTD)).transpose(1, 2)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)], ids=["f64", "f32"]
)
def test_streaming_equals_offline(tiny_config: Config, model, dtype, tolerance) -> None:
    """Long enough that the ring of the backbone wraps twice."""
    num_ticks = 2 * tiny_config.generator.backbone.window_ticks + 3
    features = random_features(tiny_config, num_streams=1, num_ticks=num_ticks)
    settings = EngineSettings(seed=5, nfe=2)
    model = model.to(dtype)
    engine = Engine(model, settings=settings)
    if dtype == torch.float64:
        features = features.map(lambda x: x.double() if x.is_floating_point() else x)
    expected = offline(model, features, settings)
    # The engine hands out float32; compare in the model's own type.
    heard = _heard(engine, features, num_ticks)
    model.to(torch.float32)
    assert expected.abs().max() > 1e-3, "the random model is silent, the test says nothing"
    error = (heard - expected).abs().max().item()
    assert error < tolerance, f"streaming differs from offline by {error:.2e}"


@torch.inference_mode()
def _heard(engine: Engine, features: FrameFeatures, num_ticks: int) -> torch.Tensor:
    pieces = []
    decode = engine.model.autoencoder.decode

    def recording(*args, **kwargs):
        pieces.append(decode(*args, **kwargs))
        return pieces[-1]

    engine.model.autoencoder.decode = recording
    try:
        for n in range(num_ticks):
            engine.step(tick(features, n))
    finally:
        del engine.model.autoencoder.decode
    return torch.cat(pieces, dim=-1).transpose(1, 2)


def test_generate_is_step_after_step_and_a_seed_is_one_sound(tiny_config: Config, model) -> None:
    features = random_features(tiny_config, num_streams=1, num_ticks=6)
    first = Engine(model, settings=EngineSettings(seed=3)).generate(features)
    engine = Engine(model, settings=EngineSettings(seed=3))
    again = torch.cat([engine.step(tick(features, n)) for n in range(6)], dim=1)
    other = Engine(model, settings=EngineSettings(seed=4)).generate(features)
    assert first.shape == (1, 6 * engine.samples_per_tick, 2) and first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_streams_are_independent_with_idle_rows_and_a_reset(tiny_config: Config, model) -> None:
    """Stream b of three, with idle ticks and a reset, sounds like seed + b alone."""
    features = random_features(tiny_config, num_streams=3, num_ticks=12)
    engine = Engine(model, num_streams=3, settings=EngineSettings(seed=7, nfe=2))
    heard, done = [[], [], []], [0, 0, 0]
    for n in range(12):
        if n == 5:
            engine.reset(torch.tensor([False, False, True]))
            heard[2], done[2] = [], 0
        active = torch.tensor([True, n % 3 != 1, n != 8])
        pick = torch.tensor(done)
        now = features.map(lambda x, pick=pick: x[torch.arange(3), pick][:, None])
        audio = engine.step(now, active)
        for b in range(3):
            if active[b]:
                heard[b].append(audio[b])
                done[b] += 1
            else:
                assert not audio[b].any(), "an idle stream must be silent"
    for b in range(3):
        alone = Engine(model, settings=EngineSettings(seed=7 + b, nfe=2))
        expected = alone.generate(features.map(lambda x, b=b: x[b : b + 1, : done[b]]))
        error = (torch.cat(heard[b]) - expected[0]).abs().max().item()
        assert error < 1e-4, f"stream {b} differs from itself alone by {error:.2e}"


def test_reset_equals_fresh_and_addresses_stay(tiny_config: Config, model) -> None:
    features = random_features(tiny_config, num_streams=2, num_ticks=5)
    engine = Engine(model, num_streams=2)
    before = [tensor.data_ptr() for tensor in state_tensors(engine.state)]
    first = engine.generate(features)
    engine.reset()
    assert torch.equal(first, engine.generate(features))
    assert before == [tensor.data_ptr() for tensor in state_tensors(engine.state)]


@pytest.mark.parametrize("is_symmetric", [False, True], ids=["plain", "symmetric"])
@pytest.mark.parametrize("num_streams", [1, 2], ids=["one", "two"])
@pytest.mark.parametrize(
    "kind, device",
    [
        (TracedPasses, "cpu"),
        pytest.param(
            OpenVinoPasses,
            "cpu",
            marks=pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed"),
        ),
        pytest.param(
            GraphedPasses,
            "cuda",
            marks=pytest.mark.skipif(
                not torch.cuda.is_available(), reason="CUDA graphs need a GPU, none is here"
            ),
        ),
    ],
)
def test_compiled_gives_the_same_samples(
    tiny_config: Config,
    model,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    device: str,
    num_streams: int,
    is_symmetric: bool,
) -> None:
    """Also after a reset, and with idle ticks, which run eagerly on the same state.

    To the bit; with OpenVINO, which reckons in another order, to float32 rounding.
    """
    if kind is TracedPasses:
        monkeypatch.setenv(SWITCH, "0")
    model = copy.deepcopy(model).to(device)
    features = random_features(tiny_config, num_streams=num_streams, num_ticks=8)
    settings = EngineSettings(seed=2, guidance=1.5, spatial_guidance=2.0)
    sampler = {"max_radius": 1.0, "is_symmetric": is_symmetric, "guides_pan": not is_symmetric}
    model.config = tiny_config.model_copy(
        update={"sampler": tiny_config.sampler.model_copy(update=sampler)}
    )

    def hear(engine: Engine) -> torch.Tensor:
        first = engine.generate(features)
        engine.reset()
        active = torch.arange(num_streams) == 0
        idle = engine.step(tick(features, 0), active)
        return torch.cat([first, idle, engine.generate(features)], dim=1)

    eager, compiled = (
        Engine(model, num_streams=num_streams, settings=settings, is_compiled=is_compiled)
        for is_compiled in (False, True)
    )
    assert type(compiled.passes) is kind
    addresses = [tensor.data_ptr() for tensor in state_tensors(compiled.state)]
    heard, expected = hear(compiled), hear(eager)
    tolerance = 1e-4 if kind is OpenVinoPasses else 0.0
    assert heard.abs().max() > 1e-3 and (heard - expected).abs().max() <= tolerance
    assert addresses == [tensor.data_ptr() for tensor in state_tensors(compiled.state)]


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_pan_strength_scales_the_pan_alone(tiny_config: Config, model, is_compiled: bool) -> None:
    """0 is mono to the bit; the history, and with it what is heard next, stays the same."""
    features = random_features(tiny_config, num_streams=1, num_ticks=6)
    side_over_mid, states = [], []
    for strength in (0.0, 0.5, 1.0, 2.0):
        settings = EngineSettings(seed=5, pan_strength=strength)
        engine = Engine(model, settings=settings, is_compiled=is_compiled)
        left, right = engine.generate(features)[0].unbind(-1)
        side_over_mid.append(float((left - right).norm() / (left + right).norm()))
        states.append(engine.state.generator.memory_BD.clone())
    assert side_over_mid[0] == 0.0
    assert all(a < b for a, b in zip(side_over_mid, side_over_mid[1:], strict=False))
    assert all(torch.equal(state, states[0]) for state in states)


def test_where_a_compiler_fails_the_engine_runs_uncompiled(
    tiny_config: Config, model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise RuntimeError("no kernel for this")

    features = random_features(tiny_config, num_streams=1, num_ticks=3)
    expected = Engine(model).generate(features)
    monkeypatch.setenv(SWITCH, "0")
    monkeypatch.setattr(TracedPasses, "compile", fail)
    engine = Engine(model, is_compiled=True)
    assert "runs uncompiled, several times slower: no kernel for this" in caplog.text
    assert torch.equal(engine.generate(features), expected)


@pytest.mark.parametrize(("guidance", "guides_pan"), [(1.0, True), (2.0, True), (2.0, False)])
def test_a_symmetric_sampler_swaps_the_channels_of_a_mirrored_picture(
    tiny_config: Config, model, guidance: float, guides_pan: bool
) -> None:
    """To rounding, for weights that know nothing of symmetry; streams and idle ticks included."""
    features = random_features(tiny_config, num_streams=2, num_ticks=6).map(
        lambda x: x.double() if x.is_floating_point() else x
    )
    grid_width = tiny_config.perception.shapes.grid_width
    sampler = {"odd_noise": 0.0, "is_symmetric": True, "guides_pan": guides_pan}
    model = copy.deepcopy(model).double()
    model.config = tiny_config.model_copy(
        update={"sampler": tiny_config.sampler.model_copy(update=sampler)}
    )

    def hear(seen: FrameFeatures) -> torch.Tensor:
        engine = Engine(model, num_streams=2, settings=EngineSettings(guidance=guidance))
        active = torch.tensor([True, False])
        return torch.cat([engine.step(tick(seen, 0), active), engine.generate(seen)], dim=1)

    heard, mirrored = hear(features), hear(mirror_features(features, grid_width=grid_width))
    difference = (heard[..., 0] - heard[..., 1]).abs().max()
    assert difference > 1e-3, "left and right are equal, the test says nothing"
    assert (heard.flip(-1) - mirrored).abs().max() < 1e-6


def test_guidance_of_one_is_plain_and_others_differ(tiny_config: Config, model) -> None:
    features = random_features(tiny_config, num_streams=2, num_ticks=3)

    def hear(**kwargs) -> torch.Tensor:
        settings = EngineSettings(seed=1, **kwargs)
        return Engine(model, num_streams=2, settings=settings).generate(features)

    plain = hear()
    for kwargs in ({"guidance": 2.0}, {"spatial_guidance": 2.0}, {"without": ("boxes",)}):
        assert not torch.equal(plain, hear(**kwargs)), kwargs
    sampler = model.config.sampler.model_copy(update={"guidance": 2.0})
    eager = SpatialV2A(model.config.model_copy(update={"sampler": sampler}))
    eager.load_state_dict(model.state_dict())
    own = Engine(eager, num_streams=2, settings=EngineSettings(seed=1)).generate(features)
    assert torch.equal(own, hear(guidance=2.0)), "the checkpoint's own weight is the default"
    both = hear(guidance=1.0 + 1e-6, spatial_guidance=1.0 + 1e-6)
    assert (both - plain).abs().max() < 1e-4


def test_the_pan_can_be_left_unguided(tiny_config: Config, model) -> None:
    """One evaluation from the same noise: then the pan is that of no guidance, and only the pan."""
    features = random_features(tiny_config, num_streams=2, num_ticks=1)
    num_odd = tiny_config.autoencoder.num_odd_latents

    def draw(guidance: float, *, guides_pan: bool) -> tuple[torch.Tensor, torch.Tensor]:
        sampler = tiny_config.sampler.model_copy(update={"guides_pan": guides_pan})
        guided = copy.deepcopy(model)
        guided.config = tiny_config.model_copy(update={"sampler": sampler})
        engine = Engine(
            guided, num_streams=2, settings=EngineSettings(seed=1, nfe=1, guidance=guidance)
        )
        drawn = []
        remember = engine.passes.remember
        engine.passes.remember = lambda x, *rest: (drawn.append(x), remember(x, *rest))
        engine.step(features)
        return split_latents(drawn[0], num_odd)

    plain_even, plain_odd = draw(1.0, guides_pan=True)
    for guides_pan in (True, False):
        even, odd = draw(2.0, guides_pan=guides_pan)
        assert not torch.allclose(even, plain_even, atol=1e-3)
        assert torch.allclose(odd, plain_odd, atol=1e-6) != guides_pan


def test_absent_streams_are_not_read(tiny_config: Config, model) -> None:
    """--without depth --without boxes: what these streams hold must not matter."""
    features = random_features(tiny_config, num_streams=1, num_ticks=3)
    settings = EngineSettings(without=("depth", "boxes"))
    plain = Engine(model, settings=settings).generate(features)
    features.depth_BTHW.mul_(0.1)
    features.boxes_BTKF.mul_(-1.0)
    assert torch.equal(plain, Engine(model, settings=settings).generate(features))


def test_threads_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with engine_threads("cpu"):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_sound_that_is_followed_is_history_like_sound_that_was_drawn(
    tiny_config: Config, model, monkeypatch
) -> None:
    features = random_features(tiny_config, num_streams=1, num_ticks=8)
    drawing = Engine(model, settings=EngineSettings(seed=4, nfe=1))
    drawn, draw = [], drawing.passes.draw

    def kept(*arguments):
        drawn.append(draw(*arguments).clone())
        return drawn[-1]

    monkeypatch.setattr(drawing.passes, "draw", kept)
    heard = [drawing.step(tick(features, n)) for n in range(8)]
    following = Engine(model, settings=EngineSettings(seed=4, nfe=1))
    for n in range(5):
        following.follow(tick(features, n), drawn[n])
        # The noise that drawing would have used up.
        with torch.inference_mode():
            following._draw_noise(None)
    for n in range(5, 8):
        assert torch.equal(following.step(tick(features, n)), heard[n]), f"tick {n} differs"
    fresh = Engine(model, settings=EngineSettings(seed=4, nfe=1))
    assert not torch.equal(fresh.step(tick(features, 5)), heard[5]), "history changes nothing"


def test_a_cut_ends_the_history_of_its_stream_and_neither_its_sound_nor_its_noise(
    tiny_config: Config, model, monkeypatch
) -> None:
    features = random_features(tiny_config, num_streams=2, num_ticks=7)
    settings = EngineSettings(seed=4, nfe=1)

    def heard(features: FrameFeatures, *, skipped: int = 0, active_B: torch.Tensor | None = None):
        """Sound and latents of every tick; of the noise, `skipped` ticks are passed over."""
        num_streams, num_ticks = features.is_cut_BT.shape
        engine = Engine(model, num_streams=num_streams, settings=settings)
        drawn, draw = [], engine.passes.draw

        def kept(*arguments):
            drawn.append(draw(*arguments).clone())
            return drawn[-1]

        monkeypatch.setattr(engine.passes, "draw", kept)
        with torch.inference_mode():
            for _ in range(skipped):
                engine._draw_noise(None)
        active = [active_B if n == 4 else None for n in range(num_ticks)]
        return [engine.step(tick(features, n), active[n]) for n in range(num_ticks)], drawn

    plain, _ = heard(features)
    cut = features.map(torch.clone)
    cut.is_cut_BT[0, 4] = True
    audio, drawn = heard(cut)
    for n in range(7):
        assert torch.equal(audio[n][1], plain[n][1]), f"tick {n} of the other stream differs"
        assert torch.equal(audio[n][0], plain[n][0]) == (n < 4), n
    # What is drawn from the cut on is what a new stream draws of the same noise.
    _, anew = heard(features.map(lambda x: x[:1, 4:]), skipped=4)
    for n in range(3):
        torch.testing.assert_close(drawn[4 + n][:1], anew[n], atol=1e-5, rtol=0)
    # And the decoder makes one sound of what was before and after.
    latents = torch.stack([x_BD[:1] for x_BD in drawn], dim=1)
    whole = model.autoencoder.decode(model.denormalize(latents)).transpose(1, 2)
    torch.testing.assert_close(torch.cat([x[:1] for x in audio], dim=1), whole, atol=1e-4, rtol=0)
    # An idle stream neither hears nor forgets.
    idle = torch.tensor([False, True])
    pairs = [heard(one, active_B=idle)[0] for one in (cut, features)]
    assert all(torch.equal(*ticks) for ticks in zip(*pairs, strict=True))


def test_streams_that_share_their_noise_draw_what_their_first_draws(
    tiny_config: Config, model
) -> None:
    """Group g of two draws from seed + g; a reset of its second stream leaves the noise alone."""
    features = random_features(tiny_config, num_streams=4, num_ticks=6)
    settings = EngineSettings(seed=5, nfe=1)
    engine = Engine(model, num_streams=4, settings=settings, streams_per_noise=2)
    heard = [engine.step(tick(features, n)) for n in range(3)]
    engine.reset(torch.tensor([False, True, False, False]))
    heard += [engine.step(tick(features, n)) for n in range(3, 6)]
    for stream in (0, 1, 2, 3):
        alone = Engine(model, settings=EngineSettings(seed=5 + stream // 2, nfe=1))
        own = features.map(lambda x, b=stream: x[b : b + 1])
        for n in range(6):
            if (stream, n) == (1, 3):
                noise = alone._random[0].get_state()
                alone.reset()
                alone._random[0].set_state(noise)
            error = (alone.step(tick(own, n))[0] - heard[n][stream]).abs().max().item()
            assert error < 1e-4, f"stream {stream}, tick {n}: {error:.2e}"
    one = features.map(lambda x: x[:1].expand(4, *x.shape[1:]).contiguous())
    engine.reset()
    a, b, c, d = engine.generate(one)
    assert torch.allclose(a, b, atol=1e-4) and torch.allclose(c, d, atol=1e-4)
    assert not torch.allclose(a, c, atol=1e-3)


def test_some_streams_follow_while_others_draw(tiny_config: Config, model) -> None:
    """Who draws is heard as by `step`; who follows, as if it had drawn what it is told."""
    features = random_features(tiny_config, num_streams=2, num_ticks=5)
    settings = EngineSettings(seed=4, nfe=1)
    expected = Engine(model, num_streams=2, settings=settings)
    engine = Engine(model, num_streams=2, settings=settings)
    told_TBD = torch.randn(
        4, 2, len(model.latent_mean_D), generator=torch.Generator().manual_seed(3)
    )
    for n in range(4):
        expected.step(tick(features, n))
        engine.follow(tick(features, n), told_TBD[n], torch.tensor([True, False]))
    drawn = expected.step(tick(features, 4))[1]
    assert torch.equal(engine.step(tick(features, 4))[1], drawn)
    follower = Engine(model, num_streams=2, settings=settings)
    for n in range(4):
        follower.follow(tick(features, n), told_TBD[n])
    engine.reset()
    for n in range(4):
        engine.follow(tick(features, n), told_TBD[n], torch.tensor([True, False]))
    engine.restart_noise()
    assert torch.equal(engine.step(tick(features, 4))[0], follower.step(tick(features, 4))[0])
