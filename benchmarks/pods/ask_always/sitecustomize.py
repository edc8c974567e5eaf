"""The baseline of a benchmark, loaded by worker processes that have this folder on their path: no lease is kept.

A lease goes back with the end of its request, so that every request has to ask the service router, as in a router
that asks its coordinator each time. Nothing else is changed, and nothing of this is part of the router.
"""

from typing import Any

from router.slots.holder import HeldReplica, VersionHolder

_release = VersionHolder.release


def _release_and_return(
    self: VersionHolder[Any, Any], replica: HeldReplica[Any], now: float, seconds: float
) -> Any | None:
    waiter = _release(self, replica, now, seconds)
    if waiter is None and replica.idle:
        self._unshelve(replica, replica.busy)
        self._give_back(replica, replica.idle)
        replica.idle = 0
    return waiter


VersionHolder.release = _release_and_return  # type: ignore[method-assign]
