"""What is so of this pod right now, put together from the parts of its supervisor. Reads them, and changes nothing."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Protocol

from router import __version__
from router.build import hot_path
from router.cpu import available_cpus, cpu_quota
from router.overview.history import History
from router.overview.rates import Rates
from router.overview.traces import TraceSink
from router.peering import Peering
from router.peers.mesh import Mesh
from router.pods import Pods
from router.reports import Reports
from router.scaling.autoscaler import Decision
from router.scaling.loop import ControlLoop
from router.seen import Seen
from router.services import Replica, ReplicaState, Service, Version, VersionKey
from router.slots.coordinator import Coordinator
from router.telemetry import log
from router.telemetry.catalogue import Sample
from router.telemetry.counters import LAG_BOUNDS, Histogram
from router.telemetry.metrics import MetricsView, VersionFacts
from router.telemetry.totals import Totals
from router.workers import Workers

_ERRORS_KEPT = 20
_DECISIONS_KEPT = 100

Source = Callable[[], Iterable[Sample]]


class Served(Protocol):
    """What is asked of the supervisor."""

    @property
    def services(self) -> Mapping[str, Service]:
        """The services that are served."""

    @property
    def versions(self) -> Mapping[VersionKey, Version]:
        """Their versions."""

    def replicas(self, key: VersionKey) -> tuple[Replica, ...]:
        """The replicas of a version, whatever their state."""


class ConfigError(NamedTuple):
    """A setting that was refused."""

    time: float
    """Seconds since the epoch."""
    error: str


class Changed(NamedTuple):
    """A decision for another number of replicas than before."""

    time: float
    """Seconds since the epoch."""
    service: str
    version: str
    direction: str
    desired: int
    bound: str
    reason: str


class Overview:
    """The parts, and what they know together."""

    def __init__(
        self,
        served: Served,
        *,
        loop: ControlLoop,
        counters: Totals,
        reports: Reports,
        peering: Peering,
        pods: Pods,
    ) -> None:
        self.served = served
        self.loop = loop
        self.counters = counters
        self.reports = reports
        self.peering = peering
        self.pods = pods
        self.workers: Workers | None = None
        self.mesh: Mesh | None = None
        self.sources: list[Source] = []
        """What else has something to tell at each scrape; see `catalogue` for the names."""
        self.problems: list[Callable[[], Iterable[str]]] = []
        """Each tells what an operator should know is wrong now, in a line each."""
        self.problems.append(self._stuck_workers)
        self.config_errors: deque[ConfigError] = deque(maxlen=_ERRORS_KEPT)
        self.decisions: deque[Changed] = deque(maxlen=_DECISIONS_KEPT)
        self.rates = Rates()
        self.history = History()
        self.traces = TraceSink()
        self.sources.append(self.traces.samples)
        self.started = time.monotonic()
        self.last_reload_succeeded = True
        self._config_error_count = 0
        self._lag = {"supervisor": Histogram(LAG_BOUNDS)}

    # What is told.

    def config_refused(self, now: float, error: str) -> None:
        """A changed setting was not taken; `now` is the time of day."""
        self._config_error_count += 1
        self.last_reload_succeeded = False
        self.config_errors.append(ConfigError(now, error))

    def config_taken(self) -> None:
        """What was changed is in force."""
        self.last_reload_succeeded = True

    def decided(self, key: VersionKey, direction: str, decision: Decision, now: float) -> None:
        """A version is to have another number of replicas; `now` is the time of day."""
        self.decisions.append(Changed(now, *key, direction, decision.desired, decision.bound, decision.reason))

    def saw(self, reports: Mapping[VersionKey, Seen], now: float) -> None:
        """A front-end, of this pod or another, tells what it saw."""
        for key, seen in reports.items():
            self.rates.add(key, seen, now)

    def loop_was_late(self, process: str, seconds: float) -> None:
        """An event loop of this process, or of this kind of process, was so late."""
        if process not in self._lag:
            self._lag[process] = Histogram(LAG_BOUNDS)
        self._lag[process].observe(max(seconds, 0.0))

    # What is so.

    def _stuck_workers(self) -> Iterator[str]:
        stuck = self.workers.stuck if self.workers is not None else {}
        for name, seconds in stuck.items():
            yield f"{name} has said nothing for {seconds:.0f} s: its clients wait"

    @staticmethod
    def log_level() -> str:
        """The level of the application log in force."""
        return log.level()

    def facts(self, key: VersionKey) -> VersionFacts:
        """A version at this moment, as far as workers have reported. Raises KeyError for one that is not served."""
        version = self.served.versions[key]
        reports = self.reports.of(key)
        in_flight = sum(sum(report.busy.values()) for report in reports)
        slots = version.replica_max_concurrent_requests
        states = self.loop.replicas_by_state(key)
        decision = self.loop.decision(key)
        return VersionFacts(
            in_flight=in_flight,
            queued=sum(report.waiting for report in reports),
            slots=slots * states["ready"] if slots else None,
            slots_in_use=in_flight if slots else 0,
            leases_idle=sum(report.idle for report in reports),
            replicas_by_state=states,
            desired=decision.desired
            if decision is not None
            else states[ReplicaState.READY] + states[ReplicaState.STARTING],
            utilization=decision.utilization if decision is not None and slots else None,
            target=version.autoscale_target_utilization / 100,
            scaling_decisions=self.loop.decisions(key),
        )

    def unreachable(self) -> list[str]:
        """Other pods that may live and have no link with this one: ids, or addresses where it is not known whose."""
        if self.mesh is None:
            return []
        return [*self.mesh.unreachable(), *(f"{host}:{port}" for host, port in self.mesh.unmet())]

    def address_of(self, service: str, version: str, replica_id: str) -> tuple[str, int] | None:
        """Where a replica is, if it is still there. May be called by another thread."""
        for replica in self.served.replicas((service, version)):
            if replica.id == replica_id:
                return replica.host, replica.port
        return None

    def metrics(self) -> MetricsView:
        """All that a scrape tells."""
        counters = self.counters.total()
        return MetricsView(
            router_version=__version__,
            hot_path=hot_path(),
            counters=counters,
            versions={key: self.facts(key) for key in self.served.versions},
            lag={process: lag.snapshot() for process, lag in self._lag.items()} | {"worker": counters["loop_lag"]},
            exemplars=self.traces.exemplars,
            samples=(*self._samples(), Sample("worker_cpu_seconds", counters["cpu_seconds"])),
        )

    def _samples(self) -> Iterator[Sample]:
        yield from self._of_processes()
        yield from self._of_pods()
        for source in self.sources:
            yield from source()

    def _of_processes(self) -> Iterator[Sample]:
        workers = self.workers
        yield Sample("workers", len(workers) if workers is not None else 0)
        yield Sample("workers_stuck", len(workers.stuck) if workers is not None else 0)
        yield Sample("worker_restarts", workers.ended_unasked if workers is not None else 0)
        if workers is not None:
            yield Sample("worker_resident_memory_bytes", sum(_resident_bytes(worker.pid) for worker in workers.facts()))
        yield Sample("cpu_quota_cores", cpu_quota() or float(available_cpus()))  # it may change while this runs
        yield Sample("replica_connections_idle", self.reports.connections_idle)
        yield Sample("access_log_lines_dropped", self.reports.access_log_dropped)
        yield Sample("config_errors", self._config_error_count)
        yield Sample("config_last_reload_success", self.last_reload_succeeded)

    def _of_pods(self) -> Iterator[Sample]:
        yield Sample("leader", self.pods.leads)
        for service in self.served.services:
            yield Sample("service_owned", self.peering.ownership.owner(service) == self.peering.own_id, (service,))
        yield Sample("slot_leaks_repaired", self.coordinator.leaks_repaired)
        yield Sample("degraded_services", len(self.served.services) if self.peering.is_cut else 0)
        for message, number in sorted(self.coordinator.messages.items()):
            yield Sample("slot_messages", number, (message,))
        yield Sample("peer_messages", self.peering.messages_sent, ("sent",))
        yield Sample("peer_messages", self.peering.messages_received, ("received",))
        if self.mesh is not None:
            standings = list(self.mesh.standings().values())
            live = len(self.mesh.live())
            yield Sample("peers", live, ("live",))
            yield Sample("peers", len(self.mesh.unreachable()), ("unreachable",))
            yield Sample("peers", sum(standing == "gone" for standing in standings), ("gone",))
            yield Sample("peers_unencrypted", len(self.mesh.unencrypted()))
            for reason, number in self.mesh.refusals.items():
                yield Sample("peer_refusals", number, (reason,))

    @property
    def coordinator(self) -> Coordinator:
        """The ledgers of this pod."""
        return self.peering.coordinator


def _resident_bytes(pid: int) -> int:
    """Memory of a process; 0 for one that has ended (proc_pid_statm(5))."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
