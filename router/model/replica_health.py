"""What workers and probes know of a replica: for operators, and for nothing that decides."""

from typing import NamedTuple


class ReplicaHealthReport(NamedTuple):
    """One replica that has failed, as one worker sees it. Times are seconds of the monotonic clock."""

    errors: int
    """Failed attempts and connects since the replica was added."""
    last_error: str
    """The kind of the last one: a value of the label `reason` of `replica_failures`, or `connect`."""
    last_probe: str
    """Result of the last check by a connect: `accepted`, `refused`, `timeout`, `other`; empty if there was none."""
    is_ejected: bool
    """True until a trial request has succeeded."""
    ejected_until: float
    """The end of the ejection, when its trial may begin; 0 if it is not ejected."""
    ejections: int
    """Ejections in a row."""
    server_error: int
    """The status of the first response with 500 or more; 0 if there was none."""
    reason: str
    """Of the ejection, for people."""


class ProbeReport(NamedTuple):
    """The last readiness probe of a replica."""

    at: float
    """Seconds since the epoch."""
    failure: str | None
    """The reason; None if the probe has succeeded."""
    not_ready_reason: str | None
    """Why the replica is not ready although it should be; None while it is ready, or starts in the usual time."""
