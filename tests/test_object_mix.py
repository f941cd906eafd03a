"""Objects heard apart: the sum of their streams, when it is heard, and how it comes and goes."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.conditioning.boxes import Box, BoxTokenBuilder, frame_features
from spatial_v2a.conditioning.compiled import SWITCH, has_openvino
from spatial_v2a.features import FrameFeatures
from spatial_v2a.inference.engine.allocator import FADE_TICKS, LINGER_TICKS
from spatial_v2a.inference.engine.engine import Engine, EngineSettings
from spatial_v2a.inference.engine.object_mix import Heard, ObjectMix, ObjectStreams
from spatial_v2a.model import SpatialV2A
from spatial_v2a.timing import TIMING
from tests.tiny_checkpoint import shaken

STEP = TIMING.samples_per_tick


@pytest.fixture(scope="module")
def model(tiny_config: Config) -> SpatialV2A:
    return shaken(SpatialV2A(tiny_config)).eval()


def seen(config: Config, pictures: Iterable[str]) -> list[tuple[FrameFeatures, tuple[Box, ...]]]:
    """Ticks of pictures such as "AB": which objects have a box."""
    perception = config.perception
    builder, ticks = BoxTokenBuilder(max_boxes=perception.max_boxes), []
    for picture in pictures:
        boxes = [
            Box("_ABCD".index(name), 0, cx=0.2 * ord(name) % 1, cy=0.5, w=0.2, h=0.2, nearness=0.5)
            for name in picture.strip("-")
        ]
        tokens = [builder.step(boxes, fov_deg=90.0)]
        ticks.append((frame_features(perception, tokens=tokens, num_ticks=1), tuple(boxes)))
    return ticks


class Listener:
    """An engine whose streams are kept beside the mix that is made of them.

    Attributes:
        streams_TBLC: every tick of every stream.
        heard: every tick.
    """

    def __init__(
        self,
        model: SpatialV2A,
        ticks: list,
        *,
        num_object_streams: int = 3,
        num_takes: int = 1,
        **more,
    ) -> None:
        num_streams = 1 + num_object_streams
        engine = Engine(
            model,
            num_streams=num_takes * num_streams,
            settings=EngineSettings(nfe=1, seed=5),
            streams_per_noise=num_streams,
        )
        streams: list[np.ndarray] = []
        step = engine.step

        def kept(features: FrameFeatures) -> torch.Tensor:
            audio_BLC = step(features)
            streams.append(audio_BLC.numpy().copy())
            return audio_BLC

        engine.step = kept
        mix = ObjectMix(engine, num_takes=num_takes, **more)
        self.heard: list[Heard] = [mix.step(*tick) for tick in ticks]
        self.streams_TBLC = np.stack(streams)

    @property
    def mix_TLC(self) -> np.ndarray:
        """The mix of the first take, tick by tick."""
        return np.stack([heard.mix_NLC[0] for heard in self.heard])

    def sum_of(self, tick: int, *streams: int) -> np.ndarray:
        return self.streams_TBLC[tick, list(streams)].sum(axis=0)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    assert np.abs(b).max() > 1e-4, "the random model is silent, the test says nothing"
    return np.array_equal(a, b)


@pytest.mark.parametrize("picture", ["-", "A"], ids=["no object", "one object"])
def test_with_one_object_at_most_everything_is_heard_together(tiny_config, model, picture) -> None:
    ticks = seen(tiny_config, [picture] * 6 + ["B"] * 4)
    listener = Listener(model, ticks)
    together = Listener(model, ticks, is_apart=False)
    assert same(listener.mix_TLC, listener.streams_TBLC[:, 0])
    assert same(listener.mix_TLC, together.mix_TLC)
    alone = Listener(model, ticks, num_object_streams=0)
    error = np.abs(listener.mix_TLC - alone.mix_TLC).max()
    assert error < 1e-4, f"{error:.2g} from the engine of one stream"


@pytest.mark.skipif(not has_openvino(), reason="OpenVINO is not installed")
def test_with_openvino_the_streams_beside_it_change_no_bit(tiny_config, model, monkeypatch) -> None:
    """Four streams, and two takes of them, against one."""
    monkeypatch.delenv(SWITCH, raising=False)
    ticks = seen(tiny_config, ["-", *["A"] * 9])

    def sound_NTLC(num_object_streams: int, num_takes: int, seed: int = 5) -> np.ndarray:
        num_streams = 1 + num_object_streams
        engine = Engine(
            model,
            num_streams=num_takes * num_streams,
            settings=EngineSettings(nfe=1, seed=seed),
            streams_per_noise=num_streams,
            is_compiled=True,
        )
        mix = ObjectMix(engine, num_takes=num_takes)
        return np.stack([mix.step(*tick).mix_NLC for tick in ticks], axis=1)

    one = sound_NTLC(0, 1)[0]
    assert same(sound_NTLC(3, 1)[0], one)
    two = sound_NTLC(3, 2)
    assert same(two[0], one) and same(two[1], sound_NTLC(0, 1, seed=6)[0])


def test_two_objects_are_the_sum_of_their_streams(tiny_config, model) -> None:
    listener = Listener(model, seen(tiny_config, ["AB"] * 6))
    for tick in range(6):
        assert same(listener.mix_TLC[tick], listener.sum_of(tick, 1, 2)), f"tick {tick}"
        assert not np.array_equal(listener.mix_TLC[tick], listener.streams_TBLC[tick, 0])


def test_the_sum_comes_and_goes_in_straight_lines_of_three_ticks(tiny_config, model) -> None:
    """Sample by sample the mix is what the lines say, and they have no step."""
    assert FADE_TICKS == LINGER_TICKS == 3
    listener = Listener(model, seen(tiny_config, ["A"] * 4 + ["AB"] * 5 + ["A"] * 9))
    rise_L = np.arange(1, 3 * STEP + 1) / (3 * STEP)
    # Three ticks without B change nothing yet, and then it goes as it came.
    share_L = np.concatenate(
        [np.zeros(4 * STEP), rise_L, np.ones((2 + 3) * STEP), 1 - rise_L, np.zeros(3 * STEP)]
    )
    assert np.abs(np.diff(share_L)).max() < 1.01 / (3 * STEP)
    # B's own stream leaves the sum as the sum leaves the mix.
    b_L = share_L.copy()
    joint_LC, a_LC, b_LC = (listener.streams_TBLC[:, stream].reshape(-1, 2) for stream in range(3))
    b_L[12 * STEP : 15 * STEP] *= 1 - rise_L
    expected_LC = (1 - share_L)[:, None] * joint_LC + share_L[:, None] * a_LC + b_L[:, None] * b_LC
    error = np.abs(listener.mix_TLC.reshape(-1, 2) - expected_LC).max()
    assert error < 1e-6, f"{error:.2g}"
    for tick in (*range(4), *range(15, 18)):
        assert same(listener.mix_TLC[tick], listener.streams_TBLC[tick, 0]), f"tick {tick}"
    for tick in range(7, 12):
        assert same(listener.mix_TLC[tick], listener.sum_of(tick, 1, 2)), f"tick {tick}"


@pytest.mark.parametrize("gap", [1, 2, 3, 4])
def test_a_gap_of_a_tenth_of_a_second_does_not_switch(tiny_config, model, gap: int) -> None:
    listener = Listener(model, seen(tiny_config, ["AB"] * 3 + ["A"] * gap + ["AB"] * 3))
    is_sum = [
        np.array_equal(listener.mix_TLC[tick], listener.sum_of(tick, 1, 2))
        for tick in range(6 + gap)
    ]
    assert all(is_sum) == (gap <= 3), is_sum


def test_a_stream_that_has_lost_its_object_sounds_no_more(tiny_config, model) -> None:
    """C leaves two others: heard for three ticks, faded in three, and gone."""
    listener = Listener(model, seen(tiny_config, ["ABC"] * 4 + ["AB"] * 10))
    for tick in range(7):
        assert same(listener.mix_TLC[tick], listener.sum_of(tick, 1, 2, 3)), f"tick {tick}"
    for tick in range(10, 14):
        assert same(listener.mix_TLC[tick], listener.sum_of(tick, 1, 2)), f"tick {tick}"
    fading_TLC = listener.mix_TLC[7:10] - listener.streams_TBLC[7:10, 1:3].sum(axis=1)
    fall_TL1 = 1 - np.arange(1, 3 * STEP + 1).reshape(3, STEP, 1) / (3 * STEP)
    assert np.abs(fading_TLC - fall_TL1 * listener.streams_TBLC[7:10, 3]).max() < 1e-6


def test_a_new_object_beside_two_others_is_heard_at_once(tiny_config, model) -> None:
    """Its stream begins anew, with the silence that every sound begins with."""
    listener = Listener(model, seen(tiny_config, ["AB"] * 5 + ["ABC"] * 3))
    for tick in range(5, 8):
        assert same(listener.mix_TLC[tick], listener.sum_of(tick, 1, 2, 3)), f"tick {tick}"
    begin_LC, usual = listener.streams_TBLC[5, 3], np.abs(listener.streams_TBLC[6:, 3]).max()
    assert np.abs(begin_LC[:8]).max() < 0.1 * usual, f"{begin_LC[:8]} of {usual:.2g}"


def test_more_objects_than_object_streams_are_all_heard(tiny_config, model) -> None:
    ticks = seen(tiny_config, ["ABCD"] * 3 + ["ABC"] * 3)
    listener = Listener(model, ticks, num_object_streams=2)
    for tick in range(6):
        assert same(listener.mix_TLC[tick], listener.sum_of(tick, 1, 2)), f"tick {tick}"
    object_streams = ObjectStreams(2)
    masks_TBK = torch.stack(
        [object_streams.assign(*tick).features.box_mask_BTK[:, 0] for tick in (ticks[0], ticks[3])]
    )
    assert masks_TBK.sum(dim=-1).tolist() == [[4, 1, 3], [3, 1, 2]]
    assert torch.equal(masks_TBK[:, 1] ^ masks_TBK[:, 2], masks_TBK[:, 0]), "each is heard once"


def test_every_take_is_its_own_seed(tiny_config, model) -> None:
    ticks = seen(tiny_config, ["A", "AB", "AB", "AB", "AB", "ABC", "BC", "C", "C", "C", "C", "C"])
    listener = Listener(model, ticks, num_takes=3)
    for take in range(3):
        engine = Engine(
            model,
            num_streams=4,
            settings=EngineSettings(nfe=1, seed=5 + take),
            streams_per_noise=4,
        )
        mix = ObjectMix(engine)
        expected_TLC = np.stack([mix.step(*tick).mix_NLC[0] for tick in ticks])
        heard_TLC = np.stack([heard.mix_NLC[take] for heard in listener.heard])
        error = np.abs(heard_TLC - expected_TLC).max()
        assert error < 1e-4 < np.abs(expected_TLC).max(), f"take {take} differs by {error:.2g}"
    assert not np.allclose(listener.heard[-1].mix_NLC[0], listener.heard[-1].mix_NLC[1], atol=1e-4)


def test_what_the_object_streams_have_adds_up_to_the_sum_and_is_all_they_play_beside_it(
    tiny_config, model
) -> None:
    listener = Listener(model, seen(tiny_config, ["A"] * 3 + ["AB"] * 6 + ["A"] * 12))
    for tick in range(6, 9):
        alone_LC = listener.heard[tick].alone_SLC.sum(axis=0)
        assert np.abs(alone_LC - listener.mix_TLC[tick]).max() < 1e-6
    for tick, owners in ((1, [1, 0, 0]), (20, [1, 1, 0])):
        expected_SLC = listener.streams_TBLC[tick, 1:] * np.reshape(owners, (3, 1, 1))
        assert np.array_equal(listener.heard[tick].alone_SLC, expected_SLC)
    jumps = [np.abs(np.diff(heard.weight_SL, axis=1)).max() for heard in listener.heard]
    assert max(jumps) < 1.01 / (3 * STEP)


def test_sound_that_stands_is_followed_by_who_has_made_it(tiny_config, model) -> None:
    """One object alone: no noise is used and its own stream follows. Two: each draws its own."""
    latent_dim = tiny_config.autoencoder.latent_dim
    x_TD = torch.randn(8, latent_dim, generator=torch.Generator().manual_seed(0))

    def history(pictures: list[str], *, num_object_streams: int) -> tuple[ObjectMix, torch.Tensor]:
        num_streams = 1 + num_object_streams
        engine = Engine(
            model,
            num_streams=num_streams,
            settings=EngineSettings(nfe=1),
            streams_per_noise=num_streams,
        )
        mix = ObjectMix(engine)
        for tick, x_D in zip(seen(tiny_config, pictures), x_TD, strict=False):
            mix.follow(*tick, x_D)
        mix.restart_noise()
        return mix, engine.state.generator.memory_BD.clone()

    mix, memory_BD = history(["A"] * 8, num_object_streams=3)
    plain, plain_BD = history(["A"] * 8, num_object_streams=0)
    assert torch.allclose(memory_BD[0], plain_BD[0], atol=1e-5)
    assert torch.equal(memory_BD[1], memory_BD[0]) and not torch.equal(memory_BD[2], memory_BD[0])
    (tick,) = seen(tiny_config, ["A"])
    error = np.abs(mix.step(*tick).mix_NLC - plain.step(*tick).mix_NLC).max()
    assert error < 1e-4, f"{error:.2g}"
    _, memory_BD = history(["A"] * 4 + ["AB"] * 4, num_object_streams=3)
    assert torch.allclose(memory_BD[0], plain_BD[0], atol=1e-5), "the whole follows the mix"
    for object_stream in (1, 2):
        assert not torch.allclose(memory_BD[object_stream], plain_BD[0], atol=1e-2)
