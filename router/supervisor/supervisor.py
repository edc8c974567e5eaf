"""The supervisor: builds the parts of a router, starts and stops them in order, and calls them periodically.

    cluster  -- services, replicas -->  ServingState -- replicas, cordons -->  workers, ledgers
       ^                                     ^                                    |
       +------ replica counts ------ control loop <----------- usage -------------+

The parts are built in the order of their dependencies. `cluster_events`, `worker_events` and `peer_events` dispatch
what the cluster, the workers and the peers report. This package makes no decisions: the ledgers decide about slots
(`slots.ledger`), the control loop about replicas (`scaling.loop`), the workers about requests (`gateway.admission`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from router.admin.activity import Activity
from router.admin.effective_settings import EffectiveSettings, SettingChange
from router.admin.log_config import LogConfig, LogConfigRoutes
from router.admin.metrics import metrics_snapshot
from router.admin.metrics_pusher import MetricsPusher
from router.admin.overload import OverloadMonitor
from router.admin.overview import Overview
from router.admin.routes import StatusRoutes
from router.admin.server import AdminServer
from router.admin.timeline_recorder import TimelineRecorder
from router.auth.issuers import Issuer
from router.auth.issuing.ring_store import RingStore
from router.auth.issuing.routes import add_token_routes
from router.auth.issuing.token_authority import TokenAuthority
from router.cluster import Cluster
from router.cluster.joined import JoinedCluster
from router.collection.process import CollectorProcess
from router.config.router import SourcedSettings
from router.dynamic.follower import DynamicConfig
from router.model.problems import Problem
from router.model.services import Service, Version, VersionKey
from router.model.version_replicas import VersionReplicas
from router.net.address import host_port
from router.net.certificate_files import server_certificate_files
from router.net.certificate_reloader import CertificateReloader
from router.net.listen import listen_error_collector
from router.peers.leadership import ClusterTable, Leadership
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.links import MeshObserver
from router.peers.mesh import Mesh
from router.peers.peer_reports import PeerReports
from router.scaling.loop import ControlLoop, ScalingStep
from router.scaling.self.actuator import SizeActuator
from router.scaling.self.loop import SelfScalingLoop
from router.scaling.self.signals import PodSignals
from router.supervisor.cluster_events import ClusterEvents
from router.supervisor.peer_events import LoadBroadcast, PeerEvents, SupervisedPod
from router.supervisor.readiness import ClusterStatus, Readiness
from router.supervisor.state import ServingState
from router.supervisor.worker_events import WorkerEvents
from router.telemetry import log
from router.telemetry.exporters import ExportTargets
from router.telemetry.log import event
from router.telemetry.metrics import VersionMetrics
from router.telemetry.totals import CounterTotals
from router.workers.channels import WorkerChannels
from router.workers.listeners import ClientListeners
from router.workers.messages import CertificateUpdate, TrustUpdate
from router.workers.pool import WorkerPool
from router.workers.reports import Reports

_log = logging.getLogger("router.supervisor")

_TICK_SECONDS = 0.1
"""Interval in which the supervisor calls its parts: ledgers, leadership, scaling, and checks of workers."""


class Supervisor:
    """One router: its workers, and the cluster that they serve."""

    def __init__(
        self,
        configured: SourcedSettings,
        cluster: Cluster,
        *,
        own_id: str,
        human_log: bool,
        in_cluster: bool = False,
        pod_actuator: SizeActuator | None = None,
        peer_listeners: Sequence[socket.socket] = (),
        token_keys: RingStore | None = None,
        peer_certificate: CertificateReloader | None = None,
        status: ClusterStatus | None = None,
        dynamic: DynamicConfig | None = None,
    ) -> None:
        """Build a router, which does nothing until `start`.

        configured: the settings and their sources; `change_settings` applies other ones
        own_id: unique among the router pods
        in_cluster: this router is one pod of a Deployment; no pod leads until `on_leader_change`, and self-scaling uses
            the `pod_actuator`
        peer_listeners: kept open by the workers. Peers can connect to them until the last worker has exited. So a
            refused connection proves that no request of this pod is in flight, even if this process was killed.
        token_keys: the store of the keys that sign the router's own tokens
        peer_certificate: the certificate for links to other pods; None if it is generated or there is none
        status: what the cluster adds to readiness, status page and metrics
        dynamic: the dynamic configuration, which the caller runs

        Raises `SettingsError` if a certificate cannot be used and this is not `in_cluster`, or if the settings let no
        client connect. In a cluster this router is unready until the certificate can be used.
        """
        status = status or ClusterStatus()
        self.effective = EffectiveSettings(configured)
        settings = configured.settings
        self._cluster = cluster
        self._in_cluster = in_cluster
        self._listeners = ClientListeners(settings)
        files = server_certificate_files(settings)
        certificate = CertificateReloader(files, time.time(), may_wait=in_cluster) if files is not None else None
        self._client_certificate = certificate
        self._certificates = [each for each in (certificate, peer_certificate) if each is not None]

        # The serving state and the parts that it publishes to.
        self._loop = ControlLoop()
        self._channels = WorkerChannels()
        self._ledger_dispatcher = LedgerDispatcher(own_id, self._channels.send)
        self.activity = Activity()
        counters, reports, signals = CounterTotals(), Reports(), PodSignals(time.process_time())
        peer_reports = PeerReports(self._live_peers)
        self._tokens = tokens = TokenAuthority(
            token_keys if settings.token_issuing else None,
            lambda: self._channels.broadcast(TrustUpdate(tokens.trust)),
            lifetime_seconds=settings.token_lifetime_seconds,
            rotation_seconds=settings.token_key_rotation_seconds,
        )
        joined = cluster if isinstance(cluster, JoinedCluster) else None
        self.serving = ServingState(
            cluster, loop=self._loop, reports=reports, peer_reports=peer_reports,
            ledger_dispatcher=self._ledger_dispatcher, tokens=tokens, channels=self._channels,
            on_decision=_decision_recorder(self.activity),
            publish_to_peers=_publisher(self._ledger_dispatcher, publishes=joined is None and not in_cluster),
        )  # fmt: skip
        self._leadership = Leadership(
            SupervisedPod(self.serving, self._loop, reports, self.activity), self._ledger_dispatcher, peer_reports,
            joined, by_election=in_cluster,
        )  # fmt: skip
        self._recorder = TimelineRecorder(
            self.serving, counters, self._loop.decision, lambda: self._leadership.leads,
            lambda: self._ledger_dispatcher.links,
        )  # fmt: skip
        self._overload = OverloadMonitor(
            self.serving, self.activity.rates, self._loop.decision, lambda: self._leadership.leads
        )

        # Events of the cluster and of workers.
        self._cluster_events = ClusterEvents(self.serving, self._loop, counters, self.activity, self._recorder)
        worker_events = WorkerEvents(
            serving=self.serving, channels=self._channels, reports=reports, counters=counters, loop=self._loop,
            ledger_dispatcher=self._ledger_dispatcher, leadership=self._leadership, tokens=tokens, signals=signals,
            activity=self.activity, recorder=self._recorder, certificate=certificate, cluster=cluster,
        )  # fmt: skip
        self._collector = CollectorProcess(
            settings, own_id, self.serving.replicas, human_log=human_log, in_cluster=in_cluster
        )
        self._workers = WorkerPool(
            settings, worker_events, self._listeners, self._channels, human_log=human_log,
            peer_listeners=peer_listeners, collection_socket=lambda: self._collector.worker_socket,
        )  # fmt: skip
        self._self_scaling = SelfScalingLoop(
            settings, own_id, workers=self._workers, signals=signals, peers=LoadBroadcast(self._ledger_dispatcher),
            in_cluster=in_cluster, pod_actuator=pod_actuator,
        )  # fmt: skip

        # The admin port, and messages of peers, which may request explanations.
        self._metrics_pusher = MetricsPusher(
            lambda: metrics_snapshot(self.overview), settings.metrics_push_seconds, time.monotonic()
        )
        self._readiness = Readiness(status, self._workers, self._self_scaling, self._certificates)
        self.overview = Overview(
            self.serving, loop=self._loop, counters=counters, reports=reports, peer_reports=peer_reports,
            ledger_dispatcher=self._ledger_dispatcher, leadership=self._leadership, workers=self._workers,
            activity=self.activity, effective=self.effective, dynamic=dynamic, timeline=self._recorder.timeline,
            service_settings_source=status.service_settings_source, probes=status.probes, scoring_url=self.scoring_url,
            samples=[
                self._metrics_pusher.samples, self._self_scaling.samples, tokens.samples, self._collector.samples,
                *(each.samples for each in self._certificates), status.samples,
            ],
            problems=[
                lambda: map(Problem, self._readiness.unmet_conditions()),
                lambda: map(Problem, self._readiness.warnings()),
                lambda: map(Problem, self.certificate_problems()),
                status.problems, self._overload.problems, self.activity.traces.problems,
                lambda: map(Problem, self._collector.problems()),
            ],
        )  # fmt: skip
        self._admin = AdminServer(
            settings.admin_host, settings.admin_port, metrics=lambda: metrics_snapshot(self.overview),
            unmet_conditions=self._readiness.unmet_conditions, warnings=self._readiness.warnings,
            host_names=[
                *settings.admin_hosts, settings.admin_host, socket.gethostname(), *filter(None, [settings.pod_name]),
            ],
        )  # fmt: skip
        self._status = StatusRoutes(self.overview)
        self._status.add_to(self._admin.routes)
        add_token_routes(self._admin.routes, tokens)
        LogConfigRoutes(self._log_config, self._override_log_config).add_to(self._admin.routes)
        self._peer_events = PeerEvents(
            self._leadership, self._self_scaling, self._status.explain_broker, self._recorder,
            self._workers.share_slots,
        )  # fmt: skip
        self._mesh: Mesh | None = None  # until `join`
        self._tasks: list[asyncio.Task[None]] = []
        self._force_stop = asyncio.Event()

    # Start and stop.

    async def start(self) -> None:
        """Open the listeners, follow the cluster and start the workers. Call `stop` afterwards, even if this fails or
        is cancelled.

        Raises OSError with the name of the setting if an address cannot be bound, `SettingsError` if traces or metrics
        cannot be exported, and the exceptions of `cluster.start`.
        """
        settings, errors = self.effective.values, listen_error_collector()
        with errors.collect():
            self._listeners.open()
        with errors.collect():
            await self._admin.start()
        errors.raise_errors()
        targets, pod = ExportTargets(settings, os.environ), self._ledger_dispatcher.own_id
        self.activity.traces.start(
            targets, pod, settings.scoring_prefix, self.overview.replica_endpoint, settings.app_insights_sample_ratio
        )
        self._metrics_pusher.start(targets.metrics, pod)
        self._tokens.start()
        self._collector.open()
        await self._cluster.start(self._cluster_events)
        await self._workers.resize(self._self_scaling.initial_workers())
        self._tasks.append(asyncio.ensure_future(self._tick_periodically()))

    async def join(self, mesh: Mesh) -> None:
        """Route requests together with the pods of `mesh`.

        Call this before the cluster reports services. `mesh` should expect the peers that already run. Raises OSError
        if the address for peers cannot be bound.
        """
        self._mesh = mesh
        self._ledger_dispatcher.join(mesh)
        await mesh.start()

    async def stop(self) -> bool:
        """Drain the workers, then stop the cluster. Return False if requests were aborted.

        First this pod becomes unready and tells clients to reconnect, for `shutdown_delay_seconds`. In this time load
        balancers remove the pod. Then it closes its listeners, finishes its requests, and stops all other parts.
        """
        self._readiness.begin_stop()
        await self._self_scaling.stop()
        settings = self.effective.values
        stop_at = time.monotonic() + settings.shutdown_delay_seconds + settings.drain_seconds
        await self._lame_duck()
        self._listeners.close()
        async with contextlib.AsyncExitStack() as cleanup:  # each step runs even if others fail; the last one first
            if self._mesh is not None:
                cleanup.push_async_callback(self._mesh.stop)
            cleanup.push_async_callback(self._tokens.stop)
            cleanup.push_async_callback(self._admin.stop)
            cleanup.callback(self._status.close)
            cleanup.push_async_callback(asyncio.to_thread, self.activity.traces.stop)
            cleanup.push_async_callback(self._metrics_pusher.stop)
            cleanup.push_async_callback(self._stop_cluster)
            # Ticks run until the workers have stopped: they report the remaining requests to peers, and a peer that
            # drains a replica waits for these reports.
            cleanup.callback(self._cancel_tasks)
            cleanup.push_async_callback(self._stop_collector, stop_at)
            return await self._workers.stop(settings.drain_seconds)

    async def _lame_duck(self) -> None:
        """Serve for another `shutdown_delay_seconds`. Clients close their connections to this pod, and peers take over
        the ledgers."""
        self._ledger_dispatcher.leave()
        seconds = self.effective.values.shutdown_delay_seconds
        if self._workers.accepting and seconds:
            self._workers.begin_lame_duck()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._force_stop.wait()

    async def _stop_collector(self, stop_at: float) -> None:
        """Let the collector store what is left, until this time."""
        seconds = 0.0 if self._force_stop.is_set() else stop_at - time.monotonic()
        await self._collector.stop(seconds)

    async def _stop_cluster(self) -> None:
        stopping = asyncio.ensure_future(self._cluster.stop())
        forced = asyncio.ensure_future(self._force_stop.wait())
        await asyncio.wait((stopping, forced), return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if stopping.done():
            stopping.result()
        else:
            stopping.cancel()  # kills the remaining replicas
            await asyncio.wait((stopping,))
            await self._cluster.stop()

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    def force_stop(self) -> None:
        """While stopping: abort the requests in flight and kill the replicas."""
        self._force_stop.set()
        self._workers.kill()
        self._collector.stop_soon()

    async def replace_workers(self) -> None:
        """Replace all workers one by one, without losing a request. Raises OSError if no process can be started."""
        await self._workers.replace_all()

    # Periodic calls.

    async def _tick_periodically(self) -> None:
        while True:
            started_at = time.monotonic()
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            self.activity.supervisor_lag.observe(max(now - started_at - _TICK_SECONDS, 0.0))
            self._tick(now)

    def _tick(self, now: float) -> None:
        log.report_repeats()
        self._ledger_dispatcher.tick()
        self._workers.check_responsiveness(now)
        self._leadership.tick(now)
        self._recorder.tick(now)
        self._overload.tick(now)
        workers = frozenset(status.pid for status in self._workers.statuses())
        self._collector.tick(self.serving.services, workers)
        self._poll_certificates()
        self._metrics_pusher.tick(now)
        leads = self._leadership.leads
        self._self_scaling.tick(now, leads=leads)
        if leads and not self._readiness.stopping:
            self.serving.scale(now)

    def _poll_certificates(self) -> None:
        for certificate in self._certificates:
            pair = certificate.poll(time.time())
            if pair is not None and certificate is self._client_certificate:
                self._channels.broadcast(CertificateUpdate(pair))

    def certificate_problems(self) -> list[str]:
        """Return the problems of the mounted certificates that an operator should correct, one line each."""
        now = time.time()
        return [problem for certificate in self._certificates for problem in certificate.problems(now)]

    # Changes.

    def change_settings(self, configured: SourcedSettings) -> None:
        """Apply what the sources of settings have now. Settings without the mark `dynamic` wait for the next start."""
        changes = self.effective.change(configured)
        self._apply_settings(changes.applied)
        if changes.pending:
            message = "settings of the router take effect at the next start"
            event(_log, logging.WARNING, message, settings=list(map(str, changes.pending)))

    def _log_config(self) -> LogConfig:
        return LogConfig(self.effective.values.log_level, self.effective.values.access_log)

    def _override_log_config(self, config: LogConfig) -> None:
        self._apply_settings(self.effective.override("POST /logging", **config._asdict()))

    def _apply_settings(self, changes: Sequence[SettingChange]) -> None:
        """Apply the settings in effect to all parts, after these changes."""
        if not changes:
            return
        settings = self.effective.values
        if not _log.isEnabledFor(logging.INFO):
            log.set_level(settings.log_level)  # so that the change is logged if the old or the new level permits it
        event(_log, logging.INFO, "settings of the router changed", settings=list(map(str, changes)))
        log.set_level(settings.log_level)
        self._listeners.change_settings(settings)
        self._workers.change_settings(settings)
        self._self_scaling.change_settings(settings)
        self.activity.record_config_changes(time.time(), map(str, changes))

    def set_token_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """Accept tokens of these issuers, in addition to the router's own."""
        self.serving.set_token_issuers(issuers)

    def on_leader_change(self, leads: bool, term: int, leader: str, counts: Mapping[VersionKey, int]) -> None:
        """Record the result of an election: whether this pod leads, the leadership term, and the id of the leader (""
        if there is none).

        `counts` has the current replica count of each version.
        """
        if leads and not self._leadership.leads:
            self._loop.restart(time.monotonic(), counts)
        self._leadership.on_leader_change(leads, term, leader)

    # State.

    def _live_peers(self) -> frozenset[str]:
        return self._ledger_dispatcher.links.live()

    @property
    def peer_observer(self) -> MeshObserver:
        """The observer for the `Mesh` of this pod."""
        return self._peer_events

    @property
    def port(self) -> int:
        """The open port for HTTP; 0 if there is none."""
        return self._listeners.port

    @property
    def https_port(self) -> int:
        """The open port for HTTPS; 0 if there is none."""
        return self._listeners.https_port

    @property
    def admin_port(self) -> int:
        """The admin port."""
        return self._admin.port

    def scoring_url(self) -> str:
        """Return the address of all services, without the name of one. In a cluster the host is `$ROUTER`: clients use
        the address of the router's Service, which no pod knows."""
        scheme, port = ("http", self.port) if self.port else ("https", self.https_port)
        host = "$ROUTER" if self._in_cluster else host_port(self.effective.values.host, port)
        return f"{scheme}://{host}{self.effective.values.scoring_prefix}"

    @property
    def services(self) -> Mapping[str, Service]:
        """The services, by name."""
        return self.serving.services

    def replicas(self, key: VersionKey) -> VersionReplicas:
        """The replicas of a version; none if the version is unknown."""
        return self.serving.replicas(key)

    def log_environment(self, key: VersionKey, version: Version) -> Mapping[str, str]:
        """The variables with which the entry script of a local replica logs data; none if it does not."""
        return self._collector.environment(key, version)

    def version_metrics(self, key: VersionKey) -> VersionMetrics:
        """The current state of a version. Raises KeyError if it is not served."""
        return self.overview.version_metrics(key)


def _decision_recorder(activity: Activity) -> Callable[[ScalingStep], None]:
    def record(step: ScalingStep) -> None:
        if step.decision is not None:
            activity.record_decision(step.key, step.direction, step.decision, time.time())

    return record


def _publisher(ledger_dispatcher: LedgerDispatcher, *, publishes: bool) -> Callable[[ClusterTable], None]:
    """Return a function that sends a table to the routers that have joined this one, if it publishes its cluster."""

    def publish(table: ClusterTable) -> None:
        if publishes:
            ledger_dispatcher.links.broadcast(table)

    return publish
