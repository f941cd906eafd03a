"""Provenance: every kind of file carries a signed statement, is otherwise untouched, and tells."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
import typer

from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.marks import provenance as provenance_command
from spatial_v2a.inference.dub import mp4
from spatial_v2a.inference.marking import provenance
from spatial_v2a.inference.marking.manifest import Provenance
from spatial_v2a.inference.marking.provenance import (
    attach,
    checkpoint_digest,
    needs_sidecar,
    sidecar_of,
)
from spatial_v2a.inference.marking.reading import State, read_provenance
from spatial_v2a.timing import TIMING
from tests.marked_files import MADE, dubbed, everything_in, noise

pytestmark = pytest.mark.usefixtures("signing_key")

VIDEOS = [".mp4", ".m4v", ".mov", ".mkv", ".webm"]
SOUNDS = [".wav", ".flac"]


def facts(path: Path) -> dict:
    """All that a player can see of a video: streams, tags, chapters, times, packets, rotation."""
    with av.open(str(path)) as container:
        streams = [
            (
                stream.type,
                stream.time_base,
                stream.start_time,
                stream.duration,
                dict(stream.metadata),
                str(stream.disposition),
            )
            for stream in container.streams
        ]
        chapters, tags = container.chapters(), dict(container.metadata)
        whole = (container.start_time, container.duration)
        packets = [
            (p.stream_index, p.pts, p.dts, p.duration, p.is_keyframe, p.is_discard, digest(p))
            for p in container.demux()
            if p.size
        ]
    with av.open(str(path)) as container:
        rotation = next(container.decode(video=0)).rotation
    return {
        "streams": streams,
        "chapters": chapters,
        "tags": tags,
        "times": whole,
        "packets": packets,
        "rotation": rotation,
    }


def digest(packet: av.Packet) -> str:
    return hashlib.sha256(bytes(packet)).hexdigest()


def samples(path: Path) -> tuple[np.ndarray, int]:
    return soundfile.read(path, dtype="int32")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def media_place(path: Path) -> int:
    """A byte in the middle of what the file is about."""
    if path.suffix in (".mp4", ".m4v", ".mov"):
        return path.read_bytes().index(b"mdat") + 400
    if path.suffix == ".wav":
        return path.read_bytes().index(b"data") + 5000
    return path.stat().st_size // 2


@pytest.mark.parametrize("suffix", VIDEOS)
def test_a_video_keeps_all_it_had_and_tells_how_it_was_made(tmp_path: Path, suffix: str) -> None:
    clip, out = dubbed(tmp_path, suffix)
    before = facts(out)
    assert len(before["streams"]) == 2 and len(before["packets"]) > 30, len(before["packets"])
    written = attach(out, MADE, ingredient=clip)
    assert facts(out) == before
    is_beside = suffix in (".mkv", ".webm")
    assert needs_sidecar(out) == is_beside
    assert written == ([tmp_path / "clip.dubbed.c2pa"] if is_beside else [])
    assert everything_in(tmp_path) == sorted([clip.name, out.name, *(p.name for p in written)])
    report = read_provenance(out)
    assert report is not None and (report.state, report.reasons) == (State.valid, ())
    assert report.provenance == MADE
    assert report.manifest == (written[0] if is_beside else out)
    assert report.source_type == "compositeWithTrainedAlgorithmicMedia"
    assert report.issuer == "test signer"
    age = datetime.now(UTC) - datetime.fromisoformat(report.signed_at)
    assert timedelta(seconds=-1) < age < timedelta(minutes=1), age


@pytest.mark.parametrize("suffix", SOUNDS)
def test_sound_alone_keeps_its_samples_and_tags(tmp_path: Path, suffix: str) -> None:
    clip, out = dubbed(tmp_path, suffix)
    with soundfile.SoundFile(out, "r+" if suffix == ".wav" else "r") as file:
        assert file.subtype == "PCM_24"
    before, rate_hz = samples(out)
    assert attach(out, MADE, ingredient=clip) == []
    after, rate_after_hz = samples(out)
    assert rate_after_hz == rate_hz == TIMING.sample_rate_hz
    assert before.shape == (TIMING.sample_rate_hz, 2) and np.array_equal(before, after)
    assert soundfile.info(out).subtype == "PCM_24"
    with av.open(str(out)) as container:
        heard = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert np.array_equal(heard.reshape(-1, 2), after), "FFmpeg reads other samples"
    report = read_provenance(out)
    assert (report.state, report.provenance) == (State.valid, MADE)
    assert report.source_type == "trainedAlgorithmicMedia"


@pytest.mark.parametrize("suffix", VIDEOS + SOUNDS)
def test_one_changed_bit_of_the_media_is_found(tmp_path: Path, suffix: str) -> None:
    _, out = dubbed(tmp_path, suffix)
    attach(out, MADE)
    assert read_provenance(out).state == State.valid
    flip(out, media_place(out))
    report = read_provenance(out)
    assert report.state == State.tampered
    assert any("Hash.mismatch" in reason for reason in report.reasons), report.reasons


def test_a_changed_statement_is_found(tmp_path: Path) -> None:
    _, out = dubbed(tmp_path, ".mp4")
    attach(out, MADE)
    content = out.read_bytes()
    assert content.count(b"clip.mp4 --seed 7") == 1
    out.write_bytes(content.replace(b"clip.mp4 --seed 7", b"clip.mp4 --seed 8"))
    report = read_provenance(out)
    assert report.state == State.tampered and report.reasons, report


def test_one_changed_sample_is_found(tmp_path: Path) -> None:
    _, out = dubbed(tmp_path, ".wav")
    attach(out, MADE)
    before, _ = samples(out)
    content = bytearray(out.read_bytes())
    place = content.index(b"data") + 8 + 1000 * 6
    content[place : place + 3] = bytes(3)
    out.write_bytes(content)
    after, _ = samples(out)
    assert (before != after).sum() == 1 and after[1000, 0] == 0, (before != after).sum()
    assert read_provenance(out).reasons == ("assertion.dataHash.mismatch",)


def test_a_program_that_rewrites_the_file_drops_the_manifest(tmp_path: Path) -> None:
    """Such a file is like one that never had a manifest; that is why there is a watermark too."""
    _, out = dubbed(tmp_path, ".wav")
    attach(out, MADE)
    audio_LC, rate_hz = soundfile.read(out)
    soundfile.write(out, audio_LC, rate_hz, subtype="PCM_24")
    assert read_provenance(out) is None


def rich_video(path: Path, *, options: dict[str, str]) -> None:
    """Reordered frames, two sound tracks, a title, chapters and a rotation."""
    with av.open(str(path), "w", container_options=options) as container:
        picture = container.add_stream("libx264", rate=24, options={"bf": "2", "threads": "1"})
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuv420p"
        picture.set_display_rotation(90)
        voices = [container.add_stream("aac", rate=r, layout="mono") for r in (48_000, 44_100)]
        voices[1].metadata["language"] = "fra"
        container.metadata["title"] = "Two wörds"
        chapter = {"start": 0, "end": 1, "time_base": Fraction(1)}
        container.set_chapters([chapter | {"id": 1, "metadata": {"title": "one"}}])
        for n in range(30):
            image = np.full((32, 48, 3), 7 * n % 250, np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(picture.encode(None))
        for voice in voices:
            for n in range(40):
                frame = av.AudioFrame.from_ndarray(noise(512).reshape(1, -1), "fltp", "mono")
                frame.sample_rate, frame.pts = voice.rate, 1024 * n
                container.mux(voice.encode(frame))
            container.mux(voice.encode(None))


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("flags", ["", "+faststart"])
def test_tags_chapters_tracks_and_edit_lists_survive(tmp_path, suffix: str, flags: str) -> None:
    out = tmp_path / f"rich{suffix}"
    rich_video(out, options={"movflags": flags} if flags else {})
    content, before = out.read_bytes(), facts(out)
    assert (content.index(b"moov") < content.index(b"mdat")) == bool(flags)
    assert content.count(b"elst") >= 3 and before["tags"]["title"] == "Two wörds"
    assert (len(before["streams"]), before["rotation"]) == (4, 90), before["streams"]
    assert attach(out, MADE) == []
    assert facts(out) == before
    assert read_provenance(out).state == State.valid


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_offsets_that_would_wrap_around_are_seen(tmp_path: Path, suffix: str) -> None:
    """The library shifts 32-bit offsets beyond 4 GiB without a word, which breaks the media."""
    out = tmp_path / f"rich{suffix}"
    rich_video(out, options={})
    with av.open(str(out)) as container:
        places = {packet.pos for packet in container.demux() if packet.size}
    largest = mp4.largest_offset(out)
    assert largest in places and largest > np.median(list(places)), (largest, max(places))
    assert mp4.can_shift(out, 2**32 - 1 - largest) and not mp4.can_shift(out, 2**32 - largest)
    num_bytes = out.stat().st_size
    attach(out, MADE)
    assert mp4.largest_offset(out) - largest == out.stat().st_size - num_bytes > 3000


def test_sound_with_the_original_in_it_is_only_partly_generated(tmp_path: Path) -> None:
    _, out = dubbed(tmp_path, ".flac")
    mixed = Provenance("stage", "00" * 32, 0, "dub", {"original": "keep"})
    attach(out, mixed)
    assert read_provenance(out).source_type == "compositeWithTrainedAlgorithmicMedia"


@pytest.mark.parametrize("kind", ["RF64", "WAV"])
def test_long_wav_gets_a_sidecar(tmp_path: Path, monkeypatch, kind: str) -> None:
    """The library would hold it in memory, twice."""
    monkeypatch.setattr(provenance, "_MAX_WAV_BYTES", 2**28 if kind == "RF64" else 20_000)
    out = tmp_path / "long.wav"
    soundfile.write(out, noise(4800), TIMING.sample_rate_hz, subtype="PCM_24", format=kind)
    content = out.read_bytes()
    assert content[:4] == (b"RF64" if kind == "RF64" else b"RIFF") and len(content) > 20_000
    assert attach(out, MADE) == [sidecar_of(out)] == [tmp_path / "long.c2pa"]
    assert out.read_bytes() == content
    assert read_provenance(out).provenance == MADE
    flip(out, 5000)
    assert read_provenance(out).state == State.tampered


def test_a_wav_is_signed_again_in_place_of_the_first_time(tmp_path: Path) -> None:
    out = tmp_path / "a.wav"
    soundfile.write(out, noise(4801)[:, :1], TIMING.sample_rate_hz, subtype="PCM_24")
    attach(out, Provenance("first", "00" * 32, 1, "dub"))
    num_bytes = out.stat().st_size
    attach(out, Provenance("other", "00" * 32, 1, "dub"))
    content = out.read_bytes()
    assert abs(len(content) - num_bytes) < 16 and content.count(b"C2PA") == 1
    assert struct.unpack("<I", content[4:8])[0] == len(content) - 8
    assert read_provenance(out).provenance.model == "other"


def test_the_manifest_of_the_source_is_carried_along(tmp_path: Path) -> None:
    clip, out = dubbed(tmp_path, ".mp4")
    attach(clip, Provenance("camera", "00" * 32, 1, "record"))
    attach(out, MADE, ingredient=clip)
    assert read_provenance(out).provenance == MADE
    assert b"camera" in out.read_bytes()


def test_the_name_of_a_file_being_written_does_not_show(tmp_path: Path) -> None:
    _, out = dubbed(tmp_path, ".mp4")
    partial = out.rename(tmp_path / ".clip.partial-1.mp4")
    attach(partial, MADE, out=tmp_path / "final.mp4")
    assert b"final.mp4" in partial.read_bytes() and b"partial-1" not in partial.read_bytes()


def test_what_has_no_manifest_gives_none(tmp_path: Path) -> None:
    clip, out = dubbed(tmp_path, ".mkv")
    text, empty = tmp_path / "text.mp4", tmp_path / "empty.wav"
    text.write_text("words, not a film\n" * 40)
    empty.write_bytes(b"")
    for path in (clip, out, text, empty):
        assert read_provenance(path) is None, path
    attach(out, MADE)
    neighbour = clip.rename(tmp_path / "clip.dubbed.mp4")
    assert read_provenance(neighbour) is None, "the sidecar is that of the mkv"
    with pytest.raises(UserError, match="cannot read .*nothing.mp4"):
        read_provenance(tmp_path / "nothing.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".wav", ".flac", ".mkv"])
def test_damage_anywhere_never_crashes_the_reader(tmp_path: Path, suffix: str) -> None:
    _, out = dubbed(tmp_path, suffix)
    (signed,) = attach(out, MADE) or [out]
    content, states = signed.read_bytes(), []
    start = max(0, content.index(b"jumb") - 64)
    for place in range(start, start + 1600, 97):
        damaged = bytearray(content)
        damaged[place] ^= 255
        signed.write_bytes(damaged)
        report = read_provenance(out)
        states.append(report.state if report else None)
    for num_bytes in (start + 50, start + 700, len(content) // 2):
        signed.write_bytes(content[:num_bytes])
        read_provenance(out)
    assert State.tampered in states, states


def test_a_file_cut_short_is_not_valid(tmp_path: Path) -> None:
    _, out = dubbed(tmp_path, ".mp4")
    attach(out, MADE)
    out.write_bytes(out.read_bytes()[:-2000])
    assert read_provenance(out).state == State.tampered


CTRL_C = """
import os, signal, sys, time
from spatial_v2a.inference.marking.manifest import Access, run_apart

