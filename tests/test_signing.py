"""The key that signs: made once, private, renewed, or from the environment; bad ones refused."""

import hashlib
import logging
import multiprocessing
import stat
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from spatial_v2a.errors import UserError
from spatial_v2a.inference.marking import certificate
from spatial_v2a.inference.marking.provenance import attach, sidecar_of
from spatial_v2a.inference.marking.reading import State, read_provenance
from spatial_v2a.inference.marking.signer import (
    CERTIFICATE_VARIABLE,
    CREDENTIAL_FILE,
    KEY_VARIABLE,
    Credential,
    new_credential,
    signing_credential,
    signing_folder,
)
from tests.marked_files import MADE, dubbed, everything_in

pytestmark = pytest.mark.usefixtures("own_settings_folder")


def use(credential: Credential, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names the credential in the environment."""
    for name, variable, content in (
        ("key.pem", KEY_VARIABLE, credential.key_pem),
        ("chain.pem", CERTIFICATE_VARIABLE, credential.chain_pem),
    ):
        (folder / name).write_bytes(content)
        monkeypatch.setenv(variable, str(folder / name))


def test_an_expired_certificate_is_told_apart_from_tampering(tmp_path: Path, monkeypatch) -> None:
    _, out = dubbed(tmp_path, ".wav")
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=2)
    use(
        new_credential("test", start=start, validity=timedelta(days=2, seconds=2)),
        tmp_path,
        monkeypatch,
    )
    attach(out, MADE)
    time.sleep((start + timedelta(days=2, seconds=3) - datetime.now(UTC)).total_seconds())
    report = read_provenance(out)
    assert report.reasons == ("signingCredential.expired",)
    assert (report.state, report.provenance) == (State.uncertified, MADE)


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    first = signing_credential()
    path = signing_folder() / CREDENTIAL_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert everything_in(path.parent) == [CREDENTIAL_FILE]
    assert signing_credential() == first
    assert first.chain_pem.count(b"BEGIN CERTIFICATE") == 2
    assert "PRIVATE" not in repr(first)


def test_an_ending_certificate_and_a_damaged_file_are_renewed(caplog) -> None:
    path = signing_folder() / CREDENTIAL_FILE
    path.parent.mkdir(parents=True)
    short = new_credential("test", validity=timedelta(days=300))
    path.write_bytes(short.key_pem + short.chain_pem)
    renewed = signing_credential()
    assert renewed.chain_pem != short.chain_pem and signing_credential() == renewed
    path.write_bytes(renewed.key_pem[:60] + renewed.chain_pem)
    with caplog.at_level(logging.WARNING):
        mended = signing_credential()
    assert "is damaged" in caplog.text
    assert mended.key_pem != renewed.key_pem and signing_credential() == mended
    assert everything_in(path.parent) == [CREDENTIAL_FILE]


def test_a_folder_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    _, out = dubbed(tmp_path, ".wav")
    with caplog.at_level(logging.WARNING):
        attach(out, MADE)
        attach(out, MADE)
    assert caplog.text.count("signing key cannot be kept") == 1, caplog.text
    assert read_provenance(out).state == State.valid


def make_key(gate, answers) -> None:
    gate.wait()
    answers.put(hashlib.sha256(signing_credential().key_pem).hexdigest())


def test_processes_that_start_at_once_share_one_key() -> None:
    fork = multiprocessing.get_context("fork")
    gate, answers = fork.Barrier(4), fork.Queue()
    children = [fork.Process(target=make_key, args=(gate, answers)) for _ in range(4)]
    for child in children:
        child.start()
    keys = {answers.get(timeout=15) for _ in children}
    for child in children:
        child.join()
    assert keys == {hashlib.sha256(signing_credential().key_pem).hexdigest()}, keys


def test_the_environment_names_key_and_certificates(tmp_path: Path, monkeypatch) -> None:
    given = new_credential("test")
    use(given, tmp_path, monkeypatch)
    assert signing_credential().key_pem == given.key_pem
    _, out = dubbed(tmp_path, ".wav")
    attach(out, MADE)
    assert read_provenance(out).state == State.valid
    assert not signing_folder().exists()


def test_a_bad_key_is_named_with_its_remedy(tmp_path: Path, monkeypatch) -> None:
    from cryptography.hazmat.primitives import serialization

    good, other = new_credential("test"), new_credential("test")
    start = datetime.now(UTC) - timedelta(days=9)
    past = new_credential("test", start=start, validity=timedelta(days=5))
    private = serialization.load_pem_private_key(good.key_pem, None)
    locked = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    cases = [
        (None, good.chain_pem, f"{CERTIFICATE_VARIABLE} is set but {KEY_VARIABLE} is not"),
        (good.key_pem, None, f"{KEY_VARIABLE} is set but {CERTIFICATE_VARIABLE} is not"),
        (b"words", good.chain_pem, "holds no usable key .* give PEM"),
        (locked, good.chain_pem, "holds no usable key .* without a passphrase"),
        (good.key_pem, b"words", "holds no certificates"),
        (good.key_pem, other.chain_pem, "give a pair"),
        (past.key_pem, past.chain_pem, "give one that is valid today"),
    ]
    for key, chain, words in cases:
        for name, variable, content in (
            ("key.pem", KEY_VARIABLE, key),
            ("chain.pem", CERTIFICATE_VARIABLE, chain),
        ):
            monkeypatch.delenv(variable, raising=False)
            if content is not None:
                (tmp_path / name).write_bytes(content)
                monkeypatch.setenv(variable, str(tmp_path / name))
        with pytest.raises(UserError, match=words):
            signing_credential()
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "nowhere.pem"))
    with pytest.raises(UserError, match="nowhere.pem cannot be read"):
        signing_credential()


def test_a_certificate_for_another_purpose_is_refused(tmp_path: Path, monkeypatch) -> None:
    web_server_oid = "1.3.6.1.5.5.7.3.1"
    monkeypatch.setattr(certificate, "EMAIL_PROTECTION_OID", web_server_oid)
    monkeypatch.setattr(certificate, "CLAIM_SIGNING_OID", web_server_oid)
    use(new_credential("test"), tmp_path, monkeypatch)
    for suffix in (".mp4", ".wav", ".mkv"):
        _, out = dubbed(tmp_path, suffix)
        content = out.read_bytes()
        words = f"cannot sign .*{suffix} with {KEY_VARIABLE}=.*invalid.*--no-provenance"
        with pytest.raises(UserError, match=words):
            attach(out, MADE)
        assert out.read_bytes() == content and not sidecar_of(out).exists()
