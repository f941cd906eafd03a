"""Copied pictures: which codec goes into which container, and what must come along with it."""

import hashlib
import re
import shlex
import shutil
import struct
import subprocess
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from pymediainfo import MediaInfo

from spatial_v2a.conditioning.video import open_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.dub import mp4
from spatial_v2a.inference.dub.jobs import DubOptions, default_name, plan_jobs
from spatial_v2a.inference.dub.mux import open_sink, plan_copies
from spatial_v2a.timing import TIMING

FPS = 25
NUM_FRAMES = 8
THEORA = Path(__file__).parent / "theora.ogv"
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class Picture:
    """How a clip is encoded: FFmpeg's encoder, pixels, size, its options and the codec's tag."""

    encoder: str
    pixels: str = "yuv420p"
    size: tuple[int, int] = (64, 64)
    options: dict[str, str] = field(default_factory=dict)
    tag: str = ""


H264 = Picture("libx264", options={"preset": "ultrafast", "bf": "2"})
HEVC = Picture("libx265", options={"preset": "ultrafast", "x265-params": "log-level=none:pools=1"})
AV1 = Picture("libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"})
VP8, VP9 = Picture("libvpx"), Picture("libvpx-vp9", options={"cpu-used": "8"})
MPEG2, MPEG4 = Picture("mpeg2video", options={"bf": "2"}), Picture("mpeg4")
PRORES = Picture("prores_ks", "yuva444p10le", options={"profile": "4444"})
DNXHD = Picture("dnxhd", "yuv422p", (256, 144), {"profile": "dnxhr_sq"})
ALL_BUT_WEBM = (".mp4", ".m4v", ".mov", ".mkv")

# What each container holds, found by running it with FFmpeg 8.1 (PyAV 18.1).
TABLE = {
    "h264.mp4": (H264, ALL_BUT_WEBM),
    "h264.mkv": (H264, ALL_BUT_WEBM),
    "h264.ts": (H264, ALL_BUT_WEBM),
    "h264.flv": (H264, ALL_BUT_WEBM),
    "hevc.mp4": (HEVC, ALL_BUT_WEBM),
    "hevc.ts": (HEVC, ALL_BUT_WEBM),
    "av1.mp4": (AV1, (".mp4", ".m4v", ".mkv", ".webm")),
    "av1.mkv": (AV1, (".mp4", ".m4v", ".mkv", ".webm")),
    "av1.webm": (AV1, (".mp4", ".m4v", ".mkv", ".webm")),
    "vp8.webm": (VP8, (".mkv", ".webm")),
    "vp9.webm": (VP9, (".mp4", ".m4v", ".mkv", ".webm")),
    "vp9.mp4": (VP9, (".mp4", ".m4v", ".mkv", ".webm")),
    "mpeg1.mpg": (Picture("mpeg1video"), ALL_BUT_WEBM),
    "mpeg2.mpg": (MPEG2, ALL_BUT_WEBM),
    "mpeg2.ts": (MPEG2, ALL_BUT_WEBM),
    "mpeg4.avi": (MPEG4, ALL_BUT_WEBM),
    "mpeg4.mp4": (MPEG4, ALL_BUT_WEBM),
    "msmpeg4.avi": (Picture("msmpeg4"), (".mov", ".mkv")),
    "wmv2.wmv": (Picture("wmv2"), (".mov", ".mkv")),
    "flv1.flv": (Picture("flv"), (".mov", ".mkv")),
    "prores.mov": (PRORES, (".mov", ".mkv")),
    "prores.mkv": (PRORES, (".mov", ".mkv")),
    "dnxhd.mov": (DNXHD, (".mov", ".mkv")),
    "dnxhd.mxf": (DNXHD, (".mov", ".mkv")),
    "ffv1.mkv": (Picture("ffv1"), ALL_BUT_WEBM),
    "mjpeg.avi": (Picture("mjpeg", "yuvj420p"), ALL_BUT_WEBM),
    "gif.gif": (Picture("gif", "rgb8"), (".mov", ".mkv")),
    "theora.ogv": (None, (".mov", ".mkv")),
    "dv.avi": (Picture("dvvideo", size=(720, 576)), (".mov", ".mkv")),
    "jpeg2000.mov": (Picture("jpeg2000"), ALL_BUT_WEBM),
    "png.mov": (Picture("png", "rgb24"), ALL_BUT_WEBM),
    "qtrle.mov": (Picture("qtrle", "rgb24"), (".mov",)),
    "i420.avi": (Picture("rawvideo"), (".mov", ".mkv")),
    "bgr.avi": (Picture("rawvideo", "bgr24"), ()),
    "apng.apng": (Picture("apng", "rgb24"), ()),
}
# Their start codes become lengths in MP4 and Matroska: other bytes, the same picture.
WITH_START_CODES = ("h264.ts", "hevc.ts")


