"""A server's certificate: a trial's is good for its names and no others; one's own is checked before it is used."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from medfed.core.errors import SiteError
from medfed.sites.credentials import (
    Certificates,
    check_certificate,
    copy_given,
    covers,
    load_authority,
    load_certificates,
    write_trial,
)
from support.site_toys import HOST, shift_clock

Signed = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


@pytest.mark.parametrize("host", [HOST, "other.example.org", "localhost", "127.0.0.1", "10.1.2.3"])
def test_a_trial_certificate_is_good_for_its_names_and_the_loopback(tmp_path: Path, host: str) -> None:
    files = write_trial(tmp_path, HOST, ["other.example.org", "10.1.2.3"])
    check_certificate(files, host)
    assert files.key.stat().st_mode & 0o777 == 0o600
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key)


def test_a_trial_leaves_no_key_that_could_sign_a_second_certificate(tmp_path: Path) -> None:
    files = write_trial(tmp_path, HOST)
    assert {path.name for path in tmp_path.iterdir()} == {"ca.pem", "server.pem", "server.key"}
    key = ssl_public(files.key)
    assert key != load_authority(files.ca).public_key().public_numbers()


def ssl_public(path: Path) -> object:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key.public_key().public_numbers()


def test_another_host_is_refused_and_told_the_names(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match=f"is for {HOST}, localhost.*not for 'evil.example.org'"):
        check_certificate(write_trial(tmp_path, HOST), "evil.example.org")


@pytest.mark.parametrize(("days", "message"), [(366, "expired on"), (-1, "not valid before")])
def test_a_certificate_out_of_its_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, message: str
) -> None:
    files = write_trial(tmp_path, HOST)
    shift_clock(monkeypatch, days)
    with pytest.raises(SiteError, match=message):
        check_certificate(files, HOST)


def test_the_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    files, other = write_trial(tmp_path / "a", HOST), write_trial(tmp_path / "b", HOST)
    with pytest.raises(SiteError, match="does not belong to the certificate"):
        check_certificate(Certificates(files.ca, files.certificate, other.key), HOST)


def test_the_ca_of_another_certificate_is_refused(tmp_path: Path) -> None:
    files, other = write_trial(tmp_path / "a", HOST), write_trial(tmp_path / "b", HOST)
    with pytest.raises(SiteError, match="is not signed by"):
        check_certificate(Certificates(other.ca, files.certificate, files.key), HOST)


def test_a_second_ca_in_the_file_is_refused(tmp_path: Path) -> None:
    """Only the first one's fingerprint would be compared, and both would be trusted."""
    files, other = write_trial(tmp_path / "a", HOST), write_trial(tmp_path / "b", HOST)
    files.ca.write_bytes(files.ca.read_bytes() + other.ca.read_bytes())
    with pytest.raises(SiteError, match="2 certificates in one file"):
        check_certificate(files, HOST)


@pytest.mark.parametrize("which", ["ca", "certificate", "key"])
@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), (b"nonsense", "not a (certificate|private key)")]
)
def test_absent_and_broken_files_are_named(tmp_path: Path, which: str, content: bytes | None, message: str) -> None:
    files = write_trial(tmp_path, HOST)
    path: Path = getattr(files, which)
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(SiteError, match=message) as told:
        check_certificate(files, HOST)
    assert told.value.where == path


def test_intermediate_certificates_stand_after_the_servers(tmp_path: Path) -> None:
    root = signed("root", None)
    middle = signed("middle", root)
    own = signed("own", middle, host=HOST)
    files = Certificates(tmp_path / "root.pem", tmp_path / "own.pem", tmp_path / "own.key")
    files.ca.write_bytes(pem(root))
    files.key.write_bytes(own[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.certificate.write_bytes(pem(own))
    with pytest.raises(SiteError, match="'CN=own' is not signed by 'CN=root'"):
        check_certificate(files, HOST)
    files.certificate.write_bytes(pem(own) + pem(middle))
    copied = copy_given(tmp_path / "copy", files)
    check_certificate(copied, HOST)
    assert len(load_certificates(copied.certificate)) == 2
    assert copied.key.stat().st_mode & 0o777 == 0o600


def test_an_expired_intermediate_certificate_is_refused(tmp_path: Path) -> None:
    root = signed("root", None)
    middle = signed("middle", root, days=-1)
    own = signed("own", middle, host=HOST)
    files = Certificates(tmp_path / "root.pem", tmp_path / "own.pem", tmp_path / "own.key")
    files.ca.write_bytes(pem(root))
    files.key.write_bytes(own[1].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files.certificate.write_bytes(pem(own) + pem(middle))
    with pytest.raises(SiteError, match="expired"):
        check_certificate(files, HOST)


@pytest.mark.parametrize(
    ("name", "host", "good"),
    [
        ("*.example.org", "fed.example.org", True),
        ("*.example.org", "FED.example.org.", True),
        ("*.example.org", "a.fed.example.org", False),
        ("*.example.org", "example.org", False),
        ("fed.example.org", "xfed.example.org", False),
    ],
)
def test_a_star_stands_for_one_label(name: str, host: str, good: bool) -> None:
    assert covers(signed("own", None, host=name)[0], host) is good


def signed(name: str, by: Signed | None, host: str | None = None, days: int = 30) -> Signed:
    """Return a certificate and its key, signed by another or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    until = datetime.now(UTC) + timedelta(days=days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by[0].subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - timedelta(days=60))
        .not_valid_after(until)
    )
    if host is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
    return builder.sign(by[1] if by else key, hashes.SHA256()), key


def pem(certificate: Signed) -> bytes:
    return certificate[0].public_bytes(Encoding.PEM)
