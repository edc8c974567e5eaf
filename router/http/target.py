"""The address of a request: which service, and which path at its replica."""

from __future__ import annotations

import re

# What Host may say (RFC 9110 section 7.2): a name, an IPv4 address or an IPv6 one in brackets, and maybe a port. Of the
# characters that RFC 3986 has for names, those are left out that separate one thing from another elsewhere.
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~%!$&'()*+=-]*)(?::[0-9]*)?")

SERVICE_PREFIX = b"/api/v1/service/"


def split_target(target: bytes, prefix: bytes = SERVICE_PREFIX) -> tuple[bytes, bytes] | None:
    """Service name and replica path (with query) of `<prefix><name>/<rest>`; None for any other address."""
    if not target.startswith(prefix):
        return None
    name, slash, rest = target[len(prefix) :].partition(b"/")
    if not slash or not name:
        return None
    return name, b"/" + rest


def origin_form(target: bytes, host: bytes) -> bytes | None:
    """The path of a target in absolute form, if it names this `host`; None for anything else (RFC 9112 section 3.2)."""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return None
    for position, byte in enumerate(rest):
        if byte in b"/?":
            authority, path = rest[:position], rest[position:]
            break
    else:
        authority, path = rest, b"/"
    if authority.lower() != host.lower():
        return None
    return path if path.startswith(b"/") else b"/" + path


def is_host(value: bytes) -> bool:
    """Whether a Host header says what it may say; who does not know one host from another must not guess."""
    return _HOST.fullmatch(value) is not None
