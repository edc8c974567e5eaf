"""The baseline of a benchmark: worker processes with this directory on their path keep no idle leases.

A lease is returned at the end of its request, so that every request needs a new one from its ledger, as in a router
that asks its coordinator each time. Nothing else is changed, and the router itself has no such mode.
"""

from typing import Any

from router.slots.lease_cache import LeaseCache
from router.slots.replica_leases import ReplicaLeases

_release = LeaseCache.release


def _release_and_return(
    self: LeaseCache[Any, Any], replica: ReplicaLeases[Any], now: float, seconds: float
) -> Any | None:
    waiter = _release(self, replica, now, seconds)
    if waiter is None and replica.idle:
        self._idle.discard(replica, replica.busy)
        self._return_leases(replica, replica.idle)
        replica.idle = 0
    return waiter


LeaseCache.release = _release_and_return  # type: ignore[method-assign]
