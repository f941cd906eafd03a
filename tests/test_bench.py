"""`spatial-v2a bench`: parts and ticks by a clock that is known, deadlines by hand, the sweep."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from spatial_v2a import Config
from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.bench import machine
from spatial_v2a.inference.bench.feed import Feed
from spatial_v2a.inference.bench.figures import (
    DEADLINE_MS,
    Report,
    ceiling_ms,
    count_misses,
    make_report,
    spread,
)
from spatial_v2a.inference.bench.machine import Memory, ProcessorTime, Rates
from spatial_v2a.inference.bench.measure import sweep
from spatial_v2a.inference.bench.parts import PARTS, Work
from spatial_v2a.inference.bench.stopwatch import Place, Stopwatch, timed
from spatial_v2a.inference.bench.subject import load_subject
from spatial_v2a.inference.bench.ticks import OTHER, Runner, TickLog
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.engine.engine import EngineSettings, fastest_weights
from spatial_v2a.inference.engine.pipeline import Pipeline
from tests.test_bad_input import refused
from tests.tiny_checkpoint import write_tiny_checkpoint

NFE = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_config: Config) -> Path:
    # Euler: as many evaluations of the head as are asked for.
    sampler = tiny_config.sampler.model_copy(update={"solver": "euler"})
    config = tiny_config.model_copy(update={"sampler": sampler})
    return write_tiny_checkpoint(tmp_path_factory.mktemp("bench") / "tiny", config)


@pytest.fixture(scope="module")
def subject(checkpoint: Path) -> Pipeline:
    return load_subject(
        checkpoint=str(checkpoint),
        preset=None,
        device="cpu",
        settings=EngineSettings(nfe=NFE),
        objects="together",
        is_compiled=False,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One picture that grows brighter: of noise that changes, each would be a cut."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    random = np.random.default_rng(0)
    picture_HWC = random.integers(0, 128, (48, 64, 3), dtype=np.uint8)
    write_video(path, [picture_HWC + 8 * n for n in range(8)], 30)
    return path


def runner(subject: Pipeline, clip: Path, *, num_streams: int = 1) -> Runner:
    feed = Feed(open_video(clip), num_streams=num_streams, max_width=subject.max_width)
    return Runner(subject, feed, num_videos=num_streams)


def counting_clock(step: float = 0.001) -> Callable[[], float]:
    """Advances by one step at each reading: a part takes as many steps as it has calls."""
    readings = iter(range(10**9))
    return lambda: step * next(readings)


# Parts and ticks


def test_a_part_is_the_sum_of_its_calls() -> None:
    readings = iter([0.0, 2.0, 10.0, 11.5, 20.0, 24.0, 30.0, 31.0])
    stopwatch = Stopwatch(readings.__next__)
    for name in ("head", "head", "VAE"):
        with stopwatch.part(name):
            pass
    assert stopwatch.lap() == {"head": 3.5, "VAE": 4.0}
    with stopwatch.part("head"):
        pass
    assert stopwatch.lap() == {"head": 1.0}, "a lap begins at nothing"


def test_the_device_is_waited_for_before_every_reading() -> None:
    order: list[str] = []

    def clock() -> float:
        order.append("read")
        return 0.0

    with Stopwatch(clock, synchronize=lambda: order.append("wait")).part("head"):
        order.append("work")
    assert order == ["wait", "read", "work", "wait", "read"]


def test_timed_objects_are_as_they_were_also_after_an_error() -> None:
    layer = torch.nn.Linear(2, 2)
    before = set(vars(layer))
    stopwatch = Stopwatch(counting_clock())
    with pytest.raises(KeyError), timed(stopwatch, [Place("head", layer, "forward")]):
        layer(torch.zeros(1, 2))
        raise KeyError
    assert stopwatch.lap() == {"head": pytest.approx(0.001)}
    assert set(vars(layer)) == before


@pytest.mark.parametrize("num_streams", [1, 2], ids=["one", "two"])
def test_every_part_is_timed_and_their_sum_is_the_tick(
    subject: Pipeline, clip: Path, num_streams: int
) -> None:
    """Each part takes one step a call, each call two readings, perception and engine one more."""
    log = runner(subject, clip, num_streams=num_streams).run(10, clock=counting_clock())
    calls = {name: 1 for name in PARTS}
    # Cuts and turns, the tracker, and the box fields of each stream.
    calls["tracking"] = 3 * num_streams
    calls["backbone"] = 2  # for the frame and for the latent
    assert list(log.parts_ms) == [*PARTS, OTHER]
    for name, num_calls in calls.items():
        np.testing.assert_allclose(log.parts_ms[name], num_calls, err_msg=name)
    # Two readings a timed call, of which `between frames` is one that holds another.
    num_readings = 2 * (sum(calls.values()) + 1)
    np.testing.assert_allclose(log.tick_ms_T, num_readings + 2)
    np.testing.assert_allclose(sum(log.parts_ms.values()), log.tick_ms_T)
    # Between frames lie the readings of the call inside it, and its own last one.
    np.testing.assert_allclose(log.tick_ms_T - log.ready_ms_T, 3)


def test_ahead_the_tick_is_the_slower_thread(subject: Pipeline, clip: Path) -> None:
    one = runner(subject, clip)
    one.is_ahead = True
    log = one.run(12)
    together = sum(log.parts_ms.values())
    assert (log.tick_ms_T < together).all() and (2 * log.tick_ms_T >= together).all()


def test_parts_that_take_turns_count_where_they_run(
    subject: Pipeline, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = subject.perception.config
    turns = {
        n: getattr(config, n).model_copy(update={"every_ticks": 2}) for n in ("detector", "depth")
    }
    monkeypatch.setattr(subject.perception, "config", config.model_copy(update=turns))
    one = runner(subject, clip)
    first = one.run(2)
    assert (first.parts_ms["boxes"] > 0).tolist() == [True, False]
    assert (first.parts_ms["depth"] > 0).tolist() == [True, True]
    log = one.run(8)
    ran = {name: (log.parts_ms[name] > 0).tolist() for name in ("DINO", "boxes", "depth")}
    assert ran == {"DINO": [True] * 8, "boxes": [True, False] * 4, "depth": [False, True] * 4}
    flops = one.count_flops()
    assert flops["boxes"] > 0 and flops["depth"] > 0
    report = report_of(log)
    shares = {name: part.share for name, part in report.parts.items()}
    assert (shares["DINO"], shares["boxes"], shares["depth"]) == (1.0, 0.5, 0.5)
    ran_T = log.parts_ms["boxes"] > 0
    assert report.parts["boxes"].spread.p50_ms == np.median(log.parts_ms["boxes"][ran_T])


def test_with_a_real_clock_little_is_left_over(subject: Pipeline, clip: Path) -> None:
    log = runner(subject, clip).run(20)
    together_ms = sum(times for name, times in log.parts_ms.items() if name != OTHER)
    assert (together_ms <= log.tick_ms_T).all()
    assert together_ms.sum() > 0.5 * log.tick_ms_T.sum()


def test_timing_changes_no_sample(subject: Pipeline, clip: Path) -> None:
    """The same video and seed, timed and not, from fresh states."""
    heard = []
    for is_timed in (False, True):
        one = runner(subject, clip)
        pieces, step = [], one.engine.step

        def keep(*args, pieces=pieces, step=step) -> torch.Tensor:
            pieces.append(step(*args))
            return pieces[-1]

        one.engine.step = keep
        if is_timed:
            one.run(4)
        else:
            for _ in range(4):
                one.feed.prepare()
                subject.step(one.feed.read()[0].numpy())
        del one.engine.step  # the pipeline keeps its engine
        heard.append(torch.cat(pieces, dim=1))
    assert heard[0].abs().max() > 0 and torch.equal(*heard)


def test_a_short_video_is_played_again(clip: Path) -> None:
    feed = Feed(open_video(clip), num_streams=2, max_width=64)
    seen = []
    for _ in range(14):
        feed.prepare()
        seen.append(feed.read())
    assert seen[0].shape == (2, 48, 64, 3) and seen[0].dtype == torch.uint8
    assert torch.equal(seen[0], seen[7]) and not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0][0], seen[0][1])


def test_flops_are_counted_by_part(subject: Pipeline, clip: Path) -> None:
    one = runner(subject, clip)
    flops = one.count_flops()
    for name in ("DINO", "depth", "boxes", "fusion", "backbone", "head", "VAE"):
        assert flops[name] > 0, name
    assert flops["decode"] == flops["tracking"] == 0
    head = subject.model.generator.head
    per_evaluation = sum(
        2 * layer.weight.numel()
        for name, layer in head.named_modules()
        if isinstance(layer, torch.nn.Linear) and not name.startswith("condition")
    )
    per_tick = sum(
        2 * layer.weight.numel()
        for name, layer in head.named_modules()
        if isinstance(layer, torch.nn.Linear) and name.startswith("condition")
    )
    assert flops["head"] == per_tick + NFE * per_evaluation


# Figures


def log_of(tick_ms_T: list[float]) -> TickLog:
    """Ticks whose head takes a quarter."""
    times = np.array(tick_ms_T)
    return TickLog(times, 0.9 * times, {"head": times / 4, OTHER: 3 * times / 4}, num_boxes=1.5)


def report_of(times: list[float] | TickLog, *, num_streams: int = 1) -> Report:
    return make_report(
        times if isinstance(times, TickLog) else log_of(times),
        num_streams=num_streams,
        num_warmup_ticks=30,
        is_ahead=False,
        work={"head": Work(flops=2e9, num_bytes=4e6)},
        memory=Memory(100.0, 120.0, None),
        rates=Rates(flops_per_s=1e12, bytes_per_s=1e9),
        stolen_share=0.125,
    )


def test_percentiles_of_a_hand_made_clock() -> None:
    """Ticks of 1, 2 ... 101 ms: the percentiles are 51, 96 and 100."""
    steps = [value for tick in range(1, 102) for value in (tick, tick + tick / 1000)]
    stopwatch = Stopwatch(iter(steps).__next__)
    laps = []
    for _ in range(101):
        with stopwatch.part("head"):
            pass
        laps.append(1e3 * stopwatch.lap()["head"])
    times = spread(np.array(laps))
    found = (times.p50_ms, times.p95_ms, times.p99_ms, times.mean_ms, times.max_ms)
    assert found == pytest.approx((51, 96, 100, 51, 101))


def test_stolen_time_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 wanted jiffies 30 went elsewhere; idle time is not wanted."""
    counts = iter(([100, 0, 0, 50, 5, 0, 0, 7], [150, 5, 10, 950, 5, 0, 5, 37], None))
    monkeypatch.setattr(machine, "_processor_ticks", lambda: next(counts))
    processor = ProcessorTime()
    assert processor.stolen_share() == pytest.approx(0.3)
    assert processor.stolen_share() is None


