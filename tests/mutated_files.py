"""Mutated media files through `spatial-v2a dub`: none may end it, hang it or leave anything behind.

Run: python -m tests.mutated_files --count 1000 --seed 1 [--keep DIR] [--scripts 10]

Small videos of many containers and codecs are made, then damaged in ways that follow from the seed
and the number of the file alone. A child dubs one after another with a tiny checkpoint; a file that
takes longer than LIMIT_S, or ends the child, is a fault, and a new child goes on. A few files go
through the installed script, too. The last line is JSON; the exit code is 1 if there was a fault.
"""

import argparse
import functools
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np
import soundfile

LIMIT_S = 60.0
# Every dub in one process leaves its traced networks behind (90 MB): then a new child goes on.
RENEW_MB = 3000.0
NUM_FRAMES, SIZE_HW = 10, (48, 64)
# Name of the file, encoder of its picture, encoder of its sound or None.
RECIPES = (
    ("h264.mp4", "libx264", "aac"),
    ("hevc.mp4", "libx265", None),
    ("av1.mp4", "libsvtav1", None),
    ("h264.mov", "libx264", "pcm_s16le"),
    ("prores.mov", "prores_ks", None),
    ("h264.mkv", "libx264", "pcm_s16le"),
    ("ffv1.mkv", "ffv1", None),
    ("vp9.webm", "libvpx-vp9", "libopus"),
    ("vp8.webm", "libvpx", None),
    ("mpeg4.avi", "mpeg4", "pcm_s16le"),
    ("mjpeg.avi", "mjpeg", None),
    ("h264.ts", "libx264", "aac"),
    ("mpeg2.ts", "mpeg2video", None),
    ("pictures.gif", "gif", None),
)
QUIET = {"libx265": {"x265-params": "log-level=none"}}
SOUNDS = ("sound.wav", "sound.flac")
SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".gif", ".txt", "")


# --- files to begin with ---------------------------------------------------------------------


def write_seeds(folder: Path) -> dict[str, bytes]:
    """Whole files of every recipe that this FFmpeg can make, by name."""
    os.environ["SVT_LOG"] = "1"  # errors only
    for name, codec, sound in RECIPES:
        if codec in av.codecs_available and (sound is None or sound in av.codecs_available):
            _write_video(folder / name, codec, sound)
    time_s = np.arange(16_000) / 48_000
    for name in SOUNDS:
        soundfile.write(folder / name, 0.1 * np.sin(2 * np.pi * 440 * time_s), 48_000)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _write_video(path: Path, codec: str, sound: str | None) -> None:
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        picture = container.add_stream(codec, rate=30)
        picture.height, picture.width = SIZE_HW
        picture.pix_fmt = av.Codec(codec, "w").video_formats[0].name
        picture.options = {"threads": "1"} | QUIET.get(codec, {})
        track = container.add_stream(sound, rate=48_000, layout="stereo") if sound else None
        for number in range(NUM_FRAMES):
            image_HWC = np.full((*SIZE_HW, 3), 20 * number, np.uint8)
            image_HWC[10:30, 4 * number : 4 * number + 20] = 250
            frame = av.VideoFrame.from_ndarray(image_HWC).reformat(format=picture.pix_fmt)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        if track is not None:
            resampler = av.AudioResampler(track.format.name, "stereo", 48_000, frame_size(track))
            tone_CL = np.zeros((2, 4_800), np.float32)
            whole = av.AudioFrame.from_ndarray(tone_CL, "fltp", "stereo")
            whole.sample_rate = 48_000
            for piece in [*resampler.resample(whole), *resampler.resample(None)]:
                container.mux(track.encode(piece))
            container.mux(track.encode(None))


def frame_size(track: av.AudioStream) -> int | None:
    """Samples that the encoder of a sound track takes at a time."""
    return track.codec_context.frame_size or None


# --- damage ----------------------------------------------------------------------------------

Damage = Callable[[np.random.Generator, bytearray, list[bytes]], bytearray]


def cut_off(random, data, others) -> bytearray:
    """The end is missing."""
    return data[: int(random.integers(len(data)))]


