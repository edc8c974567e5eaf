"""How the links between router pods are encrypted: with a mounted certificate, or with one that a router makes itself.

Lives here: which of both, and the making. Must not live here: how mounted files are read and judged (`certificates`),
how the other side learns which certificate to expect (`peers/handshake.py`).

An own certificate is this process's alone, and so is its key: neither leaves its memory. Nobody goes by its name or its
dates, so it has the date that RFC 5280 gives to those that do not end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from router.certificates import PeerCertificates, peer_files
from router.peers.encryption import Encryption, LinkTls
from router.settings import RouterSettings
from router.tls import Material, own_contexts
from router.values import SettingsError

_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "azureml-fe")])
_BEGINS = datetime(2000, 1, 1, tzinfo=UTC)  # a clock that is wrong does not matter, either
_ENDS = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PeerTls:
    """What links need, and the mounted certificate to keep an eye on where there is one."""

    links: LinkTls
    mounted: PeerCertificates | None = None


def peer_tls(settings: RouterSettings, now: float) -> PeerTls:
    """As the settings say; `now` in seconds since the epoch. Raises `SettingsError`."""
    files = peer_files(settings)
    if files is not None:
        if settings.peer_tls == "off":
            name, path = files.certificate
            raise SettingsError("peer_tls", "off", f"must be preferred or required where there is {name} = {path}")
        mounted = PeerCertificates(files, now)
        return PeerTls(LinkTls(accepting=mounted.accepting, dialling=mounted.dialling), mounted)
    if settings.peer_tls == "off":
        return PeerTls(LinkTls())
    return PeerTls(LinkTls(agreed=own_encryption(required=settings.peer_tls == "required")))


def own_encryption(*, required: bool) -> Encryption:
    """With a new certificate, for one process."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_BEGINS)
        .not_valid_after(_ENDS)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    accepting, dialling = own_contexts(Material(certificate.public_bytes(Encoding.PEM), private))
    digest = sha256(certificate.public_bytes(Encoding.DER)).digest()
    return Encryption(accepting, dialling, digest, required)
