"""Outputs: whole or absent, never over what appeared meanwhile, never through a planted link."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import torch

from spatial_v2a import Config, files
from spatial_v2a.conditioning.video import write_video
from spatial_v2a.conditioning.weights import write_weights
from spatial_v2a.errors import UserError
from spatial_v2a.files import (
    SCRATCH,
    Outputs,
    cannot_write,
    check_writable,
    remove_leftovers,
    write_text,
    written_folder,
    written_whole,
)
from spatial_v2a.inference.cli.main import run
from spatial_v2a.inference.dub.dubber import Dubber
from spatial_v2a.inference.dub.jobs import DubJob, DubOptions, plan_jobs
from spatial_v2a.inference.engine.engine import EngineSettings
from spatial_v2a.inference.inspect.report import plan_inspection
from spatial_v2a.models.checkpoint import write_checkpoint
from tests.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def dubber(tmp_path_factory, tiny_config: Config) -> Dubber:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_config)
    return Dubber(folder, settings=EngineSettings(nfe=1), device="cpu")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4")


def write_clip(path: Path) -> Path:
    write_video(path, (np.full((32, 48, 3), 40 * n, np.uint8) for n in range(6)), 24)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def dub_while(dubber: Dubber, job: DubJob, meanwhile: Callable[[], object]) -> None:
    """Dubs, and calls `meanwhile` once in the middle of the work."""
    dubber.dub(job, on_tick=lambda done: meanwhile() if done == 2 else None)


# --- scratch


def test_a_link_under_a_guessed_name_is_not_written_through(tmp_path, clip, dubber) -> None:
    """The hidden names were NAME, the process number and a word, and links there were followed."""
    victim = tmp_path / "victim"
    victim.write_text("keep")
    pid = os.getpid()
    guessed = [f".clip.dubbed.partial-{pid}{tail}" for tail in (".mp4", "-dry.w64", ".png")]
    guessed += [f"..clip.dubbed.partial-{pid}.partial-{pid}.mp4", f".clip.dubbed.pan.partial-{pid}"]
    for name in guessed:
        (tmp_path / name).symlink_to(victim)
    (job,) = plan_jobs([clip], report=True)
    dubber.dub(job)
    assert victim.read_text() == "keep"
    made = {"clip.dubbed.mp4", "clip.dubbed.pan.png"}
    assert set(names(tmp_path)) == made | {"victim", "clip.mp4", *guessed}


def test_scratch_is_private_and_its_name_is_new_every_time(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        with written_whole(tmp_path / "a.txt", overwrite=True) as draft:
            folder = draft.parent
            assert folder.parent == tmp_path and folder not in seen
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert len(os.fsencode(folder.name)) < 32 and draft.name == "1.txt"
            seen.add(folder)
        assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_after_an_error_nothing_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(error), Outputs(overwrite=True) as outputs:
        outputs.make_folder(tmp_path / "stems" / "more")
        outputs.new(tmp_path / "stems" / "more" / "x").write_text("new")
        outputs.new(tmp_path / "old").write_text("new")
        outputs.temporary(tmp_path / "old", suffix=".w64").write_text("sound")
        raise error
    assert names(tmp_path) == ["old"] and (tmp_path / "old").read_text() == "old"


HOLD = """
import sys, time
from pathlib import Path
from spatial_v2a.files import written_whole
with written_whole(Path(sys.argv[1]), overwrite=False) as draft:
    draft.write_text("half")
    print(draft.parent.name, flush=True)
    time.sleep(120)
