"""Footage whose positions nobody knows: what a folder holds, and the pictures of each item.

Walking The Maps (StereoSync, 2510.05828) are game walks as pictures at 4 fps and a WAV. One sample
is `SAMPLE.metadata.json` with, beside it, `audio/*.wav` and `frames_4fps/*.jpg`; split lists are
.txt files. Whether every sample has a folder of its own, or all share one (with `audio/SAMPLE.wav`
and `frames_4fps/SAMPLE/*.jpg` or `frames_4fps/SAMPLE_0001.jpg`), is published nowhere, so both are
read. The metadata's own fields are not published either, and are not used.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL.Image import Resampling
from PIL.JpegImagePlugin import JpegImageFile

from spatial_v2a.conditioning.media import open_input
from spatial_v2a.conditioning.video import VideoSource, causal_ticks, open_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.evaluation.store import file_digest, stamp_of
from spatial_v2a.timing import TIMING

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .flv .wmv .3gp .ogv .mxf".split()
)
METADATA_SUFFIX = ".metadata.json"
AUDIO_FOLDER = "audio"
FRAMES_FOLDER = re.compile(r"frames_(\d+)fps")


class Ticks(Protocol):
    """Starts the pictures anew: uint8 RGB [height, width, 3] per tick, few of them in memory.

    A held picture is the same array again; none is wider than `max_width`.
    """

    def __call__(self, *, max_width: int | None = None) -> Iterator[np.ndarray]: ...


@dataclass(frozen=True)
class Item:
    """Footage that can be dubbed and scored.

    Attributes:
        key: its name in the report, unique, with slashes where it lies in a folder.
        duration_s: length of the picture, exact.
        picture_hz: pictures it stores per second, on average.
        ticks: its pictures.
        files: all that it is made of; their bytes are its identity.
        sound: file whose first sound track is the original, or None.
        sound_start_s: time on that file's clock at which the picture begins.
        source: the video, where it is one.
    """

    key: str
    duration_s: Fraction
    picture_hz: Fraction
    ticks: Ticks
    files: tuple[Path, ...]
    sound: Path | None
    sound_start_s: Fraction = Fraction(0)
    source: VideoSource | None = None

    @property
    def num_ticks(self) -> int:
        """Ticks that cover the picture; the last may be partial."""
        return TIMING.num_ticks(self.duration_s)

    @property
    def num_samples(self) -> int:
        """Audio samples per channel for exactly the picture's length."""
        return TIMING.num_samples(self.duration_s)

    def digest(self) -> str:
        """Hash over the bytes of its files."""
        return stamp_of([(path.name, file_digest(path)) for path in self.files])


def video_item(path: Path, key: str) -> Item:
    """A video file, with or without sound.

    Raises:
        UserError: cut off, sound only, unreadable, or without frames.
    """
    source = open_video(path)
    with open_input(path) as container:
        has_sound = bool(container.streams.audio)
    return Item(
        key=key,
        duration_s=source.duration,
        picture_hz=source.extent.num_frames / source.duration,
        ticks=source.ticks,
        files=(path,),
        sound=path if has_sound else None,
        sound_start_s=source.extent.start_s,
        source=source,
    )


@dataclass(frozen=True)
class NotScored:
    """Something in the folder that has no place in the tables, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """What looks like footage; `open` checks it and raises a UserError when it is not."""

    key: str
    open: Callable[[], Item]
    is_sample: bool


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        candidates: sorted by key.
        not_scored: files that are no footage, and samples that a split names in vain.
        splits: names of the samples of each split list of Walking The Maps.
    """

    candidates: list[Candidate]
    not_scored: list[NotScored]
    splits: dict[str, list[str]] = field(default_factory=dict)


