"""TLS contexts from certificates in memory, for connections of clients and for links between pods.

Contains: protocol versions, ciphers, and a context whose certificate can be replaced at run time. Does not contain:
files, and validation of certificates (`certificates`). Workers import this, so it uses the standard library only.

A private key reaches OpenSSL through an anonymous file in memory, as Python's `ssl` module accepts paths only. The key
is never written to disk, and is in no environment, argument or text representation.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# For TLS 1.2: forward secrecy and authenticated encryption only. TLS 1.3 has no other ciphers.
_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_ALPN = ["http/1.1"]
_ALPN_WITH_HTTP2 = ["h2", "http/1.1"]
# What one connection decrypts before others are served: tiny records cost much for each byte.
_INPUT_LIMIT_BYTES = 131_072
_RECORD_BYTES = 2_048  # a record costs as much as this number of its bytes


@dataclass(frozen=True, slots=True)
class CertificatePair:
    """A certificate with its private key, and the authorities that may issue the other side's certificate, in PEM.

    `chain` begins with the certificate itself. Without `authorities` the other side needs no certificate.
    """

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    authorities: bytes | None = field(default=None, repr=False)


def server_context(pair: CertificatePair, *, http2: bool = False) -> ssl.SSLContext:
    """Return the context for connections of clients, with HTTP/2 besides HTTP/1.1 if `http2`.

    Raises `ssl.SSLError` for a pair that OpenSSL cannot use.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(context, pair)
    context.set_alpn_protocols(_ALPN_WITH_HTTP2 if http2 else _ALPN)
    context.sslobject_class = ClientTls
    return context


def peer_contexts(pair: CertificatePair) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts for accepting links of other pods, and for dialing other pods. Both sides have certificates.

    Pods are dialed by IP address, which a certificate need not contain: only its authority is verified. Raises
    `ssl.SSLError`.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        _configure(context, pair)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both sides are routers
    return server, client


def self_signed_contexts(pair: CertificatePair) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts for accepting and dialing with a self-signed certificate.

    Only the accepting side has a certificate; the caller must check that it is the expected one. Raises `ssl.SSLError`.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(server, pair)
    server.num_tickets = 0  # links are not resumed
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for context in (server, client):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return server, client


def _configure(context: ssl.SSLContext, pair: CertificatePair) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_CIPHERS)
    # Renegotiation costs the server much and the client little, and HTTP/1.1 does not need it.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    _load_chain(context, pair)
    if pair.authorities is not None:
        context.load_verify_locations(cadata=pair.authorities.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED


def _load_chain(context: ssl.SSLContext, pair: CertificatePair) -> None:
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with open(fd, "wb") as file:
        file.write(pair.key + b"\n" + pair.chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=_no_passphrase)


def _no_passphrase() -> str:
    """Raise an error, as OpenSSL would otherwise prompt for a passphrase on the terminal."""
    raise ValueError("the private key is protected by a passphrase")


class ClientTls(ssl.SSLObject):
    """The TLS state of a client's connection. It bounds what is decrypted at once, and detects plain HTTP.

    For clients that send plain HTTP the handshake succeeds at once, so that the server can respond in plain HTTP, and
    nothing is read.
    """

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    plain = False
    """True if the client does not use TLS: the first byte is a capital letter, with which no TLS record begins."""
    on_input_limit: Callable[[], bool] | None = None
    """Called when much was decrypted and more is left. Must pause reading and return True, or return False if the input
    is not needed any more: then all further input is discarded."""
    _first_byte_checked = False
    _left = _INPUT_LIMIT_BYTES  # to be decrypted until the limit
    _discards_input = False

    def do_handshake(self) -> None:
        """Start or continue the handshake."""
        if not self._first_byte_checked and self.incoming.pending:
            self._first_byte_checked = True
            data = self.incoming.read()
            if data[:1].isupper():
                self.plain = True
                return
            self.incoming.write(data)
        super().do_handshake()

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return the certificate of the client."""
        return None if self.plain else super().getpeercert(binary_form)

    def read(self, *args: Any) -> Any:
        """Return the data of one record. The event loop repeats this call until it raises `ssl.SSLWantReadError`."""
        if self._left <= 0:
            self._left = _INPUT_LIMIT_BYTES
            if self.on_input_limit is not None and self.incoming.pending:
                self._discards_input = not self.on_input_limit()
                raise ssl.SSLWantReadError
        if self.plain or self._discards_input:
            self.incoming.read()
            raise ssl.SSLWantReadError
        try:
            data = super().read(*args)
        except ssl.SSLWantReadError:
            self._left = _INPUT_LIMIT_BYTES
            raise
        self._left -= _RECORD_BYTES + len(data)
        return data

    def write(self, data: Any) -> int:
        """Write data to be encrypted."""
        return self.outgoing.write(data) if self.plain else super().write(data)

    def unwrap(self) -> None:
        """Start or continue the closing handshake."""
        if not self.plain:
            super().unwrap()


class ReloadableContext(ssl.SSLContext):
    """A context whose certificate can be replaced. It is needed because event loops keep the context object they get.

    New connections use `current`; open ones keep the context that they started with. Session tickets of a previous
    context are not accepted: their clients do a full handshake.
    """

    current: ssl.SSLContext
    handshake_allowed: Callable[[], bool] | None = None
    """If set, called before each handshake; False closes the connection."""

    def __new__(cls, current: ssl.SSLContext) -> ReloadableContext:
        context = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        context.current = current
        return context

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        """Return the TLS state of a new connection, for the event loop."""
        if self.handshake_allowed is not None and not self.handshake_allowed():
            raise ssl.SSLError("too many connections")
        tls = self.current.wrap_bio(incoming, outgoing, *args, **options)
        if isinstance(tls, ClientTls):
            tls.incoming, tls.outgoing = incoming, outgoing
        return tls