def flip_front(random, data, others) -> bytearray:
    """Some bits of the headers are wrong."""
    for place in random.integers(min(len(data), 600), size=random.integers(1, 8)):
        data[place] ^= 1 << random.integers(8)
    return data


def flip_anywhere(random, data, others) -> bytearray:
    """Some bytes are others."""
    for place in random.integers(len(data), size=random.integers(1, 40)):
        data[place] = random.integers(256)
    return data


def boxes(data: bytes, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """Start and size of MP4 boxes, those inside others too, as far as they make sense."""
    found, place, stop = [], start, len(data) if stop is None else stop
    while place + 8 <= stop:
        size = int.from_bytes(data[place : place + 4], "big")
        if size < 8 or place + size > stop:
            break
        found.append((place, size))
        if data[place + 4 : place + 8] in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"):
            found += boxes(data, place + 8, place + size)
        place += size
    return found


def lying_size(random, data, others) -> bytearray:
    """A box, or any four bytes where there are none, claims another size."""
    there = boxes(data) or [(int(random.integers(max(len(data) - 4, 1))), 4)]
    place, size = there[random.integers(len(there))]
    lies = (0, 1, 7, size - 1, size + 1, 2 * size, 0x7FFFFFFF, 0xFFFFFFFF)
    data[place : place + 4] = (lies[random.integers(len(lies))] % 2**32).to_bytes(4, "big")
    return data


def wild_numbers(random, data, others) -> bytearray:
    """Numbers of a header are huge: lengths, counts, time scales."""
    there = [box for box in boxes(data) if box[1] > 16] or [(0, min(len(data), 400))]
    for _ in range(random.integers(1, 4)):
        place, size = there[random.integers(len(there))]
        at = place + 8 + int(random.integers(max(size - 12, 1)))
        data[at : at + 4] = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\1")[
            random.integers(4)
        ]
    return data


def swapped(random, data, others) -> bytearray:
    """Two boxes, or two stretches of bytes, change places."""
    tops, place = [], 0
    for start, size in boxes(data):
        if start == place:
            tops.append(data[start : start + size])
            place += size
    if len(tops) > 1:
        random.shuffle(tops)
        return bytearray(b"".join(tops)) + data[place:]
    half = len(data) // 2
    return data[half:] + data[:half]


def zeroed(random, data, others) -> bytearray:
    """A stretch is zero, as after a crash of the disk."""
    start = int(random.integers(len(data)))
    stop = min(len(data), start + int(random.integers(1, len(data))))
    data[start:stop] = bytes(stop - start)
    return data


def repeated(random, data, others) -> bytearray:
    """A stretch stands twice."""
    start, stop = sorted(random.integers(len(data), size=2).tolist())
    return data[:stop] + data[start:]


def spliced(random, data, others) -> bytearray:
    """The front of one file and the end of another."""
    other = others[random.integers(len(others))]
    return data[: random.integers(len(data))] + other[random.integers(len(other)) :]


def joined(random, data, others) -> bytearray:
    """One file behind another."""
    return data + others[random.integers(len(others))]


def whole(random, data, others) -> bytearray:
    """Nothing is wrong but, perhaps, the name."""
    return data


