"""What a front-end has seen of one version in some time: counts and integrals, and how they add up. Nothing else.

Plain tuples, as a thousand of them are made, carried and added up five times a second: an object costs five times as
much. `scaling.demand.Demand` gives them names, and an interval, for who looks at them.
"""

Seen = tuple[float, float, int, int, int, float]
"""`busy_seconds`, `queued_seconds`, `arrivals`, `refused`, `completed`, `service_seconds`: see `Demand`."""

NOTHING: Seen = (0.0, 0.0, 0, 0, 0, 0.0)


def together(one: Seen, other: Seen) -> Seen:
    """What was seen in two reports."""
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


def since(before: Seen, totals: Seen) -> Seen:
    """What has come since the totals were those of `before`."""
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