def write_clip(path: Path, picture: Picture | None, *, num_frames: int = NUM_FRAMES) -> Path:
    """A clip of noise on changing grey."""
    if picture is None:
        return Path(shutil.copy(THEORA, path))
    with av.open(str(path), "w") as container:
        add_picture(container, picture, num_frames=num_frames)
    return path


def add_picture(container, picture: Picture, *, num_frames: int = NUM_FRAMES, **kwargs) -> None:
    """Encodes a clip into a container, whose other streams are there already."""
    random = np.random.default_rng(0)
    width, height = picture.size
    options = picture.options | {"threads": "1"}
    stream = container.add_stream(picture.encoder, rate=FPS, options=options)
    stream.width, stream.height, stream.pix_fmt = width, height, picture.pixels
    for name, value in kwargs.items():
        setattr(stream.codec_context, name, value)
    if picture.tag:
        stream.codec_context.codec_tag = picture.tag
    for number in range(num_frames):
        image = np.full((height, width, 3), 20 * number % 250, np.uint8)
        image[: height // 2] = random.integers(0, 255, (height // 2, width, 3))
        frame = VideoFrame.from_ndarray(image, "rgb24").reformat(format=picture.pixels)
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def dub(source_path: Path, out: Path) -> Path:
    """Writes silence to a picture as `dub` writes sound, after the same planning."""
    (job,) = plan_jobs([source_path], out=out)
    silence_LC = np.zeros((TIMING.samples_per_tick, 2), np.float32)
    with open_sink(out, job.source, job.sound) as sink:
        for _ in range(job.source.num_ticks):
            sink.write(silence_LC)
    return out


def packets(path: Path, *, with_dts: bool = True) -> list[tuple]:
    """(pts in s, dts in s, whether it stands alone, hash of the bytes) of the picture's packets."""
    with av.open(str(path), options={"fflags": "+genpts"}) as container:
        found = [p for p in container.demux(video=0) if p.size]
        return [
            (
                (p.dts if p.pts is None else p.pts) * p.time_base,
                p.dts * p.time_base if with_dts and p.dts is not None else None,
                p.is_keyframe,
                hashlib.sha256(bytes(p)).hexdigest(),
            )
            for p in found
        ]


def pictures(path: Path) -> list[str]:
    """Hashes of all decoded pictures; decoding must not fail anywhere."""
    with av.open(str(path)) as container:
        return [
            hashlib.sha256(frame.to_ndarray(format="rgb24").tobytes()).hexdigest()
            for frame in container.decode(video=0)
        ]


def tag_of(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.streams.video[0].codec_context.codec_tag


def track_of(path: Path):
    """The picture as MediaInfo sees it."""
    return next(t for t in MediaInfo.parse(path).tracks if t.track_type == "Video")


@pytest.mark.parametrize("name", TABLE)
def test_which_picture_goes_into_which_container(tmp_path: Path, name: str) -> None:
    picture, expected = TABLE[name]
    clip = write_clip(tmp_path / name, picture)
    shown = pictures(clip)
    assert len(shown) >= 5
    refusals = {}
    for suffix in SUFFIXES:
        try:
            out = dub(clip, tmp_path / f"out{suffix}")
        except UserError as error:
            refusals[suffix] = str(error)
            continue
        assert pictures(out) == shown, f"{suffix} shows other pictures"
        if name not in WITH_START_CODES:
            before, after = packets(clip, with_dts=False), packets(out, with_dts=False)
            assert [p[3] for p in before] == [p[3] for p in after], f"{suffix} has other packets"
            assert [p[0] for p in before] == [p[0] for p in after], f"{suffix} has other times"
    assert tuple(s for s in SUFFIXES if s not in refusals) == expected, refusals
    for suffix, words in refusals.items():
        assert f"a {suffix} file cannot hold the " in words
        assert not (tmp_path / f"out{suffix}").exists()
    check_remedies(clip, refusals)


def check_remedies(clip: Path, refusals: dict[str, str]) -> None:
    """Does what each different refusal proposes."""
    proposals = {re.search(r"use -o with (.*?)(?:, or convert|$)", w)[1] for w in refusals.values()}
    for number, suffix in enumerate(s for words in proposals for s in words.split(" or ")):
        out = clip.with_name(f"remedy{number}{suffix}")
        dub(clip, out)
        assert out.stat().st_size > 0
    commands = {w.partition("convert it first: ")[2] for w in refusals.values()}
    assert bool(commands - {""}) == (TABLE[clip.name][1] == ())
    if shutil.which("ffmpeg"):
        for command in commands - {""}:
            subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=60)
            dub(Path(shlex.split(command)[-1]), clip.with_name("converted.mp4"))


@pytest.mark.parametrize("source", [".mp4", ".mkv", ".webm"])
@pytest.mark.parametrize("target", [".mp4", ".mkv", ".webm"])
def test_av1_stays_packet_by_packet(tmp_path: Path, source: str, target: str) -> None:
    """It was refused everywhere: PyAV asked for the codec by its decoder's name, libdav1d."""
    clip = write_clip(tmp_path / f"clip{source}", AV1, num_frames=20)
    out = dub(clip, tmp_path / f"out{target}")
    assert packets(clip) == packets(out) and len(packets(out)) == 20
    assert pictures(clip) == pictures(out) and len(pictures(out)) == 20


@pytest.mark.parametrize("name", ["clip.avi", "clip.ts", "clip.wmv", "clip.flv", "clip.mxf",
                                  "clip.mpg", "clip.ogv", "clip.gif"])  # fmt: skip
def test_the_default_container_holds_what_is_usual_in_the_input(tmp_path: Path, name: str) -> None:
    found = next(key for key in TABLE if Path(key).suffix == Path(name).suffix)
    clip = write_clip(tmp_path / name, TABLE[found][0])
    out = dub(clip, tmp_path / default_name(clip))
    assert pictures(out) == pictures(clip)


@pytest.mark.parametrize(
    ("name", "picture"),
    [
        ("a.mp4", Picture("libx265", options=HEVC.options, tag="hvc1")),
        ("a.mov", Picture("libx265", options=HEVC.options, tag="hvc1")),
        ("a.mp4", Picture("libx265", options=HEVC.options, tag="hev1")),
        ("a.mov", PRORES),
        ("a.mov", Picture("prores_ks", "yuv422p10le", options={"profile": "proxy"})),
        ("a.mov", Picture("mpeg4", tag="mp4v")),
        ("a.mov", DNXHD),
    ],
    ids=["hvc1_mp4", "hvc1_mov", "hev1_mp4", "ap4h", "apco", "mp4v", "dnxhr"],
)
def test_the_codec_tag_stays(tmp_path: Path, name: str, picture: Picture) -> None:
    """hvc1 became hev1, which Apple's players refuse, and every ProRes became apch."""
    clip = write_clip(tmp_path / name, picture)
    assert tag_of(clip) == picture.tag or not picture.tag
    for suffix in (".mp4", ".mov") if picture.encoder in ("libx265", "mpeg4") else (".mov",):
        assert tag_of(dub(clip, tmp_path / f"out{suffix}")) == tag_of(clip)
    if picture.encoder == "prores_ks":
        # Matroska keeps it as the codec's private data.
        again = dub(dub(clip, tmp_path / "out.mkv"), tmp_path / "again.mov")
        assert tag_of(again) == tag_of(clip)


@pytest.mark.parametrize("source", [".mkv", ".ts"])
def test_hevc_from_elsewhere_gets_the_tag_that_apple_plays(tmp_path: Path, source: str) -> None:
    """It became hev1; its parameter sets are in the header, which is what hvc1 means."""
    clip = write_clip(tmp_path / f"a{source}", HEVC)
    for suffix in (".mp4", ".mov"):
        out = dub(clip, tmp_path / f"out{suffix}")
        assert tag_of(out) == "hvc1" and pictures(out) == pictures(clip)


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(content), name) + content


