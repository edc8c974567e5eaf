"""Certificates for tests: authorities, chains, and a folder that is turned as a mounted Secret is."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from router.tls import Material

DAY = datetime.timedelta(days=1)


def moment(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def issue(authority: trustme.CA, *names: str, begins: float | None = None, ends: float | None = None) -> Material:
    """A certificate with its key; for 127.0.0.1 if no name is given. Times are seconds since the epoch."""
    made = authority.issue_cert(
        *(names or ("127.0.0.1",)),
        not_before=moment(begins) if begins is not None else None,
        not_after=moment(ends) if ends is not None else None,
    )
    chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
    return Material(chain, made.private_key_pem.bytes())


def with_passphrase(key: bytes) -> bytes:
    """The same key, encrypted."""
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def self_signed(bits: int, *, purpose: x509.ObjectIdentifier | None = None) -> Material:
    """A certificate that nobody else vouches for, with an RSA key."""
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - DAY, now + DAY)
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    made = builder.sign(key, SHA256())
    return Material(
        made.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    )


class Mount:
    """A Secret as Kubernetes mounts it: files are links through `..data`, which is turned for all of them at once."""

    def __init__(self, folder: Path, material: Material) -> None:
        self.folder = folder
        self.certificate = str(folder / "cert.pem")
        self.key = str(folder / "key.pem")
        self._turns = 0
        folder.mkdir()
        self.turn(material)
        for name in ("cert.pem", "key.pem"):
            (folder / name).symlink_to(Path("..data") / name)

    def turn(self, material: Material) -> None:
        """Replace the pair."""
        self._turns += 1
        fresh = self.folder / f"..{self._turns}"
        fresh.mkdir()
        (fresh / "cert.pem").write_bytes(material.chain)
        (fresh / "key.pem").write_bytes(material.key)
        link = self.folder / "..data_new"
        link.symlink_to(fresh.name)
        os.replace(link, self.folder / "..data")
