"""Crops for the generator: an empty picture must not be shown to open on a sound."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a.conditioning.scene import CameraTurn
from spatial_v2a.config import Config
from spatial_v2a.errors import UserError
from spatial_v2a.features import BOX_FIELDS, FrameFeatures, empty_features, mirror_features
from spatial_v2a.geometry import azimuth_rad
from spatial_v2a.model import SpatialV2A
from spatial_v2a.training.generator_data import (
    GeneratorData,
    begin_late,
    encode_clips,
    first_tick,
    join_scenes,
    lose_boxes,
    view_of,
)
from spatial_v2a.training.shards import ShardIndex
from tests import evaluation_clips as fake
from tests.scenes import WIDTH, scene, view

TICKS = 6
SILENT_T = torch.tensor([True, True, False, False, False, True])
SEEN_T = torch.tensor([False, False, False, True, True, False])


def seen_features() -> FrameFeatures:
    """A box at the ticks of SEEN_T, the detector at work throughout."""
    features = empty_features(1, TICKS, num_patches=2, dino_dim=3, depth_grid=(2, 2), max_boxes=2)
    features.box_mask_BTK[0, :, 0] = SEEN_T
    features.has_boxes_BT[:] = True
    return features


def test_crops_open_where_silent_or_seen() -> None:
    view = view_of(seen_features(), SILENT_T, knows_boxes=True)
    assert view.opens_T.tolist() == [True, True, False, True, True, True]
    assert view.features.has_boxes_BT.all()


def test_sounds_without_boxes_count_as_not_looked_for() -> None:
    view = view_of(seen_features(), SILENT_T, knows_boxes=False)
    assert not view.features.has_boxes_BT.any()
    assert view.opens_T.tolist() == SILENT_T.tolist()


def test_first_tick_is_drawn_among_the_allowed_ones() -> None:
    rng = np.random.default_rng(0)
    allowed = torch.tensor([False, True, False, True, True])
    drawn = [first_tick(rng, allowed, clip_start_share=0.4) for _ in range(2000)]
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    np.testing.assert_allclose(shares, [0, 0.6, 0, 0.2, 0.2], atol=0.04)


def test_first_tick_is_any_when_none_is_allowed() -> None:
    rng = np.random.default_rng(0)
    never = torch.zeros(3, dtype=torch.bool)
    drawn = {first_tick(rng, never, clip_start_share=1.0) for _ in range(100)}
    assert drawn == {0, 1, 2}


def test_scenes_join_at_the_cut() -> None:
    before, after = seen_features(), seen_features().map(torch.clone)
    after.boxes_BTKF[0, :, 0, 0] = torch.arange(TICKS)
    latents = torch.zeros(TICKS, 3), torch.arange(1.0, TICKS + 1)[:, None].expand(-1, 3)
    features, latents_TD = join_scenes((before, latents[0]), (after, latents[1]), 2)
    assert latents_TD[:, 0].tolist() == [0, 0, 1, 2, 3, 4]
    assert features.boxes_BTKF[0, :, 0, 0].tolist() == [0, 0, 0, 1, 2, 3]
    assert features.box_mask_BTK[0, :, 0].tolist() == [False] * 5 + [True]


def test_an_object_found_late_sounds_from_then_on_and_is_new() -> None:
    seen, latents_TD = seen_features(), torch.ones(TICKS, 3)
    seen.box_mask_BTK[0, :, 0] = True
    seen.boxes_BTKF[0, :, 0, BOX_FIELDS.index("age")] = 2.0 + torch.arange(TICKS) / 30
    begun = set()
    for seed in range(20):
        late = begin_late((seen, latents_TD), torch.zeros(3), np.random.default_rng(seed))
        begin = int(late[1][:, 0].nonzero()[0])
        begun.add(begin)
        assert late[1][:, 0].tolist() == [0.0] * begin + [1.0] * (TICKS - begin)
        assert late[0].box_mask_BTK[0, :, 0].tolist() == [False] * begin + [True] * (TICKS - begin)
        age_T = late[0].boxes_BTKF[0, begin:, 0, BOX_FIELDS.index("age")]
        torch.testing.assert_close(age_T, torch.arange(TICKS - begin) / 30)
    assert begun == {1, 2, 3, 4}, "the middle two thirds"
    assert seen.box_mask_BTK[0, :, 0].all() and (latents_TD == 1).all(), "the clip stays"
    never = seen_features()
    never.box_mask_BTK[:] = False
    row = begin_late((never, latents_TD), torch.zeros(3), np.random.default_rng(0))
    assert row[0] is never and row[1] is latents_TD


def test_a_lost_object_is_held_and_then_gone_while_its_sound_stays() -> None:
    num_ticks, persistence_ticks = 24, 3
    seen = empty_features(1, num_ticks, num_patches=2, dino_dim=3, depth_grid=(2, 2), max_boxes=2)
    seen.has_boxes_BT[:] = True
    seen.box_mask_BTK[0, :, 0] = True
    seen.boxes_BTKF[0, :, 0, 0] = torch.arange(num_ticks) / num_ticks
    seen.boxes_BTKF[0, :, 0, BOX_FIELDS.index("age")] = torch.arange(num_ticks) / 30
    latents_TD, lasts, returns = torch.rand(num_ticks, 3), set(), 0
    for seed in range(60):
        lost, same = lose_boxes(
            (seen, latents_TD), np.random.default_rng(seed), persistence_ticks=persistence_ticks
        )
        assert same is latents_TD
        mask_T, cx_T = lost.box_mask_BTK[0, :, 0], lost.boxes_BTKF[0, :, 0, 0]
        age_T = lost.boxes_BTKF[0, :, 0, BOX_FIELDS.index("age")]
        gone = int((~mask_T).nonzero()[0]) if not mask_T.all() else num_ticks
        last = gone - persistence_ticks - 1
        lasts.add(last)
        assert torch.equal(cx_T[: last + 1], seen.boxes_BTKF[0, : last + 1, 0, 0])
        assert (cx_T[last:gone] == cx_T[last]).all(), "held where it was"
        torch.testing.assert_close(age_T[:gone], torch.arange(gone) / 30)
        back_T = mask_T[gone:].nonzero().flatten() + gone
        if len(back_T):
            returns += 1
            assert mask_T[back_T[0] :].all(), "one gap"
            torch.testing.assert_close(age_T[back_T[0] :], torch.arange(len(back_T)) / 30)
            assert torch.equal(cx_T[back_T], seen.boxes_BTKF[0, back_T, 0, 0])
    assert lasts == set(range(4, 12)), "the second and third sixth"
    assert 15 < returns < 45, "half of the rows stay without, the rest come back"
    assert seen.box_mask_BTK[0, :, 0].all(), "the clip stays"
    seen.box_mask_BTK[:] = False
    row = lose_boxes(
        (seen, latents_TD), np.random.default_rng(0), persistence_ticks=persistence_ticks
    )
    assert row[0] is seen


def test_latents_are_kept_for_the_autoencoder_that_made_them(
    tmp_path: Path, tiny_config: Config
) -> None:
    fake.write_shard(tmp_path / "a.tar", [fake.make_sample("walk-a", np.zeros(12))])
    index, cache = ShardIndex([tmp_path]), tmp_path / "latents.npz"
    model = SpatialV2A(tiny_config)
    with torch.no_grad():
        first = encode_clips(model, index, cache)["walk-a"]
        made_ns = cache.stat().st_mtime_ns
        assert torch.equal(encode_clips(model, index, cache)["walk-a"], first)
        assert cache.stat().st_mtime_ns == made_ns
        model.latent_std_D.mul_(2.0)
        torch.testing.assert_close(encode_clips(model, index, cache)["walk-a"], first / 2)


def test_latents_of_a_clip_recorded_again_are_made_anew(
    tmp_path: Path, tiny_config: Config
) -> None:
    """The clip before it, under the same key, sounded elsewhere; its neighbour is kept."""
    model, cache, shard = SpatialV2A(tiny_config), tmp_path / "latents.npz", tmp_path / "a.tar"
    other = fake.make_sample("walk-b", np.zeros(12))

    def encode(azimuth_deg: float) -> dict[str, torch.Tensor]:
        fake.write_shard(shard, [fake.make_sample("walk-a", np.full(12, azimuth_deg)), other])
        return encode_clips(model, ShardIndex([tmp_path]), cache)

    with torch.no_grad():
        before, after = encode(-30.0), encode(30.0)
        fresh = encode_clips(model, ShardIndex([tmp_path]), tmp_path / "fresh.npz")
    assert not torch.equal(before["walk-a"], after["walk-a"])
    assert all(torch.equal(after[key], fresh[key]) for key in ("walk-a", "walk-b"))


def test_what_is_given_and_lost_follows_the_camera(
    tmp_path: Path, tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera turns to the right by 4 of 160 columns a tick; how far is read only once."""
    frames = [view(scene(0), 4 * n) for n in range(24)]
    azimuth_T = np.degrees(azimuth_rad(0.7 - 4 / WIDTH * np.arange(24), fake.FOV_DEG))
    sample = fake.make_sample("walk-a", azimuth_T, frames=frames)
    meta = json.loads(sample["json"])
    for tick in meta["ticks"][12:]:
        tick["boxes"] = []
    fake.write_shard(tmp_path / "a.tar", [sample | {"json": json.dumps(meta).encode()}])

    def read() -> FrameFeatures:
        data = GeneratorData(
            ShardIndex([tmp_path]),
            SpatialV2A(tiny_config),
            cache=tmp_path / "latents.npz",
            store=None,
            detected_share=0.0,
            num_given_views=1,
        )
        return data.clips[0].given[0].features

    first = read()
    assert bool(first.box_mask_BTK[0, :, 0].all()), "seen, then held"
    bearing_T = first.boxes_BTKF[0, :, 0, BOX_FIELDS.index("azimuth")]
    found_deg = np.degrees(bearing_T.float().numpy())
    assert found_deg[-1] - found_deg[11] > 20.0
    # These pictures slide as a whole, which no turn quite does away from the middle.
    assert np.abs(found_deg - azimuth_T).max() < 8.0
    monkeypatch.delattr(CameraTurn, "step")
    assert torch.equal(read().boxes_BTKF, first.boxes_BTKF)


