"""What the generator means: absent streams, guidance, ablations, and that it learns left/right."""

import math
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from spatial_v2a.config import SamplerConfig
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS
from spatial_v2a.model import SpatialV2A
from spatial_v2a.models.conditioner import (
    CueDropout,
    box_inputs,
    drop_cues,
    pooling_matrix,
    shape_waves,
)
from spatial_v2a.models.samplers import sample, sampler_sigmas
from spatial_v2a.training.generator import read_teacher, warm_start
from spatial_v2a.training.objectives import (
    ConsistencyObjectiveConfig,
    DiffusionObjectiveConfig,
    consistency_loss,
    diffusion_loss,
    shift_some,
    spoil_inputs,
)
from tests.tiny_checkpoint import shaken, write_tiny_checkpoint
from tests.tiny_generator import (
    BACKBONE,
    CONDITIONER,
    LATENT_DIM,
    SHAPES,
    random_features,
    tiny_generator,
)

# How many dimensions at the end of a latent these tests forget.
NUM_ODD = 2


def _features(**kwargs):
    return random_features(2, 4, are_flags_random=False, **kwargs)


@pytest.mark.parametrize("stream", ["dino", "depth", "boxes"])
def test_an_absent_stream_hides_its_numbers(stream):
    generator, latents = tiny_generator(), torch.zeros(2, 4, LATENT_DIM)
    here, other = _features(seed=1), _features(seed=2)
    names = {"dino": ["dino_BTND"], "depth": ["depth_BTHW"]}.get(
        stream, ["boxes_BTKF", "class_BTK", "box_mask_BTK"]
    )
    changed = replace(here, **{name: getattr(other, name) for name in names})
    if stream == "depth":
        # What a box takes from the depth map goes with it.
        near = BOX_FIELDS.index("nearness")
        boxes = here.boxes_BTKF.clone()
        boxes[..., near] = other.boxes_BTKF[..., near]
        changed = replace(changed, boxes_BTKF=boxes)
    z = [generator(f, latents).z_BTZ for f in (here, changed)]
    assert not torch.allclose(z[0], z[1]), "the stream must matter when present"
    z = [generator(f.without(stream), latents).z_BTZ for f in (here, changed)]
    assert torch.equal(z[0], z[1])


def test_unused_box_slots_may_hold_anything():
    generator, latents = tiny_generator(), torch.zeros(2, 4, LATENT_DIM)
    features = _features()
    junk = torch.where(features.box_mask_BTK[..., None], features.boxes_BTKF, float("nan"))
    dirty = replace(
        features,
        boxes_BTKF=junk,
        class_BTK=torch.where(features.box_mask_BTK, features.class_BTK, -1),
    )
    assert torch.equal(generator(features, latents).z_BTZ, generator(dirty, latents).z_BTZ)


def test_no_box_differs_from_no_detector():
    generator, latents = tiny_generator(), torch.zeros(2, 4, LATENT_DIM)
    empty = replace(_features(), box_mask_BTK=torch.zeros(2, 4, SHAPES.max_boxes).bool())
    a, b = generator(empty, latents), generator(empty.without("boxes"), latents)
    assert not torch.allclose(a.z_BTZ, b.z_BTZ)


def test_box_inputs_split_into_odd_and_even_under_a_mirror():
    features = _features(dtype=torch.float64)
    sign = torch.ones(len(BOX_FIELDS), dtype=torch.float64)
    for name in ("cx", "vx", "azimuth"):
        sign[BOX_FIELDS.index(name)] = -1
    mirrored = features.boxes_BTKF * sign
    mirrored[..., BOX_FIELDS.index("cx")] += 1
    a, b = box_inputs(features.boxes_BTKF), box_inputs(mirrored)
    even, odd = (a - b).abs().amax((0, 1, 2)) < 1e-9, (a + b).abs().amax((0, 1, 2)) < 1e-9
    assert (even | odd).all(), "an input is neither odd nor even"
    assert odd.sum() == 13, f"{odd.sum()} odd inputs"


