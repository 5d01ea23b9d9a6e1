"""A site's node key: an elliptic-curve key (NIST P-384) that signs every request the site sends.

The private key never leaves the site; the server is given the public one and knows the site by it. Files are
OpenSSH's, the format that Flower's own commands read. People compare fingerprints by telephone.
"""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from medfed.core.errors import SiteError
from medfed.sites.settings import PRIVATE, write_file

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def write_node_key(private: Path, public: Path, comment: str) -> None:
    """Make a key pair: ``private`` with rights 0600, ``public`` as one line that ends in ``comment``."""
    key = ec.generate_private_key(ec.SECP384R1())
    write_file(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), PRIVATE)
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    write_file(public, line + f" {comment}\n".encode())


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private node key.

    Raises:
        SiteError: it is absent, others than its owner may read it, or it is not an elliptic-curve key in OpenSSH form.
    """
    if not path.is_file():
        raise SiteError("the private key is missing", where=path, hint="make the site's folder anew: medfed site init")
    if others_may(path, stat.S_IRWXG | stat.S_IRWXO):
        raise SiteError("others may read or change this private key", where=path, hint=f"chmod 600 {path}")
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SiteError(
            "not an OpenSSH private key without a passphrase",
            where=path,
            hint=f'ssh-keygen -t ecdsa -b 384 -N "" -f {path}, and register the new public key',
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVES):
        raise SiteError("not a key on a NIST curve", where=path, hint="make one: ssh-keygen -t ecdsa -b 384")
    return key


def load_public_key(path: Path) -> ec.EllipticCurvePublicKey:
    """Read a public node key, as OpenSSH's line or as PEM.

    Raises:
        SiteError: it is absent, a private key, or not an elliptic-curve key.
    """
    if not path.is_file():
        raise SiteError("no such key file", where=path, hint="pass the node.pub that `medfed site init` wrote")
    data = path.read_bytes()
    if b"PRIVATE KEY" in data:
        raise SiteError(
            "this is a PRIVATE key; it must not leave the site",
            where=path,
            hint="delete this copy, make a new key at the site, and ask for its node.pub",
        )
    try:
        key = load_pem_public_key(data) if data.lstrip().startswith(b"-----BEGIN") else load_ssh_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SiteError("not a public key", where=path, hint="pass the site's node.pub, unchanged") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES):
        raise SiteError("not a key on a NIST curve", where=path, hint="make one: ssh-keygen -t ecdsa -b 384")
    return key


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return ``key`` as the network engine keeps it: PEM of the subject's public key info."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def key_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key (its DER form) as :func:`colons` writes it."""
    return colons(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def colons(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 32 pairs of hex digits, ``AB:CD:…``, which can be read out by telephone."""
    return hashlib.sha256(data).digest().hex(":").upper()


def others_may(path: Path, rights: int) -> bool:
    """Whether the file gives any of ``rights`` (bits of ``stat``)."""
    return bool(path.stat().st_mode & rights)
