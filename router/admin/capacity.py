"""Computes how much more load a service can take now. Pure functions, no I/O.

A client that checks the load before it sends, or a batch job that chooses its number of threads, needs three numbers:
how many more requests would get a slot at once, how long the next request would wait, and how many requests in flight
the service handles without a queue.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class VersionCapacity(NamedTuple):
    """The current state of one version, summed over all router pods."""

    share: float
    """Share of the service's traffic, 0 to 1."""
    slots: int | None
    """Number of slots of the ready replicas; None if it is not limited."""
    in_flight: int
    """Number of requests that hold a slot: those in flight and abandoned ones."""
    queued: int
    mean_service_seconds: float | None
    """Mean time that a request holds its slot; None if no request has completed yet."""
    max_slots: int | None
    """Number of slots at the maximum number of replicas; None if it is not limited."""
    target: float
    """Target utilization of the autoscaler, 0 to 1."""


def free_slots(version: VersionCapacity) -> int | None:
    """Return how many more requests would get a slot at once; None if slots are not limited."""
    if version.slots is None:
        return None
    return max(0, version.slots - version.in_flight - version.queued)


def expected_wait(version: VersionCapacity) -> float | None:
    """Return the seconds that the next request would wait for a slot. Return None if this is unknown, because no
    replica is ready or no request has completed yet.

    One slot must become free for each request ahead in the queue, and one for the request itself. With S slots and T
    seconds per request, one slot becomes free every T/S seconds, and the first one after half of that on average.
    """
    if version.slots is None:
        return 0.0
    if free_slots(version):
        return 0.0
    if not version.slots or version.mean_service_seconds is None:
        return None
    ahead = version.queued + max(0, version.in_flight - version.slots)
    return (ahead + 0.5) * version.mean_service_seconds / version.slots


def service_capacity(versions: Sequence[VersionCapacity]) -> dict[str, object]:
    """Return the capacity of a service with these versions.

    Each version gets its share of the requests. So a version with a limit L and a share s limits the service to L/s.
    The smallest of these limits is the limit of the service.
    """
    with_traffic = [version for version in versions if version.share > 0]
    waits = [expected_wait(version) for version in with_traffic]
    known_waits = [wait for wait in waits if wait is not None]
    return {
        "free_slots": _smallest((free_slots(version), version.share) for version in with_traffic),
        "expected_wait_seconds": None if len(known_waits) < len(waits) else round(max(known_waits, default=0.0), 6),
        # At the target utilization, the autoscaler adds and removes no replicas.
        "suggested_concurrency": _smallest(
            (None if version.slots is None else max(1, math.floor(version.slots * version.target)), version.share)
            for version in with_traffic
        ),
        "suggested_concurrency_scaled_out": _smallest(
            (
                None if version.max_slots is None else max(1, math.floor(version.max_slots * version.target)),
                version.share,
            )
            for version in with_traffic
        ),
    }


def _smallest(limits: Iterable[tuple[int | None, float]]) -> int | None:
    """Return the smallest limit divided by its share; None if there is no limit."""
    return min((math.floor(limit / share) for limit, share in limits if limit is not None), default=None)
