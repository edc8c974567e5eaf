"""`azureml-fe serve`: the router in a Kubernetes pod.

Contains: the connection of the parts, and the pod's readiness. Does not contain: routing (`supervisor`), services and
replicas (`cluster.kubernetes`).

On SIGTERM the router gives up its leadership, stops accepting connections, finishes its requests, closes its links to
peers, and stops watching the cluster, in this order.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvloop

from router.auth.issuers import Issuer
from router.cli.dynamic import ClusterDynamicConfig, make_cluster_dynamic_config
from router.cli.run import StopSignal, bind_peer_listener
from router.cluster.kubernetes.access import TOKEN_KEY_SECRET_NAME
from router.cluster.kubernetes.client import ApiClient, field_manager_of
from router.cluster.kubernetes.cluster import KubernetesCluster, OwnProblem
from router.cluster.kubernetes.credentials import is_in_pod, load_credentials
from router.cluster.kubernetes.election import identity_of
from router.cluster.kubernetes.leader_elector import LeaderElector
from router.cluster.kubernetes.metrics import samples
from router.cluster.kubernetes.objects import NamespacedName, named_after
from router.cluster.kubernetes.peer_discovery import PeerDiscovery
from router.cluster.kubernetes.pod_actuator import PodActuator
from router.cluster.kubernetes.token_key_secret import TokenKeySecret
from router.cluster.local.config_file import load_router_file
from router.config.dynamic import NO_DYNAMIC_SETTINGS, DynamicSettings
from router.config.regular_file import read_regular_file
from router.config.router import CONFIG_VARIABLE, SERVE_DEFAULTS, RouterSettings, SourcedSettings, load_sourced_settings
from router.config.schema import SettingsError
from router.config.service_settings import COMPATIBILITY_DEFAULTS
from router.model.problems import Problem
from router.net.address import host_port
from router.peers.handshake import MIN_SECRET_BYTES, PeerIdentity
from router.peers.links import MeshObserver
from router.peers.mesh import Mesh
from router.peers.messages import Message
from router.peers.tls import peer_tls
from router.scaling.self.policy import pods_policy
from router.supervisor.readiness import ClusterStatus
from router.supervisor.supervisor import Supervisor
from router.telemetry import log
from router.telemetry.build_info import hot_path
from router.telemetry.catalogue import Sample
from router.workers.listeners import check_client_listeners

_log = logging.getLogger("router.cli")

_MAX_SECRET_BYTES = 4096  # the rest of a longer file is ignored


def run_serve(config: Path | None, flags: Mapping[str, object]) -> int:
    """Run the router until a signal arrives. Return the exit code.

    `config` is the file with the router's settings; the default is that of `CONFIG_VARIABLE`. Raises SettingsError or
    OSError if the router cannot start.
    """
    path = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    from_file, issuers = load_router_file(path) if path is not None else ({}, {})
    sources = ServeSources(from_file, issuers, flags)
    settings = sources.load().settings
    log.configure(settings.log_level, sys.stderr, human=sys.stderr.isatty())
    if settings.kubeconfig is None and not is_in_pod(os.environ):
        problem = (
            "serve runs in a pod of a Kubernetes cluster, and this is none; use `azureml-fe local` on this machine"
        )
        raise SettingsError("kubeconfig", None, f"{problem}, or give the path of a kubeconfig file")
    secret = _load_peer_secret(Path(settings.peer_secret_file))
    return uvloop.run(_run(sources, settings, secret))


async def _run(sources: ServeSources, settings: RouterSettings, secret: bytes) -> int:
    """Run the router. `settings` are those without the dynamic configuration."""
    account = await load_credentials(Path(settings.kubeconfig) if settings.kubeconfig is not None else None)
    router = NamespacedName(settings.pod_namespace or account.namespace, settings.router_name)
    api = ApiClient(account, field_manager_of(str(router)))
    try:
        dynamic = make_cluster_dynamic_config(settings, api, router)
        if dynamic is not None:
            await dynamic.config.load(sources.check)
            settings = sources.load(dynamic.config.settings).settings
            log.set_level(settings.log_level)
        host_setting = "pod_ip" if settings.pod_ip else "host"
        host = settings.pod_ip or settings.host
        peer_socket = bind_peer_listener(host, settings.peer_port, host_setting=host_setting)
        return await PodRouter(sources, dynamic, api, router, secret, peer_socket).run()
    finally:
        await api.close()


class ServeSources:
    """The sources of the settings of a router in a pod: its file, the dynamic configuration, environment and flags."""

    def __init__(self, file: Mapping[str, object], issuers: Mapping[str, Issuer], flags: Mapping[str, object]) -> None:
        self._file = file
        self.token_issuers = issuers
        self._flags = flags

    def load(self, dynamic: DynamicSettings = NO_DYNAMIC_SETTINGS) -> SourcedSettings:
        """Return the settings. Raises `SettingsError`."""
        return load_sourced_settings(
            environ=os.environ, file=self._file, dynamic=dynamic.router, flags=self._flags, defaults=SERVE_DEFAULTS
        )

    def check(self, dynamic: DynamicSettings) -> None:
        """Raise `SettingsError` if a dynamic configuration contradicts the other sources."""
        check_client_listeners(self.load(dynamic).settings)


class PodRouter:
    """One router in a pod."""

    def __init__(
        self,
        sources: ServeSources,
        dynamic: ClusterDynamicConfig | None,
        api: ApiClient,
        router: NamespacedName,
        secret: bytes,
        peer_socket: socket.socket,
    ) -> None:
        """`router` is the namespace of this router and its name. Raises SettingsError or OSError."""
        self._sources = sources
        self._dynamic = dynamic.config if dynamic is not None else None
        configured = sources.load(NO_DYNAMIC_SETTINGS if dynamic is None else dynamic.config.settings)
        self._settings = settings = configured.settings
        pod = settings.pod_name or re.sub("[^a-z0-9.-]", "-", socket.gethostname().lower())[:63]
        incarnation = PeerIdentity.new_incarnation()
        tls = peer_tls(settings, time.time(), may_wait=True)
        self._api = api
        self._elector = LeaderElector(self._api, router, identity_of(pod, incarnation), self._on_leader_change)
        self._discovery = PeerDiscovery(int(peer_socket.getsockname()[1]))
        self._cluster = self._make_cluster(router, pod)
        if dynamic is not None:
            self._cluster.set_overlays(dynamic.config.settings.services)
            dynamic.store.attach(self._cluster)
        self._actuator = self._make_pod_actuator(router) if settings.self_scaling_enabled else None
        token_keys = named_after(router.name, TOKEN_KEY_SECRET_NAME)
        self._supervisor = Supervisor(
            configured,
            self._cluster,
            own_id=pod,
            human_log=sys.stderr.isatty(),
            in_cluster=True,
            pod_actuator=self._actuator,
            peer_listeners=[peer_socket],
            token_keys=TokenKeySecret(self._api, NamespacedName(router.namespace, token_keys)),
            peer_certificate=tls.mounted,
            status=ClusterStatus(
                self._unmet_conditions, self._warnings, self._problems, self._samples,
                service_settings_source="annotations",
            ),
            dynamic=self._dynamic,
        )  # fmt: skip
        self._supervisor.set_token_issuers(sources.token_issuers)
        observer = _MeshObservers(self._supervisor.peer_observer, self._elector)
        self._mesh = Mesh(pod, peer_socket, secret, observer, tls=tls.links, incarnation=incarnation)
        self._has_joined = False
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = StopSignal(self._supervisor.force_stop)

    def _make_cluster(self, router: NamespacedName, pod: str) -> KubernetesCluster:
        settings = self._settings
        return KubernetesCluster(
            self._api,
            namespaces=settings.namespaces,
            router=router,
            observes=settings.observes,
            own_pod=pod,
            elector=self._elector,
            peers=self._discovery,
            generate_keys=settings.generate_keys,
            pause_seconds=settings.contested_scaling_pause_seconds,
            join=self._join,
            defaults=COMPATIBILITY_DEFAULTS[settings.compatibility],
            names_have_namespace=settings.names_have_namespace,
            own_problems=self._own_problems,
        )

    def _make_pod_actuator(self, router: NamespacedName) -> PodActuator:
        return PodActuator(
            self._api,
            router,
            self._cluster.event_recorder,
            pods_policy(self._settings),
            patience_seconds=self._settings.self_scaling_resize_patience_seconds,
            may_write=self._elector.leads,
        )

    async def run(self) -> int:
        """Serve until a signal arrives. Return the exit code."""
        try:
            await self._stop.run_until_received(self._start())
            log.event(_log, logging.INFO, "stopping", seconds=self._settings.drain_seconds)
        finally:
            for task in self._tasks:
                task.cancel()
            resigning = asyncio.ensure_future(self._cluster.resign())
            complete = await self._supervisor.stop()
            await resigning
        log.event(_log, logging.INFO, "stopped", complete=complete)
        return 0 if complete else 1

    async def _start(self) -> None:
        await self._supervisor.start()
        if self._actuator is not None:
            self._tasks.append(asyncio.ensure_future(self._actuator.run()))
        if self._dynamic is not None:
            self._tasks.append(asyncio.ensure_future(self._dynamic.run(self._apply_dynamic)))
        log.event(
            _log, logging.INFO, "serving", host=self._settings.host, port=self._supervisor.port,
            https_port=self._supervisor.https_port, admin_port=self._supervisor.admin_port, hot_path=hot_path(),
        )  # fmt: skip

    async def _apply_dynamic(self, dynamic: DynamicSettings) -> None:
        """Apply a changed dynamic configuration. Raises `SettingsError` before any change."""
        configured = self._sources.load(dynamic)
        self._cluster.set_overlays(dynamic.services)
        self._supervisor.change_settings(configured)

    async def _join(self) -> None:
        """Connect to the other routers. Called after the cluster has listed their pods."""
        self._discovery.subscribe(self._mesh.set_expected_peers)
        await self._supervisor.join(self._mesh)
        self._has_joined = True

    def _on_leader_change(self, leads: bool, term: int, leader: str) -> None:
        if not leads:
            self._cluster.discard_pending_scaling()
        self._supervisor.on_leader_change(leads, term, leader, self._cluster.replica_counts())

    def _unmet_conditions(self) -> Iterator[str]:
        if self._stop.is_received:
            yield "the router is stopping"
        failures = self._cluster.informers.failures()
        for resource in self._cluster.informers.unlisted():
            reason = f": {failures[resource]}" if resource in failures else ""
            yield f"{resource} not listed yet{reason}"
        if not self._has_joined:
            yield "other routers not discovered yet"
        for address, status in self._mesh.expected_statuses().items():
            if status is None:
                yield f"no connection to the router at {host_port(*address)} tried yet"

    def _warnings(self) -> Iterator[str]:
        if self._settings.observes:
            in_charge = len(self._cluster.services_in_charge)
            exception = f", except {in_charge} whose annotation azureml-fe/mode is normal" if in_charge else ""
            yield f"mode = observe: this router neither serves nor scales models{exception}"
        yield from self._cluster.connection_warnings()

    def _own_problems(self) -> Iterator[OwnProblem]:
        for line in self._supervisor.certificate_problems():
            yield OwnProblem("CertificateProblem", line)
        for problem in self._dynamic.source_problems() if self._dynamic is not None else ():
            yield OwnProblem("DynamicConfigProblem", problem.text)

    def _problems(self) -> Iterator[Problem]:
        for problem in self._cluster.problems():
            yield problem.to_problem()
        for conflict in self._cluster.release_conflicts():
            yield Problem(str(conflict))

    def _samples(self) -> Iterator[Sample]:
        return samples(self._api, self._cluster)


class _MeshObservers(MeshObserver):
    """Passes the events of links to the supervisor and the leader elector."""

    def __init__(self, supervisor: MeshObserver, elector: LeaderElector) -> None:
        self._supervisor = supervisor
        self._elector = elector

    def on_peer_up(self, peer: str, incarnation: str) -> None:
        self._supervisor.on_peer_up(peer, incarnation)
        self._elector.on_peer_up(peer, incarnation)

    def on_peer_down(self, peer: str, process_ended: bool) -> None:
        self._supervisor.on_peer_down(peer, process_ended)
        if process_ended:
            self._elector.on_peer_ended(peer)

    def on_peer_gone(self, peer: str) -> None:
        self._supervisor.on_peer_gone(peer)
        self._elector.on_peer_ended(peer)

    def on_peer_message(self, peer: str, message: Message) -> None:
        self._supervisor.on_peer_message(peer, message)


def _load_peer_secret(path: Path) -> bytes:
    """Return the secret that the router pods share. Raises SettingsError."""
    try:
        secret = read_regular_file(path, _MAX_SECRET_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError("peer_secret_file", str(path), f"must be a readable file: {reason}") from None
    if len(secret.strip()) < MIN_SECRET_BYTES:
        raise SettingsError("peer_secret_file", str(path), f"must have at least {MIN_SECRET_BYTES} random bytes")
    return secret.strip()
