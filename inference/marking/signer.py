"""The key and certificates that sign provenance: made once per user, or named by the environment.

A self-made certificate shows that a file is unchanged since it was signed, not who signed it.
"""

import logging
import os
import re
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from spatial_v2a.errors import UserError
from spatial_v2a.files import rename_to_new
from spatial_v2a.inference.marking.certificate import make_certificate

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

log = logging.getLogger(__name__)

KEY_VARIABLE = "SPATIAL_V2A_SIGNING_KEY"
CERTIFICATE_VARIABLE = "SPATIAL_V2A_SIGNING_CERT"
CREDENTIAL_FILE = "credential.pem"
# No timestamp authority is asked, so a signature ends with its certificate: give it decades.
VALIDITY = timedelta(days=30 * 365)
RENEWED_BEFORE_END = timedelta(days=10 * 365)
_CERTIFICATES = re.compile(
    rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL
)


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


def signing_credential() -> Credential:
    """The credential of the environment, else this user's own, made on first use.

    When the settings folder cannot be used, a credential of this process alone, with a warning.

    Raises:
        UserError: the environment names a key or certificate that cannot sign.
    """
    key, chain = os.environ.get(KEY_VARIABLE), os.environ.get(CERTIFICATE_VARIABLE)
    if key or chain:
        return _given(key, chain)
    try:
        return _stored(signing_folder())
    except (OSError, RuntimeError) as error:
        return _of_this_process(str(error))


def signing_folder() -> Path:
    """`signing` in the user's settings folder (XDG Base Directory Specification 0.8).

    Raises:
        RuntimeError: the user has no home folder.
    """
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    # The specification says to ignore what is not absolute.
    base = named if named.is_absolute() else Path.home() / ".config"
    return base / "spatial-v2a" / "signing"


def new_credential(
    origin: str, *, start: datetime | None = None, validity: timedelta = VALIDITY
) -> Credential:
    """Makes an ES256 key and a certificate for it, under a root whose key is thrown away.

    Args:
        origin: where it will be kept, for messages.
        start, validity: of the certificates; see `make_certificate`.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain = (
        make_certificate(key, root_key, is_root=False, start=start, validity=validity),
        make_certificate(root_key, root_key, is_root=True, start=start, validity=validity),
    )
    pem = serialization.Encoding.PEM
    return Credential(_pkcs8(key), b"".join(c.public_bytes(pem) for c in chain), "es256", origin)


def _given(key: str | None, chain: str | None) -> Credential:
    """The credential in the files that the environment names."""
    if not key or not chain:
        there, missing = KEY_VARIABLE, CERTIFICATE_VARIABLE
        if not key:
            there, missing = missing, there
        raise UserError(f"{there} is set but {missing} is not; set both or none")
    key_pem, chain_pem = _read(KEY_VARIABLE, key), _read(CERTIFICATE_VARIABLE, chain)
    try:
        private = _load_key(key_pem)
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"{KEY_VARIABLE}={key} holds no usable key ({reason}); give PEM without a passphrase"
        ) from error
    try:
        leaf = _leaf(chain_pem)
    except ValueError as error:
        raise UserError(
            f"{CERTIFICATE_VARIABLE}={chain} holds no certificates; give PEM, the signer's first"
        ) from error
    if leaf.public_key() != private.public_key():
        raise UserError(
            f"the first certificate of {CERTIFICATE_VARIABLE}={chain} is not that of"
            f" {KEY_VARIABLE}={key}; give a pair"
        )
    if not leaf.not_valid_before_utc <= datetime.now(UTC) < leaf.not_valid_after_utc:
        raise UserError(
            f"{CERTIFICATE_VARIABLE}={chain} is valid from {leaf.not_valid_before_utc:%Y-%m-%d}"
            f" to {leaf.not_valid_after_utc:%Y-%m-%d}; give one that is valid today"
        )
    return Credential(_pkcs8(private), chain_pem, _algorithm(private, key), f"{KEY_VARIABLE}={key}")


def _read(variable: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{variable}={path} cannot be read ({reason}); give a PEM file") from error


def _algorithm(key: "PrivateKeyTypes", path: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey):
        names = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
        if key.curve.name in names:
            return names[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise UserError(
        f"{KEY_VARIABLE}={path} is of a kind C2PA does not sign with; give P-256, P-384, P-521,"
        " Ed25519, or RSA of 2048 bits or more"
    )


def _stored(folder: Path) -> Credential:
    """The user's own credential, made or renewed when need be.

    One file holds key and certificates, so that processes that start at once never mix two pairs.
    """
    path = folder / CREDENTIAL_FILE
    known = _parsed(path)
    if known is not None:
        return known
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = new_credential(str(path))
    handle, draft = tempfile.mkstemp(dir=folder, prefix=f".{CREDENTIAL_FILE}-")  # mode 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(fresh.key_pem + fresh.chain_pem)
            file.flush()
            os.fsync(file.fileno())
        try:
            rename_to_new(Path(draft), path)
        except FileExistsError:
            # Another process was first, or an old file is in the way.
            known = _parsed(path)
            if known is None:
                os.replace(draft, path)
        return known or fresh
    finally:
        Path(draft).unlink(missing_ok=True)


def _parsed(path: Path) -> Credential | None:
    """The credential in a file of ours; None if there is none that is whole and lasts."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        key, leaf = _load_key(text), _leaf(text)
        is_pair = leaf.public_key() == key.public_key()
    except (ValueError, TypeError) as error:
        log.warning("%s is damaged (%s); a new signing key is made", path, error)
        return None
    now = datetime.now(UTC)
    if not is_pair or not leaf.not_valid_before_utc <= now:
        return None
    if leaf.not_valid_after_utc - now < RENEWED_BEFORE_END:
        return None
    return Credential(_pkcs8(key), b"".join(_CERTIFICATES.findall(text)), "es256", str(path))


@cache
def _of_this_process(reason: str) -> Credential:
    log.warning(
        "signing key cannot be kept (%s): this one ends with the process; set XDG_CONFIG_HOME"
        " to a folder that can be written",
        reason,
    )
    return new_credential("this process")


def _load_key(text: bytes) -> "PrivateKeyTypes":
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(_CERTIFICATES.sub(b"", text), password=None)


def _leaf(text: bytes) -> "x509.Certificate":
    from cryptography import x509

    return x509.load_pem_x509_certificates(b"".join(_CERTIFICATES.findall(text)))[0]


def _pkcs8(key: "PrivateKeyTypes") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
