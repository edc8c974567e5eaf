"""One router under a load: what its pods would report, what the self-scaler makes of it, what becomes of that.

The decisions are the router's own: `router.scaling` runs here unchanged, once per simulated second. A pod of c CPUs is
a queue that is served at c; what is not served within a second waits for the next. Delays are drawn from what a queue
of that utilization has (M/D/1), so that percentiles come out of histograms as in a router that runs.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from benchmarks.selfscaling.loads import REQUEST_SECONDS, Scenario
from router.scaling.load import Load, LoadWindow
from router.scaling.self_scaler import Decision, Kind, Policy, SelfScaler, Size
from router.telemetry.counters import ROUTE_BOUNDS

RESIZE_SECONDS = 3
POD_START_SECONDS = 20
SAMPLES = 40
"""Requests and looks at the clock that stand for all within one second. Pods are alike, so they have the same ones."""
PATIENCE_SECONDS = 2.0
"""Clients that have waited for so long give up; what they asked for is no load any more."""
WINDOW_SECONDS = 15.0

Room = Callable[[Size], str | None]
"""Why the cluster has no room for a size; None where it has."""


@dataclass(slots=True)
class Trace:
    """What came of it, second by second."""

    cores: list[float] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    slow_seconds: int = 0
    decisions: list[tuple[int, Decision, Size]] = field(default_factory=list)
    at_limit: list[bool] = field(default_factory=list)


class Simulation:
    """A router of identical pods. `room` is asked before anything is made larger."""

    def __init__(self, policy: Policy, source: random.Random, room: Room = lambda size: None) -> None:
        self._policy = policy
        self._random = source
        self._room = room
        self._scaler = SelfScaler(policy)
        self._window = LoadWindow(ROUTE_BOUNDS, ROUTE_BOUNDS, WINDOW_SECONDS, policy.percent)
        self._size = Size(policy.steps[0], policy.min_pods)
        self._backlog = 0.0  # CPU seconds
        self._due: tuple[int, Size] | None = None

    def run(self, scenario: Scenario) -> Trace:
        """The whole scenario."""
        trace = Trace()
        for second in range(int(scenario.hours * 3600)):
            self._arrive(second)
            offered = scenario.cores(second)
            self._one_second(second, offered, scenario.bursts, trace)
            decision = self._scaler.observe(second, self._window.seen(second), self._size)
            if decision.target is not None:
                trace.decisions.append((second, decision, self._size))
                self._carry_out(second, decision)
            trace.cores.append(offered)
            trace.sizes.append(self._size)
            trace.at_limit.append(self._scaler.at_limit)
        return trace

    def _carry_out(self, now: int, decision: Decision) -> None:
        assert decision.target is not None
        why = self._room(decision.target) if decision.kind in (Kind.MORE_CPU, Kind.MORE_PODS) else None
        if why is not None:
            self._scaler.no_room(now, why)
        else:
            self._due = (
                now + (POD_START_SECONDS if decision.kind is Kind.MORE_PODS else RESIZE_SECONDS),
                decision.target,
            )

    def _arrive(self, now: int) -> None:
        if self._due is not None and now >= self._due[0]:
            for gone in range(self._due[1].pods, self._size.pods):
                self._window.forget(f"pod-{gone}")
            self._size, self._due = self._due[1], None
            self._scaler.done(now)
            self._window.forget_times(now)

    def _one_second(self, now: int, offered: float, bursts: float, trace: Trace) -> None:
        """The load of one second, spread over the pods alike."""
        size = self._size
        work = offered + self._backlog
        used = min(work, size.total)
        self._backlog = min(max(work - size.total, 0.0), size.total * PATIENCE_SECONDS)
        # Requests that are crowded into a part of the second meet a router that is as much fuller meanwhile.
        utilization = min(offered / bursts / size.total, 0.999)
        mean = REQUEST_SECONDS * utilization / (2 * (1 - utilization)) / size.cpus
        waiting = self._backlog / size.total + max(offered / bursts - size.total, 0.0) * bursts / size.total / 2
        delays = [0.0001 + waiting + (self._random.expovariate(1 / mean) if mean else 0.0) for _ in range(SAMPLES)]
        counts = [0] * (len(ROUTE_BOUNDS) + 1)
        for delay in delays:
            counts[bisect_left(ROUTE_BOUNDS, delay)] += 1
        for pod in range(size.pods):
            cpu = min(used / size.pods * self._random.uniform(0.95, 1.05), size.cpus)
            self._window.add(now, f"pod-{pod}", Load(1.0, size.cpus, cpu, counts, counts))
        slow = sum(delay > self._policy.slow_seconds for delay in delays)
        trace.slow_seconds += slow > SAMPLES * (1 - self._policy.percent / 100)
