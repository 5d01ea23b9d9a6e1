"""The server's TLS certificate: made for a trial, or brought along and checked.

A trial's certificate is signed by a CA of its own, whose key signs this one certificate and is never written: nobody
can sign a second. For years of use, bring a certificate of your institution's CA.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.core.errors import SiteError
from medfed.sites.keys import colons
from medfed.sites.settings import PRIVATE, write_file

CA, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"


@dataclass(frozen=True)
class Certificates:
    """Files of a server's certificate, all PEM.

    Attributes:
        ca: what hospitals trust.
        certificate: the server's, followed by those between it and the CA.
        key: its private key.
    """

    ca: Path
    certificate: Path
    key: Path


def certificates_in(folder: Path) -> Certificates:
    """Return the certificate files in a federation's ``certificates/``."""
    return Certificates(folder / CA, folder / CERTIFICATE, folder / KEY)


def write_trial(folder: Path, host: str, names: Sequence[str] = (), days: int = 365) -> Certificates:
    """Write a trial CA and a server certificate for ``host``, ``names`` (DNS names or addresses) and the loopback."""
    now = datetime.now(UTC)
    until = now + timedelta(days=days)
    ca_key, key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca_name = _name("medfed trial CA", host)
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), now, until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    wanted = list(dict.fromkeys([host, *names, "localhost", "127.0.0.1", "::1"]))
    certificate = (
        _builder(_name("medfed server", host), ca_name, key.public_key(), now, until)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in wanted]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _write(folder, ca.public_bytes(Encoding.PEM), certificate.public_bytes(Encoding.PEM), private)


def copy_own(folder: Path, files: Certificates) -> Certificates:
    """Copy an institution's certificate into ``folder``; :func:`check_certificate` comes first."""
    return _write(folder, files.ca.read_bytes(), files.certificate.read_bytes(), files.key.read_bytes())


def check_certificate(files: Certificates, host: str) -> None:
    """Check that a server that is reached as ``host`` can use the certificate.

    Raises:
        SiteError: a file is no certificate or key; the key is another's; it is not valid now; it is not for ``host``;
            the CA did not sign it.
    """
    chain, authority = load_certificates(files.certificate), load_authority(files.ca)
    own = chain[0]
    if _public(_private_key(files.key)) != _public(own):
        raise SiteError("this key does not belong to the certificate", where=files.key, hint=f"see {files.certificate}")
    for certificate in chain:
        check_valid_now(certificate, files.certificate)
    check_valid_now(authority, files.ca)
    if not covers(own, host):
        raise SiteError(
            f"the certificate is for {', '.join(names_of(own)) or 'no name'}, not for {host!r}",
            where=files.certificate,
            hint="pass one of these as --host, or have it issued for this name (subject alternative name)",
        )
    for below, above in zip(chain, [*chain[1:], authority], strict=True):
        # A file may end with the CA itself.
        if below != authority and not _signed_by(below, above):
            raise SiteError(
                f"{below.subject.rfc4514_string()!r} is not signed by {above.subject.rfc4514_string()!r}",
                where=files.certificate,
                hint="put the intermediate certificates after the server's own, and pass the root as --own-ca",
            )


def load_certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file, in its order.

    Raises:
        SiteError: the file is absent or holds none.
    """
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise SiteError(f"cannot read the certificate: {error.strerror}", where=path, hint="check the path") from error
    except ValueError as error:
        raise SiteError("not a certificate in PEM form", where=path, hint="openssl x509 -in FILE -out PEM") from error


def load_authority(path: Path) -> x509.Certificate:
    """Read a CA certificate: exactly one, for a second one in the file would be trusted without its fingerprint.

    Raises:
        SiteError: the file is absent or holds none, or several.
    """
    found = load_certificates(path)
    if len(found) != 1:
        raise SiteError(
            f"{len(found)} certificates in one file",
            where=path,
            hint="keep the root alone; the others go to the server's",
        )
    return found[0]


def check_valid_now(certificate: x509.Certificate, path: Path) -> None:
    """Refuse a certificate that is not valid yet or not any more.

    Raises:
        SiteError: it is not valid now.
    """
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise SiteError(
            f"the certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC",
            where=path,
            hint="have a new one issued, or make the federation's folder anew and invite again",
        )
    if now < certificate.not_valid_before_utc:
        raise SiteError(
            f"the certificate is not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            where=path,
            hint="set this machine's clock",
        )


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, as ``openssl x509 -fingerprint -sha256`` prints it."""
    return colons(certificate.public_bytes(Encoding.DER))


def names_of(certificate: x509.Certificate) -> list[str]:
    """Return the DNS names and addresses a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate is for ``host``; ``*.example.org`` stands for one label."""
    host = host.lower().rstrip(".")
    for name in (name.lower() for name in names_of(certificate)):
        if name == host or (name.startswith("*.") and _address(host) is None and host.partition(".")[2] == name[2:]):
            return True
    return False


def _write(folder: Path, ca: bytes, certificate: bytes, key: bytes) -> Certificates:
    folder.mkdir(parents=True, exist_ok=True)
    files = certificates_in(folder)
    write_file(files.ca, ca)
    write_file(files.certificate, certificate)
    write_file(files.key, key, PRIVATE)
    return files


def _name(title: str, host: str) -> x509.Name:
    # A common name has at most 64 characters; hosts are judged by the alternative names alone.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{title} {host}"[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Hospitals' clocks may be a little behind.
        .not_valid_before(start - timedelta(minutes=5))
        .not_valid_after(until)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    address = _address(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _private_key(path: Path) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise SiteError(f"cannot read the key: {error.strerror}", where=path, hint="check the path") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SiteError(
            "not a private key in PEM form without a passphrase", where=path, hint="openssl pkey -in FILE -out PEM"
        ) from error


def _public(holder: PrivateKeyTypes | x509.Certificate) -> bytes:
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _signed_by(certificate: x509.Certificate, signer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(signer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
