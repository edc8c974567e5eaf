"""Simulates one router under a load: the reports of its pods, the decisions of the self-scaler, and their effects.

The decisions are those of the router: `router.scaling` runs unchanged, once per simulated second. A pod of c CPUs is a
queue that is served at rate c; what is not served within a second waits for the next. Delays are drawn from the
distribution of a queue of that utilization (M/D/1), so percentiles are computed from histograms as in a real router.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.selfscaling.loads import REQUEST_SECONDS, Scenario
from router.scaling.self.load import LoadWindow, PodLoad
from router.scaling.self.self_scaler import SelfScaler, Size, SizeAction, SizeDecision, SizePolicy
from router.telemetry.histogram import ROUTE_BOUNDS

RESIZE_SECONDS = 3
POD_START_SECONDS = 20
SAMPLES = 40
"""Delays that represent all requests of one second. Pods are identical, so all of them report the same ones."""
CLIENT_TIMEOUT_SECONDS = 2.0
"""Clients that have waited for this long give up; their requests are no longer part of the load."""
WINDOW_SECONDS = 15.0

Room = Callable[[Size], str | None]
"""Returns why the cluster has no room for a size, None if it has room."""


@dataclass(slots=True)
class Trace:
    """The results, second by second. `load` and `sizes` have one entry per second."""

    load: list[float] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    slow_seconds: int = 0
    decisions: list[tuple[int, SizeDecision, Size]] = field(default_factory=list)
    at_limit: list[bool] = field(default_factory=list)


class Simulation:
    """A router of identical pods. `room` is called before the router grows."""

    def __init__(self, policy: SizePolicy, source: random.Random, room: Room = lambda size: None) -> None:
        self._policy = policy
        self._random = source
        self._room = room
        self._scaler = SelfScaler(policy)
        self._window = LoadWindow(ROUTE_BOUNDS, ROUTE_BOUNDS, WINDOW_SECONDS, policy.percentile)
        self._size = Size(policy.steps[0], policy.min_pods)
        self._backlog = 0.0  # CPU seconds
        self._pending: tuple[int, Size] | None = None  # when a size takes effect

    def run(self, scenario: Scenario) -> Trace:
        """Simulate the whole scenario."""
        trace = Trace()
        for second in range(int(scenario.hours * 3600)):
            self._apply_pending(second)
            offered = scenario.cpus(second)
            self._simulate_second(second, offered, scenario.bursts, trace)
            decision = self._scaler.observe(second, self._window.fleet_load(second), self._size)
            if decision.target is not None:
                trace.decisions.append((second, decision, self._size))
                self._apply(second, decision)
            trace.load.append(offered)
            trace.sizes.append(self._size)
            trace.at_limit.append(self._scaler.at_limit)
        return trace

    def _apply(self, now: int, decision: SizeDecision) -> None:
        assert decision.target is not None
        obstacle = (
            self._room(decision.target) if decision.action in (SizeAction.MORE_CPU, SizeAction.MORE_PODS) else None
        )
        if obstacle is not None:
            self._scaler.on_no_room(now, obstacle)
        else:
            self._pending = (
                now + (POD_START_SECONDS if decision.action is SizeAction.MORE_PODS else RESIZE_SECONDS),
                decision.target,
            )

    def _apply_pending(self, now: int) -> None:
        if self._pending is not None and now >= self._pending[0]:
            for number in range(self._pending[1].pods, self._size.pods):
                self._window.remove_pod(f"pod-{number}")
            self._size, self._pending = self._pending[1], None
            self._scaler.on_applied(now)
            self._window.reset_histograms(now)

    def _simulate_second(self, now: int, offered: float, bursts: float, trace: Trace) -> None:
        """Simulate the load of one second, spread evenly over the pods."""
        size = self._size
        work = offered + self._backlog
        used = min(work, size.total)
        self._backlog = min(max(work - size.total, 0.0), size.total * CLIENT_TIMEOUT_SECONDS)
        # Requests that arrive within a part of the second find a router with that much higher utilization.
        utilization = min(offered / bursts / size.total, 0.999)
        mean = REQUEST_SECONDS * utilization / (2 * (1 - utilization)) / size.cpus
        waiting = self._backlog / size.total + max(offered / bursts - size.total, 0.0) * bursts / size.total / 2
        delays = [0.0001 + waiting + (self._random.expovariate(1 / mean) if mean else 0.0) for _ in range(SAMPLES)]
        counts = [0] * (len(ROUTE_BOUNDS) + 1)
        for delay in delays:
            counts[bisect_left(ROUTE_BOUNDS, delay)] += 1
        for pod in range(size.pods):
            cpu = min(used / size.pods * self._random.uniform(0.95, 1.05), size.cpus)
            self._window.add(now, f"pod-{pod}", PodLoad(1.0, size.cpus, cpu, counts, counts))
        slow = sum(delay > self._policy.route_time_threshold_seconds for delay in delays)
        trace.slow_seconds += slow > SAMPLES * (1 - self._policy.percentile / 100)
