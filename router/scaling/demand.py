"""The demand for one version in one interval: the sum of the reports of workers and other pods, and averages.

Contains: the value, the sum of two values, and the averages. Does not contain: decisions based on them (`autoscaler`),
counting and reporting (`slots.lease_cache`, `workers.reports`). Reports are plain tuples (`UsageDelta`) until they are
summed.
"""

import math
from dataclasses import dataclass, fields

from router.model.usage import UsageDelta


@dataclass(frozen=True, slots=True)
class Demand:
    """The requests of one version in one interval.

    Requests in flight and queued are *integrals* over time, not samples: a burst of 100 requests that lasts 10 ms adds
    exactly one request-second, however rarely reports are read, and cannot be missed between two of them.

    `seconds`: length of the interval. 0 means that there were no reports; reports without requests have a length.
    `busy_seconds`: integral of the requests that held a slot. `queued_seconds`: integral of the queued requests.
    `arrivals`: requests received. `refused`: requests that got a 503 because no slot was free; repeats of one
    `x-ms-client-request-id` at one worker count once. `completed`: requests that returned their slot.
    `service_seconds`: the total time for which completed requests held their slots.

    Raises `ValueError` if a value is negative or not finite. Otherwise a NaN would stop the control loop later, where
    its origin is hard to find.
    """

    seconds: float = 0.0
    busy_seconds: float = 0.0
    queued_seconds: float = 0.0
    arrivals: int = 0
    refused: int = 0
    completed: int = 0
    service_seconds: float = 0.0

    def __post_init__(self) -> None:
        # Unrolled, as a thousand of these objects are made every second.
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
        """Add the demand that two sources report for the same interval.

        The sum has the longer of the two intervals: a worker that started within it had no requests before.
        """
        return Demand(
            max(self.seconds, other.seconds),
            self.busy_seconds + other.busy_seconds,
            self.queued_seconds + other.queued_seconds,
            self.arrivals + other.arrivals,
            self.refused + other.refused,
            self.completed + other.completed,
            self.service_seconds + other.service_seconds,
        )

    @property
    def usage(self) -> UsageDelta:
        """All fields except the length of the interval."""
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
    def is_idle(self) -> bool:
        """True when no request arrived, was queued, was in flight, completed or was refused."""
        return not (self.busy_seconds or self.queued_seconds or self.arrivals or self.refused or self.completed)

    def _average(self, total: float) -> float:
        return total / self.seconds if self.seconds else 0.0
