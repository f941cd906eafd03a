"""What a stranger may have written: text, YAML, JSON, arrays and shards.

Only plain data comes out: mappings with text keys, lists, text, finite numbers, true, false, null.
Shards are plain tar files. They are opened here and nowhere else: libraries that read shards take
parts of a file's name for commands, addresses or patterns.
"""

import io
import json
import math
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Never

import numpy as np
import yaml
from numpy.typing import NDArray

from spatial_v2a.errors import UserError

# The configuration of the largest preset has 5 kB; YAML is parsed at about 50 kB a second.
MAX_YAML_BYTES = 128 * 1024
# An index has one short line a tensor: room for 30 000 of them.
MAX_JSON_BYTES = 4 * 1024 * 1024
MAX_DEPTH = 32
# Longer than any number of 64 bits; a text of thousands of digits takes seconds to convert.
MAX_DIGITS = 32


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened to read; a pipe or a device, which may block, is refused.

    Raises:
        UserError: not there, not a regular file, or unreadable.
    """
    try:
        # A pipe without a writer would block an ordinary open.
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path} ({reason}); give a readable file") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path} is not a regular file; save what it holds as a file first")
    return file


def read_text(path: Path, *, max_bytes: int) -> str:
    """Text of a regular file.

    Args:
        path: what is read.
        max_bytes: a larger file is refused before it is read.

    Raises:
        UserError: as `open_regular`, too large, or not UTF-8.
    """
    with open_regular(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > max_bytes:
            raise UserError(
                f"{path} has {num_bytes} bytes, more than the {max_bytes} that such a file may"
                " have; give the right file"
            )
        try:
            return file.read(max_bytes).decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path} ({error}); give a readable text file") from None


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Plain data of a JSON file.

    Raises:
        UserError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, max_bytes=max_bytes), where=str(path))


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Plain data of JSON text; `where` names its origin in messages.

    Raises:
        UserError: not JSON, a key given twice, a number that is not finite or too long, or
            nesting without end.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_twins,
            parse_int=_whole_number,
            parse_float=_finite_number,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise UserError(f"{where} is not JSON (nested too deeply); correct the file") from None
    except ValueError as error:
        reason = _line(getattr(error, "msg", error))
        raise UserError(f"{where} is not JSON ({reason}); correct the file") from None


def parse_yaml(text: str, *, where: str) -> Any:
    """Plain data of YAML text; `where` names its origin in messages.

    Raises:
        UserError: not YAML, an alias, a tag, a key that is given twice or is no text, a number
            that is not finite or too long, too deep, or too long a text.
    """
    if len(text) > MAX_YAML_BYTES:
        raise UserError(f"{where} has over {MAX_YAML_BYTES} characters; give the right file")
    try:
        return yaml.load(text, _Loader)
    # Arithmetic: 59:59:...:59.5 is a number to the base of 60, and \UFFFFFFFF is no character.
    except (yaml.YAMLError, ValueError, ArithmeticError) as error:
        raise UserError(f"{where} is not valid YAML ({_line(error)}); correct the file") from None


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: 1e-4 is a number; plain data only, each thing written once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: object) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error(f"alias '*{event.anchor}', write the value again", event)
        # What a value is follows from how it is written; a tag may say what it is not.
        if getattr(event, "tag", None) is not None:
            raise _error(f"tag {event.tag[:100]!r}, plain data needs none", event)
        if self._depth >= MAX_DEPTH:
            raise _error(f"nested deeper than {MAX_DEPTH}", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag != _TAG + "str":
                raise _error("a key that is no text", key_node)
            if key_node.value in seen:
                raise _error(f"key '{key_node.value}' is given twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise _error(f"a number of {len(node.value)} digits", node)
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        value = super().construct_yaml_float(node)
        if not math.isfinite(value):
            raise _error(f"{node.value[:MAX_DIGITS]} is not a finite number", node)
        return value

    def refuse(self, node: yaml.Node) -> Never:
        raise _error(f"a {node.tag.rpartition(':')[2]} is no plain data, quote text", node)


_TAG = "tag:yaml.org,2002:"
# No other tag makes an object: dates, sets, binary data and whatever a tag may name are refused.
_Loader.yaml_constructors = {
    None: _Loader.refuse,
    _TAG + "null": _Loader.construct_yaml_null,
    _TAG + "bool": _Loader.construct_yaml_bool,
    _TAG + "int": _Loader.construct_yaml_int,
    _TAG + "float": _Loader.construct_yaml_float,
    _TAG + "str": _Loader.construct_yaml_str,
    _TAG + "seq": _Loader.construct_yaml_seq,
    _TAG + "map": _Loader.construct_yaml_map,
}
# YAML 1.1 wants a dot in a float, so 3e-4 would be read as text.
_Loader.add_implicit_resolver(
    _TAG + "float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _error(reason: str, place: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=place.start_mark)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twin = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {_line(twin)!r} is given twice")
    return made


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:MAX_DIGITS]} is not a finite number")
    return value


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"it holds {name}, which is not a number")


def _line(reason: object) -> str:
    """A reason in one line of bounded length."""
    return " ".join(str(reason).split())[:200]


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