# A shell starts what it runs in the background with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
ended = []


def work(access: Access) -> None:
    with open(sys.argv[1], "rb") as file:
        guarded = access.to(file)
        os.kill(os.getpid(), signal.SIGINT)
        limit = time.monotonic() + 10
        try:
            while time.monotonic() < limit:
                guarded.seek(0)
        except InterruptedError:
            ended.append(limit - time.monotonic())


# Often, since it may come at any moment of a thread's start.
for n in range(1, 51):
    try:
        run_apart(work)
    except KeyboardInterrupt:
        assert len(ended) == n and ended[-1] > 5, (n, ended[-1:])
    else:
        raise AssertionError(f"not stopped, {n}")
print("stopped", len(ended))
"""


def test_ctrl_c_ends_a_call_into_the_library_cleanly(tmp_path: Path) -> None:
    """In a process of its own: a signal must not meet the test runner's threads."""
    path = tmp_path / "file"
    path.write_bytes(b"x")
    done = subprocess.run([sys.executable, "-c", CTRL_C, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "stopped 50\n"), done.stderr


def test_a_full_disk_leaves_the_file_and_names_the_way_out(tmp_path: Path) -> None:
    _, out = dubbed(tmp_path, ".mp4")
    content, names = out.read_bytes(), everything_in(tmp_path)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from spatial_v2a.errors import UserError\n"
        "from spatial_v2a.inference.marking.manifest import Provenance\n"
        "from spatial_v2a.inference.marking.provenance import attach\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "try: attach(Path(sys.argv[1]), Provenance('m', '0', 0, 'c'))\n"
        "except UserError as error: print(error)\n"
    )
    for path in (out, dubbed(tmp_path, ".wav")[1]):
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
        )
        words = f"cannot write {path} (File too large); its file system takes no larger files"
        assert words in done.stdout, done
    assert out.read_bytes() == content
    assert everything_in(tmp_path) == sorted([*names, "clip.dubbed.wav"])


