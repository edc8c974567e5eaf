"""How much more a service can take right now. Decides, does no I/O.

A client that asks before it sends, or a batch job that picks its number of threads, needs three numbers: how many
requests find a slot at once, how long one more would wait, and how many to keep in flight so that none waits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class VersionCapacity(NamedTuple):
    """What is so of one version, of all router pods together."""

    share: float
    """Of the service's traffic, 0 to 1."""
    slots: int | None
    """Of its ready replicas; None without a limit."""
    in_flight: int
    queued: int
    mean_service: float | None
    """Seconds that a request holds its slot; None where none has completed yet."""
    slots_at_most: int | None
    """When scaled to its maximum; None without a limit."""
    target: float
    """The utilization that scaling aims at, 0 to 1."""


def free_slots(version: VersionCapacity) -> int | None:
    """Requests that would find a slot at once; None where slots are not limited."""
    if version.slots is None:
        return None
    return max(0, version.slots - version.in_flight - version.queued)


def expected_wait(version: VersionCapacity) -> float | None:
    """Seconds that one more request would wait for a slot; None where that cannot be told: no replica is ready, or
    nothing is known yet of how long a request takes.

    Those before it in the queue, and it itself, need as many slots to become free; with S slots that each take T
    seconds one does so every T/S seconds, and the first after half of that on average.
    """
    if version.slots is None:
        return 0.0
    if free_slots(version):
        return 0.0
    if not version.slots or version.mean_service is None:
        return None
    ahead = version.queued + max(0, version.in_flight - version.slots)
    return (ahead + 0.5) * version.mean_service / version.slots


def of_service(versions: Sequence[VersionCapacity]) -> dict[str, object]:
    """The capacity of a service whose traffic its versions share. A request may go to any of them, so that the
    tightest one, by its share, bounds what can be sent without waiting."""
    used = [version for version in versions if version.share > 0]
    waits = [expected_wait(version) for version in used]
    known = [wait for wait in waits if wait is not None]
    return {
        "free_slots": _tightest((free_slots(version), version.share) for version in used),
        "expected_wait_seconds": None if len(known) < len(waits) else round(max(known, default=0.0), 6),
        # What keeps the slots at their target, so that the autoscaler sees no reason to change anything.
        "suggested_concurrency": _tightest(
            (None if v.slots is None else max(1, math.floor(v.slots * v.target)), v.share) for v in used
        ),
        "suggested_concurrency_scaled_out": _tightest(
            (None if v.slots_at_most is None else max(1, math.floor(v.slots_at_most * v.target)), v.share) for v in used
        ),
    }


def _tightest(limits: Iterable[tuple[int | None, float]]) -> int | None:
    bounds = [math.floor(limit / share) for limit, share in limits if limit is not None]
    return min(bounds, default=None)