def test_shape_waves_tell_a_stride_from_the_next_at_any_distance():
    boxes = torch.zeros(1, 1, 4, len(BOX_FIELDS), dtype=torch.float64)
    w, h = BOX_FIELDS.index("w"), BOX_FIELDS.index("h")
    boxes[0, 0, :, w] = torch.tensor([0.20, 0.22, 0.10, 0.0], dtype=torch.float64)
    boxes[0, 0, :, h] = torch.tensor([0.5, 0.5, 0.25, 0.0], dtype=torch.float64)
    waves = shape_waves(boxes, 4)[0, 0]
    assert waves.shape == (4, 8)
    assert torch.allclose(waves[0], waves[2]), "the same proportions, half as large"
    assert (waves[0] - waves[1]).norm() > 1
    assert waves.isfinite().all()
    # The finest wave of proportions 2.5 : 1.
    assert float(waves[0, 3]) == pytest.approx(math.sin(8 * math.pi * math.log(2.5)))


def test_warm_start_grows_inputs_that_have_no_effect_yet():
    """Weights of a model without waves, taken over by one with them: the same output."""
    before = tiny_generator()
    config = CONDITIONER.model_copy(update={"shape_octaves": 3, "shape_ticks": 2})
    after = tiny_generator(conditioner=config)
    features, latents = _features(), torch.zeros(2, 4, LATENT_DIM)
    warm_start(after, before.state_dict())
    assert torch.allclose(after(features, latents).z_BTZ, before(features, latents).z_BTZ)
    other = tiny_generator(backbone=BACKBONE.model_copy(update={"num_layers": 1}))
    with pytest.raises(UserError, match="of another size"):
        warm_start(other, before.state_dict())
    with pytest.raises(UserError, match="of another size"):
        warm_start(before, after.state_dict())
    longer = config.model_copy(update={"shape_ticks": 3})
    with pytest.raises(UserError, match="of another size"):
        warm_start(tiny_generator(conditioner=longer), after.state_dict())


def test_a_teacher_speaks_of_the_same_latents(tmp_path, tiny_config):
    folder = write_tiny_checkpoint(tmp_path / "tiny", tiny_config)
    model = SpatialV2A.from_pretrained(folder)
    teacher = read_teacher(folder, model)
    assert not any(p.requires_grad for p in teacher.parameters())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, model.generator.state_dict()[name]), name
    shaken(model.autoencoder.encoder)
    with pytest.raises(UserError, match="latents of another autoencoder"):
        read_teacher(folder, model)


def test_pooling_matrix_averages_and_mirrors():
    matrix = pooling_matrix((3, 8), (2, 3))
    assert torch.allclose(matrix.sum(1), torch.ones(6, dtype=torch.float64))
    flipped = matrix.view(2, 3, 3, 8).flip(1, 3).reshape(6, 24)
    assert torch.allclose(matrix, flipped)
    with pytest.raises(ValueError, match="choose fewer cells"):
        pooling_matrix((3, 8), (4, 8))


@pytest.mark.parametrize("has_path", [True, False], ids=["direct", "no-direct"])
def test_direct_head_path_is_a_switch(has_path):
    generator = tiny_generator(direct_head_path=has_path)
    condition = generator(_features(), torch.zeros(2, 4, LATENT_DIM))
    other = replace(condition, v_BTV=condition.v_BTV + 1)
    x, sigma = torch.ones(2, 4, LATENT_DIM), torch.ones(2, 4)
    outs = [generator.denoise(x, sigma, c) for c in (condition, other)]
    assert torch.equal(outs[0], outs[1]) != has_path


def test_denoise_takes_draws_and_single_ticks():
    generator = tiny_generator()
    condition = generator(_features(), torch.zeros(2, 4, LATENT_DIM))
    x, sigma = torch.randn(3, 2, 4, LATENT_DIM), torch.rand(3, 2, 4) + 0.1
    draws = generator.denoise(x, sigma, condition)
    for m in range(3):
        assert torch.allclose(draws[m], generator.denoise(x[m], sigma[m], condition), atol=1e-6)
    single = condition.map(lambda t: t[:, 2:3])
    alone = generator.denoise(x[0, :, 2], sigma[0, :, 2], single)
    assert torch.allclose(alone, draws[0, :, 2], atol=1e-6)
    scalar = generator.denoise(x[0, :, 2], torch.tensor(0.5), single)
    assert scalar.shape == (2, LATENT_DIM)


def test_dropped_history_is_not_seen():
    generator, features = tiny_generator(), _features()
    latents = torch.randn(2, 4, LATENT_DIM)
    drop = torch.zeros(2, 4, dtype=torch.bool)
    drop[:, 1] = True
    changed = latents.clone()
    changed[:, 1] += 1
    z = [generator(features, x, history_drop_BT=drop).z_BTZ for x in (latents, changed)]
    assert torch.equal(z[0], z[1])


