"""One version, its clients and its cluster in simulated time. Every request is simulated.

The data plane is the same for every autoscaler: one queue, `MAX_WAIT_SECONDS` until a request is refused, one request
per replica, `START_SECONDS` until a new replica is ready. A surplus replica finishes its request before it is removed;
if load returns before that, it stays. Only the number of replicas is decided by the autoscaler.
"""

import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.autoscaler_simulation.loads import HOURS, Load
from router.scaling.demand import Demand

START_SECONDS = 20.0
MAX_WAIT_SECONDS = 0.5
MAX_WAIT_FROM_ZERO_SECONDS = 60.0
"""As in the router: without a replica, a version that starts from zero lets requests wait for `scoring_timeout_ms`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What an autoscaler may observe at the end of a second."""

    now: float
    demand: Demand  # of the last second
    in_flight: int  # requests in flight and queued at this moment
    replicas: int  # those that were requested and not removed, starting ones included
    ready: int


class Scaler(Protocol):
    """An autoscaler."""

    min_replicas: int

    def desired(self, sample: Sample) -> int:
        """Return the number of replicas. Called at the end of each second."""


@dataclass(slots=True)
class Report:
    """The results: lists with one entry per second, and totals."""

    desired: list[int] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    requests: int = 0
    busy_seconds: float = 0.0

    @property
    def refused_share(self) -> float:
        return sum(self.refused) / max(self.requests, 1)

    @property
    def replica_hours(self) -> float:
        """Replicas that were ready or starting, integrated."""
        return sum(self.replicas) / 3600

    @property
    def utilization(self) -> float:
        return self.busy_seconds / max(sum(self.replicas), 1)


class Simulation:
    """Runs one load against one autoscaler."""

    def __init__(self, load: Load, scaler: Scaler, seed: int) -> None:
        self._load, self._scaler = load, scaler
        # Arrivals and service times come from generators of their own: they are the same for every autoscaler.
        self._arrivals = random.Random(seed)
        self._services = random.Random(seed + 1_000_000)
        self._now = 0.0
        self._ready = scaler.min_replicas
        self._starting: deque[float] = deque()  # when each becomes ready
        self._to_remove = 0  # busy replicas that are removed when their request ends
        self._queue: deque[tuple[float, float]] = deque()  # waiting since, service time
        self._in_flight: list[tuple[float, float]] = []  # a heap: end, service time
        self._begin_second()

    def run(self) -> Report:
        report = Report()
        for second in range(HOURS * 3600):
            self._simulate_second(float(second))
            demand = Demand(
                1.0, self._busy_seconds, self._queued_seconds, self._arrived, self._refused, self._completed,
                self._service_seconds,
            )  # fmt: skip
            in_flight = len(self._in_flight) + len(self._queue)
            replicas = self._ready + len(self._starting) - self._to_remove
            desired = self._scaler.desired(Sample(self._now, demand, in_flight, replicas, self._ready))
            self._scale_to(desired)
            report.desired.append(desired)
            report.replicas.append(self._ready + len(self._starting))
            report.refused.append(self._refused)
            report.requests += self._arrived
            report.busy_seconds += self._busy_seconds
            self._begin_second()
        return report

    def _begin_second(self) -> None:
        self._busy_seconds = self._queued_seconds = self._service_seconds = 0.0
        self._arrived = self._refused = self._completed = 0

    def _simulate_second(self, start: float) -> None:
        rate = self._load.rate(start)
        arrival = start + self._arrivals.expovariate(rate) if rate else math.inf
        end = start + 1
        while True:
            ends_at = self._in_flight[0][0] if self._in_flight else math.inf
            expires_at = self._queue[0][0] + self._max_wait if self._queue else math.inf
            ready_at = self._starting[0] if self._starting else math.inf
            at = min(arrival, ends_at, expires_at, ready_at, end)
            self._busy_seconds += len(self._in_flight) * (at - self._now)
            self._queued_seconds += len(self._queue) * (at - self._now)
            self._now = at
            if at == ends_at:
                self._end_request()
            elif at == ready_at:
                self._add_ready()
            elif at == expires_at:
                self._queue.popleft()
                self._refused += 1
            elif at == arrival:
                self._arrive()
                arrival += self._arrivals.expovariate(rate)
                arrival = arrival if arrival < end else math.inf
            else:
                return

    @property
    def _max_wait(self) -> float:
        return MAX_WAIT_FROM_ZERO_SECONDS if self._load.from_zero and not self._ready else MAX_WAIT_SECONDS

    def _arrive(self) -> None:
        self._arrived += 1
        # A log-normal of sigma 0.5 has the mean exp(mu + 0.125) and a coefficient of variation of 0.53.
        self._queue.append(
            (self._now, self._services.lognormvariate(math.log(self._load.service_seconds) - 0.125, 0.5))
        )
        self._serve_queue()

    def _serve_queue(self) -> None:
        while self._queue and len(self._in_flight) < self._ready:
            service = self._queue.popleft()[1]
            heapq.heappush(self._in_flight, (self._now + service, service))

    def _end_request(self) -> None:
        _, service = heapq.heappop(self._in_flight)
        self._completed += 1
        self._service_seconds += service
        if self._to_remove:
            self._to_remove -= 1
            self._ready -= 1
        self._serve_queue()

    def _add_ready(self) -> None:
        self._starting.popleft()
        if not self._ready:  # the usual limit of the wait begins now
            self._queue = deque((self._now, service) for _, service in self._queue)
        self._ready += 1
        self._serve_queue()

    def _scale_to(self, count: int) -> None:
        missing = count - (self._ready + len(self._starting) - self._to_remove)
        kept = min(max(missing, 0), self._to_remove)
        self._to_remove -= kept
        self._starting.extend([self._now + START_SECONDS] * (missing - kept))
        surplus = max(-missing, 0)
        while surplus and self._starting:
            self._starting.pop()
            surplus -= 1
        idle = min(surplus, self._ready - len(self._in_flight))
        self._ready -= idle
        self._to_remove += surplus - idle
