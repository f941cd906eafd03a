"""One self-made X.509 certificate of the C2PA profile."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

ORGANIZATION = "spatial-v2a (self-made certificate)"
# A clock set back a little must not make a new certificate look like one of the future.
CLOCK_SLACK = timedelta(days=1)
# The purpose C2PA 2 defines, and the one that older validators ask for.
CLAIM_SIGNING_OID = "1.3.6.1.4.1.62558.2.1"
EMAIL_PROTECTION_OID = "1.3.6.1.5.5.7.3.4"


def make_certificate(
    key: "EllipticCurvePrivateKey",
    root_key: "EllipticCurvePrivateKey",
    *,
    is_root: bool,
    start: datetime | None = None,
    validity: timedelta,
) -> "x509.Certificate":
    """A certificate of `key` under the root of `root_key`.

    Args:
        key: whose public half is certified; the root key itself for the root.
        root_key: signs.
        is_root: whether it may sign certificates (the root) or files (the signer).
        start: first moment of validity; default: a day ago.
        validity: from `start`.

    Returns:
        The certificate; profile: C2PA 2.2, section "X.509 Certificates" (no self-signed signer, a
        key usage of digitalSignature, a purpose, the key identifiers of both).
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    start = start or datetime.now(UTC) - CLOCK_SLACK
    root_id = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
    draft = (
        x509.CertificateBuilder()
        .subject_name(_name("root" if is_root else "signer"))
        .issuer_name(_name("root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + validity)
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(_key_usage(is_root=is_root), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), critical=False
        )
    )
    if not is_root:
        purposes = [x509.ObjectIdentifier(o) for o in (EMAIL_PROTECTION_OID, CLAIM_SIGNING_OID)]
        draft = draft.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    return draft.sign(root_key, hashes.SHA256())


def _name(role: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, f"spatial-v2a {role}"),
        ]
    )


def _key_usage(*, is_root: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not is_root,
        key_cert_sign=is_root,
        crl_sign=is_root,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
