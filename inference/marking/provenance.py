"""Where a file's sound comes from: a signed C2PA manifest in it or beside it, or plain words.

comment = unsigned_comment(Provenance(...), has_picture=True)  # for a new video; None with a key
attach(Path("clip.dubbed.mp4"), Provenance(...), ingredient=Path("clip.mp4"))

Without a key of the user's nothing is signed: the same statement is a line of the file's tag
`comment`, which says so.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs, cannot_write, written_whole
from spatial_v2a.inference.dub import mp4
from spatial_v2a.inference.marking.manifest import (
    FORMATS,
    LABEL,
    Credential,
    Manifest,
    Provenance,
    now,
    signing_credential,
    signs,
    source_type,
)

log = logging.getLogger(__name__)

SIDECAR_SUFFIX = ".c2pa"
# What the library writes to; it holds a WAV file in memory twice, so a long one gets a sidecar.
_LIBRARY_SUFFIXES = {".mp4", ".m4v", ".mov", ".flac", ".wav"}
_MAX_WAV_BYTES = 2**28
_SOUND_SUFFIXES = {".wav", ".flac"}
# How the line of an unsigned statement begins; JSON follows.
UNSIGNED = "Synthetic sound by spatial-v2a, not signed: "


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the weights of a checkpoint folder, in hexadecimal; computed once per process.

    It is the hash of the list that `sha256sum model*.safetensors perception*.safetensors` prints in
    that folder.

    Raises:
        UserError: the folder holds no weights, or they cannot be read.
    """
    return _digest_of_folder(folder.resolve())


def sidecar_of(path: Path) -> Path:
    """Where the manifest of a file lies that cannot hold one: NAME.c2pa, as C2PA tools want it."""
    return path.with_suffix(SIDECAR_SUFFIX)


def needs_sidecar(path: Path) -> bool:
    """Whether `attach` is sure to write a sidecar, for checking its place before the work.

    A long WAV file gets one too, which its name does not tell.
    """
    return signs() and path.suffix.lower() not in _LIBRARY_SUFFIXES


def unsigned_comment(provenance: Provenance, *, has_picture: bool) -> str | None:
    """The line for the tag `comment` of a file that is not signed; None with a key, which signs."""
    if signs():
        return None
    return UNSIGNED + json.dumps(
        {
            "signed": False,
            "when": now(),
            "digitalSourceType": source_type(provenance, has_picture=has_picture),
            LABEL: provenance.as_json(),
        }
    )


def with_comment(tags: dict[str, str], line: str | None) -> dict[str, str]:
    """Tags with another statement, or none, in place of that of an earlier dub.

    Args:
        tags: of a container.
        line: from `unsigned_comment`.
    """
    key = next((key for key in tags if key.lower() == "comment"), "comment")
    lines = [old for old in tags.get(key, "").splitlines() if not old.startswith(UNSIGNED)]
    others = {name: value for name, value in tags.items() if name != key}
    lines += [line] if line else []
    return others | {key: "\n".join(lines)} if lines else others


def unsigned_statement(tags: dict[str, str]) -> dict[str, Any] | None:
    """The newest statement in a container's tags that is whole; None without one."""
    for key, text in tags.items():
        for line in reversed(text.splitlines() if key.lower() == "comment" else []):
            if line.startswith(UNSIGNED):
                try:
                    return dict(json.loads(line.removeprefix(UNSIGNED)))
                except (ValueError, TypeError) as error:
                    log.warning("a statement that is damaged is left out: %s", error)
    return None