def test_a_shifted_history_is_another_stretch_of_the_same_sequence():
    latents = torch.arange(60.0).reshape(3, 20, 1)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(shift_some(latents, 0.0, rng=rng), latents)
    shifted = shift_some(latents, 1.0, rng=rng)
    for before, after in zip(latents[..., 0], shifted[..., 0], strict=True):
        shift = int(after.argmin())
        assert shift > 0
        assert torch.equal(after, before.roll(shift))
    many = torch.arange(9.0).reshape(1, 9, 1).expand(400, 9, 1)
    share = (shift_some(many, 0.3, rng=rng)[:, 0, 0] > 0).float().mean().item()
    assert abs(share - 0.3) < 0.08
    assert torch.equal(shift_some(latents[:, :1], 1.0, rng=rng), latents[:, :1])


def test_a_shifted_history_hides_when_but_not_the_target():
    """The loss is of the latents as they are; only what the backbone is given of them moves."""
    features, latents = _features(), torch.randn(2, 4, LATENT_DIM)
    still = DiffusionObjectiveConfig(max_history_noise=0, drop_latent=0, drop_history=0)
    moved = still.model_copy(update={"shift_history": 1.0})
    inputs = [
        spoil_inputs(features, latents, rng=torch.Generator().manual_seed(3), config=config)
        for config in (still, moved)
    ]
    assert torch.equal(inputs[0].history_BTD, latents)
    assert not torch.equal(inputs[1].history_BTD, latents)
    only_first = torch.tensor([True, False])
    rng = torch.Generator().manual_seed(3)
    some = spoil_inputs(features, latents, rng=rng, config=moved, is_timed_B=only_first)
    assert torch.equal(some.history_BTD[0], inputs[1].history_BTD[0])
    assert torch.equal(some.history_BTD[1], latents[1])
    assert torch.equal(inputs[0].features.has_dino_BT, inputs[1].features.has_dino_BT)


