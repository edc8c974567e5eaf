"""TLS within a link, from the moment at which the hand-shake has agreed on it: bytes in, bytes out. No I/O.

The hand-shake, which no one in between can alter, tells the dialling side which certificate it will be shown. So there
is no authority that could issue another one, no name to compare and no date to keep: each process makes a certificate
for itself. Whoever sits in between has another key and is found out before anything is said; and as OpenSSL is reached
only by who has proven that it knows the secret, strangers cannot try their hand at it.

An end without TLS's own farewell is none that matters here: a link ends in order only after a sealed goodbye.

Must not live here: where certificates come from, and whether to encrypt (`handshake`).
"""

from __future__ import annotations

import hmac
import ssl
from dataclasses import dataclass, field
from hashlib import sha256

from router.peers.endings import Ending
from router.peers.frames import WireError

_READ_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Encryption:
    """How a router encrypts its links: contexts for both sides, and the SHA-256 of the certificate that the accepting
    one shows. With `required` there is no link with a router that does not encrypt."""

    accepting: ssl.SSLContext = field(repr=False)
    dialling: ssl.SSLContext = field(repr=False)
    certificate: bytes
    required: bool = False


@dataclass(frozen=True, slots=True)
class LinkTls:
    """All about TLS of the links of one router: as the hand-shake agrees (`agreed`), or from their first byte with
    certificates of a common authority; at most one of both. With neither they can be read on the way."""

    agreed: Encryption | None = None
    accepting: ssl.SSLContext | None = field(default=None, repr=False)
    dialling: ssl.SSLContext | None = field(default=None, repr=False)


class TlsStream:
    """One side of TLS. `expected` is the SHA-256 of the certificate that the other side must show; None for the
    accepting side, which asks for none: it goes by the seal of the first frame."""

    __slots__ = ("_expected", "_incoming", "_object", "_outgoing", "is_open")

    def __init__(self, encryption: Encryption, expected: bytes | None) -> None:
        context = encryption.accepting if expected is None else encryption.dialling
        self._expected = expected
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=expected is None)
        self.is_open = False  # once something can be said

    @property
    def version(self) -> str | None:
        """Of TLS, as agreed."""
        return self._object.version()

    def receive(self, data: bytes = b"") -> bytes:
        """What has been said to this side. Raises `WireError` for what is no TLS, or TLS with somebody else."""
        self._incoming.write(data)
        said = []
        try:
            if not self.is_open:
                self._object.do_handshake()
                self._look_who_it_is()
                self.is_open = True
            while piece := self._object.read(_READ_BYTES):
                said.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(said)
        except ssl.SSLError as error:
            raise WireError(Ending.TLS, f"TLS failed: {error.reason}") from None
        raise WireError(Ending.TLS, "TLS was ended by the other side")

    def say(self, data: bytes) -> None:
        """Encrypt something; only once it is open."""
        self._object.write(data)

    def to_send(self) -> bytes:
        """What is to go out, after each of the above."""
        return self._outgoing.read()

    def _look_who_it_is(self) -> None:
        if self._expected is None:
            return
        shown = sha256(self._object.getpeercert(binary_form=True) or b"").digest()
        if not hmac.compare_digest(shown, self._expected):
            raise WireError(Ending.FORGED, "certificate is not the one that the peer has named")