def test_deadline_misses_by_hand() -> None:
    assert DEADLINE_MS == pytest.approx(33.3333, abs=1e-3)
    assert count_misses(np.array([10.0, 33.3, 33.4, 90.0, DEADLINE_MS])) == 2
    report = report_of([10.0] * 397 + [33.4, 40.0, 33.3])
    assert (report.num_misses, report.misses_per_1000) == (2, 5.0)


def test_ceiling_is_the_slower_of_memory_and_arithmetic() -> None:
    rates = Rates(flops_per_s=1e12, bytes_per_s=1e9)
    assert ceiling_ms(Work(flops=2e9, num_bytes=1e6), rates) == pytest.approx(2.0)
    assert ceiling_ms(Work(flops=2e9, num_bytes=4e6), rates) == pytest.approx(4.0)
    head = report_of([40.0] * 5).parts["head"]
    assert (head.ceiling_ms, head.ratio) == (pytest.approx(4.0), pytest.approx(2.5))


def test_parts_and_rest_in_a_report() -> None:
    report = report_of([20.0] * 9)
    assert report.sum_over_tick == pytest.approx(0.25)
    assert report.ready.p50_ms == pytest.approx(18.0)
    assert report.parts[OTHER].ceiling_ms is None


# The sweep


def test_the_sweep_stops_at_the_first_misses_and_keeps_them() -> None:
    asked = []

    def measured(num_streams: int) -> Report:
        asked.append(num_streams)
        return report_of([9.0 * num_streams] * 10, num_streams=num_streams)

    reports = sweep(measured)
    assert asked == [1, 2, 4] == [report.num_streams for report in reports]
    assert [report.num_misses for report in reports] == [0, 0, 10]


