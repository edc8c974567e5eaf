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
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from router.auth.issuers import Issuer
from router.certificates import Certificates, server_files
from router.cluster import Cluster
from router.cluster.joined import JoinedCluster
from router.gateway.control import Certificate, Report, ToLedgers, Traces, Trusted, UnknownKey
from router.overview.logging import LoggingRoutes, WhatIsLogged
from router.overview.overview import Overview
from router.overview.routes import StatusRoutes
from router.peering import Peering
from router.peers import messages as peer_messages
from router.peers.mesh import Mesh
from router.pods import REPORT_SECONDS, Pods
from router.ports import Ports, check_ports, open_ports
from router.reports import Reports, Sent, seen_in
from router.scaling.demand import Demand
from router.scaling.load import Load
from router.scaling.loop import ControlLoop, Step
from router.served import LOOK_SECONDS, Served
from router.services import Replica, Service, Version, VersionKey
from router.settings import RouterSettings
from router.sizing.sizing import Sizing
from router.telemetry import log
from router.telemetry.admin import AdminServer
from router.telemetry.log import event
from router.telemetry.metrics import VersionFacts
from router.telemetry.totals import Totals as CounterTotals
from router.tokens.authority import TokenAuthority
from router.tokens.routes import add_token_routes
from router.tokens.store import RingStore
from router.workers import Workers

_log = logging.getLogger("router.supervisor")


