"""What the manifest of a dubbed file says, and its signature (C2PA 2: actions v2, claim v2).

No call here reaches the network: no timestamp authority, no remote manifests, no revocation lists.
"""

import io
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pydantic import JsonValue

from spatial_v2a.inference.marking.apart import Access, run_apart
from spatial_v2a.inference.marking.signer import Credential

if TYPE_CHECKING:
    import c2pa

log = logging.getLogger(__name__)

SOFTWARE = "spatial-v2a"
LABEL = "org.spatial-v2a.dub"
_IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = f"{_IPTC}trainedAlgorithmicMedia"
PARTLY_GENERATED = f"{_IPTC}compositeWithTrainedAlgorithmicMedia"
# Any type the library knows no container of: it then signs the hash it is given.
OTHER_FORMAT = "application/octet-stream"
FORMATS = {
    ".mp4": "video/mp4",
    ".m4v": "video/x-m4v",
    ".mov": "video/quicktime",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
    ".wav": "audio/wav",
    ".flac": "audio/flac",
}
# Purposes a certificate may have: e-mail, documents, C2PA claims, time stamps, revocation answers.
_PURPOSES = (
    "1.3.6.1.5.5.7.3.4",
    "1.3.6.1.5.5.7.3.36",
    "1.3.6.1.4.1.62558.2.1",
    "1.3.6.1.5.5.7.3.8",
    "1.3.6.1.5.5.7.3.9",
)
_SETTINGS = {
    "version": 1,
    "trust": {"trust_config": "\n".join(_PURPOSES)},
    "core": {
        "allowed_network_hosts": [],
        "backing_store_memory_threshold_in_mb": 16,
        "decode_identity_assertions": False,
    },
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": False},
    "builder": {"thumbnail": {"enabled": False}},
}


@dataclass(frozen=True)
class Provenance:
    """How a sound was made.

    Attributes:
        model: name of the checkpoint.
        checkpoint_sha256: from `checkpoint_digest`.
        seed: of the noise.
        command: the command line as text.
        settings: what else shaped the sound, as JSON values; `original` ("drop", "keep" or "duck")
            decides whether sound alone counts as generated entirely or in part.
        version: of this software.
    """

    model: str
    checkpoint_sha256: str
    seed: int
    command: str
    settings: Mapping[str, JsonValue] = field(default_factory=dict)
    version: str = field(default_factory=lambda: version(SOFTWARE))


