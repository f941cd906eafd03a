"""Boxes of MP4 and MOV files (ISO/IEC 14496-12): chunk offsets, and what describes the picture.

FFmpeg writes the picture's sample entry from what it knows of it. Its own form of it goes into a
copy, so that what FFmpeg does not write (Dolby Vision in MOV, a crop, stereo) stays.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

MAX_OFFSET = 2**32 - 1
# Boxes on the way to the offsets and sample entries.
_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}
# A visual sample entry's fields before its boxes, and its place for the reference to the data.
_ENTRY_FIELDS = 86
_DATA_REFERENCE = slice(14, 16)
# More than any profile or parameter sets take.
_MAX_ENTRY_BYTES = 2**24
# What describes a picture alike in MP4 and MOV, and what says the same in another way: Dolby Vision
# and its layers, several views and spherical video, light levels, the crop.
_SHARED_BOXES = (
    {b"dvcC", b"dvvC", b"dvwC"},
    {b"hvcE", b"avcE"},
    {b"lhvC"},
    {b"vexu", b"hfov", b"st3d", b"sv3d"},
    {b"mdcv", b"SmDm"},
    {b"clli", b"CoLL"},
    {b"amve"},
    {b"clap"},
)
# Sample entries that are the same in MP4 and MOV but for their name.
_SHARED_NAMES = {b"avc1", b"avc3", b"dva1", b"dvav", b"hvc1", b"hev1", b"dvh1", b"dvhe"}


class Box(NamedTuple):
    """A box: its name, first byte, first byte of its content, and the byte behind it."""

    name: bytes
    start: int
    body: int
    stop: int


def can_shift(path: Path, num_bytes: int) -> bool:
    """Whether every chunk offset stays within its 32 bits when the media moves by `num_bytes`.

    The library that embeds manifests shifts them without a look at their range. 64-bit offsets
    (co64) always stay.
    """
    return largest_offset(path) + num_bytes <= MAX_OFFSET


def largest_offset(path: Path) -> int:
    """The largest 32-bit chunk offset (stco) of any track; 0 when there is none."""
    largest = 0
    with open(path, "rb") as file:
        pending = [(0, path.stat().st_size)]
        while pending:
            for box in _boxes(file, *pending.pop()):
                if box.name in _CONTAINERS:
                    pending.append((box.body, box.stop))
                elif box.name == b"stco":
                    largest = max(largest, *_offsets(file, box), 0)
    return largest


def sample_entry(file: BinaryIO, track_id: int) -> bytes | None:
    """The sample entry of a track, as it is stored; None unless there is exactly one."""
    places = _entry_places(file, track_id)
    if places is None:
        return None
    entry = places[-1]
    file.seek(entry.start)
    return file.read(entry.stop - entry.start)


def keep_sample_entry(file: BinaryIO, track_id: int, entry: bytes, *, is_whole: bool) -> None:
    """Gives a track of a complete file another sample entry, where nothing else has to move.

    Args:
        file: open for reading and writing; its `moov` must be the last box, as FFmpeg writes it.
        track_id: of a picture.
        entry: the sample entry that the same pictures have in another file.
        is_whole: whether it replaces the present one; otherwise only its boxes that describe a
            picture alike in MP4 and MOV do.
    """
    places = _entry_places(file, track_id)
    if places is None or places[0].stop != _size_of(file):
        return
    present = places[-1]
    file.seek(present.start)
    tail = file.read()
    old, rest = tail[: present.stop - present.start], tail[present.stop - present.start :]
    new = bytearray(entry if is_whole else _with_shared_boxes(old, entry))
    new[_DATA_REFERENCE] = old[_DATA_REFERENCE]
    grown = len(new) - len(old)
    for box in places[:-1]:
        file.seek(box.start)
        file.write(struct.pack(">I", box.stop - box.start + grown))
    file.seek(present.start)
    file.write(bytes(new) + rest)
    file.truncate()


def _with_shared_boxes(old: bytes, other: bytes) -> bytes:
    """The entry `old` with the name of `other`, and with what describes the picture there."""
    boxes, others = list(_boxes_of_entry(old)), list(_boxes_of_entry(other))
    given = {name for name, _ in others}
    described = set().union(*(group for group in _SHARED_BOXES if group & given))
    kept = [box for name, box in boxes if name not in described]
    kept += [box for name, box in others if name in described]
    rest = old[_ENTRY_FIELDS + sum(len(box) for _, box in boxes) :]
    name = other[4:8] if {old[4:8], other[4:8]} <= _SHARED_NAMES else old[4:8]
    new = name + old[8:_ENTRY_FIELDS] + b"".join(kept) + rest
    return struct.pack(">I", 4 + len(new)) + new


def _boxes_of_entry(entry: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = _ENTRY_FIELDS
    while place + 8 <= len(entry):
        length, name = struct.unpack_from(">I4s", entry, place)
        if length < 8 or place + length > len(entry):
            return
        yield name, entry[place : place + length]
        place += length


def _entry_places(file: BinaryIO, track_id: int) -> list[Box] | None:
    """The boxes from `moov` down to the only sample entry of a track, all with 32-bit lengths."""
    movies = [b for b in _boxes(file, 0, _size_of(file)) if b.name == b"moov"]
    for track in _boxes(file, movies[0].body, movies[0].stop) if len(movies) == 1 else ():
        if track.name != b"trak" or _track_id(file, track) != track_id:
            continue
        places = [movies[0], track]
        for name in (b"mdia", b"minf", b"stbl", b"stsd"):
            inner = [b for b in _boxes(file, places[-1].body, places[-1].stop) if b.name == name]
            if len(inner) != 1:
                return None
            places.append(inner[0])
        # Version, flags and the number of entries stand before the entries.
        entries = list(_boxes(file, places[-1].body + 8, places[-1].stop))
        places += entries
        is_one = len(entries) == 1 and (
            _ENTRY_FIELDS <= entries[0].stop - entries[0].start <= _MAX_ENTRY_BYTES
        )
        return places if is_one and all(b.body == b.start + 8 for b in places) else None
    return None


def _track_id(file: BinaryIO, track: Box) -> int | None:
    for box in _boxes(file, track.body, track.stop):
        if box.name == b"tkhd":
            file.seek(box.body)
            head = file.read(24)
            if len(head) == 24:
                # Its times take 4 or 8 bytes each, by its version.
                return struct.unpack_from(">I", head, 20 if head[0] else 12)[0]
    return None


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[Box]:
    """The boxes between two places of a file, up to the first one with an impossible length."""
    while start + 8 <= end:
        box = _box(file, start, end)
        if box.stop < box.body:
            return
        yield box
        start = box.stop


def _box(file: BinaryIO, start: int, end: int) -> Box:
    file.seek(start)
    length, name = struct.unpack(">I4s", file.read(8))
    body = start + 8
    if length == 1 and start + 16 <= end:
        (length,) = struct.unpack(">Q", file.read(8))
        body = start + 16
    return Box(name, start, body, end if length == 0 else min(start + length, end))


def _offsets(file: BinaryIO, box: Box) -> tuple[int, ...]:
    file.seek(box.body + 4)
    (num_entries,) = struct.unpack(">I", file.read(4))
    num_entries = min(num_entries, (box.stop - box.body - 8) // 4)
    return struct.unpack(f">{num_entries}I", file.read(4 * num_entries))


def _size_of(file: BinaryIO) -> int:
    return file.seek(0, 2)