class Supervisor:
    """Runs a cluster's router on this machine. Is the listener of both its cluster and its workers."""

    def __init__(
        self,
        settings: RouterSettings,
        *,
        own_id: str,
        human_log: bool,
        joined: JoinedCluster | None = None,
        peer_socket: socket.socket | None = None,
        token_keys: RingStore | None = None,
        by_election: bool = False,
    ) -> None:
        """`own_id` is no other pod's. `joined` is the cluster, where it is another pod's that leads; `by_election`: who
        leads is told by `elected`, and nobody does before. `peer_socket` is
        where peers connect: workers keep it open, so that nobody is refused there as long as one of them lives, which
        is how peers know that none of this pod's requests runs any more, even if this process is killed. `token_keys`
        are those that the router signs tokens with."""
        self._settings = settings
        self._human_log = human_log
        self._loop = ControlLoop()
        self._counters = CounterTotals()
        self._reports = Reports()
        self._workers: Workers | None = None
        self._peering = Peering(own_id, self._to_worker)
        self._pods = Pods(self, self._peering, joined, by_election=by_election)
        self._served = Served(
            loop=self._loop, reports=self._reports, peering=self._peering, pods=self._pods,
            to_workers=self._to_workers, sent=self._sent, decided=self._decided,
        )  # fmt: skip
        self._mesh: Mesh | None = None
        self._tokens = TokenAuthority(
            token_keys if settings.token_issuing else None,
            self._trust_changed,
            lifetime_seconds=settings.token_lifetime_seconds,
            rotation_seconds=settings.token_key_rotation_seconds,
        )
        self._token_issuers: Mapping[str, Issuer] = {}
        self._admin: AdminServer | None = None
        self._peer_socket = peer_socket
        self._ports: Ports | None = None
        self._shown: Certificates | None = None  # to clients
        self._certificates: list[Certificates] = []
        self._status: StatusRoutes | None = None
        self._logged = WhatIsLogged(settings.log_level, settings.access_log)
        self._ticking: asyncio.Task[None] | None = None
        self.overview = Overview(
            self, loop=self._loop, counters=self._counters, reports=self._reports, peering=self._peering,
            pods=self._pods,
        )  # fmt: skip
        self.overview.problems += [self._not_ready, lambda: [note for tell in self.notes for note in tell()]]
        self.sizing = Sizing(settings, own_id, self)
        self.overview.sources.append(self.sizing.samples)
        self.overview.sources.append(self._tokens.samples)
        self.conditions: list[Callable[[], Iterable[str]]] = []
        """Each tells what else is missing before clients should be sent here."""
        self.notes: list[Callable[[], Iterable[str]]] = []
        """Each tells what an operator who asks whether this is ready should know all the same."""
        self._stopping = False
        self._hurried = asyncio.Event()

    # Life.

    async def start(self, cluster: Cluster) -> None:
        """Listen, follow the cluster, start workers. `stop` must follow, also when this fails or is cancelled.

        Raises OSError, with the setting's name, when a port cannot be listened on, `SettingsError` when clients could
        connect in no way or a certificate is no good, and what `cluster.start` raises.
        """
        check_ports(self._settings)
        if (files := server_files(self._settings)) is not None:
            self._shown = Certificates(files, time.time())
            self.keep(self._shown)
        self._ports = open_ports(self._settings)
        self._admin = AdminServer(
            self._settings.admin_host, self._settings.admin_port, metrics=self.overview.metrics, ready=self._not_ready,
            notes=lambda: [note for tell in self.notes for note in tell()],
        )  # fmt: skip
        if self._settings.traces != "off":
            self.overview.traces.start(
                self._settings.traces, self._settings.otlp_endpoint, self._peering.own_id,
                self._settings.scoring_prefix + "{service}", self.overview.address_of,
            )  # fmt: skip
        self._status = StatusRoutes(self.overview)
        self._status.add_to(self._admin.routes)
        self._pods.inquiries = self._status.inquiries
        add_token_routes(self._admin.routes, self._tokens)
        LoggingRoutes(lambda: self._logged, self.set_logging).add_to(self._admin.routes)
        await self._admin.start()
        self._tokens.start()
        self._served.cluster = cluster
        self._workers = Workers(
            self._settings,
            self,
            self._ports.plain,
            tls_sockets=self._ports.tls,
            human_log=self._human_log,
            kept=[self._peer_socket] if self._peer_socket is not None else [],
        )
        self.overview.workers = self._workers
        await cluster.start(self)
        await self._workers.resize(self.sizing.first_workers(self._workers))
        self._ticking = asyncio.ensure_future(self._tick())

    async def stop(self) -> bool:
        """Drain the workers, then end the cluster's replicas. False if requests had to be cut.

        The order: not ready any more, and clients are told to go; load balancers have their time to notice; no new
        connection is accepted; what is under way ends; then all else.
        """
        self._stopping = True
        await self.sizing.stop()
        await self._part()
        if self._ports is not None:
            self._ports.close()
        async with contextlib.AsyncExitStack() as afterwards:  # whatever fails, the rest is done
            if self._mesh is not None:
                afterwards.push_async_callback(self._mesh.stop)
            afterwards.push_async_callback(self._tokens.stop)
            if self._admin is not None:
                afterwards.push_async_callback(self._admin.stop)
            if self._status is not None:
                afterwards.callback(self._status.close)
            afterwards.push_async_callback(asyncio.to_thread, self.overview.traces.stop)
            if self._served.cluster is not None:
                afterwards.push_async_callback(self._stop_cluster, self._served.cluster)
            if self._ticking is not None:
                # Other pods hear of requests here until there are none; who drains a replica waits for that.
                afterwards.callback(self._ticking.cancel)
            return self._workers is None or await self._workers.stop(self._settings.drain_seconds)

    async def _part(self) -> None:
        """Go on as before for a while, but for telling everyone to go elsewhere."""
        self._peering.leave()
        if self._workers is not None and self._workers.accepting and self._settings.shutdown_delay_seconds:
            self._workers.part()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.shutdown_delay_seconds):
                    await self._hurried.wait()

    async def _stop_cluster(self, cluster: Cluster) -> None:
        stopping, hurried = asyncio.ensure_future(cluster.stop()), asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait((stopping, hurried), return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if stopping.done():
            stopping.result()
        else:
            stopping.cancel()  # it then kills what is left
            await asyncio.wait((stopping,))
            await cluster.stop()

    def hurry(self) -> None:
        """While stopping: wait no longer, neither for requests in flight nor for replicas to end."""
        self._hurried.set()
        if self._workers is not None:
            self._workers.kill()

    @property
    def port(self) -> int:
        """The port that clients use without TLS; 0 if there is none."""
        return self._ports.port if self._ports is not None else self._settings.port

    @property
    def https_port(self) -> int:
        """The port that clients use with TLS; 0 if there is none."""
        return self._ports.https_port if self._ports is not None else 0

    @property
    def admin_port(self) -> int:
        """The port that operators use."""
        return self._admin.port if self._admin is not None else self._settings.admin_port

    async def replace_workers(self) -> None:
        """Replace all workers, one by one, with no request lost."""
        if self._workers is not None:
            await self._workers.replace_all()

    def set_logging(self, logged: WhatIsLogged) -> None:
        """Log this from now on, in all processes."""
        former, self._logged = self._logged, logged
        log.set_level(logged.log_level)
        if self._workers is not None:
            self._workers.set_logging(*logged)
        if logged != former:
            event(_log, logging.INFO, "logging changed", **logged._asdict())

    def config_refused(self, error: str) -> None:
        """Note that a changed file was not taken, and why."""
        self.overview.config_refused(time.time(), error)

    def config_taken(self) -> None:
        """Note that a changed file is in force."""
        self.overview.config_taken()

    def set_token_issuers(self, issuers: Mapping[str, Issuer]) -> None:
        """Accept tokens of these issuers, beside the router's own."""
        self._token_issuers = issuers
        self._tokens.set_issuers(issuers)
        self._pods.share(peer_messages.TokenIssuers(issuers))

    def _trust_changed(self) -> None:
        self._to_workers(Trusted(self._tokens.trust))

    # The cluster speaks.

    def services_changed(self, services: Mapping[str, Service]) -> None:
        self._tokens.set_services(services)
        self._served.set_services(services)
        self._counters.retain(self.versions)
        self.overview.rates.retain(self.versions)
        self.overview.traces.retain(self.versions)

    def replicas_changed(self, key: VersionKey, replicas: tuple[Replica, ...]) -> None:
        self._served.set_replicas(key, replicas)

    def count_set(self, key: VersionKey, replicas: int) -> None:
        self._loop.count_set(key, replicas)

    def left_alone(self, key: VersionKey, why: str | None) -> None:
        self._served.left_alone(key, why)

    def elected(self, leads: bool, term: int, leader: str, counts: Mapping[VersionKey, int]) -> None:
        """Whether this pod's control loop is the one that scales, and else which pod's; `counts` are the numbers of
        replicas that versions are to have so far."""
        if leads and not self._pods.leads:
            self._loop.start_over(time.monotonic(), counts)
        self._pods.elected(leads, term, leader)

    def notice(self, key: VersionKey | None, level: int, message: str, **fields: object) -> None:
        if key is None:
            event(_log, level, message, exception=None, **fields)
        else:
            event(_log, level, message, exception=None, service=key[0], version=key[1], **fields)

    # What the cluster asks before it stops a replica.

    async def drained(self, replica_id: str, seconds: float) -> bool:
        """See `Served.drained`."""
        return await self._served.drained(replica_id, seconds)

    def is_busy(self, replica_id: str) -> bool:
        """Whether a replica has requests in flight."""
        return self._served.is_busy(replica_id)

    # Workers hear.

    def _to_worker(self, name: str, message: object) -> None:
        if self._workers is not None:
            self._workers.send(name, message)

    def _to_workers(self, message: object) -> None:
        if self._workers is not None:
            self._workers.broadcast(message)

    def _sent(self) -> Sent:
        return self._workers.sent() if self._workers is not None else {}

    # Workers speak.

    def worker_started(self, name: str) -> None:
        if self._workers is None:
            return
        workers = self._workers
        self._reports.began(name)
        self._peering.worker_started(name)
        if self._shown is not None:
            workers.send(name, Certificate(self._shown.material))
        workers.send(name, Trusted(self._tokens.trust))
        for table in self._served.tables():
            workers.send(name, table)

    def worker_said(self, name: str, message: ToLedgers | Report | UnknownKey | Traces) -> None:
        if isinstance(message, Traces):
            self.overview.traces.take(name, message.traced, message.dropped, time.time() - time.monotonic())
            return
        if isinstance(message, UnknownKey):
            self._tokens.unknown_key(message.issuer)
            return
        if isinstance(message, ToLedgers):
            if message.key in self.versions:
                self._peering.worker_said(name, message.key, message.messages)
            return
        self._reports.take(name, message, self.versions)
        seen = seen_in(message)
        self._loop.add_seen(name, message.seconds, seen)
        now = time.monotonic()
        self.overview.saw(seen, now)
        self.overview.history.add(now, name, message.versions)
        self._pods.saw(seen)
        self._peering.worker_holds(name, {k: held for k, held in message.leases.items() if k in self.versions})
        self._counters.report(name, 0, message.counted)
        if message.counted.process is not None:
            self.sizing.worker_counted(name, message.counted.process)

    def worker_ended(self, name: str) -> None:
        self._peering.worker_ended(name)
        self._loop.front_end_gone(name)
        self._reports.ended(name)
        self.overview.traces.worker_ended(name)
        self.overview.history.ended(time.monotonic(), name)
        self.sizing.worker_ended(name)
        self._counters.ended(name, 0)

    # The control loop.

    async def _tick(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(LOOK_SECONDS)
            now = time.monotonic()
            self.overview.loop_was_late("supervisor", now - began - LOOK_SECONDS)
            self._peering.tick()
            if self._workers is not None:
                self._workers.look(now)
            self._pods.tick(now)
            self._look_at_certificates()
            self.sizing.tick(now, leads=self._pods.leads)
            if self._pods.leads and not self._stopping:
                self._served.scale(now)

    def _decided(self, step: Step) -> None:
        if step.decision is not None:
            self.overview.decided(step.key, step.changed, step.decision, time.time())

    def keep(self, certificates: Certificates) -> None:
        """Look at these now and then, and tell of them in metrics and on the status page."""
        self._certificates.append(certificates)
        self.overview.sources.append(certificates.samples)
        self.overview.problems.append(lambda: certificates.problems(time.time()))

    def _look_at_certificates(self) -> None:
        for certificates in self._certificates:
            material = certificates.look(time.time())
            if material is not None and certificates is self._shown:
                self._to_workers(Certificate(material))

    # Other pods.

    async def join(self, mesh: Mesh) -> None:
        """Route as one with the pods of `mesh`, which should expect those that run already, before the cluster tells of
        services. Raises OSError if the peer port cannot be listened on."""
        self._mesh = self.overview.mesh = mesh
        self._peering.join(mesh)
        await mesh.start()

    @property
    def pods(self) -> Pods:
        """The listener for `Mesh`."""
        return self._pods

    def tables(self) -> list[peer_messages.Services | peer_messages.TokenIssuers | peer_messages.Replicas]:
        """See `pods.Pod`."""
        return [peer_messages.TokenIssuers(self._token_issuers), *self._served.shared()]

    def report(self) -> tuple[Mapping[str, int], Mapping[VersionKey, int], frozenset[str]]:
        """See `pods.Pod`."""
        busy: Counter[str] = Counter()
        waiting: dict[VersionKey, int] = {}
        for key in self.versions:
            for said in self._reports.of(key):
                busy.update(said.busy)
                if said.waiting:
                    waiting[key] = waiting.get(key, 0) + said.waiting
        return busy, waiting, self._reports.closed_for_good()

    def cordons_told(self, key: VersionKey, cordoned: frozenset[str]) -> None:
        """See `pods.Pod`."""
        if key in self.versions:
            self._served.set_cordoned(key, cordoned)

    def cordons(self) -> Mapping[VersionKey, frozenset[str]]:
        """See `pods.Pod`."""
        return self._served.cordons()

    def demand_told(self, peer: str, reports: Mapping[VersionKey, Demand]) -> None:
        """See `pods.Pod`."""
        seen = {key: demand.seen for key, demand in reports.items()}
        self._loop.add_seen(peer, REPORT_SECONDS, seen)
        self.overview.saw(seen, time.monotonic())

    def peer_gone(self, peer: str) -> None:
        """See `pods.Pod`."""
        self._loop.front_end_gone(peer)
        self.sizing.pod_gone(peer)

    def tell_load(self, load: Load) -> None:
        """See `workers_sizer.Fleet`."""
        self._peering.links.broadcast(peer_messages.Felt(load))

    def tell_size(self, cpus: float) -> None:
        """See `workers_sizer.Fleet`."""
        self._peering.links.broadcast(peer_messages.PodSize(cpus))

    def has_peers(self) -> bool:
        """See `workers_sizer.Fleet`."""
        return bool(self._peering.links.live())

    def load_told(self, peer: str, load: Load) -> None:
        """See `pods.Pod`."""
        self.sizing.pod_felt(peer, load)

    def size_told(self, cpus: float) -> None:
        """See `pods.Pod`."""
        self.sizing.size_told(cpus)

    # What is so.

    def facts(self, key: VersionKey) -> VersionFacts:
        """A version at this moment, as far as workers have reported."""
        return self.overview.facts(key)

    @property
    def services(self) -> Mapping[str, Service]:
        """The services that are served."""
        return self._served.services

    @property
    def versions(self) -> Mapping[VersionKey, Version]:
        """Their versions."""
        return self._served.versions

    def replicas(self, key: VersionKey) -> tuple[Replica, ...]:
        """The replicas of a version, whatever their state."""
        return self._served.replicas(key)

    def _not_ready(self) -> Sequence[str]:
        """What is still missing before clients should be sent here. A model without replicas is no such thing: it has
        its own answer, and must not take the others' router away."""
        if self._stopping:
            return ["the router is about to stop"]
        missing = [condition for tell in self.conditions for condition in tell()]
        if self._workers is None or not self._workers.accepting:
            missing.append("no worker accepts clients")
        return missing or list(self.sizing.missing())