# Dolby Vision profile 8.1, level 4; SMPTE ST 2086 in 1/50 000 and 1/10 000 cd/m2; light levels.
DOVI = box(b"dvvC", bytes([1, 0]) + struct.pack(">HI", 8 << 9 | 4 << 3 | 5, 1 << 28) + bytes(16))
MASTERING = box(
    b"mdcv",
    struct.pack(">8H", 13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450)
    + struct.pack(">2I", 10_000_000, 500),
)
LIGHT = box(b"clli", struct.pack(">2H", 1000, 400))


def with_boxes(path: Path, *boxes: bytes, tag: bytes) -> Path:
    """Adds boxes to the picture's sample entry of an MP4 or MOV, and renames it."""
    with open(path, "r+b") as file:
        entry = mp4.sample_entry(file, 1)
        assert entry is not None
        entry = tag + entry[8:] + b"".join(boxes)
        entry = struct.pack(">I", 4 + len(entry)) + entry
        mp4.keep_sample_entry(file, 1, entry, is_whole=True)
    return path


@pytest.mark.parametrize("tag", [b"hvc1", b"dvh1"])
@pytest.mark.parametrize("source", [".mp4", ".mov"])
def test_dolby_vision_and_light_levels_stay(tmp_path: Path, source: str, tag: bytes) -> None:
    clip = write_clip(tmp_path / f"clip{source}", HEVC)
    with_boxes(clip, MASTERING, LIGHT, DOVI, tag=tag)
    before = track_of(clip)
    assert "Dolby Vision" in before.hdr_format and before.maximum_content_light_level
    for suffix in (".mp4", ".mov", ".mkv"):
        out = dub(clip, tmp_path / f"out{suffix}")
        after = track_of(out)
        assert set(after.hdr_format.split(" / ")) == {"Dolby Vision", "SMPTE ST 2086"}
        assert after.maximum_content_light_level.split()[0] == "1000"
        assert after.mastering_display_luminance == before.mastering_display_luminance
        assert pictures(out) == pictures(clip)
        if suffix != ".mkv":
            assert all(b in out.read_bytes() for b in (DOVI, MASTERING, LIGHT))
            assert tag_of(out) == tag.decode()
    for suffix in (".mp4", ".mov"):
        again = dub(tmp_path / "out.mkv", tmp_path / f"again{suffix}")
        assert "Dolby Vision" in track_of(again).hdr_format, f"lost from .mkv to {suffix}"


