"""TLS of the links between router pods: with a mounted certificate, or with a self-signed one that each process makes.

Mounted files are read and validated in `router.net.certificates`. The handshake announces which certificate the other
side must expect (`router.peers.handshake`).

A self-signed certificate and its key never leave the memory of their process. The other side verifies its digest, not
its name or its dates, so it has the date that RFC 5280, section 4.1.2.5, defines for certificates without expiry.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from router.config.router import RouterSettings
from router.config.schema import SettingsError
from router.net.certificate_files import peer_certificate_files
from router.net.certificate_reloader import PeerCertificateReloader
from router.net.tls import CertificatePair, self_signed_contexts
from router.peers.tls_stream import LinkTls, PinnedTls

_NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "azureml-fe")])
_NOT_BEFORE = datetime(2000, 1, 1, tzinfo=UTC)  # valid even if the clock of a machine is wrong
_NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PeerTls:
    """TLS of the links, and the reloader of the mounted certificate if there is one."""

    links: LinkTls
    mounted: PeerCertificateReloader | None = None


def peer_tls(settings: RouterSettings, now: float, *, may_wait: bool = False) -> PeerTls:
    """Return the TLS of the links, as configured. `now` is in seconds since the epoch.

    Raises `SettingsError`. If `may_wait`, a mounted certificate that cannot be used is no error: links fail until it is
    replaced.
    """
    files = peer_certificate_files(settings)
    if files is not None:
        if settings.peer_tls == "off":
            name, path = files.certificate
            raise SettingsError("peer_tls", "off", f"must be preferred or required with {name} = {path}")
        mounted = PeerCertificateReloader(files, now, may_wait=may_wait)
        return PeerTls(LinkTls(server_context=mounted.server_context, client_context=mounted.client_context), mounted)
    if settings.peer_tls == "off":
        return PeerTls(LinkTls())
    return PeerTls(LinkTls(pinned=self_signed_tls(required=settings.peer_tls == "required")))


def self_signed_tls(*, required: bool) -> PinnedTls:
    """Return TLS with a new certificate for this process."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_NAME)
        .issuer_name(_NAME)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .sign(key, SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    server_context, client_context = self_signed_contexts(
        CertificatePair(certificate.public_bytes(Encoding.PEM), private)
    )
    digest = sha256(certificate.public_bytes(Encoding.DER)).digest()
    return PinnedTls(server_context, client_context, digest, required)
