"""TLS within a link, from the moment at which the handshake has negotiated it: bytes in, bytes out. No I/O.

The handshake announces the digest of the certificate to the dialing side, and cannot be altered in transit. This
pinning replaces a certificate authority, host names and expiry dates: each process makes a certificate for itself. A
man in the middle has a different key and is detected before any data is sent. Only data of peers that have proven that
they hold the secret is passed to OpenSSL, so attackers without the secret cannot exploit it.

A close_notify of TLS is an error: a link is closed in order only by a signed goodbye.

`tls` decides which certificates are used, and `handshake` whether a link is encrypted.
"""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass, field
from hashlib import sha256

from router.peers.close_reason import CloseReason
from router.peers.frames import WireError

_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class PinnedTls:
    """TLS that the handshake negotiates: one context per role, and the SHA-256 digest of the certificate that the
    accepting side presents. With `required`, peers without TLS are refused."""

    server_context: ssl.SSLContext = field(repr=False)
    client_context: ssl.SSLContext = field(repr=False)
    certificate_digest: bytes
    required: bool = False


@dataclass(frozen=True, slots=True)
class LinkTls:
    """TLS of all links of a router.

    Either `pinned` is set, which the handshake negotiates, or both contexts are set, which are used from the first byte
    with certificates of a common authority. Without any of them, links are not encrypted.
    """

    pinned: PinnedTls | None = None
    server_context: ssl.SSLContext | None = field(default=None, repr=False)
    client_context: ssl.SSLContext | None = field(default=None, repr=False)


class TlsStream:
    """One side of a TLS connection.

    `expected_digest` is the SHA-256 digest of the certificate that the other side must present. It is None on the
    accepting side, which requests no certificate: the signed first frame authenticates the dialing side.
    """

    __slots__ = ("_expected_digest", "_incoming", "_object", "_outgoing", "is_established")

    def __init__(self, tls: PinnedTls, expected_digest: bytes | None) -> None:
        context = tls.server_context if expected_digest is None else tls.client_context
        self._expected_digest = expected_digest
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=expected_digest is None)
        self.is_established = False  # True once data can be sent

    @property
    def version(self) -> str | None:
        """The negotiated TLS version."""
        return self._object.version()

    def receive(self, data: bytes = b"") -> bytes:
        """Return the decrypted data. Raises `WireError` if TLS fails or the certificate is not the expected one."""
        self._incoming.write(data)
        decrypted = []
        try:
            if not self.is_established:
                self._object.do_handshake()
                self._verify_certificate()
                self.is_established = True
            while piece := self._object.read(_READ_BYTES):
                decrypted.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(decrypted)
        except ssl.SSLError as error:
            raise WireError(CloseReason.TLS, f"TLS failed: {error.reason}") from None
        raise WireError(CloseReason.TLS, "TLS was closed by the other side")

    def encrypt(self, data: bytes) -> None:
        """Encrypt `data`. Must not be called before `is_established`."""
        self._object.write(data)

    def take_outgoing(self) -> bytes:
        """Return the bytes to send after a call of `receive` or `encrypt`."""
        return self._outgoing.read()

    def _verify_certificate(self) -> None:
        if self._expected_digest is None:
            return
        digest = sha256(self._object.getpeercert(binary_form=True) or b"").digest()
        if not hmac.compare_digest(digest, self._expected_digest):
            raise WireError(CloseReason.FORGED, "certificate is not the announced one")
