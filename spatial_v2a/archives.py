"""Shards and array files that a stranger may have written: names are only names, sizes are bounded.

Shards are plain tar files. They are opened here and nowhere else: libraries that read shards take
parts of a file's name for commands, addresses or patterns.
"""

import io
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spatial_v2a.errors import UserError

# A key names files that are made of its clip.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_ +@=,-]{0,199}")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
# Half a minute of pictures has 15 MB.
MAX_PART_BYTES = 2**29
MAX_ARRAYS_BYTES = 2**30
_ARRAY_ERRORS = (
    zipfile.BadZipFile, zlib.error, ValueError, TypeError, SyntaxError, EOFError, OSError,
    LookupError, NotImplementedError, RuntimeError,
)  # fmt: skip


class Part(NamedTuple):
    """One part of a clip, and where its bytes lie in a shard."""

    shard: Path
    key: str
    name: str
    offset: int
    num_bytes: int

    def read(self) -> bytes:
        """The bytes.

        Raises:
            UserError: the shard has become shorter, or cannot be read.
        """
        try:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.num_bytes)
        except OSError as error:
            raise UserError(f"cannot read shard {self.shard} ({error.strerror})") from error
        if len(data) < self.num_bytes:
            raise UserError(f"shard {self.shard} is cut off; record it again")
        return data


def shard_parts(path: Path) -> Iterator[Part]:
    """The parts of all clips of a shard, in its order.

    Raises:
        UserError: no regular file, no plain tar, cut off, a sparse or oversized part, or a name
            that no file of a clip could have.
    """
    if not path.is_file():
        reason = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(f"shard {path} {reason}; record it or correct the path")
    try:
        # Handed over open, and uncompressed: the name is not looked at, and nothing swells.
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end = path.stat().st_size
            for member in archive:
                if member.isreg():
                    yield _part(path, member, end)
    except (tarfile.TarError, OSError, ValueError, EOFError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot read shard {path} ({reason}); record it again") from error


def _part(path: Path, member: tarfile.TarInfo, end: int) -> Part:
    key, _, name = member.name.rpartition("/")[2].partition(".")
    if not _KEY.fullmatch(key) or not _PART.fullmatch(name):
        raise UserError(
            f"shard {path} holds {member.name[:100]!r}, which is no name KEY.PART of a clip's part;"
            " take it out"
        )
    if member.issparse() or not 0 <= member.size <= MAX_PART_BYTES:
        raise UserError(f"shard {path}: {key}.{name} claims {member.size} bytes; record it again")
    if member.offset_data + member.size > end:
        raise UserError(f"shard {path} is cut off in {key}.{name}; record it again")
    return Part(path, key, name, member.offset_data, member.size)


def is_key(value: object) -> bool:
    """Whether a value can be the key of a clip."""
    return isinstance(value, str) and _KEY.fullmatch(value) is not None


def read_arrays(source: bytes | Path, *, where: str) -> dict[str, NDArray]:
    """The arrays of an npz; no objects, and nothing larger than it may be.

    Args:
        source: the file, or its bytes.
        where: names it in messages.

    Raises:
        UserError: damaged, an array of objects, or more bytes than `MAX_ARRAYS_BYTES` (of a file:
            and four times its size).
        FileNotFoundError: no such file.
    """
    limit = MAX_ARRAYS_BYTES
    if isinstance(source, Path):
        limit += 4 * source.stat().st_size
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            members = file.infolist()
            if sum(member.file_size for member in members) > limit:
                raise ValueError("it unpacks to too many bytes")
            return {
                member.filename.removesuffix(".npy"): _array(file.read(member))
                for member in members
            }
    except _ARRAY_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{where} is corrupt ({reason}); make it again") from error


def _array(data: bytes) -> NDArray:
    """An array of npy bytes whose header is as long as the data after it."""
    file = io.BytesIO(data)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    shape, is_fortran, kind = readers[np.lib.format.read_magic(file)](file)
    if kind.hasobject:
        raise ValueError("an array of objects, which can run code")
    if math.prod(shape) * kind.itemsize != len(data) - file.tell() or min(shape, default=0) < 0:
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    flat = np.frombuffer(data, kind, offset=file.tell())
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()