DAMAGES: tuple[Damage, ...] = (
    cut_off, flip_front, flip_anywhere, lying_size, wild_numbers, swapped, zeroed, repeated,
    spliced, joined, whole,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One file to dub.

    Attributes:
        number: of the file.
        name: of the file.
        damage: what was done to it.
        data: its bytes.
        is_taken: whether a file stands where the dub would go.
    """

    number: int
    name: str
    damage: str
    data: bytes
    is_taken: bool


def make_case(seeds: dict[str, bytes], *, seed: int, number: int) -> Case:
    """File number `number`; the same arguments give the same bytes."""
    random = np.random.default_rng([seed, number])
    name = list(seeds)[random.integers(len(seeds))]
    damage = DAMAGES[random.integers(len(DAMAGES))]
    data = damage(random, bytearray(seeds[name]), list(seeds.values()))
    stem, suffix = os.path.splitext(name)
    # A wrong suffix for the whole ones, and for some of the others.
    if damage is whole or random.random() < 0.1:
        suffix = SUFFIXES[random.integers(len(SUFFIXES))]
    return Case(number, stem + suffix, damage.__name__, bytes(data), bool(random.random() < 0.1))


# --- dubbing ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How a dub ended: exit code (None for a hang), what it said, and what it took."""

    code: int | None
    said: str
    seconds: float
    peak_mb: float = 0.0


class Child:
    """A process that dubs one file after another; killed when it takes too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen | None = None

    def run(self, arguments: list[str]) -> Ending:
        """Runs `spatial-v2a` with arguments."""
        begin = time.monotonic()
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.mutated_files", "--child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            assert self._answer(10 * LIMIT_S) is not None, "the child does not start"
            begin = time.monotonic()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        self._process.stdin.flush()
        answer = self._answer(LIMIT_S)
        seconds = time.monotonic() - begin
        if answer is not None:
            if answer["peak_mb"] > RENEW_MB:
                self.close()
            return Ending(seconds=seconds, **answer)
        code = self._process.poll()
        self.close()
        if code is None:
            return Ending(None, f"still at work after {LIMIT_S:g} s", seconds)
        return Ending(code, f"the process ended with {code}", seconds)

    def _answer(self, limit_s: float) -> dict | None:
        """The next answer, or None when it does not come in time or never."""
        assert self._process is not None and self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], limit_s)[0]:
            return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            return None
        return json.loads(line)

    def close(self) -> None:
        """Ends the process and those it started."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self._process.wait()
            self._process = None


def be_child() -> None:
    """Answers every line of arguments with how the command ended."""
    from spatial_v2a.inference.cli.main import run

    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryFile("w+") as said:
        # Also what C libraries print.
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
        print(json.dumps({}), file=answers, flush=True)
        for line in sys.stdin:
            said.seek(0)
            said.truncate()
            code = run(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            text = Path(f"/proc/self/fd/{said.fileno()}").read_text("utf-8", "replace")
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            answer = {"code": code, "said": text, "peak_mb": peak_mb}
            print(json.dumps(answer), file=answers, flush=True)


def run_script(arguments: list[str]) -> Ending:
    """Runs the installed `spatial-v2a`."""
    begin = time.monotonic()
    script = Path(sys.executable).with_name("spatial-v2a")
    process = subprocess.Popen(
        [script, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
        return Ending(process.returncode, said, time.monotonic() - begin)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return Ending(None, f"still at work after {LIMIT_S:g} s", time.monotonic() - begin)


def faults_of(ending: Ending, case: Case, folder: Path, out: Path) -> list[str]:
    """What must not be, in words."""
    faults = []
    lines = [line for line in ending.said.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    if ending.code not in (0, 2):
        faults.append(f"exit code {ending.code}: {lines[-1] if lines else 'no word'}")
    if "Traceback" in ending.said:
        faults.append(f"traceback: {lines[-1]}")
    if ending.code == 2 and (len(errors) != 1 or lines[-1] != errors[0]):
        faults.append(f"{len(errors)} error lines, {len(lines)} lines in all: {ending.said!r}")
    if (folder / case.name).read_bytes() != case.data:
        faults.append("the video itself was changed")
    expected = {case.name}
    if case.is_taken:
        expected.add(out.name)
        if ending.code != 2 or out.read_bytes() != b"taken":
            faults.append(f"{out.name} was there before and is not left as it was")
    elif ending.code == 0:
        expected |= {out.name}
        faults += _unplayable(out)
    extra = {path.name for path in folder.iterdir()} - expected
    if extra:
        faults.append(f"left behind: {', '.join(sorted(extra))}")
    return faults


def _unplayable(out: Path) -> list[str]:
    if not out.exists():
        return ["exit code 0 and no file"]
    try:
        with av.open(str(out)) as container:
            num_samples = sum(frame.samples for frame in container.decode(audio=0))
    except (av.error.FFmpegError, IndexError) as error:
        return [f"what was written cannot be played: {error}"]
    return [] if num_samples else ["what was written holds no sound"]


# --- the run ---------------------------------------------------------------------------------


@dataclass
class Summary:
    """What became of all files.

    Attributes:
        counts: of pairs of a damage and how it ended.
        faults: number, name, damage and fault of each file with one.
        peak_mb: most memory that a child has held.
        slowest_s: longest time that a file took.
    """

    counts: Counter = field(default_factory=Counter)
    faults: list[tuple[int, str, str, str]] = field(default_factory=list)
    peak_mb: float = 0.0
    slowest_s: float = 0.0

    def table(self) -> str:
        """A row for each kind of damage."""
        columns = ("dubbed", "refused", "fault")
        rows = [f"{'damage':<14}" + "".join(f"{column:>9}" for column in columns)]
        for damage in DAMAGES:
            name = damage.__name__
            row = [f"{self.counts[name, column]:>9}" for column in columns]
            rows.append(f"{name:<14}" + "".join(row))
        return "\n".join(rows)

    def as_json(self) -> str:
        """One line."""
        totals = Counter()
        for (_, ending), count in self.counts.items():
            totals[ending] += count
        figures = {"peak_mb": round(self.peak_mb), "slowest_s": round(self.slowest_s, 1)}
        return json.dumps({**totals, **figures, "faults": self.faults})


def run_cases(
    checkpoint: Path,
    *,
    count: int,
    seed: int,
    num_scripts: int = 0,
    keep: Path | None = None,
    say: Callable[[str], None] = print,
) -> Summary:
    """Dubs `count` mutated files.

    Args:
        checkpoint: a tiny one.
        count, seed: which files.
        num_scripts: files that go through the installed script, spread evenly.
        keep: folder that files with a fault are copied to.
        say: called with a line for each fault, and for every 50 files.
    """
    summary, child = Summary(), Child()
    every = count // num_scripts if num_scripts else count + 1
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "seeds").mkdir()
        seeds = write_seeds(Path(scratch) / "seeds")
        try:
            for number in range(count):
                case = make_case(seeds, seed=seed, number=number)
                folder = Path(scratch) / str(number)
                folder.mkdir()
                (folder / case.name).write_bytes(case.data)
                out = folder / f"out{('.mkv', '.mp4', '.wav')[number % 3]}"
                if case.is_taken:
                    out.write_bytes(b"taken")
                arguments = ["dub", folder / case.name, "-o", out, "--checkpoint", checkpoint]
                words = [str(word) for word in (*arguments, "--nfe", 1, "--device", "cpu")]
                is_script = number % every == every - 1
                ending = run_script(words) if is_script else child.run(words)
                faults = faults_of(ending, case, folder, out)
                how = "fault" if faults else "dubbed" if ending.code == 0 else "refused"
                summary.counts[case.damage, how] += 1
                summary.peak_mb = max(summary.peak_mb, ending.peak_mb)
                summary.slowest_s = max(summary.slowest_s, ending.seconds)
                for fault in faults:
                    summary.faults.append((number, case.name, case.damage, fault))
                    say(f"{number} {case.name} {case.damage}: {fault}")
                if faults and keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(folder / case.name, keep / f"{number}-{case.damage}-{case.name}")
                shutil.rmtree(folder)
                if number % 50 == 49:
                    say(f"{number + 1} of {count} files: {summary.as_json()}")
        finally:
            child.close()
    return summary


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scripts", type=int, default=10, help="files through the real script")
    parser.add_argument("--keep", type=Path, help="folder for files with a fault")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        be_child()
        return
    # The networks are tiny: compiling them would take longer than the files.
    os.environ["SPATIAL_V2A_OPENVINO"] = "0"
    from spatial_v2a import load_config
    from tests.tiny_checkpoint import write_tiny_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny_checkpoint(Path(folder) / "tiny", load_config("tiny"))
        summary = run_cases(
            checkpoint,
            count=options.count,
            seed=options.seed,
            num_scripts=options.scripts,
            keep=options.keep,
            say=functools.partial(print, flush=True),
        )
    print(summary.table())
    print(summary.as_json())
    sys.exit(bool(summary.faults))


if __name__ == "__main__":
    main()
