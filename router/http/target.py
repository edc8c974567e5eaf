"""The address of a request: which service, and which path at its replica."""

from __future__ import annotations

SERVICE_PREFIX = b"/api/v1/service/"


def split_target(target: bytes) -> tuple[bytes, bytes] | None:
    """Service name and replica path (with query) of `/api/v1/service/<name>/<rest>`; None for any other address."""
    if not target.startswith(SERVICE_PREFIX):
        return None
    name, slash, rest = target[len(SERVICE_PREFIX) :].partition(b"/")
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
