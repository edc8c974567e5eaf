"""The usage of one version over some time, as counted by one or several workers: counts and integrals.

They are plain tuples, because a thousand of them are made, sent and added five times a second, and objects cost five
times as much. `scaling.demand.Demand` has named fields and an interval.
"""

from typing import NamedTuple


class UsageTotals(NamedTuple):
    """Counts and integrals since a lease cache was made. They only grow: the difference of two is a `UsageDelta`."""

    busy_seconds: float  # requests in flight, integrated
    queued_seconds: float  # requests waiting, integrated
    arrivals: int
    refused: int  # without a slot; repeats of one `x-ms-client-request-id` count once
    completed: int
    service_seconds: float  # sum of the times for which completed requests held their slots


UsageDelta = tuple[float, float, int, int, int, float]
"""The fields of `UsageTotals`, in their order."""

ZERO: UsageDelta = (0.0, 0.0, 0, 0, 0, 0.0)


def add(one: UsageDelta, other: UsageDelta) -> UsageDelta:
    """Return the sum of two usages."""
    busy, queued, arrivals, refused, completed, service = one
    more_busy, more_queued, more_arrivals, more_refused, more_completed, more_service = other
    return (
        busy + more_busy,
        queued + more_queued,
        arrivals + more_arrivals,
        refused + more_refused,
        completed + more_completed,
        service + more_service,
    )


def delta(before: UsageDelta, totals: UsageDelta) -> UsageDelta:
    """Return the usage since the totals were `before`."""
    busy, queued, arrivals, refused, completed, service = totals
    busy_0, queued_0, arrivals_0, refused_0, completed_0, service_0 = before
    return (
        busy - busy_0,
        queued - queued_0,
        arrivals - arrivals_0,
        refused - refused_0,
        completed - completed_0,
        service - service_0,
    )
