"""Ids of requests: the router's own, and the client's, made safe."""

from __future__ import annotations

import os
import re

_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_CLIENT_ID_LENGTH = 40


class RequestIds:
    """Makes one valid UUID (version 4 in form) per request.

    The first 76 bits are random for each worker, the rest counts: unique like a random UUID, at a tenth of the cost.
    """

    __slots__ = ("_count", "_prefix")

    def __init__(self, entropy: bytes | None = None) -> None:
        digits = (entropy or os.urandom(16)).hex()
        variant = "89ab"[int(digits[15], 16) & 3]
        self._prefix = f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-{variant}{digits[16:19]}-".encode()
        self._count = int(digits[19:30], 16)

    def next(self) -> bytes:
        """The next id."""
        self._count = count = self._count + 1 & 0xFFFFFFFFFFFF
        return b"%b%012x" % (self._prefix, count)


def clean_client_id(value: bytes) -> bytes:
    """A client's own id: without what is not in [A-Za-z0-9_-], cut to 40."""
    return _UNSAFE.sub(b"", value[:4096])[:_CLIENT_ID_LENGTH]