def test_a_batch_says_where_the_picture_tells_the_moments(
    tmp_path: Path, tiny_config: Config
) -> None:
    """In rows of third-person clips; one cut to another clip is none."""
    shares = {"walk-a": "walkers", "walk-b": "third-person"}
    samples = []
    for key, scenario in shares.items():
        sample = fake.make_sample(key, np.zeros(24))
        meta = json.loads(sample["json"]) | {"scenario": scenario}
        samples.append(sample | {"json": json.dumps(meta).encode()})
    fake.write_shard(tmp_path / "a.tar", samples)
    data = GeneratorData(
        ShardIndex([tmp_path]),
        SpatialV2A(tiny_config),
        cache=tmp_path / "latents.npz",
        store=None,
        detected_share=0.0,
        num_given_views=1,
    )
    assert [clip.is_timed for clip in data.clips] == [False, True]
    rng = np.random.default_rng(0)
    assert abs(data.batch(rng, 64, 12)["is_timed_B"].float().mean() - 0.5) < 0.2
    data.scene_cut_share = 1.0
    assert abs(data.batch(rng, 64, 12)["is_timed_B"].float().mean() - 0.25) < 0.2


def test_two_recordings_of_one_key_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fake.write_shard(tmp_path / f"{name}.tar", [fake.make_sample("walk-a", np.zeros(6))])
    with pytest.raises(UserError, match="clip walk-a is in .*a.tar and in .*b.tar; .*--prefix"):
        ShardIndex([tmp_path])


def test_absent_patches_take_no_memory_and_crop_as_zeros() -> None:
    held = view_of(seen_features(), SILENT_T, knows_boxes=True).features
    assert held.dino_BTND.untyped_storage().nbytes() == 2
    mirrored = mirror_features(held.map(lambda x: x[:, 1:4]), grid_width=2)
    assert mirrored.dino_BTND.shape == (1, 3, 2, 3)
    assert not mirrored.dino_BTND.any()
    present = replace(seen_features(), has_dino_BT=torch.ones(1, TICKS, dtype=torch.bool))
    present.dino_BTND[:] = 0.5
    assert view_of(present, SILENT_T, knows_boxes=True).features.dino_BTND.eq(0.5).all()