def test_stereo_and_spherical_video_stay(tmp_path: Path) -> None:
    """Two ways to say it in one MOV make it unreadable."""
    clip = write_clip(tmp_path / "clip.mp4", H264)
    equirectangular = box(b"prhd", bytes(16)) + box(b"equi", bytes(20))
    sphere = box(b"svhd", bytes(4) + b"us\0") + box(b"proj", equirectangular)
    with_boxes(clip, box(b"st3d", bytes(4) + b"\x01"), box(b"sv3d", sphere), tag=b"avc1")
    known = {"SPHERICAL", "STEREO3D"}
    before = side_data(clip)
    assert known <= set(before)
    for suffix in (".mp4", ".mov", ".mkv"):
        after = side_data(dub(clip, tmp_path / f"out{suffix}"))
        assert {name: after.get(name) for name in known} == {n: before[n] for n in known}, suffix


def side_data(path: Path) -> dict[str, bytes]:
    with av.open(str(path)) as container:
        return {d.type.name: bytes(d) for d in next(container.decode(video=0)).side_data}


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_the_sample_entry_stays_byte_by_byte(tmp_path: Path, suffix: str) -> None:
    """A box that nobody knows stands for all that FFmpeg would not write."""
    clip = write_clip(tmp_path / f"clip{suffix}", H264)
    with_boxes(clip, box(b"zzzz", b"kept"), tag=b"avc1")
    out = dub(clip, tmp_path / f"out{suffix}")
    entries = []
    for path in (clip, out):
        with open(path, "rb") as file:
            entries.append(mp4.sample_entry(file, 1))
    assert entries[0] == entries[1] and b"zzzzkept" in entries[0]
    assert packets(clip) == packets(out) and pictures(clip) == pictures(out)


