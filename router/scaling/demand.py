"""What front-ends saw of one version in one interval of time.

Lives here: the report, how reports are joined, and the averages that follow from one. Must not live here: what to
conclude from it (`autoscaler`), or how it is counted and carried (the data plane). Reports are plain tuples (`seen`)
until somebody looks at their sum.
"""

import math
from dataclasses import dataclass, fields

from router.seen import Seen


@dataclass(frozen=True, slots=True)
class Demand:
    """One version's requests over one interval.

    In flight and waiting are *integrals* over time, not samples: a burst of 100 requests that lasts 10 ms adds exactly
    one request-second however rarely anybody looks, and cannot be missed between two looks.

    `seconds`: length of the interval; 0 means that nobody looked, which is not the same as nothing to see.
    `busy_seconds`: integral of the requests that held a slot. `queued_seconds`: integral of the requests that waited.
    `arrivals`: requests that came. `refused`: requests answered 503 for want of a slot. `completed`: requests that gave
    their slot back. `service_seconds`: the sum of the times for which the completed ones had held it.

    Raises `ValueError` when a value is negative or not finite: one NaN would otherwise stop the control loop far away
    from where it arose.
    """

    seconds: float = 0.0
    busy_seconds: float = 0.0
    queued_seconds: float = 0.0
    arrivals: int = 0
    refused: int = 0
    completed: int = 0
    service_seconds: float = 0.0

    def __post_init__(self) -> None:
        # Compared in one chain each, as a thousand of these are made every second.
        if (
            0 <= self.seconds < math.inf
            and 0 <= self.busy_seconds < math.inf
            and 0 <= self.queued_seconds < math.inf
            and 0 <= self.service_seconds < math.inf
            and self.arrivals >= 0
            and self.refused >= 0
            and self.completed >= 0
        ):
            return
        for each in fields(self):
            value = getattr(self, each.name)
            if not 0 <= value < math.inf:
                raise ValueError(f"Demand: {each.name} is {value}, must be a finite number >= 0")

    def __add__(self, other: "Demand") -> "Demand":
        """Two front-ends' reports over the same interval.

        The longer of the two intervals counts: a front-end that started within it had nothing in flight before.
        """
        return self._joined(other, max(self.seconds, other.seconds))

    def followed_by(self, later: "Demand") -> "Demand":
        """Two reports of one front-end, one interval after the other."""
        return self._joined(later, self.seconds + later.seconds)

    def _joined(self, other: "Demand", seconds: float) -> "Demand":
        return Demand(
            seconds,
            self.busy_seconds + other.busy_seconds,
            self.queued_seconds + other.queued_seconds,
            self.arrivals + other.arrivals,
            self.refused + other.refused,
            self.completed + other.completed,
            self.service_seconds + other.service_seconds,
        )

    @property
    def seen(self) -> Seen:
        """All but the length of the interval."""
        return (
            self.busy_seconds,
            self.queued_seconds,
            self.arrivals,
            self.refused,
            self.completed,
            self.service_seconds,
        )

    @property
    def busy(self) -> float:
        """Requests in flight, on average."""
        return self._average(self.busy_seconds)

    @property
    def queued(self) -> float:
        """Requests waiting for a slot, on average."""
        return self._average(self.queued_seconds)

    @property
    def refused_rate(self) -> float:
        """Requests refused per second."""
        return self._average(self.refused)

    @property
    def mean_service_seconds(self) -> float | None:
        """How long a completed request held its slot, on average; None when none completed."""
        return self.service_seconds / self.completed if self.completed else None

    @property
    def is_nothing(self) -> bool:
        """True when no request came, waited, ran, ended or was refused."""
        return not (self.busy_seconds or self.queued_seconds or self.arrivals or self.refused or self.completed)

    def _average(self, total: float) -> float:
        return total / self.seconds if self.seconds else 0.0