def test_what_is_kept_is_learned_from_the_teacher():
    """Taught rows ask for what the teacher says, whatever was recorded; a walker's for that."""
    learner, teacher = tiny_generator(), tiny_generator()
    for parameter in teacher.parameters():
        parameter.data.mul_(1.3)
    features, latents = _features(), torch.randn(2, 4, LATENT_DIM)
    config = DiffusionObjectiveConfig(drop_history=0, num_draws=2)

    def error(generator, is_timed, *, teacher=teacher):
        out = diffusion_loss(
            generator,
            features,
            latents,
            rng=torch.Generator().manual_seed(4),
            config=config,
            is_timed_B=torch.tensor(is_timed),
            teacher=teacher,
        )
        return out["parts"]["denoising"].item()

    assert error(teacher, [False, False]) < 1e-9, "who says the same has nothing to learn"
    assert error(learner, [False, False]) > 1e-3
    alone = error(learner, [True, True], teacher=None)
    assert error(learner, [True, True]) == alone
    mixed = error(teacher, [True, False])
    assert 1e-3 < mixed < error(teacher, [True, True]), "half of the rows have a target to miss"
    diffusion_loss(
        learner,
        features,
        latents,
        rng=torch.Generator().manual_seed(4),
        config=config,
        is_timed_B=torch.tensor([False, True]),
        teacher=teacher,
    )["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert any(p.grad is not None for p in learner.parameters())


def test_drop_cues_is_per_sequence_and_seeded():
    features = random_features(400, 2, are_flags_random=False)
    chances = CueDropout()
    draws = [
        drop_cues(features, chances, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    ]
    assert torch.equal(draws[0].has_dino_BT, draws[1].has_dino_BT)
    assert torch.equal(draws[0].has_boxes_BT[:, 0], draws[0].has_boxes_BT[:, 1])
    lost = 1 - draws[0].has_dino_BT.float().mean().item()
    assert abs(lost - 0.37) < 0.1, f"{lost:.2f} of the sequences lost DINO"
    near = BOX_FIELDS.index("nearness")
    has_depth_BT = draws[0].has_depth_BT
    assert not draws[0].boxes_BTKF[..., near][~has_depth_BT].any(), "nearness goes with depth"
    assert torch.equal(draws[0].boxes_BTKF[has_depth_BT], features.boxes_BTKF[has_depth_BT])


def test_loss_is_seeded_and_reaches_the_backbone():
    generator, features = tiny_generator(), _features()
    latents = torch.randn(2, 4, LATENT_DIM)
    runs = {
        "diffusion": partial(diffusion_loss, generator, config=DiffusionObjectiveConfig()),
        "consistency": partial(
            consistency_loss,
            generator,
            generator,
            fraction=0.5,
            config=ConsistencyObjectiveConfig(),
        ),
    }
    for name, loss in runs.items():
        a, b = (
            loss(features=features, latents_BTD=latents, rng=torch.Generator().manual_seed(7))
            for _ in range(2)
        )
        assert torch.equal(a["loss"], b["loss"]), name
        generator.zero_grad()
        a["loss"].backward()
        assert generator.backbone.blocks[0].attention.qkv.weight.grad.abs().sum() > 0, name


def test_forgotten_dimensions_of_the_past_are_not_seen():
    """Neither under teacher forcing nor tick by tick, either way of taking a latent in."""
    features, latents = _features(), torch.randn(2, 4, LATENT_DIM)
    changed = latents.clone()
    changed[..., -NUM_ODD:] += 1
    moved = latents.clone()
    moved[..., 0] += 1
    for forgotten in (0, NUM_ODD):
        generator = tiny_generator(forgotten_dims=forgotten)

        def stepped(x, remember, generator=generator):
            state = generator.init_state(2, device="cpu", dtype=torch.float32)
            attend = generator.attend_with_latent
            if remember == "observe_latent":
                attend = generator.attend
            for tick in range(4):
                now = features.map(lambda value, tick=tick: value[:, tick : tick + 1])
                v_B1V = generator.conditioner(now, state.conditioner, None)
                z_B1Z = attend(v_B1V, state).z_BTZ
                getattr(generator, remember)(x[:, tick], state)
            return z_B1Z

        runs = [lambda x, g=generator: g(features, x).z_BTZ]
        runs += [partial(stepped, remember=name) for name in ("observe_latent", "hold_latent")]
        for run in runs:
            assert torch.equal(run(latents), run(changed)) == bool(forgotten)
            assert not torch.equal(run(latents), run(moved))


def _pan_batch(rng, batch_size):
    """Latent 0 is the azimuth of the one box, latent 1 its mirror image; the rest is silence."""
    features = random_features(batch_size, 6, seed=int(torch.randint(9999, (1,), generator=rng)))
    ones = torch.ones_like(features.has_dino_BT)
    mask = torch.zeros_like(features.box_mask_BTK)
    mask[..., 0] = True
    features = replace(
        features, box_mask_BTK=mask, has_boxes_BT=ones, has_dino_BT=ones, has_depth_BT=ones
    )
    azimuth = features.boxes_BTKF[..., 0, BOX_FIELDS.index("azimuth")]
    latents = torch.zeros(batch_size, 6, LATENT_DIM)
    latents[..., 0], latents[..., 1] = 2 * azimuth, -2 * azimuth
    return features, latents


def test_a_tiny_generator_learns_left_and_right():
    """120 small steps: error down at least tenfold, and samples follow the box."""
    rng = torch.Generator().manual_seed(0)
    config = CONDITIONER.model_copy(update={"num_layers": 1})
    generator = tiny_generator(conditioner=config)
    optimizer = torch.optim.AdamW(generator.parameters(), lr=5e-3)
    objective = DiffusionObjectiveConfig(streams=CueDropout(boxes=0, spatial=0, all=0))
    errors, began = [], time.monotonic()
    for _ in range(120):
        features, latents = _pan_batch(rng, 8)
        out = diffusion_loss(generator, features, latents, rng=rng, config=objective)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        errors.append(out["parts"]["denoising"].item())
    first, last = sum(errors[:10]) / 10, sum(errors[-20:]) / 20
    assert last < first / 10, f"denoising error {first:.3f} -> {last:.3f}"
    features, latents = _pan_batch(rng, 32)
    sampler = SamplerConfig(kind="diffusion", nfe=9)
    with torch.no_grad():
        condition = generator(features, latents)
        noise = torch.randn(1, *latents.shape, generator=rng)
        drawn = sample(
            generator.denoiser(condition), noise, sampler_sigmas(sampler), config=sampler
        )
    is_off_centre = latents[..., 0].abs() > 0.3
    agreement = (drawn[..., 0].sign() == latents[..., 0].sign())[is_off_centre].float().mean()
    assert agreement > 0.95, f"sign right in {agreement:.2f} of the ticks"
    assert time.monotonic() - began < 60