@pytest.mark.parametrize("target", [".mov", ".mkv", ".mp4"])
@pytest.mark.parametrize("source", [".mov", ".mkv", ".mp4"])
def test_shape_of_pixels_colours_and_fields_stay(tmp_path, source: str, target: str) -> None:
    """Wide pixels became square in Matroska."""
    in_mp4 = ".mp4" in (source, target)
    clip = tmp_path / ("first.mp4" if in_mp4 else "first.mov")
    with av.open(str(clip), "w") as container:
        add_picture(
            container,
            # ProRes says nothing of the shape itself.
            Picture("ffv1") if in_mp4 else Picture("prores_ks", "yuv422p10le"),
            sample_aspect_ratio=Fraction(16, 11),
            color_range=1,
            color_primaries=9,
            color_trc=16,
            colorspace=9,
            flags=1 << 18 | 1 << 29,
        )
    clip = dub(clip, tmp_path / f"clip{source}")
    before, after = track_of(clip), track_of(dub(clip, tmp_path / f"out{target}"))
    for name in ("pixel_aspect_ratio", "display_aspect_ratio", "color_primaries", "scan_type",
                 "transfer_characteristics", "matrix_coefficients"):  # fmt: skip
        assert getattr(before, name) == getattr(after, name), name
    assert float(before.pixel_aspect_ratio) == pytest.approx(16 / 11, abs=1e-3)
    assert before.color_primaries == "BT.2020"
    assert before.scan_type == "Interlaced" or in_mp4
    if ".mov" not in (source, target):
        # MOV has no place for the range.
        assert before.color_range == after.color_range == "Limited"


@pytest.mark.parametrize("source", [".mov", ".mp4"])
def test_a_timecode_track_stays(tmp_path: Path, source: str) -> None:
    """All the work was done, and then writing failed."""
    clip = tmp_path / f"clip{source}"
    with av.open(str(clip), "w") as container:
        container.metadata["timecode"] = "10:20:30:05"
        add_picture(container, H264)
    assert timecodes(clip) == ["10:20:30:05"]
    for suffix in (".mov", ".mp4"):
        assert timecodes(dub(clip, tmp_path / f"out{suffix}")) == ["10:20:30:05"]
    with av.open(str(dub(clip, tmp_path / "out.mkv"))) as container:
        tags = {key.lower(): value for key, value in container.streams.video[0].metadata.items()}
        assert tags["timecode"] == "10:20:30:05"


def timecodes(path: Path) -> list[str]:
    with av.open(str(path)) as container:
        return [s.metadata["timecode"] for s in container.streams if s.type == "data"]


