"""Files to sign, the statement they get, and keys with certificates to sign them with."""

import datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from spatial_v2a.conditioning.video import open_video, write_video
from spatial_v2a.inference.dub.mux import open_sink
from spatial_v2a.inference.marking.manifest import CERTIFICATE_VARIABLE, KEY_VARIABLE, Provenance
from spatial_v2a.inference.marking.provenance import unsigned_comment

MADE = Provenance(
    model="stage",
    checkpoint_sha256="5a" * 32,
    seed=2**63 - 1,
    command="spatial-v2a dub clip.mp4 --seed 7",
    settings={"nfe": 4, "guidance": 1.5, "original": "drop", "redone": [[0.5, 1.0]], "fov": None},
)
CLAIM_SIGNING, WEB_SERVER = "1.3.6.1.4.1.62558.2.1", "1.3.6.1.5.5.7.3.1"
KEY_USES = ("digital_signature", "key_cert_sign", "crl_sign", "content_commitment",
            "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
            "decipher_only")  # fmt: skip


def new_pair(
    *, start_days: float = -1.0, days: float = 9.0, purpose: str = CLAIM_SIGNING
) -> tuple[bytes, bytes]:
    """A P-256 key and its certificates under a root of its own (C2PA 2.2's profile), in PEM.

    Args:
        start_days: from now to the first moment of validity.
        days: of validity.
        purpose: object identifier of what the certificate is for.
    """
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    start = datetime.datetime.now(datetime.UTC) + datetime.timedelta(start_days)
    end = start + datetime.timedelta(days)

    def name(role: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, f"test {role}")])

    def certificate(owner: ec.EllipticCurvePrivateKey, role: str) -> bytes:
        is_root = role == "root"
        uses = ("key_cert_sign", "crl_sign") if is_root else ("digital_signature",)
        root_id = x509.SubjectKeyIdentifier.from_public_key(root_key.public_key())
        extensions = [
            (x509.BasicConstraints(is_root, 0 if is_root else None), True),
            (x509.KeyUsage(**{use: use in uses for use in KEY_USES}), True),
            (x509.SubjectKeyIdentifier.from_public_key(owner.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(root_id), False),
        ]
        if not is_root:
            extensions += [(x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)]), False)]
        draft = x509.CertificateBuilder(
            name("root"), name(role), owner.public_key(), x509.random_serial_number(), start, end
        )
        for extension, is_critical in extensions:
            draft = draft.add_extension(extension, critical=is_critical)
        return draft.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    return private_pem(key), certificate(key, "signer") + certificate(root_key, "root")


def private_pem(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    """A key as PKCS #8."""
    lock = serialization.NoEncryption()
    if password is not None:
        lock = serialization.BestAvailableEncryption(password)
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, lock)


def name_pair(
    folder: Path, monkeypatch: pytest.MonkeyPatch, key: bytes | None, chain: bytes | None
) -> None:
    """Puts a key and certificates into files, and their names into the environment."""
    for variable, content in ((KEY_VARIABLE, key), (CERTIFICATE_VARIABLE, chain)):
        monkeypatch.delenv(variable, raising=False)
        if content is not None:
            path = folder / f"{variable}.pem"
            path.write_bytes(content)
            monkeypatch.setenv(variable, str(path))


def noise(num_samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (num_samples, 2)).astype(np.float32)


def dubbed(folder: Path, suffix: str) -> tuple[Path, Path]:
    """(source clip, dubbed file), made by the project's own writers; without a key it says so."""
    clip = folder / ("clip.webm" if suffix == ".webm" else "clip.mp4")
    shades = (np.full((32, 48, 3), 5 * n % 250, np.uint8) for n in range(24))
    write_video(clip, shades, 24, rotation_deg=0 if suffix == ".webm" else 90)
    source, out = open_video(clip), folder / f"clip.dubbed{suffix}"
    with open_sink(out, source, comment=unsigned_comment(MADE, has_picture=True)) as sink:
        sink.write(noise(source.num_samples))
    return clip, out


def everything_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