@dataclass(frozen=True)
class Manifest:
    """A manifest ready to be signed.

    Attributes:
        definition: in the JSON form of the C2PA library.
        ingredient: the video the sound was made for, which may carry a manifest of its own.
        relation: parentOf, or inputTo for sound alone.
    """

    definition: dict[str, Any]
    ingredient: Path | None
    relation: str

    @classmethod
    def of(
        cls, provenance: Provenance, *, name: str, has_picture: bool, ingredient: Path | None
    ) -> "Manifest":
        """Describes a file.

        Args:
            provenance: how its sound was made.
            name: of the file.
            has_picture: whether a picture, not generated, is beside the sound.
            ingredient: the video the sound was made for.
        """
        assertions = [
            {"label": "c2pa.actions.v2", "data": _actions(provenance, has_picture, ingredient)},
            {"label": LABEL, "data": asdict(provenance) | {"settings": dict(provenance.settings)}},
        ]
        definition = {
            "claim_generator_info": [_agent(provenance)],
            "title": name,
            "assertions": [{**assertion, "created": True} for assertion in assertions],
        }
        return cls(_printable(definition), ingredient, "parentOf" if has_picture else "inputTo")

    def embed(self, source: BinaryIO, target: BinaryIO, kind: str, credential: Credential) -> None:
        """Writes `source` with the manifest in it to `target`.

        Raises:
            c2pa.C2paError: the container is not one the library can write to, or signing failed.
        """

        def work(access: Access) -> None:
            builder = self._builder(self.definition, credential, access)
            builder.sign(kind, access.to(source), access.to(target))

        run_apart(work)

    def sign(
        self, digest: bytes, credential: Credential, *, start: int = 0, length: int = 0
    ) -> bytes:
        """The manifest alone, bound to a file by the hash of its bytes (C2PA 2.2, "Data Hash").

        Args:
            digest: SHA-256 of the file without the bytes [start, start + length).
            credential: what signs.
            start, length: place of the manifest in the file; length 0 for one beside it.
        """
        binding = {
            "name": "jumbf manifest",
            "alg": "sha256",
            "hash": list(digest),
            "pad": [],
            "exclusions": [{"start": start, "length": length}] if length else [],
        }
        assertion = {"label": "c2pa.hash.data", "data": binding, "created": True}
        assertions = [assertion, *self.definition["assertions"]]
        bound = self.definition | {"assertions": assertions}

        def work(access: Access) -> bytes:
            builder = self._builder(bound, credential, access)
            builder.set_no_embed()
            # The library copies what it signs; with the hash given, one byte stands for the file.
            return builder.sign(OTHER_FORMAT, io.BytesIO(b"\0"), io.BytesIO())

        return run_apart(work)

    def _builder(
        self, definition: dict[str, Any], credential: Credential, access: Access
    ) -> "c2pa.Builder":
        import c2pa

        def new(ingredients: list[dict[str, Any]]) -> c2pa.Builder:
            context = offline_context(_signer(credential))
            return c2pa.Builder({**definition, "ingredients": ingredients}, context=context)

        if self.ingredient is None:
            return new([])
        kind = FORMATS.get(self.ingredient.suffix.lower(), OTHER_FORMAT)
        named = _printable(
            {"title": self.ingredient.name, "relationship": self.relation, "label": "source"}
        )
        builder = new([])
        try:
            with open(self.ingredient, "rb") as file:
                builder.add_ingredient(named, kind, access.to(file))
        except c2pa.C2paError as error:
            # Its name is still true when its own manifest, if any, cannot be read.
            log.debug("%s is named as ingredient without its content: %s", self.ingredient, error)
            return new([{**named, "format": kind}])
        return builder


def offline_context(signer: "c2pa.Signer | None" = None) -> "c2pa.Context":
    """Settings of the library under which nothing goes to the network."""
    import c2pa

    return c2pa.Context.from_dict(_SETTINGS, signer=signer)


def _signer(credential: Credential) -> "c2pa.Signer":
    import c2pa

    algorithm = c2pa.C2paSigningAlg[credential.algorithm.upper()]
    info = c2pa.C2paSignerInfo(algorithm, credential.chain_pem, credential.key_pem, None)
    return c2pa.Signer.from_info(info)


def _agent(provenance: Provenance) -> dict[str, str]:
    return {"name": SOFTWARE, "version": provenance.version}


def _actions(
    provenance: Provenance, has_picture: bool, ingredient: Path | None
) -> dict[str, JsonValue]:
    """A dub edits the video that it opened; sound alone is created, with the video as input."""
    keeps_original = provenance.settings.get("original", "drop") != "drop"
    source_type = PARTLY_GENERATED if has_picture or keeps_original else GENERATED
    step: dict[str, JsonValue] = {
        "action": "c2pa.created",
        "when": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "softwareAgent": _agent(provenance),
        "digitalSourceType": source_type,
        "description": "The sound is synthetic: generated from the picture by a trained model.",
    }
    if ingredient is None:
        return {"actions": [step]}
    origin: JsonValue = {"ingredientIds": ["source"]}
    if not has_picture:
        return {"actions": [step | {"parameters": origin}]}
    opened = {"action": "c2pa.opened", "parameters": origin}
    return {"actions": [opened, step | {"action": "c2pa.edited"}]}


def _printable(value: Any) -> Any:
    """Text without the stray bytes that file names may hold, which JSON cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_printable(key): _printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(item) for item in value]
    return value
