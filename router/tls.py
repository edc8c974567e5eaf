"""TLS contexts made of bytes in memory: how the router speaks TLS, on the side of clients and between its pods.

Lives here: protocol versions, ciphers, and a context whose certificate is replaced while connections come in. Must not
live here: files, and whether a certificate is any good (`certificates`). Workers import this, so it loads nothing but
the standard library.

A private key reaches OpenSSL through an anonymous file in memory, as OpenSSL's Python interface takes paths only. It is
never written to a disk, and stands in no environment, argument or text representation.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# Forward secrecy and authenticated encryption only. TLS 1.3 has no others; these are for TLS 1.2.
_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_ALPN = ["http/1.1"]


@dataclass(frozen=True, slots=True)
class Material:
    """What a side proves who it is with, all in PEM: the chain with its own certificate first, that one's key, and the
    authorities whose certificates the other side must have (None: it needs none)."""

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)
    authorities: bytes | None = field(default=None, repr=False)


def server_context(material: Material) -> ssl.SSLContext:
    """How clients are served. Raises `ssl.SSLError` for what OpenSSL cannot use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(context, material)
    context.set_alpn_protocols(_ALPN)
    return context


def peer_contexts(material: Material) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """How other pods are accepted, and how they are dialled: both sides show a certificate of the same authorities.

    Pods are dialled by address, which no certificate need name: what counts is who issued it. Raises `ssl.SSLError`.
    """
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    dialling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dialling.check_hostname = False
    for context in (accepting, dialling):
        _configure(context, material)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are this program
    return accepting, dialling


def own_contexts(material: Material) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The same with a certificate that no authority has issued: only the accepting side shows one, and it is for the
    caller to see that it is the one expected. Raises `ssl.SSLError`."""
    accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _configure(accepting, material)
    accepting.num_tickets = 0  # a link is not resumed
    dialling = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    dialling.check_hostname = False
    dialling.verify_mode = ssl.CERT_NONE
    for context in (accepting, dialling):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return accepting, dialling


def _configure(context: ssl.SSLContext, material: Material) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_CIPHERS)
    # A renegotiation costs the server much and the client little, and HTTP/1.1 has no use for one.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    _load_chain(context, material)
    if material.authorities is not None:
        context.load_verify_locations(cadata=material.authorities.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED


def _load_chain(context: ssl.SSLContext, material: Material) -> None:
    fd = os.memfd_create("certificate", os.MFD_CLOEXEC)
    with open(fd, "wb") as file:
        file.write(material.key + b"\n" + material.chain)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=_no_passphrase)


def _no_passphrase() -> str:
    """OpenSSL would otherwise ask for one on the terminal."""
    raise ValueError("the private key is protected by a passphrase")


class RenewableContext(ssl.SSLContext):
    """A context for an event loop, which takes one for good: each new connection is made with the latest one given.

    Connections that are open keep what they began with. Session tickets of a former context are not taken any more:
    their clients make a full handshake.
    """

    current: ssl.SSLContext
    may_begin: Callable[[], bool] | None = None
    """Asked before each handshake, when set; False ends the connection."""

    def __new__(cls, current: ssl.SSLContext) -> RenewableContext:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made.current = current
        return made

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        """A connection's state, for the event loop."""
        if self.may_begin is not None and not self.may_begin():
            raise ssl.SSLError("too many connections")
        return self.current.wrap_bio(*args, **options)
