"""Rewrites `Location`: a replica does not know the path at which the router publishes its service. No I/O."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

_SCHEMES: Final = frozenset((b"http", b"https"))


class PublicPath:
    """The path of a service as clients see it."""

    __slots__ = ("_scoring_prefix", "service")

    def __init__(self, scoring_prefix: bytes, name: str) -> None:
        """`scoring_prefix` is the setting: the path of all services, with slashes at both ends."""
        self._scoring_prefix = scoring_prefix
        self.service = scoring_prefix + name.encode()
        """The path of the service, without a slash at the end."""

    def rewrite(self, location: bytes, own_authorities: Collection[bytes], outer: bytes) -> bytes:
        """Return the Location for the client.

        An absolute path gets the path of the service in front, and so does a URL with one of `own_authorities` (host
        and port, in lower case), those at which clients and router reach the replica. The result is a path, as the
        replica may not know the client's scheme. `outer` is the prefix that proxies in front of the router have
        removed. References to other hosts and other services, relative references, and paths that have the prefix
        already, are returned unchanged.
        """
        path = _path_at(location, own_authorities)
        if path is None:
            return location
        if self._is_below(path, outer + self.service) or self._names_service(path, outer):
            return location
        if outer and self._is_below(path, self.service):
            return outer + path
        return outer + self.service + path

    def _names_service(self, path: bytes, outer: bytes) -> bool:
        """Return True if a path is that of another service. With the prefix `/` any path would be."""
        return self._scoring_prefix != b"/" and path.startswith(outer + self._scoring_prefix)

    def _is_below(self, path: bytes, prefix: bytes) -> bool:
        return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/", b"?", b"#")


def _path_at(location: bytes, own_authorities: Collection[bytes]) -> bytes | None:
    """Return the path, query and fragment of a reference to the replica; None for any other reference."""
    if not location.startswith(b"/"):
        scheme, separator, rest = location.partition(b"://")
        if not separator or scheme.lower() not in _SCHEMES:
            return None
    elif location.startswith(b"//"):
        rest = location[2:]
    else:
        return location
    end = next((index for index, byte in enumerate(rest) if byte in b"/?#"), len(rest))
    if rest[:end].lower() not in own_authorities:
        return None
    path = rest[end:]
    return path if path.startswith(b"/") else b"/" + path