def test_the_digest_is_that_of_sha256sum(tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in [*names, "perception.safetensors"]:
        (tmp_path / name).write_bytes(name.encode() * 9)
    (tmp_path / "card.md").write_text("not weights")
    listed = subprocess.run(
        "sha256sum model*.safetensors perception*.safetensors | sha256sum",
        shell=True,
        cwd=tmp_path,
        env=os.environ | {"LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert checkpoint_digest(tmp_path) == listed.stdout.split()[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        checkpoint_digest(tmp_path / "empty")


def test_the_command_prints_and_its_exit_code_tells(tmp_path: Path, capsys) -> None:
    clip, out = dubbed(tmp_path, ".mov")
    attach(out, MADE, ingredient=clip)
    provenance_command([out], as_json=False)
    said = capsys.readouterr().out
    for words in (
        "clip.dubbed.mov: valid",
        "identity not checked",
        MADE.command,
        'original "drop"',
    ):
        assert words in said, said
    with pytest.raises(typer.Exit) as stop:
        provenance_command([out, clip], as_json=True)
    assert stop.value.exit_code == 1
    first, second = json.loads(capsys.readouterr().out)["files"]
    assert (first["state"], first["provenance"]["seed"]) == ("valid", MADE.seed)
    assert second == {"path": str(clip), "state": "none"}
    flip(out, media_place(out))
    with pytest.raises(typer.Exit):
        provenance_command([out], as_json=False)
    assert "TAMPERED" in capsys.readouterr().out
    with pytest.raises(UserError, match="no file .*nothing.mp4"):
        provenance_command([tmp_path / "nothing.mp4"], as_json=False)


def test_a_statement_cannot_steer_the_terminal(tmp_path: Path, capsys) -> None:
    _, out = dubbed(tmp_path, ".wav")
    attach(out, Provenance("stage", "0", 1, "dub \x1b[2J\nx.wav: valid"))
    provenance_command([out], as_json=False)
    said = capsys.readouterr().out
    assert "\x1b" not in said and "\nx.wav" not in said, said


def test_reading_the_modules_loads_no_heavy_library() -> None:
    script = (
        "import sys, spatial_v2a.inference.cli.marks\n"
        "import spatial_v2a.inference.marking.reading\n"
        "print([m for m in ('c2pa', 'cryptography', 'torch', 'av') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
