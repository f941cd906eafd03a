"""Reads the provenance of a file and checks it, where it is signed, against the file's bytes."""

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from spatial_v2a.errors import UserError
from spatial_v2a.inference.marking.manifest import (
    FORMATS,
    LABEL,
    Access,
    Provenance,
    offline_context,
    run_apart,
)
from spatial_v2a.inference.marking.provenance import sidecar_of, unsigned_statement

log = logging.getLogger(__name__)

UNREADABLE = "manifest.unreadable"
UNTRUSTED = "signingCredential.untrusted"
# Of reasons that concern the certificate alone, not what was signed.
CREDENTIAL = "signingCredential."
# Manifests stand near the beginning (MP4, FLAC) or at the end (WAV).
_SEARCHED_BYTES = 1 << 16


class State(StrEnum):
    """What the check of a manifest found."""

    valid = "valid"
    uncertified = "uncertified"
    tampered = "tampered"
    unsigned = "unsigned"


@dataclass(frozen=True)
class ProvenanceReport:
    """The manifest of a file.

    Attributes:
        path: the file.
        manifest: where the manifest is: the file itself or its sidecar.
        state: valid: file and manifest are unchanged since they were signed; uncertified: so they
            are, but the certificate has run out or is not for signing; tampered: something changed;
            unsigned: a statement that anyone could have written or changed.
        reasons: C2PA status codes that explain a state other than valid.
        issuer: organization on the certificate, which anyone can write; None when unreadable.
        signed_at: time of the statement as it claims, ISO 8601; None when not stated.
        source_type: IPTC name of how the content came about, such as trainedAlgorithmicMedia.
        provenance: our own statement; None when another tool made the manifest.
    """

    path: Path
    manifest: Path
    state: State
    reasons: tuple[str, ...] = ()
    issuer: str | None = None
    signed_at: str | None = None
    source_type: str | None = None
    provenance: Provenance | None = None


def read_provenance(path: Path) -> ProvenanceReport | None:
    """Reads and checks the manifest in a file or, when it has none, in the sidecar beside it.

    Without either, the unsigned statement in its tags.

    Args:
        path: any file.

    Returns:
        What was found; None when there is no manifest.

    Raises:
        UserError: the file itself cannot be read.
    """
    sidecar = sidecar_of(path)
    try:
        report = _read(path, None)
        if report is None and sidecar != path and sidecar.is_file():
            report = _read(path, sidecar)
        return report or _unsigned(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot read {error.filename or path} ({reason}); check the name"
        ) from error


def _read(path: Path, sidecar: Path | None) -> ProvenanceReport | None:
    import c2pa

    manifest_data = sidecar.read_bytes() if sidecar else None
    kind = None if sidecar else FORMATS.get(path.suffix.lower())
    with open(path, "rb") as file:

        def work(access: Access) -> dict[str, Any]:
            opened = access.to(file)
            with c2pa.Reader(kind, opened, manifest_data, context=offline_context()) as reader:
                return json.loads(reader.json())

        try:
            store = run_apart(work)
        except (c2pa.C2paError.ManifestNotFound, c2pa.C2paError.NotSupported):
            if sidecar is None:
                return None
            return ProvenanceReport(path, sidecar, State.tampered, (UNREADABLE,))
        except c2pa.C2paError as error:
            log.debug("manifest of %s: %s", path, error)
            if sidecar is None and not _mentions_a_manifest(path):
                return None
            return ProvenanceReport(path, sidecar or path, State.tampered, (UNREADABLE,))
    report = _report(path, sidecar or path, store)
    return None if sidecar and _is_of_another_file(report, store) else report


def _unsigned(path: Path) -> ProvenanceReport | None:
    from spatial_v2a.conditioning.media import open_input

    try:
        with open_input(path) as container:
            stated = unsigned_statement(container.metadata)
    except UserError as error:
        log.debug("tags of %s: %s", path, error)
        return None
    if stated is None:
        return None
    manifest = {"assertions": [{"label": LABEL, "data": stated.get(LABEL)}]}
    return ProvenanceReport(
        path=path,
        manifest=path,
        state=State.unsigned,
        signed_at=stated.get("when"),
        source_type=str(stated.get("digitalSourceType")).rpartition("/")[2],
        provenance=_provenance(manifest),
    )


def _report(path: Path, manifest: Path, store: dict[str, Any]) -> ProvenanceReport:
    active = _active_manifest(store)
    failures = {status["code"] for status in store.get("validation_status", [])} - {UNTRUSTED}
    signature = active.get("signature_info") or {}
    actions = list(_actions(active))
    times = [signature.get("time"), *(action.get("when") for action in actions)]
    types = [action.get("digitalSourceType") for action in actions]
    source_type = next((kind for kind in types if kind), None)
    return ProvenanceReport(
        path=path,
        manifest=manifest,
        state=_state(store.get("validation_state"), failures),
        reasons=tuple(sorted(failures)),
        issuer=signature.get("issuer"),
        signed_at=next((time for time in times if time), None),
        source_type=source_type.rpartition("/")[2] if source_type else None,
        provenance=_provenance(active),
    )


def _active_manifest(store: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the file itself; empty when damage made it unreadable."""
    return store.get("manifests", {}).get(store.get("active_manifest"), {})


def _state(verdict: str | None, failures: set[str]) -> State:
    if failures and all(code.startswith(CREDENTIAL) for code in failures):
        return State.uncertified
    return State.valid if verdict in ("Valid", "Trusted") and not failures else State.tampered


def _actions(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for assertion in manifest.get("assertions", []):
        data = assertion.get("data")
        if assertion["label"].startswith("c2pa.actions") and isinstance(data, dict):
            yield from data.get("actions", [])


def _provenance(manifest: dict[str, Any]) -> Provenance | None:
    for assertion in manifest.get("assertions", []):
        if assertion["label"] == LABEL:
            try:
                return TypeAdapter(Provenance).validate_python(assertion["data"])
            except ValidationError as error:
                log.warning("a statement of another form is left out: %s", error)
    return None


def _is_of_another_file(report: ProvenanceReport, store: dict[str, Any]) -> bool:
    """Whether a sidecar that does not fit names a neighbour: a.c2pa of a.mkv is not of a.mp4."""
    title = _active_manifest(store).get("title")
    if report.state != State.tampered or not title or title == report.path.name:
        return False
    return (report.path.parent / os.path.basename(title)).is_file()


def _mentions_a_manifest(path: Path) -> bool:
    """Whether a file that the library cannot parse once held a manifest."""
    with open(path, "rb") as file:
        head = file.read(_SEARCHED_BYTES)
        file.seek(max(0, path.stat().st_size - _SEARCHED_BYTES))
        tail = file.read()
    return any(b"jumb" in part and b"c2pa" in part for part in (head, tail))
