"""The user's key signs, or nothing does and the file says so; bad keys are refused at once."""

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import soundfile
import typer
from cryptography.hazmat.primitives import serialization

from spatial_v2a.conditioning.video import open_video
from spatial_v2a.errors import UserError
from spatial_v2a.inference.cli.marks import provenance as provenance_command
from spatial_v2a.inference.dub.jobs import plan_jobs
from spatial_v2a.inference.dub.mux import open_sink
from spatial_v2a.inference.marking.manifest import (
    CERTIFICATE_VARIABLE,
    KEY_VARIABLE,
    Provenance,
    signing_credential,
)
from spatial_v2a.inference.marking.provenance import (
    UNSIGNED,
    attach,
    needs_sidecar,
    unsigned_comment,
    with_comment,
)
from spatial_v2a.inference.marking.reading import State, read_provenance
from tests.marked_files import (
    MADE,
    WEB_SERVER,
    dubbed,
    everything_in,
    name_pair,
    new_pair,
    noise,
    private_pem,
)


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".webm", ".wav", ".flac"])
def test_without_a_key_the_file_says_that_it_is_not_signed(tmp_path, suffix: str, capsys) -> None:
    clip, out = dubbed(tmp_path, suffix)
    before = soundfile.read(out)[0] if suffix in (".wav", ".flac") else None
    assert attach(out, MADE, ingredient=clip) == [] and not needs_sidecar(out)
    assert everything_in(tmp_path) == sorted([clip.name, out.name])
    if before is not None:
        after, rate_hz = soundfile.read(out)
        assert rate_hz == 48_000 and len(before) == 48_000 and (before == after).all()
    report = read_provenance(out)
    assert (report.state, report.manifest, report.issuer) == (State.unsigned, out, None)
    assert report.provenance == MADE
    is_video = before is None
    kind = "compositeWithTrainedAlgorithmicMedia" if is_video else "trainedAlgorithmicMedia"
    assert report.source_type == kind
    age = datetime.now(UTC) - datetime.fromisoformat(report.signed_at)
    assert timedelta(seconds=-1) < age < timedelta(minutes=1), age
    with pytest.raises(typer.Exit) as stop:
        provenance_command([out], as_json=False)
    said = capsys.readouterr().out
    assert stop.value.exit_code == 1 and "NOT SIGNED" in said and "signed by" not in said, said
    with pytest.raises(typer.Exit):
        provenance_command([out], as_json=True)
    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert (row["state"], row["provenance"]["seed"]) == ("unsigned", MADE.seed)


def test_a_long_wav_says_it_too(tmp_path: Path) -> None:
    out = tmp_path / "long.wav"
    soundfile.write(out, noise(4800), 48_000, subtype="PCM_24", format="RF64")
    attach(out, MADE)
    assert out.read_bytes()[:4] == b"RF64" and soundfile.info(out).frames == 4800
    assert read_provenance(out).provenance == MADE


def test_a_dub_of_a_dub_has_one_statement_and_the_authors_own_comment(tmp_path: Path) -> None:
    """The statement of an earlier dub would lie, also when no new one is wanted or one signs."""
    earlier, later = (UNSIGNED + json.dumps({"n": n}) for n in (1, 2))
    tags = {"title": "T", "COMMENT": f"by the lake\n{earlier}"}
    assert with_comment(tags, later) == {"title": "T", "COMMENT": f"by the lake\n{later}"}
    assert with_comment(tags, None) == {"title": "T", "COMMENT": "by the lake"}
    assert with_comment({"comment": earlier}, None) == {}
    _, first = dubbed(tmp_path, ".mp4")
    again = tmp_path / "again.mkv"
    other = Provenance("other", "00" * 32, 1, "dub")
    with open_sink(
        again, open_video(first), comment=unsigned_comment(other, has_picture=True)
    ) as sink:
        sink.write(noise(48_000))
    assert read_provenance(again).provenance == other
    with open_sink(tmp_path / "bare.mp4", open_video(first)) as sink:
        sink.write(noise(48_000))
    assert read_provenance(tmp_path / "bare.mp4") is None


