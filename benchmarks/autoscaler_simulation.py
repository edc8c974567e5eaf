"""Hours of synthetic load against the autoscaler, in seconds: replicas beside demand, printed and plotted.

    python -m benchmarks.autoscaler_simulation [--seed N] [--plot FILE]

Every request is simulated (arrival, wait in the queue, slot, end, refusal), and so is every replica (start-up of 15 to
30 s, cordon, drain). The decisions are the router's own: `router.scaling` runs here unchanged, ticked once per
simulated second. Nothing of the data plane is in it; what is measured is how many replicas there are, and what that
costs clients.

"needed" is the published sizing formula with the true mean rate of each second. The desired number stands above it even
under a steady mean, as it follows the busiest second of the last minute, and random arrivals always have one. It stands
far above it for a minute after an overload: refused requests count with their service time, and while they still waited
they counted as queued.
"""

import argparse
import heapq
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.simulated import panels, print_table
from router.scaling.autoscaler import replicas_for
from router.scaling.demand import Demand
from router.scaling.scaler import Action, Cordon, ReplicaFacts, SetReplicas, VersionScaler
from router.services import ReplicaState, Version, parse_service

PLOT = Path(__file__).parent / "plots" / "autoscaler.png"
START_UP_SECONDS = (15.0, 30.0)
"""Shortest and longest; a container with a model already on its node."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A load: `rate` is requests per second at a time in seconds; `service_seconds` is a mean (log-normal)."""

    name: str
    hours: float
    service_seconds: float
    rate: Callable[[float], float]
    settings: Mapping[str, object]