def find_footage(folder: Path, *, out: Path) -> Found:
    """Lists a folder and everything below it, except the report itself; opens nothing.

    Args:
        folder: folder of videos or of Walking The Maps; or one of its split lists, whose samples
            alone are then taken.
        out: report folder, which may lie inside.

    Raises:
        UserError: there is no such folder, or no candidate in it.
    """
    split = folder if folder.is_file() and folder.suffix.lower() == ".txt" else None
    root = folder.parent if split else folder
    if not root.is_dir() or (folder.is_file() and not split):
        raise UserError(f"no folder {folder}; give --suite footage a folder of videos")
    report = out.resolve()
    paths = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and report not in path.resolve().parents
    ]
    found = _sort(paths, root)
    if split is not None:
        found = _only(found, split.name)
    if not found.candidates:
        raise UserError(
            f"{folder} holds no footage ({len(found.not_scored)} other files); give videos "
            f"({', '.join(sorted(VIDEO_SUFFIXES)[:4])}, ...) or Walking The Maps"
        )
    return found


def spread(candidates: list[Candidate], count: int | None) -> list[Candidate]:
    """`count` candidates spread evenly over all of them.

    Raises:
        UserError: there are fewer.
    """
    if count is None:
        return candidates
    if count > len(candidates):
        raise UserError(
            f"--clips {count} but the folder holds {len(candidates)} pieces of footage;"
            " ask for fewer"
        )
    return [candidates[i] for i in np.linspace(0, len(candidates) - 1, count).round().astype(int)]


def _sort(paths: list[Path], root: Path) -> Found:
    """Says of every file what it is."""
    metadata = [path for path in paths if path.name.endswith(METADATA_SUFFIX)]
    folders, samples = {path.parent for path in metadata}, {sample_name(path) for path in metadata}
    found = Found([], [])
    for path in paths:
        key = path.relative_to(root).as_posix()
        if path.name.endswith(METADATA_SUFFIX):
            key = key.removesuffix(METADATA_SUFFIX)
            found.candidates.append(Candidate(key, partial(sample_item, path, key), True))
        elif is_part_of_sample(path, folders):
            continue
        elif path.suffix.lower() in VIDEO_SUFFIXES:
            found.candidates.append(Candidate(key, partial(video_item, path, key), False))
        elif metadata and path.suffix.lower() == ".txt" and samples & set(names := _names(path)):
            found.splits[key] = names
            found.not_scored.extend(
                NotScored(name, f"{key} names it, but it has no {METADATA_SUFFIX} file")
                for name in dict.fromkeys(names)
                if name not in samples
            )
        else:
            found.not_scored.append(NotScored(key, f"no video: {path.suffix or 'no suffix'}"))
    return found


def _names(path: Path) -> list[str]:
    """Lines of what may be a split list; none when it is no text."""
    try:
        return read_split(path)
    except UserError:
        return []


def _only(found: Found, split: str) -> Found:
    """The samples of one split list alone."""
    if split not in found.splits:
        raise UserError(f"{split} names no sample of its folder; give the folder, or mend the list")
    wanted = set(found.splits[split])
    candidates = [c for c in found.candidates if c.is_sample and Path(c.key).name in wanted]
    return Found(candidates, found.not_scored, {split: found.splits[split]})


@dataclass(frozen=True)
class Pictures:
    """The pictures of one sample in order, at a constant rate.

    FOOTGUN: picture n is taken to be of time n / rate. A tool that picks the nearest frame instead
    of the last one (ffmpeg's default) shows up to half a picture of the future; it cannot be seen.
    """

    paths: tuple[Path, ...]
    picture_hz: int

    def ticks(self, *, max_width: int | None = None) -> Iterator[np.ndarray]:
        """The newest picture at each tick; see `Ticks`."""
        timed = ((Fraction(n, self.picture_hz), path) for n, path in enumerate(self.paths))
        num_ticks = TIMING.num_ticks(Fraction(len(self.paths), self.picture_hz))
        shown, image_HWC = None, np.empty(0, np.uint8)
        for path in causal_ticks(timed, num_ticks=num_ticks, timing=TIMING):
            if path != shown:
                before, shown = image_HWC, path
                image_HWC = read_picture(path, max_width=max_width)
                if before.size and before.shape != image_HWC.shape:
                    raise UserError(f"{path} has another size than the picture before; mend it")
            yield image_HWC


