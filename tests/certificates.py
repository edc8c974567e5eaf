"""Certificates for tests: issued and self-signed pairs, and a directory that is updated like a mounted Secret."""

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

from router.net.tls import CertificatePair

DAY = datetime.timedelta(days=1)


def issue(
    authority: trustme.CA, *names: str, not_before: float | None = None, not_after: float | None = None
) -> CertificatePair:
    """Issue a pair for these names, or for 127.0.0.1 without names. Times are seconds since the epoch."""
    issued = authority.issue_cert(
        *(names or ("127.0.0.1",)),
        not_before=_datetime(not_before) if not_before is not None else None,
        not_after=_datetime(not_after) if not_after is not None else None,
    )
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    return CertificatePair(chain, issued.private_key_pem.bytes())


def _datetime(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def with_passphrase(key: bytes) -> bytes:
    """Return a private key encrypted with a passphrase."""
    loaded = load_pem_private_key(key, None)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def self_signed(bits: int, *, purpose: x509.ObjectIdentifier | None = None) -> CertificatePair:
    """Return a self-signed pair with an RSA key."""
    key = rsa.generate_private_key(65537, bits)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "weak")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - DAY, now + DAY)
    if purpose is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    certificate = builder.sign(key, SHA256())
    return CertificatePair(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
    )


class SecretMount:
    """A Secret as Kubernetes mounts it: the files are links through `..data`, which is replaced atomically."""

    def __init__(self, directory: Path, pair: CertificatePair) -> None:
        self.directory = directory
        self.certificate = str(directory / "cert.pem")
        self.key = str(directory / "key.pem")
        self._updates = 0
        directory.mkdir()
        self.update(pair)
        for name in ("cert.pem", "key.pem"):
            (directory / name).symlink_to(Path("..data") / name)

    def update(self, pair: CertificatePair) -> None:
        """Replace the pair."""
        self._updates += 1
        new = self.directory / f"..{self._updates}"
        new.mkdir()
        (new / "cert.pem").write_bytes(pair.chain)
        (new / "key.pem").write_bytes(pair.key)
        link = self.directory / "..data_new"
        link.symlink_to(new.name)
        os.replace(link, self.directory / "..data")
