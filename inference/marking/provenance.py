"""Signed provenance for finished files: a C2PA manifest in them, or beside them.

attach(Path("clip.dubbed.mp4"), Provenance(...), ingredient=Path("clip.mp4"))
"""

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path

from spatial_v2a.errors import UserError
from spatial_v2a.files import Outputs, cannot_write, written_whole
from spatial_v2a.inference.dub import mp4
from spatial_v2a.inference.marking import wav
from spatial_v2a.inference.marking.manifest import FORMATS, Manifest, Provenance
from spatial_v2a.inference.marking.signer import Credential, signing_credential

log = logging.getLogger(__name__)

SIDECAR_SUFFIX = ".c2pa"
# What the library writes to; WAV has its own writer, see wav.py.
_LIBRARY_SUFFIXES = {".mp4", ".m4v", ".mov", ".flac"}
_SOUND_SUFFIXES = {".wav", ".flac"}


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

    WAV beyond 4 GiB (RF64) gets one too, which its name does not tell.
    """
    return path.suffix.lower() not in _LIBRARY_SUFFIXES | {".wav"}


def attach(
    path: Path,
    provenance: Provenance,
    *,
    ingredient: Path | None = None,
    out: Path | None = None,
    outputs: Outputs | None = None,
) -> list[Path]:
    """Signs a finished file; its packets, samples, times and tags stay as they are.

    The file is replaced by a copy with the manifest in it (mp4, m4v, mov, wav, flac). Matroska,
    WebM, RF64 and what turns out not to take it stay untouched and get a sidecar.

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
    import c2pa

    credential = signing_credential()
    has_picture = path.suffix.lower() not in _SOUND_SUFFIXES
    out = out or path
    manifest = Manifest.of(
        provenance, name=out.name, has_picture=has_picture, ingredient=ingredient
    )
    try:
        if _is_embedded(path, manifest, credential):
            return []
        sidecar = sidecar_of(out)
        signed = manifest.sign(wav.digest_of(path), credential)
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


def _is_embedded(path: Path, manifest: Manifest, credential: Credential) -> bool:
    """Puts the manifest into the file; False when the container cannot hold one."""
    suffix = path.suffix.lower()
    if suffix == ".wav":
        return _is_embedded_in_wav(path, manifest, credential)
    if suffix not in _LIBRARY_SUFFIXES:
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
            if suffix != ".flac" and not mp4.can_shift(path, num_added):
                raise c2pa.C2paError.NotSupported("its 32-bit offsets are used up")
    except (c2pa.C2paError.Io, c2pa.C2paError.Signature):
        # The disk or the key: a sidecar would fail as well.
        raise
    except c2pa.C2paError as error:
        log.warning("%s takes no manifest (%s); it goes into a file beside it", path, error)
        return False
    return True


def _is_embedded_in_wav(path: Path, manifest: Manifest, credential: Credential) -> bool:
    def sign(digest: bytes, start: int, length: int) -> bytes:
        return manifest.sign(digest, credential, start=start, length=length)

    plan = wav.plan_chunk(path, sign)
    if plan is None:
        return False
    with written_whole(path, overwrite=True) as draft:
        wav.embed(path, draft, plan, sign)
    return True


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
        lines = [f"{wav.digest_of(file).hex()}  {file.name}\n" for file in files]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot read {error.filename} ({reason}); make it readable") from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()