def read_picture(path: Path, *, max_width: int | None) -> np.ndarray:
    """A JPEG picture as uint8 RGB [H, W, 3], scaled down to `max_width` where it is wider.

    Raises:
        UserError: it cannot be read.
    """
    try:
        # Not Image.open: ultralytics replaces that by one that tries to install what it misses.
        with JpegImageFile(path) as image:
            rgb = image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise UserError(f"{path} is not a readable picture; copy it again") from error
    if max_width is not None and rgb.width > max_width:
        height = max(1, round(rgb.height * max_width / rgb.width))
        rgb = rgb.resize((max_width, height), Resampling.BOX)
    return np.asarray(rgb)


def sample_name(metadata: Path) -> str:
    """Name of the sample a metadata file belongs to."""
    return metadata.name.removesuffix(METADATA_SUFFIX)


def is_part_of_sample(path: Path, folders: set[Path]) -> bool:
    """Whether a file is one of the pictures, sounds or metadata below folders that hold samples."""
    if path.name.endswith(METADATA_SUFFIX):
        return True
    return any(
        parent.parent in folders
        and (parent.name == AUDIO_FOLDER or FRAMES_FOLDER.fullmatch(parent.name))
        for parent in path.parents
    )


def sample_item(metadata: Path, key: str) -> Item:
    """The sample of a metadata file; the fastest pictures it has.

    Raises:
        UserError: pictures are missing, or it is unclear which sound is its own.
    """
    pictures = _find_pictures(metadata)
    sound = _find_sound(metadata)
    return Item(
        key=key,
        duration_s=Fraction(len(pictures.paths), pictures.picture_hz),
        picture_hz=Fraction(pictures.picture_hz),
        ticks=pictures.ticks,
        files=(*pictures.paths, *([sound] if sound else [])),
        sound=sound,
    )


def read_split(path: Path) -> list[str]:
    """Names of the samples that a split's text file lists, one a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable text file; copy it again") from error
    names = (Path(line.strip()).name.removesuffix(METADATA_SUFFIX) for line in lines)
    return [name for name in names if name]


def _is_alone(metadata: Path) -> bool:
    return len(list(metadata.parent.glob(f"*{METADATA_SUFFIX}"))) == 1


def _find_pictures(metadata: Path) -> Pictures:
    sample, by_rate = sample_name(metadata), {}
    for folder in metadata.parent.iterdir():
        match = FRAMES_FOLDER.fullmatch(folder.name)
        if match and folder.is_dir() and int(match[1]) > 0:
            by_rate[int(match[1])] = _pictures_in(folder, sample, is_alone=_is_alone(metadata))
    rates = sorted(rate for rate, paths in by_rate.items() if paths)
    if not rates:
        raise UserError(f"{metadata} has no pictures; put them in frames_4fps beside it")
    paths = by_rate[rates[-1]]
    numbers = sorted(paths)
    for expected, number in enumerate(numbers, start=numbers[0]):
        if number != expected:
            folder = paths[number].parent
            raise UserError(f"picture {expected} of {sample} is missing in {folder}; copy it again")
    return Pictures(tuple(paths[number] for number in numbers), rates[-1])


def _pictures_in(folder: Path, sample: str, *, is_alone: bool) -> dict[int, Path]:
    """Pictures of a sample by their number."""
    own = folder / sample
    if own.is_dir():
        folder, is_alone = own, True
    pattern = r".*?(\d+)" if is_alone else re.escape(sample) + r"[_.-]\D*(\d+)"
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(pattern, path.stem)
        if path.suffix.lower() not in (".jpg", ".jpeg") or match is None:
            continue
        if int(match[1]) in found:
            raise UserError(f"{path} and {found[int(match[1])].name} have the same number")
        found[int(match[1])] = path
    return found


def _find_sound(metadata: Path) -> Path | None:
    sample, folder = sample_name(metadata), metadata.parent / AUDIO_FOLDER
    if (folder / f"{sample}.wav").is_file():
        return folder / f"{sample}.wav"
    if (folder / sample).is_dir():
        folder = folder / sample
    elif not _is_alone(metadata):
        return None
    sounds = sorted(folder.glob("*.wav"))
    if len(sounds) > 1:
        raise UserError(f"{folder} holds {len(sounds)} sounds; name the one meant {sample}.wav")
    return sounds[0] if sounds else None