def attach(
    path: Path,
    provenance: Provenance,
    *,
    ingredient: Path | None = None,
    out: Path | None = None,
    outputs: Outputs | None = None,
) -> list[Path]:
    """Signs a finished file; its packets, samples, times and tags stay as they are.

    Without a key, sound alone gets its unsigned statement; a video has had it since it was opened.
    With one the file is replaced by a copy with the manifest in it (mp4, m4v, mov, wav, flac).
    Matroska, WebM, WAV beyond 256 MiB and what turns out not to take it stay untouched and get a
    sidecar.

    Args:
        path: the file, complete; its suffix says the container.
        provenance: how its sound was made.
        ingredient: the video the sound was made for; a manifest in it is carried along.
        out: the file to be, where `path` is a name for the time of writing: the manifest names it,
            and a sidecar lies beside it.
        outputs: takes the sidecar; None writes it at once, over one that exists.

    Returns:
        Files written besides `path`: the sidecar, or nothing.

    Raises:
        UserError: the file, the disk or the signing key does not allow it.
    """
    out = out or path
    has_picture = path.suffix.lower() not in _SOUND_SUFFIXES
    credential = signing_credential()
    if credential is None:
        if not has_picture:
            _comment(path, unsigned_comment(provenance, has_picture=False), out)
        return []
    import c2pa

    manifest = Manifest.of(
        provenance, name=out.name, has_picture=has_picture, ingredient=ingredient
    )
    try:
        if _is_embedded(path, manifest, credential):
            return []
        sidecar = sidecar_of(out)
        signed = manifest.sign(_digest_of(path), credential)
        with nullcontext(outputs) if outputs else Outputs(overwrite=True) as written:
            written.new(sidecar).write_bytes(signed)
        return [sidecar]
    except OSError as error:
        raise cannot_write(out, error) from error
    except c2pa.C2paError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"cannot sign {out} with {credential.origin} ({reason}); give another key or use"
            " --no-provenance"
        ) from error


def _comment(path: Path, line: str | None, out: Path) -> None:
    """Gives a sound file, which becomes `out`, its comment."""
    import av
    import soundfile

    from spatial_v2a.conditioning.media import open_input, open_output, packets

    try:
        with written_whole(path, overwrite=True) as draft:
            if path.suffix.lower() == ".wav":
                shutil.copyfile(path, draft)
                with soundfile.SoundFile(draft, "r+") as file:
                    file.comment = line
                return
            with open_input(path) as source, open_output(draft, format="flac") as target:
                track = source.streams.audio[0]
                copy = target.add_stream_from_template(track)
                target.metadata.update(with_comment(source.metadata, line))
                for packet in packets(source, track):
                    if packet.size:
                        packet.stream = copy
                        target.mux(packet)
    except (OSError, soundfile.SoundFileError, av.error.FFmpegError) as error:
        raise cannot_write(out, error) from error


def _is_embedded(path: Path, manifest: Manifest, credential: Credential) -> bool:
    """Puts the manifest into the file; False when the container cannot hold one."""
    suffix = path.suffix.lower()
    if suffix not in _LIBRARY_SUFFIXES:
        return False
    if suffix == ".wav" and (path.stat().st_size > _MAX_WAV_BYTES or not _is_riff(path)):
        return False
    import c2pa

    try:
        with Outputs(overwrite=True) as signed:
            draft = signed.new(path)
            with (
                _temporary_files_in(signed.temporary_folder(path)),
                open(path, "rb") as source,
                open(draft, "w+b") as target,
            ):
                manifest.embed(source, target, FORMATS[suffix], credential)
            num_added = draft.stat().st_size - path.stat().st_size
            if suffix not in _SOUND_SUFFIXES and not mp4.can_shift(path, num_added):
                raise c2pa.C2paError.NotSupported("its 32-bit offsets are used up")
    except (c2pa.C2paError.Io, c2pa.C2paError.Signature):
        # The disk or the key: a sidecar would fail as well.
        raise
    except c2pa.C2paError as error:
        log.warning("%s takes no manifest (%s); it goes into a file beside it", path, error)
        return False
    return True


def _is_riff(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"RIFF"


def _digest_of(path: Path) -> bytes:
    """SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


@contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Makes the library keep its copy of the file there: /tmp is memory on many machines."""
    before = os.environ.get("TMPDIR")
    os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before


@cache
def _digest_of_folder(folder: Path) -> str:
    # Brings PyTorch along, which reading a manifest can do without.
    from spatial_v2a.models.checkpoint import MODEL, PERCEPTION

    files = [f for stem in (MODEL, PERCEPTION) for f in sorted(folder.glob(f"{stem}*.safetensors"))]
    if not files:
        raise UserError(f"{folder} holds no weights; give a complete checkpoint folder")
    try:
        lines = [f"{_digest_of(file).hex()}  {file.name}\n" for file in files]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read {error.filename} ({reason}); make it readable") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()
