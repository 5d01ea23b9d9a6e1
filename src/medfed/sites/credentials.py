"""Keys and certificates: a site's node key, and the server's TLS certificate with the CA that hospitals trust.

A node key is an elliptic-curve key (NIST P-384) that signs every request the site sends. It never leaves the site. The
key of a trial's CA signs one certificate and is never written: nobody can sign a second. For years of use, bring a
certificate of your institution's CA. People compare fingerprints by telephone.
"""

from __future__ import annotations

import hashlib
import inspect
import ipaddress
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from medfed.core.errors import SiteError
from medfed.core.files import PRIVATE, PUBLIC, write_whole

CA, CERTIFICATE, KEY = "ca.pem", "server.pem", "server.key"
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
Parsed = TypeVar("Parsed")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def write_node_key(private: Path, public: Path, comment: str) -> None:
    """Make a key pair: ``private`` with rights 0600, ``public`` as one line of OpenSSH that ends in ``comment``."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_whole(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), PRIVATE)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_whole(public, line + f" {comment}\n".encode(), PUBLIC)


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private node key. Raises SiteError if it is absent, others than its owner may read it, or it is not an
    elliptic-curve key in OpenSSH form."""
    if not path.is_file():
        raise SiteError("the private key is missing", where=path, hint="make the site's folder anew: medfed site init")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SiteError("others may read or change this private key", where=path, hint=f"chmod 600 {path}")
    hint = f'ssh-keygen -t ecdsa -b 384 -N "" -f {path}, and register the new public key'
    form = "an OpenSSH private key without a passphrase"
    key = _read(path, lambda data: serialization.load_ssh_private_key(data, None), form, hint)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVES):
        raise SiteError("not a key on a NIST curve", where=path, hint="make one: ssh-keygen -t ecdsa -b 384")
    return key


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public node key, as OpenSSH's line or as PEM. Raises SiteError if it is absent, a private key, or not an
    elliptic-curve key."""

    def parse(data: bytes) -> PublicKeyTypes:
        pem = data.lstrip().startswith(b"-----BEGIN")
        return (serialization.load_pem_public_key if pem else serialization.load_ssh_public_key)(data)

    if not path.is_file():
        raise SiteError("no such key file", where=path, hint="pass the node.pub that `medfed site init` wrote")
    if b"PRIVATE KEY" in path.read_bytes():
        hint = "delete this copy, make a new key at the site, and ask for its node.pub"
        raise SiteError("this is a PRIVATE key; it must not leave the site", where=path, hint=hint)
    key = _read(path, parse, "a public key", "pass the site's node.pub, unchanged")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES):
        raise SiteError("not a key on a NIST curve", where=path, hint="make one: ssh-keygen -t ecdsa -b 384")
    return key


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return ``key`` as Flower keeps it: PEM of the subject's public key info."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key (its DER form) as :func:`colons` writes it."""
    return colons(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def certificate_fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, as ``openssl x509 -fingerprint -sha256`` prints it."""
    return colons(certificate.public_bytes(Encoding.DER))


def colons(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 32 pairs of hex digits, ``AB:CD:…``, which can be read out by telephone."""
    return hashlib.sha256(data).digest().hex(":").upper()


@dataclass(frozen=True)
class Certificates:
    """PEM files of a server: the CA that hospitals trust, the certificates from its own up to the CA, and its key."""

    ca: Path
    certificate: Path
    key: Path


def certificates_in(folder: Path) -> Certificates:
    """Return the certificate files in a federation's ``certificates/``."""
    return Certificates(folder / CA, folder / CERTIFICATE, folder / KEY)


def write_trial(folder: Path, host: str, names: Sequence[str] = (), days: int = 365) -> Certificates:
    """Write a trial CA and a server certificate for ``host``, ``names`` (DNS names or addresses) and the loopback."""
    ca_key, key = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca_name, until = _name("medfed trial CA", host), datetime.now(UTC) + timedelta(days=days)
    ca = (
        _builder(ca_name, ca_name, ca_key.public_key(), until)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
        .sign(ca_key, hashes.SHA384())
    )
    hosts = dict.fromkeys([host, *names, "localhost", "127.0.0.1", "::1"])
    alternatives = [x509.IPAddress(place) if (place := _address(name)) else x509.DNSName(name) for name in hosts]
    certificate = (
        _builder(_name("medfed server", host), ca_name, key.public_key(), until)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _write(folder, ca.public_bytes(Encoding.PEM), certificate.public_bytes(Encoding.PEM), private)


def copy_given(folder: Path, files: Certificates) -> Certificates:
    """Copy an institution's certificate into ``folder``; :func:`check_certificate` comes first."""
    return _write(folder, files.ca.read_bytes(), files.certificate.read_bytes(), files.key.read_bytes())


def check_certificate(files: Certificates, host: str) -> None:
    """Raise SiteError if a server that is reached as ``host`` cannot use the certificate. A file may be none, or the
    key another's. Or the certificate is not valid now, not for ``host``, or not under the CA."""
    chain, authority = load_certificates(files.certificate), load_authority(files.ca)
    form, hint = "a private key in PEM form without a passphrase", "openssl pkey -in FILE -out PEM"
    key = _read(files.key, lambda data: serialization.load_pem_private_key(data, None), form, hint)
    if key.public_key() != chain[0].public_key():
        raise SiteError("this key does not belong to the certificate", where=files.key, hint=f"see {files.certificate}")
    for certificate in chain:
        check_valid_now(certificate, files.certificate)
    check_valid_now(authority, files.ca)
    if not covers(chain[0], host):
        what = f"the certificate is for {', '.join(names_of(chain[0])) or 'no name'}, not for {host!r}"
        hint = "pass one of these as --host, or have it issued for this name (subject alternative name)"
        raise SiteError(what, where=files.certificate, hint=hint)
    for below, above in zip(chain, [*chain[1:], authority], strict=True):
        try:
            if below != authority:  # the file may end with the CA itself
                below.verify_directly_issued_by(above)
        except (ValueError, TypeError, InvalidSignature) as error:
            what = f"{below.subject.rfc4514_string()!r} is not signed by {above.subject.rfc4514_string()!r}"
            hint = "put the intermediate certificates after the server's own, and pass the root as --own-ca"
            raise SiteError(what, where=files.certificate, hint=hint) from error


def load_certificates(path: Path) -> list[x509.Certificate]:
    """Read the certificates of a PEM file, in its order. Raises SiteError if the file is absent or holds none."""
    return _read(path, x509.load_pem_x509_certificates, "a certificate in PEM form", "openssl x509 -in FILE -out PEM")


def load_authority(path: Path) -> x509.Certificate:
    """Read a CA certificate: exactly one, for a second one in the file would be trusted without its fingerprint. Raises
    SiteError if the file is absent or holds none, or several."""
    certificate, *others = load_certificates(path)
    if others:
        what = f"{1 + len(others)} certificates in one file"
        raise SiteError(what, where=path, hint="keep the root alone; the others go to the server's")
    return certificate


def check_valid_now(certificate: x509.Certificate, path: Path) -> None:
    """Raise SiteError for a certificate that is not valid yet or not any more."""
    now, start, end = datetime.now(UTC), certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        hint = "have a new one issued, or make the federation's folder anew and invite again"
        raise SiteError(f"the certificate expired on {end:%Y-%m-%d %H:%M} UTC", where=path, hint=hint)
    if now < start:
        what = f"the certificate is not valid before {start:%Y-%m-%d %H:%M} UTC"
        raise SiteError(what, where=path, hint="set this machine's clock")


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
    wildcard = f"*.{host.partition('.')[2]}" if _address(host) is None else host
    return bool({host, wildcard} & {name.lower() for name in names_of(certificate)})


def _read(path: Path, parse: Callable[[bytes], Parsed], form: str, hint: str) -> Parsed:
    """Return what ``parse`` makes of a file; ``hint`` is the next step where the file is not of this ``form``."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise SiteError(f"cannot read it: {error.strerror}", where=path, hint="check the path") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SiteError(f"not {form}", where=path, hint=hint) from error


def _write(folder: Path, ca: bytes, certificate: bytes, key: bytes) -> Certificates:
    files = certificates_in(folder)
    write_whole(files.ca, ca, PUBLIC)
    write_whole(files.certificate, certificate, PUBLIC)
    write_whole(files.key, key, PRIVATE)
    return files


def _name(title: str, host: str) -> x509.Name:
    # A common name has at most 64 characters; hosts are judged by the alternative names alone.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{title} {host}"[:64])])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=5))  # hospitals' clocks may be a little behind
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{use: use in allowed for use in inspect.signature(x509.KeyUsage).parameters})


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
