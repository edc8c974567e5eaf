"""Checks of decoded JSON: each function `as_...` returns the value if it has the type in its name, or raises
`WireError`.

Error texts never contain received data, which may contain keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from router.model.services import VersionKey
from router.peers.close_reason import CloseReason
from router.peers.frames import WireError
from router.scaling.window import BucketCounts, rebin

T = TypeVar("T")


def as_text(value: object) -> str:
    """Return a string."""
    if type(value) is not str:
        raise malformed("is not a string")
    return value


def as_count(value: object) -> int:
    """Return a non-negative integer."""
    if type(value) is not int or value < 0:  # not isinstance, which accepts a bool as an int
        raise malformed("is not an integer >= 0")
    return value


def as_number(value: object) -> float:
    """Return a number as a float."""
    if type(value) is not float and type(value) is not int:
        raise malformed("is not a number")
    return float(value)


def as_flag(value: object) -> bool:
    """Return a boolean."""
    if type(value) is not bool:
        raise malformed("is neither true nor false")
    return value


def as_array(value: object) -> list[Any]:
    """Return an array. Its elements are not checked."""
    if type(value) is not list:
        raise malformed("is not an array")
    return value


def as_object(value: object) -> dict[str, Any]:
    """Return an object. Its values are not checked."""
    if type(value) is not dict:
        raise malformed("is not an object")
    return value


def as_counts_by_name(value: object) -> dict[str, int]:
    """Return an object whose values are non-negative integers."""
    return {name: as_count(each) for name, each in as_object(value).items()}


def as_texts_by_name(value: object) -> dict[str, str]:
    """Return an object whose values are strings."""
    return {name: as_text(each) for name, each in as_object(value).items()}


def as_counts(value: object) -> tuple[int, ...]:
    """Return an array of non-negative integers."""
    return tuple([as_count(each) for each in as_array(value)])


def as_texts(value: object) -> tuple[str, ...]:
    """Return an array of strings."""
    return tuple([as_text(each) for each in as_array(value)])


def as_text_set(value: object) -> frozenset[str]:
    """Return an array of strings as a set."""
    return frozenset(as_texts(value))


def as_version_key(service: object, version: object) -> VersionKey:
    """Return the key of a version from the names of service and version."""
    return as_text(service), as_text(version)


def as_rows(value: object) -> list[list[Any]]:
    """Return an array of arrays."""
    return [as_array(each) for each in as_array(value)]


def as_histogram(value: object, bounds: tuple[float, ...]) -> tuple[int, ...]:
    """Check a histogram of `encode_histogram`, and convert it to `bounds`."""
    return rebin(
        [(math.inf if row[0] is None else as_number(row[0]), as_count(row[1])) for row in as_rows(value)], bounds
    )


def encode_histogram(buckets: BucketCounts, bounds: tuple[float, ...]) -> list[tuple[float | None, int]]:
    """Return the non-empty buckets with their upper bounds, because another release may have other bounds.

    The bucket above all bounds has None.
    """
    return [(bound, requests) for bound, requests in zip((*bounds, None), buckets, strict=True) if requests]


def optional(check: Callable[[object], T]) -> Callable[[object], T | None]:
    """Return a check that accepts null as well."""
    return lambda value: None if value is None else check(value)


def malformed(message: str) -> WireError:
    """Return the error for a malformed value."""
    return WireError(CloseReason.GARBAGE, message)
