"""A manifest inside a WAV file: one more chunk behind the sound, which is not even parsed.

The library would hold the whole file in memory, twice.
"""

import hashlib
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# (digest, start, length) -> manifest; see Manifest.sign.
Sign = Callable[[bytes, int, int], bytes]
CHUNK_ID = b"C2PA"
MAX_RIFF_BYTES = 2**32 - 1
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class ChunkPlan:
    """Where the manifest goes: offset of its chunk, and bytes of the manifest itself."""

    place: int
    num_bytes: int

    @property
    def end(self) -> int:
        """Length of the file with the chunk, which is filled to an even length."""
        return self.place + 8 + self.num_bytes + self.num_bytes % 2


def plan_chunk(path: Path, sign: Sign) -> ChunkPlan | None:
    """Finds room for the manifest of a WAV file.

    Returns:
        The plan; None where no manifest can be: RF64, a file cut short, or one that would outgrow
        the 32 bits that count its bytes.
    """
    place = _chunk_place(path)
    if place is None:
        return None
    plan = ChunkPlan(place, _settled_length(place, sign))
    return plan if plan.end - 8 <= MAX_RIFF_BYTES else None


def embed(source: Path, target: Path, plan: ChunkPlan, sign: Sign) -> None:
    """Copies a WAV file and adds the manifest chunk (C2PA 2.2, "Embedding manifests into RIFF").

    Args:
        source, target: the files.
        plan: from `plan_chunk`.
        sign: makes the manifest for a hash and the place of its chunk.
    """
    place, num_bytes = plan.place, plan.num_bytes
    shutil.copyfile(source, target)
    with open(target, "r+b") as file:
        file.truncate(place)
        file.seek(4)
        file.write(struct.pack("<I", plan.end - 8))
        file.seek(place)
        file.write(struct.pack("<4sI", CHUNK_ID, num_bytes) + bytes(plan.end - place - 8))
        manifest = sign(_digest_around(file, place, 8 + num_bytes), place, 8 + num_bytes)
        assert len(manifest) == num_bytes, (len(manifest), num_bytes)
        file.seek(place + 8)
        file.write(manifest)


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _chunk_place(path: Path) -> int | None:
    """The end of a WAV file, or where an older manifest ends it; None if it is no whole WAV."""
    num_bytes = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return None
        place, name, start = 12, b"", 12
        while place + 8 <= num_bytes:
            file.seek(place)
            start = place
            name, length = struct.unpack("<4sI", file.read(8))
            place += 8 + length + length % 2
    # A last chunk of odd length may lack its fill byte.
    if num_bytes not in (place, place - 1):
        return None
    return start if name == CHUNK_ID else place


def _settled_length(place: int, sign: Sign) -> int:
    """Bytes of the manifest, which tells its own length, so that the two must agree."""
    num_bytes = 0
    for _ in range(8):
        signed = len(sign(bytes(32), place, 8 + num_bytes))
        if signed == num_bytes:
            return num_bytes
        num_bytes = signed
    raise AssertionError(f"the manifest's length does not settle (last: {num_bytes} bytes)")


def _digest_around(file: BinaryIO, start: int, length: int) -> bytes:
    """SHA-256 of an open file without the bytes [start, start + length)."""
    digest = hashlib.sha256()
    file.seek(0)
    left = start
    while left > 0:
        piece = file.read(min(left, _PIECE_BYTES))
        digest.update(piece)
        left -= len(piece)
    file.seek(start + length, os.SEEK_SET)
    digest.update(file.read())
    return digest.digest()