@pytest.mark.parametrize("text", ["{", "[1]", "3", json.dumps({"org.spatial-v2a.dub": [1]})])
def test_a_damaged_statement_is_none_of_ours(tmp_path: Path, text: str) -> None:
    out = tmp_path / "a.wav"
    with soundfile.SoundFile(out, "w", 48_000, 1, "PCM_16") as file:
        file.comment = UNSIGNED + text
        file.write(noise(100)[:, 0])
    report = read_provenance(out)
    assert report is None or (report.state, report.provenance) == (State.unsigned, None)


def test_a_file_of_the_time_of_self_made_certificates_still_reads() -> None:
    """Until December 2026 every dub was signed with a key that the program made for itself."""
    report = read_provenance(Path(__file__).parent / "signed_by_itself.wav")
    assert (report.state, report.reasons) == (State.valid, ())
    assert report.issuer == "spatial-v2a (self-made certificate)"
    assert (report.provenance.seed, report.provenance.model) == (7, "stage")


def test_an_expired_certificate_is_told_apart_from_tampering(tmp_path: Path, monkeypatch) -> None:
    _, out = dubbed(tmp_path, ".wav")
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    days = (end - datetime.now(UTC)) / timedelta(days=1)
    name_pair(tmp_path, monkeypatch, *new_pair(start_days=-1, days=1 + days))
    attach(out, MADE)
    time.sleep(max(0.0, (end - datetime.now(UTC)).total_seconds() + 1))
    report = read_provenance(out)
    assert report.reasons == ("signingCredential.expired",)
    assert (report.state, report.provenance) == (State.uncertified, MADE)


def test_a_bad_key_is_named_with_its_remedy_before_the_work(tmp_path: Path, monkeypatch) -> None:
    clip, out = dubbed(tmp_path, ".mp4")
    key, chain = new_pair()
    locked = private_pem(serialization.load_pem_private_key(key, None), b"word")
    cases = [
        (None, chain, f"{CERTIFICATE_VARIABLE} is set but {KEY_VARIABLE} is not"),
        (key, None, f"{KEY_VARIABLE} is set but {CERTIFICATE_VARIABLE} is not"),
        (b"words", chain, "holds no usable key .* give PEM"),
        (locked, chain, "holds no usable key .* without a passphrase"),
        (key, b"words", "cannot sign .*certificate.* in PEM"),
        (key, new_pair()[1], "cannot sign .*not its pair.* the key's own"),
        (*new_pair(start_days=-9, days=5), "cannot sign .*not valid at time.* valid today"),
        (*new_pair(start_days=2), "cannot sign .*not valid at time.* valid today"),
        (*new_pair(purpose=WEB_SERVER), "cannot sign .*is invalid.* for signing"),
    ]
    for number, (named_key, named_chain, words) in enumerate(cases):
        name_pair(tmp_path, monkeypatch, named_key, named_chain)
        with pytest.raises(UserError, match=words) as refused:
            plan_jobs([clip], out=tmp_path / f"{number}.mp4")
        assert "\n" not in str(refused.value)
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "nowhere.pem"))
    with pytest.raises(UserError, match="nowhere.pem cannot be read"):
        attach(out, MADE)
    assert not list(tmp_path.glob("[0-9].mp4"))


def test_a_key_as_openssl_writes_it_signs(tmp_path: Path, monkeypatch) -> None:
    key, chain = new_pair()
    openssl = serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    assert b"BEGIN EC PRIVATE KEY" in openssl
    name_pair(tmp_path, monkeypatch, openssl, chain)
    credential = signing_credential()
    assert credential.algorithm == "es256" and "PRIVATE" not in repr(credential)
    _, out = dubbed(tmp_path, ".wav")
    attach(out, MADE)
    assert read_provenance(out).state == State.valid
