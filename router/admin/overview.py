"""The current state of this pod for the admin port: the parts of the supervisor, and values derived from several parts.

Does not contain: documents (`status`, `explain`, `metrics`), and recorded data (`activity`). It changes no part of the
supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from router.admin.activity import Activity
from router.admin.effective_settings import EffectiveSettings
from router.admin.timeline import Timeline
from router.dynamic.follower import DynamicConfig
from router.model.problems import Problem
from router.model.replica_health import ProbeReport
from router.model.services import ReplicaState, Service, Version, VersionKey
from router.model.version_replicas import VersionReplicas
from router.net.address import host_port
from router.peers.leadership import Leadership
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.mesh import Mesh
from router.peers.peer_reports import PeerReports
from router.scaling.loop import ControlLoop
from router.telemetry import log
from router.telemetry.catalogue import Sample
from router.telemetry.metrics import VersionMetrics
from router.telemetry.spans import ReplicaEndpoint
from router.telemetry.totals import CounterTotals
from router.workers.pool import WorkerPool
from router.workers.reports import Reports

SampleSource = Callable[[], Iterable[Sample]]
"""Returns samples of metrics. `telemetry.catalogue` has their names."""

ProblemSource = Callable[[], Iterable[Problem]]
"""Returns current problems for operators."""


ProbesOf = Callable[[VersionKey], Mapping[str, ProbeReport]]
"""Returns the last readiness probe of each replica of a version, by id."""


def no_probes(_: VersionKey) -> Mapping[str, ProbeReport]:
    """Return no probes: the cluster does not probe replicas itself, as in Kubernetes."""
    return {}


class ServingView(Protocol):
    """The current services, versions and replicas. `supervisor.state.ServingState` implements it."""

    @property
    def services(self) -> Mapping[str, Service]:
        """The services, by name."""

    @property
    def versions(self) -> Mapping[VersionKey, Version]:
        """The versions of all services."""

    def replicas(self, key: VersionKey) -> VersionReplicas:
        """Return the replicas of a version; none if the version is unknown."""


class Overview:
    """The parts of the supervisor, and the state derived from several of them."""

    def __init__(
        self,
        serving: ServingView,
        *,
        loop: ControlLoop,
        counters: CounterTotals,
        reports: Reports,
        peer_reports: PeerReports,
        ledger_dispatcher: LedgerDispatcher,
        leadership: Leadership,
        workers: WorkerPool,
        activity: Activity,
        timeline: Timeline,
        scoring_url: Callable[[], str],
        effective: EffectiveSettings,
        dynamic: DynamicConfig | None = None,
        service_settings_source: str = "file",
        samples: Sequence[SampleSource] = (),
        problems: Sequence[ProblemSource] = (),
        probes: ProbesOf = no_probes,
    ) -> None:
        """`scoring_url` returns the address of all services, without the name of one. `dynamic` is the dynamic
        configuration, None without one. `service_settings_source` is where else services have their settings."""
        self.serving = serving
        self.loop = loop
        self.counters = counters
        self.reports = reports
        self.peer_reports = peer_reports
        self.ledger_dispatcher = ledger_dispatcher
        self.leadership = leadership
        self.workers = workers
        self.activity = activity
        self.timeline = timeline
        self.effective = effective
        self.dynamic = dynamic
        self.service_settings_source = service_settings_source
        self.started_at = time.monotonic()
        self.scoring_url = scoring_url
        self.probes = probes
        self._sample_sources = samples
        self._problem_sources = problems

    @property
    def mesh(self) -> Mesh | None:
        """The links to other pods; None until this pod has joined others."""
        links = self.ledger_dispatcher.links
        return links if isinstance(links, Mesh) else None

    @property
    def config_in_force(self) -> bool:
        """True if the latest settings of the file and of the dynamic configuration are in effect."""
        return self.activity.last_reload_succeeded and not (self.dynamic is not None and self.dynamic.is_refused)

    @property
    def config_error_count(self) -> int:
        """The number of times that changed settings were rejected."""
        return self.activity.config_error_count + (self.dynamic.refusal_count if self.dynamic is not None else 0)

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of traces and of all sources."""
        if self.dynamic is not None:
            yield from self.dynamic.samples()
        yield from self.activity.traces.samples()
        yield from self.activity.replica_health.samples()
        for source in self._sample_sources:
            yield from source()

    def problems(self) -> Iterator[Problem]:
        """Yield current problems for operators."""
        for name, seconds in self.workers.stuck.items():
            yield Problem(
                "a worker does not report: requests of its clients are delayed",
                place=name,
                detail=f"for {seconds:.0f} s",
            )
        for source in self._problem_sources:
            yield from source()
        if self.dynamic is not None:
            yield from self.dynamic.problems(self.serving.services)

    @staticmethod
    def log_level() -> str:
        """Return the current level of the application log."""
        return log.current_level()

    def version_metrics(self, key: VersionKey) -> VersionMetrics:
        """Return the state of a version from the last reports of workers. Raises KeyError if it is not served."""
        version = self.serving.versions[key]
        reports = self.reports.of_version(key)
        in_flight = sum(sum(report.in_flight.values()) for report in reports)
        abandoned = sum(sum(report.abandoned.values()) for report in reports)
        ledger = self.ledger_dispatcher.coordinator.ledger(key)
        slots = version.replica_max_concurrent_requests
        states = self.serving.replicas(key).count_by_state()
        decision = self.loop.decision(key)
        return VersionMetrics(
            in_flight=in_flight,
            abandoned=abandoned,
            queued=sum(report.waiting for report in reports),
            slots=slots * states["ready"] if slots else None,
            slots_in_use=in_flight + abandoned if slots else 0,
            suspect_slots=0 if ledger is None else ledger.suspect_slots,
            leases_idle=sum(report.idle_leases for report in reports),
            replicas_by_state=states,
            desired=decision.desired
            if decision is not None
            else states[ReplicaState.READY] + states[ReplicaState.STARTING],
            utilization=decision.utilization if decision is not None and slots else None,
            target=version.autoscale_target_utilization / 100,
            scaling_decisions=self.loop.decisions(key),
        )

    def unreachable_peers(self) -> list[str]:
        """Return the pods that may be alive but have no link to this one: ids, or addresses of unidentified pods."""
        mesh = self.mesh
        if mesh is None:
            return []
        return [*mesh.unreachable(), *(host_port(*address) for address in mesh.unidentified())]

    def replica_endpoint(self, service: str, version: str, replica_id: str) -> ReplicaEndpoint | None:
        """Return the endpoint of a replica; None if it was removed. Any thread may call this."""
        settings = self.serving.versions.get((service, version))
        for replica in self.serving.replicas((service, version)).replicas:
            if settings is not None and replica.id == replica_id:
                return ReplicaEndpoint(replica.host, replica.port, settings.scoring_path)
        return None
