"""Whether the 32-bit chunk offsets of an MP4 or MOV file can take a manifest in front of the media.

The library shifts them without a look at their range: beyond 4 GiB they would wrap around.
"""

import struct
from pathlib import Path
from typing import BinaryIO

MAX_OFFSET = 2**32 - 1
# Boxes on the way to the offsets (ISO/IEC 14496-12).
_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl"}


def can_shift(path: Path, num_bytes: int) -> bool:
    """Whether every chunk offset stays within its 32 bits when the media moves by `num_bytes`.

    64-bit offsets (co64) always do.
    """
    return largest_offset(path) + num_bytes <= MAX_OFFSET


def largest_offset(path: Path) -> int:
    """The largest 32-bit chunk offset (stco) of any track; 0 when there is none."""
    largest = 0
    pending = [(0, path.stat().st_size)]
    with open(path, "rb") as file:
        while pending:
            start, end = pending.pop()
            while start + 8 <= end:
                name, body, stop = _box(file, start, end)
                if name in _CONTAINERS:
                    pending.append((body, stop))
                elif name == b"stco":
                    largest = max(largest, *_offsets(file, body, stop), 0)
                start = max(stop, start + 8)
    return largest


def _box(file: BinaryIO, start: int, end: int) -> tuple[bytes, int, int]:
    """(name, first byte of the content, byte behind it) of the box at `start`."""
    file.seek(start)
    length, name = struct.unpack(">I4s", file.read(8))
    body = start + 8
    if length == 1 and start + 16 <= end:
        (length,) = struct.unpack(">Q", file.read(8))
        body = start + 16
    return name, body, end if length == 0 else min(start + length, end)


def _offsets(file: BinaryIO, body: int, stop: int) -> tuple[int, ...]:
    file.seek(body + 4)
    (num_entries,) = struct.unpack(">I", file.read(4))
    num_entries = min(num_entries, (stop - body - 8) // 4)
    return struct.unpack(f">{num_entries}I", file.read(4 * num_entries))
