"""The pod's main process: puts the parts together and carries word between them.

    cluster  -- services, replicas -->  supervisor  -- table, ledger messages -->  workers
       ^                                |   |   ^                                     |
       +------- scale ------ control loop   |   +--------- wants, reports ------------+
                                        ledgers, metrics

It holds no request and decides nothing itself: ledgers decide about slots, the control loop about replicas, workers
about requests.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence

from router import __version__
from router.cluster import Cluster
from router.cpu import available_cpus
from router.gateway.control import FromLedger, Replicas, Report, Services, ToLedgers, VersionReport
from router.gateway.gateway import BACKLOG
from router.scaling.demand import Demand
from router.scaling.loop import ControlLoop, Step
from router.scaling.scaler import Cordon, SetReplicas, Uncordon
from router.services import Replica, ReplicaState, Service, Version, VersionKey
from router.settings import RouterSettings
from router.slots.coordinator import Coordinator
from router.slots.holder import Totals
from router.telemetry.admin import AdminServer
from router.telemetry.counters import Totals as CounterTotals
from router.telemetry.log import event
from router.telemetry.metrics import MetricsView, VersionFacts
from router.workers import Workers

_log = logging.getLogger("router.supervisor")
_audit = logging.getLogger("router.scaling")

_TICK_SECONDS = 0.1
_NOTHING = Totals(0.0, 0.0, 0, 0, 0, 0.0)


class Supervisor:
    """Runs a cluster's router on this machine. Is the listener of both its cluster and its workers."""

    def __init__(self, settings: RouterSettings, *, human_log: bool) -> None:
        self._settings = settings
        self._human_log = human_log
        self._coordinator = Coordinator()
        self._loop = ControlLoop()
        self._counters = CounterTotals()
        self._services: Mapping[str, Service] = {}
        self._versions: dict[VersionKey, Version] = {}
        self._replicas: dict[VersionKey, tuple[Replica, ...]] = {}
        self._reports: dict[str, dict[VersionKey, VersionReport]] = {}  # by worker
        self._dropped_lines: dict[str, int] = {}
        self._cluster: Cluster | None = None
        self._workers: Workers | None = None
        self._admin: AdminServer | None = None
        self._socket: socket.socket | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._config_errors = 0
        self._last_reload_succeeded = True
        self._changed: Callable[[], None] = lambda: None

    # Life.

    async def start(self, cluster: Cluster, changed: Callable[[], None] = lambda: None) -> None:
        """Listen, start workers, follow the cluster. `changed` is called when services or replicas have changed.

        Raises OSError, with the setting's name, when a port cannot be listened on, and what `cluster.start` raises.
        """
        self._changed = changed
        self._socket = _listen(self._settings.host, self._settings.port)
        self._admin = AdminServer(
            self._settings.admin_host, self._settings.admin_port, metrics=self._metrics, ready=self._not_ready
        )
        await self._admin.start()
        self._cluster = cluster
        self._workers = Workers(self._settings, self, [self._socket], human_log=self._human_log)
        await cluster.start(self)
        await self._workers.resize(self._settings.workers or available_cpus())
        self._ticking = asyncio.ensure_future(self._tick())

    async def stop(self) -> bool:
        """Drain the workers, then end the cluster's replicas. False if requests had to be cut."""
        if self._ticking is not None:
            self._ticking.cancel()
        complete = True
        if self._socket is not None:
            self._socket.close()
        if self._workers is not None:
            complete = await self._workers.stop(self._settings.drain_seconds)
        if self._cluster is not None:
            await self._cluster.stop()
        if self._admin is not None:
            await self._admin.stop()
        return complete

    def hurry(self) -> None:
        """While stopping: wait for requests in flight no longer."""
        if self._workers is not None:
            self._workers.kill()

    @property
    def port(self) -> int:
        """The port that clients use."""
        return int(self._socket.getsockname()[1]) if self._socket is not None else self._settings.port

    @property
    def admin_port(self) -> int:
        """The port that operators use."""
        return self._admin.port if self._admin is not None else self._settings.admin_port

    async def replace_workers(self) -> None:
        """Replace all workers, one by one, with no request lost."""
        if self._workers is not None:
            await self._workers.replace_all()

    def config_refused(self) -> None:
        """Note that a changed file was not taken."""
        self._config_errors += 1
        self._last_reload_succeeded = False

    def config_taken(self) -> None:
        """Note that a changed file is in force."""
        self._last_reload_succeeded = True

    # The cluster speaks.

    def services_changed(self, services: Mapping[str, Service]) -> None:
        self._services = dict(services)
        self._versions = {(s.name, v.name): v for s in services.values() for v in s.versions}
        self._loop.services_changed(services, time.monotonic())
        self._coordinator.retain(self._versions)
        self._counters.retain(self._versions)
        self._replicas = {key: known for key, known in self._replicas.items() if key in self._versions}
        if self._workers is not None:
            self._workers.broadcast(Services(services))
        for key in self._versions:
            self._set_slots(key)
        self._changed()

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        if key not in self._versions:
            return
        self._replicas[key] = replicas
        self._loop.replicas_changed(key, replicas, time.monotonic())
        if self._workers is not None:
            self._workers.broadcast(self._table(key))
        self._set_slots(key)
        self._changed()

    def notice(self, key: VersionKey | None, level: int, message: str, **fields: object) -> None:
        if key is None:
            event(_log, level, message, exception=None, **fields)
        else:
            event(_log, level, message, exception=None, service=key[0], version=key[1], **fields)

    def _table(self, key: VersionKey) -> Replicas:
        """What workers know of a version's replicas: also those on their way out, whose requests go on."""
        known = tuple(r for r in self._replicas.get(key, ()) if r.state is not ReplicaState.STARTING)
        return Replicas(key, known, self._loop.cordoned(key))

    def _set_slots(self, key: VersionKey) -> None:
        """Tell the ledger which replicas may be sent requests, and how many each."""
        slots = self._versions[key].replica_max_concurrent_requests
        known = {r.id: r for r in self._replicas.get(key, ()) if r.state is not ReplicaState.STARTING}
        self._coordinator.set_replicas(key, dict.fromkeys(known, slots) if slots else {})
        leaving = {r.id for r in known.values() if r.state is ReplicaState.DRAINING}
        self._coordinator.cordon(key, leaving | self._loop.cordoned(key))

    # What the cluster asks before it stops a replica.

    async def drained(self, replica_id: str, seconds: float) -> bool:
        """Wait until a replica has no request in flight, at most so long; False when it still has."""
        key = self._key_of(replica_id)
        until = time.monotonic() + seconds
        while key is not None and self._in_flight(key, replica_id):
            if time.monotonic() >= until:
                return False
            await asyncio.sleep(_TICK_SECONDS)
        return True

    def is_busy(self, replica_id: str) -> bool:
        """Whether a replica has requests in flight."""
        key = self._key_of(replica_id)
        return key is not None and self._in_flight(key, replica_id) > 0

    def _key_of(self, replica_id: str) -> VersionKey | None:
        return next((k for k, replicas in self._replicas.items() if any(r.id == replica_id for r in replicas)), None)

    # Workers speak.

    def worker_started(self, name: str) -> None:
        if self._workers is None:
            return
        workers = self._workers
        self._coordinator.attach(name, lambda key, message: workers.send(name, FromLedger(key, message)))
        workers.send(name, Services(self._services))
        for key in self._replicas:
            workers.send(name, self._table(key))

    def worker_said(self, name: str, message: ToLedgers | Report) -> None:
        if isinstance(message, ToLedgers):
            if message.key in self._versions:
                self._coordinator.receive(name, message.key, message.messages)
            return
        reports = self._reports.setdefault(name, {})
        for key, report in message.versions.items():
            before = reports.get(key)
            if key in self._versions:
                reports[key] = report
                self._loop.add_demand(key, _demand(before.totals if before else _NOTHING, report.totals))
        self._dropped_lines[name] = message.access_log_dropped
        if message.counters is not None:
            self._counters.report(name, 0, message.counters)

    def worker_ended(self, name: str) -> None:
        self._coordinator.detach(name)
        self._reports.pop(name, None)
        self._counters.ended(name, 0)

    # The control loop.

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = time.monotonic()
            for step in tuple(self._loop.tick(now, self._in_flight)):
                self._carry_out(step)

    def _in_flight(self, key: VersionKey, replica_id: str) -> int:
        """Requests at a replica. Of a cordoned one also leases that are not back yet: a request may be on its way."""
        busy = sum(reports[key].busy.get(replica_id, 0) for reports in self._reports.values() if key in reports)
        ledger = self._coordinator.ledger(key)
        if replica_id in self._loop.cordoned(key) and ledger is not None:
            return max(busy, ledger.out(replica_id))
        return busy

    def _carry_out(self, step: Step) -> None:
        key = step.key
        cordoned = set(self._loop.cordoned(key))
        for action in step.actions:
            match action:
                case SetReplicas(count, remove):
                    if self._cluster is not None:
                        self._cluster.scale(key, count, remove)
                case Cordon(ids):
                    cordoned.update(ids)
                case Uncordon(ids):
                    cordoned.difference_update(ids)
                    self._coordinator.uncordon(key, ids)
        if cordoned != self._loop.cordoned(key):
            self._loop.set_cordoned(key, cordoned)
            self._coordinator.cordon(key, cordoned)
            if self._workers is not None:
                self._workers.broadcast(self._table(key))
        if step.changed and step.decision is not None:
            event(
                _audit, logging.INFO, "scaling decision", service=key[0], version=key[1],
                desired=step.decision.desired, reason=step.decision.reason,
            )  # fmt: skip

    # What is so.

    def facts(self, key: VersionKey) -> VersionFacts:
        """A version at this moment, as far as workers have reported."""
        reports = [reports[key] for reports in self._reports.values() if key in reports]
        in_flight = sum(sum(report.busy.values()) for report in reports)
        slots = self._versions[key].replica_max_concurrent_requests
        ready = self._loop.replicas_by_state(key)[ReplicaState.READY.value]
        decision = self._loop.decision(key)
        ledger = self._coordinator.ledger(key)
        out = sum(ledger.out(r.id) for r in self._replicas.get(key, ())) if ledger is not None else 0
        return VersionFacts(
            in_flight=in_flight,
            queued=sum(report.waiting for report in reports),
            slots=slots * ready if slots else None,
            slots_in_use=in_flight if slots else 0,
            leases_idle=max(out - in_flight, 0) if slots else 0,
            replicas_by_state=self._loop.replicas_by_state(key),
            desired=decision.desired if decision is not None else 0,
            utilization=decision.utilization if decision is not None and slots else None,
            scaling_decisions=self._loop.decisions(key),
        )

    @property
    def services(self) -> Mapping[str, Service]:
        """The services that are served."""
        return self._services

    def replicas(self, key: VersionKey) -> tuple[Replica, ...]:
        """The replicas of a version, whatever their state."""
        return self._replicas.get(key, ())

    def _metrics(self) -> MetricsView:
        return MetricsView(
            router_version=__version__,
            counters=self._counters.total(),
            versions={key: self.facts(key) for key in self._versions},
            workers=len(self._workers) if self._workers is not None else 0,
            slot_leaks_repaired=0,
            access_log_dropped=sum(self._dropped_lines.values()),
            config_errors=self._config_errors,
            config_last_reload_success=self._last_reload_succeeded,
        )

    def _not_ready(self) -> Sequence[str]:
        """What is still missing before clients should be sent here. A model without replicas is no such thing: it has
        its own answer, and must not take the others' router away."""
        if self._workers is None or not self._workers.accepting:
            return ["no worker accepts clients yet"]
        return []


def _demand(before: Totals, after: Totals) -> Demand:
    """What one worker saw between two reports; the control loop knows the time in between."""
    return Demand(
        seconds=0.0,
        busy_seconds=after.busy_seconds - before.busy_seconds,
        queued_seconds=after.queued_seconds - before.queued_seconds,
        arrivals=after.arrivals - before.arrivals,
        refused=after.refused - before.refused,
        completed=after.completed - before.completed,
        service_seconds=after.service_seconds - before.service_seconds,
    )


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket for clients. Raises OSError that names the setting."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"port: {port} cannot be listened on at {host}: {reason}; allowed: a free port") from error
    sock.setblocking(False)
    return sock
