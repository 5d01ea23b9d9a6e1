"""A site's key: made for its owner alone, in the network engine's format; nothing else is taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from medfed.core.errors import SiteError
from medfed.sites.credentials import key_fingerprint, load_node_key, load_public_key, public_bytes, write_node_key


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    private, public = tmp_path / "node.key", tmp_path / "node.pub"
    write_node_key(private, public, "site-0")
    return private, public


def test_a_pair_belongs_together_and_is_its_owners_alone(pair: tuple[Path, Path]) -> None:
    private, public = pair
    assert private.stat().st_mode & 0o777 == 0o600
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")
    assert public.read_text().endswith(" site-0\n")
    assert key_fingerprint(load_node_key(private).public_key()) == key_fingerprint(load_public_key(public))


def test_the_network_engine_signs_with_it_and_knows_the_signature(pair: tuple[Path, Path]) -> None:
    asymmetric = pytest.importorskip("flwr.supercore.primitives.asymmetric")
    signature = asymmetric.sign_message(load_node_key(pair[0]), b"message")
    registered = asymmetric.bytes_to_public_key(public_bytes(load_public_key(pair[1])))
    assert asymmetric.verify_signature(registered, b"message", signature)
    assert not asymmetric.verify_signature(registered, b"another", signature)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_private_key_that_others_may_touch_is_refused(pair: tuple[Path, Path], mode: int) -> None:
    pair[0].chmod(mode)
    with pytest.raises(SiteError, match=r"others may read or change.*\n.*chmod 600"):
        load_node_key(pair[0])


def test_a_key_in_another_form_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    own = ec.generate_private_key(ec.SECP384R1())
    path.touch(0o600)
    for data, message in (
        (own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "not an OpenSSH private key"),
        (b"nonsense", "not an OpenSSH private key"),
        (
            ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()),
            "NIST",
        ),
    ):
        path.write_bytes(data)
        with pytest.raises(SiteError, match=message):
            load_node_key(path)
    path.unlink()
    with pytest.raises(SiteError, match="missing"):
        load_node_key(path)


def test_only_a_public_elliptic_curve_key_is_registered(pair: tuple[Path, Path], tmp_path: Path) -> None:
    path = tmp_path / "given.pub"
    other = rsa.generate_private_key(65537, 1024).public_key()  # noqa: S505  (only its kind matters)
    for data, message in (
        (pair[0].read_bytes(), "PRIVATE key; it must not leave"),
        (b"nonsense", "not a public key"),
        (other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "NIST"),
    ):
        path.write_bytes(data)
        with pytest.raises(SiteError, match=message):
            load_public_key(path)
    with pytest.raises(SiteError, match="no such key file"):
        load_public_key(tmp_path / "absent.pub")
    path.write_bytes(public_bytes(load_public_key(pair[1])))
    assert key_fingerprint(load_public_key(path)) == key_fingerprint(load_public_key(pair[1]))
