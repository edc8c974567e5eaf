"""Request targets: which service a target addresses, and the path at the service's replicas. Also validates Host."""

from __future__ import annotations

import re
from typing import Final

# A valid Host (RFC 9110 section 7.2): a name, an IPv4 address, or an IPv6 address in brackets, and an optional port.
# Characters that RFC 3986 allows in names but that are separators elsewhere are excluded.
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%_~-]+\]|[0-9A-Za-z._~%!$&'()*+=-]*)(?::[0-9]*)?")

MAX_LOGGED_PATH: Final = 256
"""Maximum length of a path in logs, in bytes."""

SERVICE_PREFIX = b"/api/v1/service/"
_SCORING_PATH = b"/score"


def split_target(target: bytes, prefix: bytes = SERVICE_PREFIX, *, name_parts: int = 1) -> tuple[bytes, bytes] | None:
    """Return the service name, and the path with query at a replica, of `<prefix><name>/<rest>`.

    The name consists of `name_parts` parts with slashes between them. Return None for any other target.
    """
    if not target.startswith(prefix):
        return None
    *parts, rest = target[len(prefix) :].split(b"/", name_parts)
    if len(parts) < name_parts or not all(parts):
        return None
    return b"/".join(parts), b"/" + rest


def scoring_target(target: bytes, scoring_path: bytes) -> bytes:
    """Return the target at a replica whose scoring path is not `/score`. Other targets are returned unchanged."""
    if target.startswith(_SCORING_PATH) and target[len(_SCORING_PATH) :][:1] in (b"", b"?"):
        return scoring_path + target[len(_SCORING_PATH) :]
    return target


def origin_form(target: bytes, host: bytes) -> bytes | None:
    """Return the path and query of a target in absolute form (RFC 9112 section 3.2.2), None for any other host.

    A target without a host is invalid (RFC 9110 section 4.2.1), even if `host` is empty.
    """
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return None
    for position, byte in enumerate(rest):
        if byte in b"/?":
            authority, path = rest[:position], rest[position:]
            break
    else:
        authority, path = rest, b"/"
    if not authority or authority.lower() != host.lower():
        return None
    return path if path.startswith(b"/") else b"/" + path


def with_one_slash(path: bytes) -> bytes:
    """Return a path with one slash at its start. Several would make it a host, where it is read as a reference."""
    return b"/" + path.lstrip(b"/") if path.startswith(b"//") else path


def loggable_path(target: bytes) -> bytes:
    """Return the path of a target for logs, at most `MAX_LOGGED_PATH` bytes. Empty if the target has no path.

    It has no query, fragment or authority: these may have keys or passwords.
    """
    if target[:1] != b"/":
        target = target.partition(b"://")[2]
        start = target.find(b"/")
        target = target[start:] if start >= 0 else b""
    return target[:MAX_LOGGED_PATH].partition(b"?")[0].partition(b"#")[0]


def is_host(value: bytes) -> bool:
    """Return True if a Host header is valid. Ambiguous values are invalid, as parsers interpret them differently."""
    return _HOST.fullmatch(value) is not None