@pytest.mark.parametrize("encoder", ["mjpeg", "png"])
def test_cover_art_stays_what_it_is(tmp_path: Path, encoder: str, caplog) -> None:
    """In Matroska it became a second film."""
    clip, cover = tmp_path / "clip.mp4", cover_packet(encoder)
    with av.open(str(clip), "w") as container:
        add_picture(container, H264)
    with_cover = add_cover(clip, tmp_path / "cover.mp4", cover, encoder)
    assert covers(with_cover) == [bytes(cover)]
    as_mkv = dub(with_cover, tmp_path / "out.mkv")
    assert covers(as_mkv) == [bytes(cover)]
    assert covers(dub(as_mkv, tmp_path / "again.mkv")) == [bytes(cover)]
    assert covers(dub(as_mkv, tmp_path / "again.mp4")) == [bytes(cover)]
    assert not caplog.records
    assert covers(dub(with_cover, tmp_path / "out.mov")) == []
    assert [r.message for r in caplog.records] == [
        f"{with_cover}: a .mov file cannot hold stream 1 ({encoder} video); left out"
    ]


def cover_packet(encoder: str) -> av.Packet:
    context = av.CodecContext.create(encoder, "w")
    context.width = context.height = 32
    context.pix_fmt, context.time_base = "yuvj420p" if encoder == "mjpeg" else "rgb24", Fraction(1)
    frame = VideoFrame.from_ndarray(np.full((32, 32, 3), 99, np.uint8), "rgb24")
    frame = frame.reformat(format=context.pix_fmt)
    frame.pts, frame.time_base = 0, Fraction(1)
    return [*context.encode(frame), *context.encode(None)][0]


def add_cover(clip: Path, out: Path, cover: av.Packet, encoder: str) -> Path:
    with av.open(str(clip)) as source, av.open(str(out), "w") as target:
        picture = target.add_stream_from_template(source.streams.video[0])
        art = target.add_mux_stream(encoder, width=32, height=32)
        art.disposition = av.stream.Disposition.attached_pic
        target.start_encoding()
        cover.stream = art
        target.mux(cover)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = picture
                target.mux(packet)
    return out