def test_one_miss_in_a_thousand_is_forgiven_and_the_sweep_has_an_end() -> None:
    reports = sweep(lambda n: report_of([9.0] * 999 + [50.0], num_streams=n), max_streams=8)
    assert [report.num_streams for report in reports] == [1, 2, 4, 8]
    assert reports[-1].misses_per_1000 == 1.0


# The command


def said_by(arguments: list, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(["bench", *(str(argument) for argument in arguments)]) == 0
    return capsys.readouterr().out


def test_the_command_ends_in_one_line_of_json(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures"
    arguments = ["--checkpoint", checkpoint, "--seconds", 1, "--nfe", NFE, "-o", out]
    text = said_by(arguments, capsys)
    data = json.loads(text.splitlines()[-1])
    assert json.loads((out / "bench.json").read_text()) == data
    assert (data["num_ticks"], data["num_warmup_ticks"], data["num_streams"]) == (30, 30, 1)
    assert list(data["parts"]) == [*PARTS, OTHER]
    for name, part in data["parts"].items():
        assert part["p50_ms"] <= part["p95_ms"] <= part["p99_ms"] <= part["max_ms"], name
    for name in ("DINO", "depth", "boxes", "fusion", "backbone", "head", "VAE"):
        assert data["parts"][name]["ceiling_ms"] > 0, name
        assert data["parts"][name]["megabytes"] > 0, name
    together_ms = sum(part["mean_ms"] for part in data["parts"].values())
    assert data["is_ahead"] and 0.5 * together_ms < data["tick"]["mean_ms"] < together_ms
    assert 0.5 < data["sum_over_tick"] <= 1
    assert data["ready"]["mean_ms"] < together_ms
    assert 0 < data["memory"]["resident_mb"] <= 1.01 * data["memory"]["peak_mb"]
    assert data["run"]["weights"] == "trained" and data["run"]["nfe"] == NFE
    assert data["run"]["engine_weights"] == fastest_weights("cpu")
    assert data["stolen_share"] is None or 0 <= data["stolen_share"] <= 1
    for words in ("warm up and are not counted", "not measured here", "26.3 (NFE 1)", "per 1000"):
        assert words in text
    assert run(["bench", *(str(argument) for argument in arguments)]) == 2
    assert "exists" in capsys.readouterr().err


def test_json_alone_from_a_preset_and_a_video_of_ones_own(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--preset", "tiny", "--video", clip, "--streams", 2, "--json"]
    (line,) = said_by([*arguments, "--seconds", 0.2], capsys).splitlines()
    data = json.loads(line)
    assert data["run"]["weights"] == "random" and data["run"]["video"] == str(clip)
    assert (data["num_streams"], data["num_ticks"]) == (2, 6)


def test_a_sweep_writes_its_picture(
    checkpoint: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("spatial_v2a.inference.bench.measure.MAX_MISSES_PER_1000", -1.0)
    arguments = ["--checkpoint", checkpoint, "--video", clip, "--sweep", "--seconds", 0.2]
    text = said_by([*arguments, "-o", tmp_path / "sweep"], capsys)
    (only,) = json.loads(text.splitlines()[-1])["sweep"]
    assert only["num_streams"] == 1
    assert (tmp_path / "sweep/bench.png").read_bytes().startswith(b"\x89PNG")
    assert len(os.listdir(tmp_path / "sweep")) == 2, "a temporary file is left"


def test_nothing_stays_wrapped(subject: Pipeline, clip: Path) -> None:
    one = runner(subject, clip)
    one.run(2)
    assert not {"fuse", "attend", "draw", "decode", "remember"} & set(vars(one.engine.passes))
    assert "remember" not in vars(one.engine)
    assert "encode" not in vars(subject.perception.dino)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "huge"], "no preset huge; choose from: base, large, stage, tiny"),
        (["--preset", "tiny", "--checkpoint", "stage"], "exclude each other"),
        (["--checkpoint", "nowhere"], "no checkpoint folder nowhere"),
        (["--video", "nothing.mp4"], "nothing.mp4"),
        (
            ["--preset", "tiny", "--device", "abacus"],
            "'abacus' is not one of 'auto', 'cpu', 'cuda'",
        ),
        (["--seconds", "0"], "--seconds"),
        (["--seconds", "nan"], "--seconds"),
        (["--streams", "0"], "--streams"),
        (["--nfe", "0"], "--nfe"),
        (["--threads", "0"], "--threads"),
        (["--sweep", "--streams", "2"], "leave --streams out"),
        (["--out", "file"], "--out file is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("not a folder")
    assert words in refused(["bench", *arguments], tmp_path, capsys)


def test_a_published_encoder_of_unknown_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights need the sizes; guessing them would measure another network."""
    monkeypatch.setattr("spatial_v2a.inference.bench.subject.PUBLISHED_DINO", {})
    with pytest.raises(UserError, match="dinov2-with-registers-small are unknown"):
        load_subject(checkpoint=None, preset="base", device="cpu")