"""


def test_leftovers_of_a_killed_process_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / f"{n}.txt")],
            stdout=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    try:
        dead, alive = (holder.stdout.readline().strip() for holder in holders)
        assert sorted([dead, alive]) == names(tmp_path)
        holders[0].kill()
        holders[0].wait()
        # What another machine made, which may be at work on a network disk, and look-alikes.
        other = tmp_path / f"{SCRATCH}00000000-abcdefgh"
        other.mkdir()
        (tmp_path / f"{SCRATCH}link").symlink_to(tmp_path.parent)
        (tmp_path / f"{SCRATCH}file").touch()
        stay = [alive, other.name, f"{SCRATCH}link", f"{SCRATCH}file"]
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted(stay)
        long_ago = time.time() - 30 * 24 * 3600
        os.utime(other, (long_ago, long_ago))
        remove_leftovers(tmp_path)
        assert names(tmp_path) == sorted(set(stay) - {other.name})
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()


def test_a_process_number_that_is_used_again_protects_nothing(tmp_path: Path) -> None:
    """A folder of this boot without a lock has no owner, whatever process runs now."""
    with written_whole(tmp_path / "a", overwrite=False) as draft:
        left = draft.parent.with_name(f"{draft.parent.name}x")
        left.mkdir()
        (left / "1.mp4").touch()
        remove_leftovers(tmp_path)
        assert draft.exists() and not left.exists()


# --- what appears during the work


def plant_file(path: Path) -> None:
    path.write_text("theirs")


def plant_dangling_link(path: Path) -> None:
    path.symlink_to("nowhere")


def plant_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("plant", [plant_file, plant_dangling_link, plant_folder])
@pytest.mark.parametrize("taken", ["clip.dubbed.mkv", "clip.dubbed.c2pa", "clip.dubbed.pan.png"])
def test_what_appears_during_a_dub_stays(
    tmp_path, clip, dubber, signing_key, taken: str, plant
) -> None:
    """It was overwritten; now the finished files are kept aside, all of them together."""
    (job,) = plan_jobs([clip], out=tmp_path / "clip.dubbed.mkv", report=True)
    with pytest.raises(UserError, match="appeared during the work") as caught:
        dub_while(dubber, job, lambda: plant(tmp_path / taken))
    there = tmp_path / taken
    assert there.is_symlink() or there.is_dir() or there.read_text() == "theirs"
    assert names(tmp_path) == sorted(["clip.mp4", taken, "spatial-v2a-kept-1"])
    kept = tmp_path / "spatial-v2a-kept-1"
    assert str(there) in str(caught.value) and str(kept) in str(caught.value)
    assert names(kept) == ["clip.dubbed.c2pa", "clip.dubbed.mkv", "clip.dubbed.pan.png"]
    with av.open(str(kept / "clip.dubbed.mkv")) as container:
        assert container.streams.video and container.streams.audio


def test_with_overwrite_what_appears_is_replaced(tmp_path, clip, dubber) -> None:
    out = tmp_path / "clip.dubbed.mp4"
    (job,) = plan_jobs([clip], overwrite=True)
    dub_while(dubber, job, lambda: out.write_text("theirs"))
    assert names(tmp_path) == ["clip.dubbed.mp4", "clip.mp4"] and out.stat().st_size > 1000


def test_of_two_dubs_to_one_name_one_says_that_it_lost(tmp_path, clip, dubber) -> None:
    (one,), (other,) = plan_jobs([clip]), plan_jobs([clip])
    with pytest.raises(UserError, match="appeared during the work"):
        dub_while(dubber, one, lambda: Dubber.dub(twin(dubber), other))
    assert names(tmp_path) == ["clip.dubbed.mp4", "clip.mp4", "spatial-v2a-kept-1"]


def twin(dubber: Dubber) -> Dubber:
    """Another dubber of the same checkpoint: the engine of the first is at work."""
    return Dubber(dubber.model.folder, settings=dubber.settings, device="cpu")


RACE = """
import sys, time
from pathlib import Path
from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs
out, name, start = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
try:
    with Outputs(overwrite=False) as outputs:
        for suffix in (".mp4", ".c2pa", ".png"):
            outputs.new(out.with_suffix(suffix)).write_text(name)
        time.sleep(max(0, start - time.time()))
except UserError as error:
    print(error)
    sys.exit(2)