def scenarios(random_source: random.Random) -> Iterator[Scenario]:
    many = {"autoscale_max_replicas": 60}
    yield Scenario("steps", 1, 0.5, lambda t: (2, 30, 30, 6, 18, 4)[int(t // 600)], many)
    yield Scenario("ramp up and down", 1, 0.5, lambda t: 40 * (1 - abs(t - 1800) / 1800), many)
    yield Scenario("a day", 24, 1.0, lambda t: 0.3 + 7 * max(0.0, math.sin((t / 3600 - 6) / 12 * math.pi)) ** 1.5, many)
    yield Scenario("spikes of 40 s", 2, 0.5, lambda t: 40 if t % 1100 > 1060 else 3, many)
    levels = [3 * math.exp(random_source.gauss(0, 0.8)) for _ in range(121)]
    yield Scenario("noise", 2, 1.0, lambda t: levels[int(t // 60)], many)
    to_zero = {"autoscale_min_replicas": 0, "max_request_wait_time": 60_000}
    yield Scenario("sessions, minimum 0", 2, 0.5, lambda t: 2.0 if t % 1800 < 400 else 0.0, to_zero)


@dataclass(slots=True)
class Replica:
    name: str
    started_at: float
    ready_at: float
    in_flight: int = 0
    cordoned: bool = False


@dataclass(slots=True)
class Report:
    """What is printed and plotted: one entry per second, and totals."""

    needed: list[int] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    ready: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    requests: int = 0
    busy_seconds: float = 0.0
    waits: list[float] = field(default_factory=list)
    changes: int = 0
    cut_off: int = 0


class Simulation:
    """One version, its clients and its cluster; time is a number."""

    def __init__(self, scenario: Scenario, random_source: random.Random) -> None:
        self.scenario = scenario
        self.version: Version = parse_service("simulated", scenario.settings).default_version
        self.scaler = VersionScaler(self.version)
        self.random = random_source
        self.replicas: dict[str, Replica] = {}
        self.queue: deque[float] = deque()  # arrival times
        self.endings: list[tuple[float, str, float]] = []  # when, at which replica, since when
        self.report = Report()
        self.now = 0.0
        self.made = 0
        self._begin_interval()
        self._scale_to(self.version.autoscale_min_replicas, ())
        for replica in self.replicas.values():
            replica.ready_at = 0.0

    def run(self) -> Report:
        for second in range(int(self.scenario.hours * 3600)):
            self._one_second(float(second))
            self._refresh(second)
        return self.report

    # Clients and slots

    def _one_second(self, start: float) -> None:
        rate = self.scenario.rate(start)
        arrivals = []
        at = start + self.random.expovariate(rate) if rate else math.inf
        while at < start + 1:
            arrivals.append(at)
            at += self.random.expovariate(rate)
        readiness = sorted(each.ready_at for each in self.replicas.values() if start < each.ready_at < start + 1)
        steps = heapq.merge(((at, True) for at in arrivals), ((at, False) for at in readiness), [(start + 1, False)])
        for at, is_arrival in steps:
            while self.endings and self.endings[0][0] <= at:
                self._request_ends(*heapq.heappop(self.endings))
            self._advance(at)
            if is_arrival:
                self.arrivals += 1
                self.queue.append(at)
            self._serve_queue()

    def _advance(self, now: float) -> None:
        """Moves the clock; who has waited too long on the way is refused at the moment it was too long."""
        longest = self.version.max_request_wait_time / 1000
        while self.queue and self.queue[0] + longest <= now:
            self._integrate(self.queue[0] + longest)
            self.queue.popleft()
            self.refused += 1
        self._integrate(now)

    def _integrate(self, now: float) -> None:
        self.busy_seconds += self.busy * (now - self.now)
        self.queued_seconds += len(self.queue) * (now - self.now)
        self.now = now

    def _serve_queue(self) -> None:
        limit = self.version.replica_max_concurrent_requests
        while self.queue:
            able = [
                each
                for each in self.replicas.values()
                if each.in_flight < limit and each.ready_at <= self.now and not each.cordoned
            ]
            if not able:
                break
            replica = min(able, key=lambda each: each.in_flight)
            self.report.waits.append(self.now - self.queue.popleft())
            # A log-normal of sigma 0.5 has the mean exp(mu + 0.125) and a coefficient of variation of 0.53.
            lasts = self.random.lognormvariate(math.log(self.scenario.service_seconds) - 0.125, 0.5)
            replica.in_flight += 1
            self.busy += 1
            heapq.heappush(self.endings, (self.now + lasts, replica.name, self.now))
        while len(self.queue) > self.version.max_queue_length:
            self.queue.pop()
            self.refused += 1

    def _request_ends(self, at: float, name: str, since: float) -> None:
        self._advance(at)
        if name in self.replicas:
            self.replicas[name].in_flight -= 1
            self.busy -= 1
            self.completed += 1
            self.service_seconds += at - since
        self._serve_queue()

    # Autoscaler and cluster

    def _begin_interval(self) -> None:
        self.busy = sum(each.in_flight for each in self.replicas.values())
        self.busy_seconds = self.queued_seconds = self.service_seconds = 0.0
        self.arrivals = self.refused = self.completed = 0

    def _refresh(self, second: int) -> None:
        demand = Demand(
            seconds=1.0,
            busy_seconds=self.busy_seconds,
            queued_seconds=self.queued_seconds,
            arrivals=self.arrivals,
            refused=self.refused,
            completed=self.completed,
            service_seconds=self.service_seconds,
        )
        facts = [
            ReplicaFacts(each.name, self._state(each), each.in_flight, each.cordoned, each.started_at)
            for each in self.replicas.values()
        ]
        for action in self.scaler.tick(self.now, demand, facts):
            self._do(action)
        self._note(second, demand)
        self._begin_interval()

    def _state(self, replica: Replica) -> ReplicaState:
        return ReplicaState.READY if replica.ready_at <= self.now else ReplicaState.STARTING

    def _do(self, action: Action) -> None:
        if isinstance(action, SetReplicas):
            self.report.changes += 1
            self._scale_to(action.count, action.remove)
        else:
            for name in action.ids:
                self.replicas[name].cordoned = isinstance(action, Cordon)

    def _scale_to(self, count: int, remove: tuple[str, ...]) -> None:
        for name in remove:
            gone = self.replicas.pop(name)
            self.report.cut_off += gone.in_flight
        while len(self.replicas) < count:
            self.made += 1
            name = f"replica-{self.made}"
            self.replicas[name] = Replica(name, self.now, self.now + self.random.uniform(*START_UP_SECONDS))

    def _note(self, second: int, demand: Demand) -> None:
        report, version = self.report, self.version
        decision = self.scaler.decision
        report.needed.append(
            replicas_for(
                self.scenario.rate(second),
                self.scenario.service_seconds,
                version.autoscale_target_utilization,
                version.replica_max_concurrent_requests,
            )
        )
        report.wanted.append(decision.desired if decision else 0)
        report.ready.append(sum(self._state(each) is ReplicaState.READY for each in self.replicas.values()))
        report.refused.append(demand.refused)
        report.requests += demand.arrivals
        report.busy_seconds += demand.busy_seconds


HEADINGS = ("scenario", "hours", "requests", "refused", "wait p99", "utilization", "replica h", "needed h", "commands")


def row(scenario: Scenario, report: Report) -> tuple[str, ...]:
    waits = sorted(report.waits)
    refused = sum(report.refused)
    return (
        scenario.name,
        f"{scenario.hours:g}",
        f"{report.requests:,}",
        f"{refused / max(report.requests, 1):.2%}",
        f"{waits[int(len(waits) * 0.99)] * 1000:.0f} ms",
        f"{report.busy_seconds / max(sum(report.ready), 1):.0%}",
        f"{sum(report.ready) / 3600:.1f}",
        f"{sum(report.needed) / 3600:.1f}",
        f"{report.changes}",
    )


def plot(results: list[tuple[Scenario, Report]], path: Path) -> None:
    with panels(len(results), path, inches=2.4) as axes:
        for axis, (scenario, report) in zip(axes, results, strict=True):
            minutes = [second / 60 for second in range(len(report.needed))]
            axis.fill_between(
                minutes, report.needed, color="#c9d7e8", step="post", label="needed (rate x time / target)"
            )
            axis.plot(minutes, report.wanted, color="#d1495b", lw=1.1, drawstyle="steps-post", label="desired")
            axis.plot(minutes, report.ready, color="#1b4965", lw=1.1, drawstyle="steps-post", label="ready")
            refused = [minute for minute, count in zip(minutes, report.refused, strict=True) if count]
            axis.plot(refused, [0] * len(refused), "|", color="black", ms=9, label="requests refused")
            share = sum(report.refused) / max(report.requests, 1)
            axis.set_title(
                f"{scenario.name}: {report.requests:,} requests, {share:.2%} refused", loc="left", fontsize=10
            )
            axis.set_ylabel("replicas")


def main() -> None:
    parser = argparse.ArgumentParser(description="Synthetic load against the autoscaler.")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers (default 1)")
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"where the plot goes (default {PLOT})")
    arguments = parser.parse_args()
    began = time.perf_counter()
    random_source = random.Random(arguments.seed)
    results = [(each, Simulation(each, random_source).run()) for each in scenarios(random_source)]
    print_table([HEADINGS, *(row(*each) for each in results)])
    hours, took = sum(scenario.hours for scenario, _ in results), time.perf_counter() - began
    print(f"{hours:g} simulated hours in {took:.1f} s; plot: {arguments.plot}")
    plot(results, arguments.plot)


if __name__ == "__main__":
    main()