def covers(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        art = [s for s in container.streams.video
               if s.disposition & av.stream.Disposition.attached_pic]  # fmt: skip
        assert len(container.streams.video) == 1 + len(art)
        found = {}
        for packet in container.demux(art) if art else ():
            if packet.size:
                found[packet.stream_index] = bytes(packet)
    return list(found.values())


def test_what_a_container_cannot_hold_is_left_out_with_one_line(tmp_path: Path, caplog) -> None:
    clip = tmp_path / "clip.ts"
    with av.open(str(clip), "w") as container:
        data = container.add_data_stream("klv")
        data.time_base = Fraction(1, 90_000)
        add_picture(container, H264)
        packet = av.Packet(bytes.fromhex("060e2b34020b01010e01030101000000") + bytes(4))
        packet.stream, packet.time_base = data, Fraction(1, 90_000)
        packet.pts = packet.dts = 126_000
        container.mux(packet)
    for suffix in (".mp4", ".mov", ".mkv"):
        caplog.clear()
        out = dub(clip, tmp_path / f"out{suffix}")
        assert len(caplog.records) == 1 and "(klv data); left out" in caplog.text
        assert pictures(out) == pictures(clip)


def test_data_without_a_codec_is_left_out(tmp_path: Path, caplog) -> None:
    """Phones' tracks of metadata (mebx): FFmpeg would write a MOV track that says nothing."""
    clip = tmp_path / "clip.mov"
    with av.open(str(clip), "w") as container:
        container.metadata["timecode"] = "10:20:30:05"
        add_picture(container, H264)
    # The timecode's track becomes one of an unknown kind.
    clip.write_bytes(clip.read_bytes().replace(b"tmcd", b"mebx"))
    with av.open(str(clip)) as container:
        assert [s.type for s in container.streams] == ["video", "data"]
    with av.open(str(dub(clip, tmp_path / "out.mov"))) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
    assert "a .mov file cannot hold stream 1 (unknown data); left out" in caplog.text


def test_a_font_and_styled_lines_stay_in_matroska(tmp_path: Path, caplog) -> None:
    lines, clip = tmp_path / "lines.ass", tmp_path / "clip.mkv"
    lines.write_text(
        "[Script Info]\nScriptType: v4.00+\n[Events]\nFormat: Layer, Start, End, Style, Text\n"
        "Dialogue: 0,0:00:00.10,0:00:00.20,Default,words\n"
    )
    with av.open(str(lines)) as text, av.open(str(clip), "w") as container:
        styled = container.add_stream_from_template(text.streams.subtitles[0])
        styled.metadata["language"] = "deu"
        container.add_attachment("font.ttf", "application/x-truetype-font", b"not really a font")
        add_picture(container, H264)
        for packet in text.demux():
            if packet.size:
                packet.stream = styled
                container.mux(packet)
    with av.open(str(dub(clip, tmp_path / "out.mkv"))) as container:
        assert container.streams.attachments[0].data == b"not really a font"
        assert container.streams.subtitles[0].metadata["language"] == "deu"
        shown = [bytes(p) for p in container.demux(subtitles=0) if p.size]
        assert len(shown) == 1 and b"words" in shown[0]
    assert not caplog.records
    dub(clip, tmp_path / "out.mp4")
    assert len(caplog.records) == 1 and "(ass subtitle), 2 (font.ttf attachment)" in caplog.text


def test_what_fails_only_at_the_end_is_refused_before_the_work(tmp_path: Path) -> None:
    """FFmpeg's MP4 writer takes PCM from Matroska, and fails when it completes the file."""
    clip = tmp_path / "clip.mkv"
    with av.open(str(clip), "w") as container:
        sound = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        add_picture(container, H264)
        for number in range(4):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 3840), np.int16), "s16", "stereo")
            frame.sample_rate, frame.pts = 48_000, 1920 * number
            container.mux(sound.encode(frame))
    options = DubOptions(track=True)
    try:
        (job,) = plan_jobs([clip], out=tmp_path / "out.mp4", options=options)
    except UserError as error:
        assert "cannot hold the pcm_s16le audio" in str(error) and ".mkv" in str(error)
        plan_jobs([clip], out=tmp_path / "out.mkv", options=options)
    else:
        with open_sink(tmp_path / "out.mp4", job.source, job.sound) as sink:
            sink.write(np.zeros((1600, 2), np.float32))
        with av.open(str(tmp_path / "out.mp4")) as container:
            assert len(container.streams.audio) == 2


def test_a_clock_that_starts_again_is_accepted_or_refused_before_the_work(tmp_path: Path) -> None:
    """Writing failed after all the work."""
    clip = write_clip(tmp_path / "clip.ts", H264, num_frames=30)
    twice = tmp_path / "twice.ts"
    twice.write_bytes(2 * clip.read_bytes())
    try:
        out = dub(twice, tmp_path / "out.mkv")
    except UserError as error:
        assert "\n" not in str(error)
        assert not (tmp_path / "out.mkv").exists()
    else:
        assert len(pictures(out)) == 60


@pytest.mark.parametrize(
    "picture",
    [Picture("mpeg2video", options={"g": "40"}),
     Picture("libx264", options={"preset": "ultrafast", "g": "40"})],
    ids=["mpeg2", "h264"],
)  # fmt: skip
def test_a_recording_that_begins_between_two_whole_pictures(tmp_path, picture: Picture) -> None:
    """Its first packets alone say little of the picture."""
    whole, clip = write_clip(tmp_path / "a.ts", picture, num_frames=60), tmp_path / "b.ts"
    with av.open(str(whole)) as source, av.open(str(clip), "w") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in [p for p in source.demux(video=0) if p.size][8:]:
            packet.stream = copy
            target.mux(packet)
    for suffix in (".mp4", ".mkv"):
        assert len(packets(dub(clip, tmp_path / f"out{suffix}"))) == 52


def test_a_plan_says_what_goes_along(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", H264)
    plan = plan_copies(open_video(clip), ".mov")
    assert plan.streams == (0,) and plan.tagged == {0} and plan.tags == ()
