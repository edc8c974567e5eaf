"""Request ids: those of the router, and sanitized ones of clients."""

from __future__ import annotations

import os
import re
from typing import Final

_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9_-]")
_CLIENT_ID_LENGTH: Final = 40

_BLOCK_IDS: Final = 256
_DIGITS: Final = 32
_FORM: Final = b"xxxxxxxx-xxxx-4xxx-vxxx-xxxxxxxxxxxx "  # x: a random digit, v: the variant
_LENGTH: Final = len(_FORM)
_RANDOM_POSITIONS: Final = tuple(index for index in range(_LENGTH) if _FORM[index] == ord("x"))
_VARIANT_POSITION: Final = _FORM.index(b"v")
_VARIANTS: Final = bytes.maketrans(b"0123456789abcdef", b"89ab89ab89ab89ab")


class RequestIds:
    """Generates random UUIDs of version 4.

    An id reveals nothing about others, not even how many requests came between two. Ids are made in blocks, by a few
    operations on all ids of a block, because the random bytes and the digits of a single id would cost several times as
    much.
    """

    __slots__ = ("_ready",)

    def __init__(self) -> None:
        self._ready: list[bytes] = []

    def next(self) -> bytes:
        """Return a new id."""
        if not self._ready:
            self._ready = _new_block()
        return self._ready.pop()


def _new_block() -> list[bytes]:
    digits = bytearray(os.urandom(_BLOCK_IDS * _DIGITS // 2).hex(), "ascii")
    block = bytearray(_FORM * _BLOCK_IDS)
    source = 0
    for position in _RANDOM_POSITIONS:
        block[position::_LENGTH] = digits[source::_DIGITS]
        source += 1
    block[_VARIANT_POSITION::_LENGTH] = digits[source::_DIGITS].translate(_VARIANTS)
    return bytes(block).split()


def clean_client_id(value: bytes) -> bytes:
    """Return the first 40 characters of a client's id, without characters other than [A-Za-z0-9_-]."""
    return _UNSAFE.sub(b"", value[:4096])[:_CLIENT_ID_LENGTH]
