"""What the manifest of a dubbed file says, and its signature (C2PA 2: actions v2, claim v2).

The user's own key signs, which the environment names. No call here reaches the network: no
timestamp authority, no remote manifests, no revocation lists.
"""

import io
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pydantic import JsonValue

from spatial_v2a.errors import UserError

if TYPE_CHECKING:
    import c2pa
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

log = logging.getLogger(__name__)

Result = TypeVar("Result")
KEY_VARIABLE = "SPATIAL_V2A_SIGNING_KEY"
CERTIFICATE_VARIABLE = "SPATIAL_V2A_SIGNING_CERT"
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

    def as_json(self) -> dict[str, JsonValue]:
        """The statement as it is stored."""
        return printable(asdict(self) | {"settings": dict(self.settings)})


class Access:
    """Access of one call into the library to its files: can be ended, and remembers what failed.

    Attributes:
        errors: of the operating system, in order.
    """

    def __init__(self) -> None:
        self.errors: list[OSError] = []
        self._is_ended = False

    def to(self, file: BinaryIO) -> "GuardedFile":
        """An open file as the library wants it."""
        return GuardedFile(file, self)

    def end(self) -> None:
        """Lets every further access fail."""
        self._is_ended = True

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Runs one access."""
        if self._is_ended:
            raise InterruptedError("stopped")
        try:
            yield
        except OSError as error:
            self.errors.append(error)
            raise


class GuardedFile:
    """An open file, each call to it under the guard."""

    def __init__(self, file: BinaryIO, access: Access) -> None:
        self._file, self._access = file, access

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._file, name)

        def guarded(*args: Any) -> Any:
            with self._access.guard():
                return method(*args)

        return guarded


def run_apart(work: Callable[[Access], Result]) -> Result:
    """Runs `work` on another thread and waits for it.

    The library reads and writes through Python, where a Ctrl-C would abort the process and an
    error would lose its reason.

    Args:
        work: gets the access through which it opens files to the library.

    Returns:
        What `work` returns.

    Raises:
        KeyboardInterrupt: Ctrl-C came; `work` has ended by then, early.
        OSError: the first that an access met, instead of the library's own error.
    """
    access, outcome, claim, done = Access(), Future(), threading.Lock(), threading.Event()

    def body() -> None:
        if not claim.acquire(blocking=False):
            return
        try:
            outcome.set_result(work(access))
        except BaseException as error:
            outcome.set_exception(error)
        finally:
            done.set()

    try:
        threading.Thread(target=body, name="c2pa").start()
        done.wait()
    finally:
        access.end()
        # Ctrl-C may come inside `start`: whoever claims first decides whether there is work at all.
        if not claim.acquire(blocking=False):
            done.wait()
    try:
        return outcome.result()
    except Exception as error:
        if access.errors:
            raise access.errors[0] from error
        raise


@dataclass(frozen=True)
class Credential:
    """What signs.

    Attributes:
        key_pem: private key, PKCS #8 in PEM, without a passphrase.
        chain_pem: certificates in PEM, the signer's own first.
        algorithm: COSE name: es256, es384, es512, ps256 or ed25519.
        origin: where it comes from, for messages.
    """

    key_pem: bytes = field(repr=False)
    chain_pem: bytes
    algorithm: str
    origin: str


def signs() -> bool:
    """Whether the environment names a key or certificates; without them nothing is signed."""
    return bool(os.environ.get(KEY_VARIABLE) or os.environ.get(CERTIFICATE_VARIABLE))


def signing_credential() -> Credential | None:
    """The key and certificates that the environment names, tried out; None where it names none.

    Raises:
        UserError: they cannot sign.
    """
    if not signs():
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    files = {name: os.environ.get(name) for name in (KEY_VARIABLE, CERTIFICATE_VARIABLE)}
    content = {}
    for name, file in files.items():
        if not file:
            (other,) = files.keys() - {name}
            raise UserError(f"{other} is set but {name} is not; set both or none")
        try:
            content[name] = Path(file).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{name}={file} cannot be read ({reason}); give a PEM file") from error
    origin = f"{KEY_VARIABLE}={files[KEY_VARIABLE]}"
    try:
        key = serialization.load_pem_private_key(content[KEY_VARIABLE], password=None)
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key_pem = key.private_bytes(pem, pkcs8, serialization.NoEncryption())
        algorithm = _algorithm(key)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{origin} holds no usable key ({reason}); give PEM without a passphrase: P-256, P-384,"
            " P-521, Ed25519, or RSA of 2048 bits or more"
        ) from error
    credential = Credential(key_pem, content[CERTIFICATE_VARIABLE], algorithm, origin)
    if fault := _trial(credential):
        raise UserError(
            f"{CERTIFICATE_VARIABLE}={files[CERTIFICATE_VARIABLE]} cannot sign with {origin}"
            f" ({fault}); give the key's own certificates in PEM, the signer's first, valid today"
            " and for signing"
        )
    return credential


def _algorithm(key: "PrivateKeyTypes") -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        names = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if key.curve.name in names:
            return names[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise ValueError("C2PA does not sign with its kind")


def _trial(credential: Credential) -> str:
    """Why one byte cannot be signed and checked again, or nothing."""
    import c2pa

    def work(_: Access) -> list[dict[str, Any]]:
        builder = c2pa.Builder({"assertions": []}, context=offline_context(_signer(credential)))
        builder.set_no_embed()
        byte = io.BytesIO(b"\0")
        signed = builder.sign(OTHER_FORMAT, byte, io.BytesIO())
        byte.seek(0)
        with c2pa.Reader(OTHER_FORMAT, byte, signed, context=offline_context()) as reader:
            return json.loads(reader.json()).get("validation_status", [])

    try:
        found = run_apart(work)
    except c2pa.C2paError as error:
        return str(error).splitlines()[0]
    return "not its pair" if any(s["code"] == "claimSignature.mismatch" for s in found) else ""


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
            {"label": LABEL, "data": provenance.as_json()},
        ]
        definition = {
            "claim_generator_info": [_agent(provenance)],
            "title": name,
            "assertions": [{**assertion, "created": True} for assertion in assertions],
        }
        return cls(printable(definition), ingredient, "parentOf" if has_picture else "inputTo")

    def embed(self, source: BinaryIO, target: BinaryIO, kind: str, credential: Credential) -> None:
        """Writes `source` with the manifest in it to `target`.

        Raises:
            c2pa.C2paError: the container is not one the library can write to, or signing failed.
        """

        def work(access: Access) -> None:
            builder = self._builder(self.definition, credential, access)
            builder.sign(kind, access.to(source), access.to(target))

        run_apart(work)

    def sign(self, digest: bytes, credential: Credential) -> bytes:
        """The manifest alone, bound to a file by the hash of its bytes (C2PA 2.2, "Data Hash").

        Args:
            digest: SHA-256 of the file.
            credential: what signs.
        """
        binding = {
            "name": "jumbf manifest",
            "alg": "sha256",
            "hash": list(digest),
            "pad": [],
            "exclusions": [],
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
        named = printable(
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


def now() -> str:
    """The time as manifests have it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def source_type(provenance: Provenance, *, has_picture: bool) -> str:
    """IPTC's word for how a file came about, in full."""
    keeps_original = provenance.settings.get("original", "drop") != "drop"
    return PARTLY_GENERATED if has_picture or keeps_original else GENERATED


def _agent(provenance: Provenance) -> dict[str, str]:
    return {"name": SOFTWARE, "version": provenance.version}


def _actions(
    provenance: Provenance, has_picture: bool, ingredient: Path | None
) -> dict[str, JsonValue]:
    """A dub edits the video that it opened; sound alone is created, with the video as input."""
    step: dict[str, JsonValue] = {
        "action": "c2pa.created",
        "when": now(),
        "softwareAgent": _agent(provenance),
        "digitalSourceType": source_type(provenance, has_picture=has_picture),
        "description": "The sound is synthetic: generated from the picture by a trained model.",
    }
    if ingredient is None:
        return {"actions": [step]}
    origin: JsonValue = {"ingredientIds": ["source"]}
    if not has_picture:
        return {"actions": [step | {"parameters": origin}]}
    opened = {"action": "c2pa.opened", "parameters": origin}
    return {"actions": [opened, step | {"action": "c2pa.edited"}]}


def printable(value: Any) -> Any:
    """Text without the stray bytes that file names may hold, which JSON cannot."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {printable(key): printable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [printable(item) for item in value]
    return value
