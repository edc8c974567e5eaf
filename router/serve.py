"""`azureml-fe serve`: the router in a Kubernetes pod.

Lives here: which parts there are and how they hear of each other, readiness, signals. The work itself is the
supervisor's and the Kubernetes cluster's.

Order of the end, on SIGTERM: another router may lead; no new connection is accepted; requests in flight end; peers hear
goodbye; the cluster is no longer followed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvloop

from router.auth.issuers import Issuer
from router.build import hot_path
from router.cluster.kubernetes.client import Api
from router.cluster.kubernetes.cluster import KubernetesCluster
from router.cluster.kubernetes.credentials import Kubeconfig, PodAccount, credentials
from router.cluster.kubernetes.electorate import Electorate
from router.cluster.kubernetes.leader import identity_of
from router.cluster.kubernetes.peers import PeerList
from router.cluster.kubernetes.sizing import PodsSizer
from router.cluster.kubernetes.token_keys import TokenKeySecret
from router.cluster.kubernetes.view import samples
from router.cluster.local.file import load_router_file
from router.cluster_settings import POD_DEFAULTS
from router.listening import cannot_listen
from router.peer_tls import peer_tls
from router.peers.accepting import listening_socket
from router.peers.handshake import SECRET_BYTES, Party
from router.peers.mesh import Mesh
from router.peers.messages import Message
from router.peers.roster import MeshListener
from router.pods import Pods
from router.service_settings import COMPATIBLE_DEFAULTS
from router.services import SettingsError
from router.settings import CONFIG_VARIABLE, RouterSettings, load_settings
from router.sizing.policy import pods_policy
from router.supervisor import Supervisor
from router.telemetry import log
from router.telemetry.catalogue import Sample

_log = logging.getLogger("router.serve")

_MOST_SECRET_BYTES = 4096


def run_serve(config: Path | None, flags: Mapping[str, object]) -> int:
    """Run until a signal ends it. Returns the exit code. Raises `SettingsError` and OSError before anything runs."""
    named = config or (Path(os.environ[CONFIG_VARIABLE]) if os.environ.get(CONFIG_VARIABLE) else None)
    file, issuers = load_router_file(named) if named is not None else ({}, {})
    settings = load_settings(environ=os.environ, file=file, flags=flags, defaults=POD_DEFAULTS)
    log.configure(settings.log_level, sys.stderr, human=sys.stderr.isatty())
    secret = _peer_secret(Path(settings.peer_secret_file))
    peer_socket = _peer_socket(settings)
    return uvloop.run(_serve(settings, issuers, secret, peer_socket))


async def _serve(
    settings: RouterSettings, issuers: Mapping[str, Issuer], secret: bytes, peer_socket: socket.socket
) -> int:
    path = Path(settings.kubeconfig) if settings.kubeconfig is not None else None
    return await Serve(settings, issuers, await credentials(path), secret, peer_socket).run()


class Serve:
    """One router in a pod: its parts, its signals, its end."""

    def __init__(
        self,
        settings: RouterSettings,
        issuers: Mapping[str, Issuer],
        account: PodAccount | Kubeconfig,
        secret: bytes,
        peer_socket: socket.socket,
    ) -> None:
        """Raises `SettingsError` and OSError."""
        self._settings = settings
        pod = settings.pod_name or re.sub("[^a-z0-9.-]", "-", socket.gethostname().lower())[:63]
        namespace = settings.pod_namespace or account.namespace
        incarnation = Party.new_incarnation()
        self._api = Api(account)
        self._supervisor = Supervisor(
            settings,
            own_id=pod,
            human_log=sys.stderr.isatty(),
            peer_socket=peer_socket,
            token_keys=TokenKeySecret(self._api, namespace),
            by_election=True,
        )
        self._supervisor.set_token_issuers(issuers)
        self._electorate = Electorate(self._api, namespace, identity_of(pod, incarnation), self._elected)
        self._peers = PeerList(int(peer_socket.getsockname()[1]))
        self._cluster = KubernetesCluster(
            self._api,
            namespaces=settings.namespaces,
            own=(namespace, pod),
            electorate=self._electorate,
            peers=self._peers,
            generate_keys=settings.generate_keys,
            pause_seconds=settings.contested_scaling_pause_seconds,
            join=self._join,
            defaults=COMPATIBLE_DEFAULTS[settings.compatibility],
        )
        tls = peer_tls(settings, time.time())
        if tls.mounted is not None:
            self._supervisor.keep(tls.mounted)
        self._mesh = Mesh(
            pod,
            peer_socket,
            secret,
            _Heard(self._supervisor.pods, self._electorate),
            tls=tls.links,
            incarnation=incarnation,
        )
        self._sizer = self._make_sizer(namespace) if settings.self_scaling_enabled else None
        self._sizing: asyncio.Task[None] | None = None
        self._supervisor.sizing.in_cluster(self._sizer)
        self._supervisor.conditions.append(self._missing)
        self._supervisor.notes.append(self._notes)
        self._supervisor.overview.sources.append(self._samples)
        self._supervisor.overview.problems.append(self._problems)
        self._joined = False
        self._stopping = asyncio.Event()

    def _make_sizer(self, namespace: str) -> PodsSizer:
        return PodsSizer(
            self._api,
            namespace,
            self._cluster.recorder,
            pods_policy(self._settings),
            patience_seconds=self._settings.self_scaling_resize_patience_seconds,
            may_write=self._electorate.leads,
        )

    async def run(self) -> int:
        """Serve until a signal. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        try:
            if await self._until_stopped():
                await self._stopping.wait()
            log.event(_log, logging.INFO, "stopping", seconds=self._settings.drain_seconds)
        finally:
            if self._sizing is not None:
                self._sizing.cancel()
            resigning = asyncio.ensure_future(self._cluster.resign())
            complete = await self._supervisor.stop()
            await resigning
            await self._api.close()
        log.event(_log, logging.INFO, "stopped", complete=complete)
        return 0 if complete else 1

    async def _until_stopped(self) -> bool:
        """Start, unless a signal comes first; False if one did."""
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return False
        starting.result()
        return True

    async def _start(self) -> None:
        await self._supervisor.start(self._cluster)
        if self._sizer is not None:
            self._sizing = asyncio.ensure_future(self._sizer.run())
        log.event(
            _log, logging.INFO, "serving", host=self._settings.host, port=self._supervisor.port,
            https_port=self._supervisor.https_port, admin_port=self._supervisor.admin_port, hot_path=hot_path(),
        )  # fmt: skip

    async def _join(self) -> None:
        """Look for the other routers, once it is known who they are."""
        self._mesh.set_expected(self._peers.expected())
        self._peers.set_expected = self._mesh.set_expected
        await self._supervisor.join(self._mesh)
        self._joined = True

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._supervisor.hurry()
        self._stopping.set()

    def _elected(self, leads: bool, term: int, leader: str) -> None:
        """Who scales, from now on."""
        if not leads:
            self._cluster.writer.forget_wants()
        self._supervisor.elected(leads, term, leader, self._cluster.counts())

    # What is so.

    def _missing(self) -> Iterator[str]:
        """What is still missing before clients should be sent here."""
        if self._stopping.is_set():
            yield "stopping"
        failures = self._cluster.follower.failures()
        for resource in self._cluster.follower.missing():
            why = f": {failures[resource]}" if resource in failures else ""
            yield f"{resource} not listed yet{why}"
        if not self._joined:
            yield "other routers not looked for yet"
        for (host, port), standing in self._mesh.standings().items():
            if standing is None:
                yield f"router at {host}:{port} not tried yet"

    def _notes(self) -> Iterator[str]:
        """What an operator should know of a router that serves nevertheless."""
        behind = self._cluster.follower.behind()
        for resource, why in self._cluster.follower.failures().items():
            yield f"{resource}: not heard of for up to {behind:.0f} s, what was known is served ({why})"

    def _problems(self) -> Iterator[str]:
        """What is wrong with Deployments of models."""
        for each in self._cluster.problems():
            yield f"{'/'.join(each.deployment)}: {each.reason}: {each.message}"

    def _samples(self) -> Iterator[Sample]:
        return samples(self._api, self._cluster)