"""


def test_of_many_processes_one_gives_its_whole_set_the_names(tmp_path: Path) -> None:
    out, start = tmp_path / "out.mp4", time.time() + 2
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, str(out), str(n), str(start)], stdout=subprocess.PIPE
        )
        for n in range(6)
    ]
    said = [racer.communicate()[0].decode() for racer in racers]
    codes = [racer.returncode for racer in racers]
    assert sorted(codes) == [0, 2, 2, 2, 2, 2], said
    winner = str(codes.index(0))
    assert all(out.with_suffix(s).read_text() == winner for s in (".mp4", ".c2pa", ".png"))
    assert all("appeared during the work" in text for n, text in enumerate(said) if codes[n])
    assert not list(tmp_path.glob(".*"))


def refuse_link(*args: object, **kwargs: object) -> None:
    """What FAT answers: it knows no hard links."""
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.mark.parametrize("has_links", [True, False], ids=["links", "no-links"])
def test_without_the_kernels_exclusive_rename(tmp_path, monkeypatch, has_links: bool) -> None:
    monkeypatch.setattr(files, "_libc", lambda: object())
    if not has_links:
        monkeypatch.setattr(os, "link", refuse_link)
    write_text(tmp_path / "a", "first", overwrite=False)
    with pytest.raises(UserError, match="appeared during the work"):
        write_text(tmp_path / "a", "second", overwrite=False)
    assert (tmp_path / "a").read_text() == "first"
    assert (tmp_path / "spatial-v2a-kept-1" / "a").read_text() == "second"
    for text in ("old", "new"):
        with written_folder(tmp_path / "folder", overwrite=True) as draft:
            (draft / "in").write_text(text)
        assert (tmp_path / "folder" / "in").read_text() == text
    with pytest.raises(UserError, match="appeared"), written_folder(tmp_path / "late",
                                                                    overwrite=False):  # fmt: skip
        (tmp_path / "late").mkdir()
    assert names(tmp_path) == ["a", "folder", "late", "spatial-v2a-kept-1", "spatial-v2a-kept-2"]


def test_a_set_that_cannot_be_whole_leaves_the_old_one(tmp_path: Path) -> None:
    old = [tmp_path / name for name in ("a.mkv", "a.c2pa", "a.png")]
    for path in old[1:]:
        path.write_text("old")
    with pytest.raises(UserError, match=r"a\.mkv appeared"), Outputs(overwrite=True) as outputs:
        for path in old:
            outputs.new(path).write_text("new")
        old[0].mkdir()
    assert [path.read_text() for path in old[1:]] == ["old", "old"] and old[0].is_dir()


def test_a_checkpoint_folder_that_appears_stays(tmp_path: Path, tiny_config: Config) -> None:
    folder = tmp_path / "made"

    class Late(dict):
        """Weights that take a while, in which somebody makes the folder."""

        def items(self):
            folder.mkdir()
            return super().items()

    tensors = Late(a=torch.zeros(2, 2))
    with pytest.raises(UserError, match="appeared during the work"):
        write_checkpoint(folder, config=tiny_config, tensors=tensors, card="")
    assert names(tmp_path) == ["made", "spatial-v2a-kept-1"] and not names(folder)
    assert "model.safetensors" in names(tmp_path / "spatial-v2a-kept-1" / "made")


# --- links, modes, what is no file


@pytest.mark.parametrize("is_there", [True, False], ids=["there", "dangling"])
def test_a_linked_output_is_written_where_the_link_leads(tmp_path, clip, dubber, is_there) -> None:
    """The link was replaced by the file."""
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "real.mp4", tmp_path / "out.mp4"
    link.symlink_to(Path("disk") / "real.mp4")
    if is_there:
        real.write_text("old")
        with pytest.raises(UserError, match=r"out\.mp4 exists"):
            plan_jobs([clip], out=link)
    (job,) = plan_jobs([clip], out=link, overwrite=is_there)
    dubber.dub(job)
    assert link.is_symlink() and real.stat().st_size > 1000
    assert names(tmp_path) == ["clip.mp4", "disk", "out.mp4"]
    assert names(tmp_path / "disk") == ["real.mp4"]


def test_other_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "folder").symlink_to("real")
    write_text(tmp_path / "folder" / "a", "text", overwrite=False)
    assert names(tmp_path / "real") == ["a"] and (tmp_path / "folder").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "far").symlink_to("no/where")
    for name, words in (("loop", "Too many levels of symbolic"), ("far", "does not exist")):
        with pytest.raises(UserError, match=words):
            check_writable(tmp_path / name, overwrite=True)
    with written_folder(tmp_path / "folder", overwrite=True) as draft:
        (draft / "b").touch()
    assert names(tmp_path / "real") == ["b"] and (tmp_path / "folder").is_symlink()


def write_with_library(path: Path) -> None:
    """By a library that makes a file of its own, readable by its user alone."""
    write_weights(path, "dino", torch.nn.Linear(2, 2))


def write_with_sound_library(path: Path) -> None:
    path.mkdir(exist_ok=True)
    with written_whole(path / "a.wav", overwrite=True) as draft:
        soundfile.write(draft, np.zeros((4, 2)), 48000)


def write_whole_folder(path: Path) -> None:
    with written_folder(path, overwrite=True) as draft:
        (draft / "a").touch(mode=0o600)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077], ids=oct)
@pytest.mark.parametrize(
    "write", [write_with_library, write_with_sound_library, write_whole_folder]
)
def test_a_new_file_has_the_mode_that_the_umask_gives(tmp_path, umask: int, write) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(before)
    (made,) = (tmp_path / "new").iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("mode", [0o640, 0o600, 0o666], ids=oct)
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    write_text(path, "new")
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path, clip: Path, kind: str) -> None:
    """With --overwrite a pipe became a file."""
    out = tmp_path / "out.wav"
    if kind == "fifo":
        os.mkfifo(out)
    else:
        out.symlink_to("/dev/null")
    with pytest.raises(UserError, match="is a pipe or a device; name a file with -o"):
        plan_jobs([clip], out=out, overwrite=True)
    assert stat.S_ISFIFO(out.stat().st_mode) or stat.S_ISCHR(Path("/dev/null").stat().st_mode)


# --- names


@pytest.mark.parametrize("num_bytes", [240, 248, 255])
def test_the_longest_names_work(tmp_path, clip, dubber, num_bytes: int) -> None:
    """The hidden name was longer than the name, so that the work was lost at its end."""
    out = tmp_path / f"{'n' * (num_bytes - 5)}.webm"
    out = out.with_suffix(".mp4") if num_bytes < 255 else tmp_path / f"{'ü' * 125}n.mp4"
    (job,) = plan_jobs([clip], out=out)
    dubber.dub(job)
    assert names(tmp_path) == sorted(["clip.mp4", out.name])


@pytest.mark.parametrize(
    ("suffix", "options", "report", "derived"),
    [
        (".mp4", DubOptions(), False, "{stem}.dubbed.mp4"),
        (".mp4", DubOptions(takes=2), False, ".seed0.mp4"),
        (".mkv", DubOptions(), True, ".pan.png"),
    ],
    ids=["default", "takes", "report"],
)
def test_a_derived_name_that_is_too_long_is_refused_before_the_work(
    tmp_path: Path, suffix: str, options: DubOptions, report: bool, derived: str
) -> None:
    """Some were a traceback, some failed at the end of the work."""
    stem = "v" * (255 - len(suffix))
    is_default = derived.startswith("{")
    video = write_clip(tmp_path / (f"{stem}{suffix}" if is_default else "clip.mp4"))
    out = None if is_default else tmp_path / f"{stem}{suffix}"
    with pytest.raises(UserError) as caught:
        plan_jobs([video], out=out, options=options, report=report)
    said = str(caught.value)
    assert derived.format(stem=stem) in said and "\n" not in said
    assert said.endswith("(File name too long); give a shorter name with -o")
    plan_jobs([video], out=tmp_path / f"short{suffix}", options=options, report=report)


@pytest.mark.parametrize("command", ["dub", "tracks"])
def test_any_name_that_is_too_long_is_one_line(tmp_path, clip, capsys, command: str) -> None:
    out = tmp_path / f"{'n' * 255}.{'mp4' if command == 'dub' else 'jsonl'}"
    for words in ([clip, "-o", out], [out]):
        assert run([command, *map(str, words)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1, said
        assert "too long" in said and "shorter name" in said, said


def test_a_picture_is_named_after_its_file_so_that_is_to_be_renamed(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 245}.wav"
    soundfile.write(path, np.zeros((4800, 2)), 48000)
    with pytest.raises(UserError, match=r"stereo\.png is too long; rename its file"):
        plan_inspection([path])
    plan_inspection([path.rename(tmp_path / "short.wav")])


# --- reasons and remedies


def raised(function: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: B017 (what it is, is what is asked)
        function()
    return caught.value


def mux_backwards(folder: Path) -> None:
    """A muxer that refuses: the second packet lies before the first."""
    (folder / f"{SCRATCH}x").mkdir()
    with av.open(str(folder / f"{SCRATCH}x" / "1.mp4"), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000, layout="stereo")
        container.start_encoding()
        for pts in (96000, 0):
            packet = av.Packet(bytes(8))
            packet.stream, packet.pts, packet.dts = stream, pts, pts
            packet.time_base = stream.time_base
            container.mux(packet)


REASONS = [
    ("full", lambda f: open("/dev/full", "w", buffering=1).write("x\n"), "free space or use -o"),
    ("full-ffmpeg", lambda f: fill_with_ffmpeg(Path("/dev/full")), "free space or use -o"),
    ("quota", lambda f: fail(errno.EDQUOT), "free space or use -o"),
    ("long", lambda f: (f / ("n" * 256)).touch(), "give a shorter name with -o"),
    ("read-only", lambda f: fail(errno.EROFS), "make its folder writable or use -o"),
    ("denied", lambda f: fail(errno.EACCES), "make its folder writable or use -o"),
    ("large", lambda f: fail(errno.EFBIG), "its file system takes no larger files: use -o on"),
    ("disk", lambda f: fail(errno.EIO), "check its disk or use -o"),
    ("sound", lambda f: soundfile.SoundFile(f / "no" / "x.wav", "w", 48000, 2), "check its disk"),
    ("refused", mux_backwards, "use -o with another container, like .mkv or .wav"),
    ("input", lambda f: av.open(str(f / "gone.mp4")), "gone.mp4 fails (No such file"),
]  # fmt: skip


def fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def fill_with_ffmpeg(path: Path) -> None:
    with av.open(str(path), "w", format="nut") as container:
        container.add_stream("flac", rate=48000)
        container.start_encoding()


@pytest.mark.parametrize(("make", "words"), [r[1:] for r in REASONS], ids=[r[0] for r in REASONS])
def test_every_reason_has_its_own_remedy(tmp_path: Path, make, words: str) -> None:
    said = str(cannot_write(tmp_path / "out.mp4", raised(lambda: make(tmp_path))))
    assert said.startswith(f"cannot write {tmp_path / 'out.mp4'}") and words in said
    assert ("free space" in said) == ("free space" in words)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own, with these options."""
    place = tmp_path / "mount"
    place.mkdir()

    def make(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(place)]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("needs root and a kernel that lets it mount a small file system")
        return place

    yield make
    while place.is_mount():
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".wav"])
@pytest.mark.parametrize("is_before", [True, False], ids=["before", "in-the-middle"])
def test_a_full_disk_is_said_and_leaves_nothing(
    mount, clip, dubber, suffix: str, is_before: bool
) -> None:
    """What is known to be too little is refused before the work, all else when the disk is full."""
    disk = mount("size=64k" if is_before else "size=2m")
    if is_before:
        with pytest.raises(UserError, match=r"of scratch in .* are free; use -o"):
            plan_jobs([clip], out=disk / f"out{suffix}")
        assert names(disk) == []
        return
    (job,) = plan_jobs([clip], out=disk / f"out{suffix}")
    (disk / "others").write_bytes(bytes(2**21 - 2**16))
    with pytest.raises(UserError, match=r"No space left on device\); free space or use -o"):
        dubber.dub(job)
    assert names(disk) == ["others"]


def test_a_read_only_disk_is_said_before_the_work(mount, clip) -> None:
    disk = mount("ro")
    with pytest.raises(UserError, match=r"Read-only file system\); choose another -o"):
        plan_jobs([clip], out=disk / "out.mp4")


def test_a_disk_that_becomes_read_only_is_said(mount, clip, dubber) -> None:
    disk = mount("size=4m")
    (job,) = plan_jobs([clip], out=disk / "out.wav")
    remount = ["mount", "-o", "remount,ro", str(disk)]
    subprocess.run(remount, check=True)
    with pytest.raises(UserError, match=r"Read-only file system\); make its folder writable"):
        dubber.dub(job)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_polite_end_leaves_nothing(tmp_path: Path, name: str) -> None:
    """As the command line sets it up: SIGTERM ends like Ctrl-C."""
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n" + HOLD
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout.readline().strip() in names(tmp_path)
    process.send_signal(getattr(signal, name))
    process.communicate()
    assert process.returncode != 0 and names(tmp_path) == []
