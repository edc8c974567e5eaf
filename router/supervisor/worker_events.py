"""Dispatches the messages of workers to the parts of the supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from router.admin.activity import Activity
from router.admin.timeline_recorder import TimelineRecorder
from router.auth.issuing.token_authority import TokenAuthority
from router.cluster import Cluster
from router.net.certificate_reloader import CertificateReloader
from router.peers.leadership import Leadership
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.scaling.loop import ControlLoop
from router.scaling.self.signals import PodSignals
from router.supervisor.state import ServingState
from router.telemetry.totals import CounterTotals
from router.workers.channels import WorkerChannels
from router.workers.messages import (
    CertificateUpdate,
    LeaseRequests,
    Traces,
    TrustUpdate,
    UnknownTokenKey,
    WorkerReport,
)
from router.workers.process import WorkerMessage
from router.workers.reports import Reports


class WorkerEvents:
    """The `WorkerObserver` of a router."""

    def __init__(
        self,
        *,
        serving: ServingState,
        channels: WorkerChannels,
        reports: Reports,
        counters: CounterTotals,
        loop: ControlLoop,
        ledger_dispatcher: LedgerDispatcher,
        leadership: Leadership,
        tokens: TokenAuthority,
        signals: PodSignals,
        activity: Activity,
        recorder: TimelineRecorder,
        certificate: CertificateReloader | None,
        cluster: Cluster,
    ) -> None:
        """`certificate` is the one for client connections; None if clients connect without TLS.

        `cluster` is notified of failures of its replicas.
        """
        self._serving = serving
        self._channels = channels
        self._reports = reports
        self._counters = counters
        self._loop = loop
        self._ledger_dispatcher = ledger_dispatcher
        self._leadership = leadership
        self._tokens = tokens
        self._signals = signals
        self._activity = activity
        self._recorder = recorder
        self._certificate = certificate
        self._cluster = cluster
        self._handlers: Mapping[type, Callable[[str, Any], None]] = {
            LeaseRequests: self._on_lease_requests,
            Traces: self._on_traces,
            UnknownTokenKey: self._on_unknown_token_key,
            WorkerReport: self._on_report,
        }

    def on_worker_started(self, name: str) -> None:
        """Send a new worker the serving state, the certificate and the token trust."""
        self._reports.add_worker(name)
        self._ledger_dispatcher.on_worker_started(name)
        if self._certificate is not None and (pair := self._certificate.pair) is not None:
            self._channels.send(name, CertificateUpdate(pair))
        self._channels.send(name, TrustUpdate(self._tokens.trust))
        for update in self._serving.worker_updates():
            self._channels.send(name, update)

    def on_worker_message(self, name: str, message: WorkerMessage) -> None:
        """Dispatch a message by its type."""
        self._handlers[type(message)](name, message)

    def on_worker_ended(self, name: str) -> None:
        """Forget a worker. Its counters stay in the totals."""
        self._ledger_dispatcher.on_worker_ended(name)
        self._loop.remove_source(name)
        self._reports.remove_worker(name)
        self._activity.traces.worker_ended(name)
        self._activity.replica_health.remove_worker(name)
        self._activity.history.worker_ended(time.monotonic(), name)
        self._signals.on_worker_ended(name)
        self._counters.worker_ended(name, 0)

    def _on_lease_requests(self, name: str, message: LeaseRequests) -> None:
        if message.key in self._serving.versions:
            self._ledger_dispatcher.on_lease_requests(name, message.key, message.messages)

    def _on_traces(self, name: str, message: Traces) -> None:
        dropped = message.dropped, message.app_insights_dropped
        self._activity.traces.add(name, message.traced, dropped, time.time() - time.monotonic())

    def _on_unknown_token_key(self, _: str, message: UnknownTokenKey) -> None:
        self._tokens.on_unknown_key(message.issuer)

    def _on_report(self, name: str, report: WorkerReport) -> None:
        now = time.monotonic()
        versions = self._serving.versions
        self._reports.record(name, report, versions)
        usage = {key: version.usage for key, version in report.versions.items()}
        self._loop.add_usage(name, report.seconds, usage)
        self._leadership.on_usage(usage)
        self._activity.on_usage(usage, now)
        self._recorder.add_usage(usage)
        self._activity.history.add(now, name, report.versions)
        snapshots = {key: snapshot for key, snapshot in report.leases.items() if key in versions}
        self._ledger_dispatcher.on_held_snapshots(name, snapshots)
        failures = self._activity.replica_health.record(name, report.replica_health, now)
        for ejection in failures.ejections:
            self._cluster.report_ejection(ejection.key, ejection.replica, ejection.reason)
        for error in failures.server_errors:
            self._cluster.report_server_error(*error)
        self._counters.update(name, 0, report.counters)
        if report.counters.process is not None:
            self._signals.on_worker_counters(name, report.counters.process)