class _Heard(MeshListener):
    """Passes on what links tell, to the pods that route as one and to the electorate."""

    def __init__(self, pods: Pods, electorate: Electorate) -> None:
        self._pods = pods
        self._electorate = electorate

    def peer_up(self, peer: str, incarnation: str) -> None:
        self._pods.peer_up(peer, incarnation)
        self._electorate.peer_up(peer, incarnation)

    def peer_down(self, peer: str, certain: bool) -> None:
        self._pods.peer_down(peer, certain)
        if certain:
            self._electorate.peer_ended(peer)

    def peer_certainly_gone(self, peer: str) -> None:
        self._pods.peer_certainly_gone(peer)
        self._electorate.peer_ended(peer)

    def peer_said(self, peer: str, message: Message) -> None:
        self._pods.peer_said(peer, message)


def _peer_secret(path: Path) -> bytes:
    """The secret that the router pods share. Raises `SettingsError`."""
    try:
        with path.open("rb") as file:
            secret = file.read(_MOST_SECRET_BYTES)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError("peer_secret_file", str(path), f"cannot be read: {reason}; must be a file") from None
    if len(secret.strip()) < SECRET_BYTES:
        raise SettingsError("peer_secret_file", str(path), f"must hold at least {SECRET_BYTES} bytes, and random ones")
    return secret.strip()


def _peer_socket(settings: RouterSettings) -> socket.socket:
    """Where peers reach this router. Raises OSError that names the setting."""
    host = settings.pod_ip or settings.host
    try:
        return listening_socket(host, settings.peer_port)
    except OSError as error:
        name = "pod_ip" if settings.pod_ip else "host"
        raise cannot_listen("peer_port", settings.peer_port, host, error, host_setting=name) from error
