"""The replicas of one version at fixed addresses, which are not started by the router.

Contains: which replicas there are and whether they are ready. Does not contain: starting, stopping, scaling.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from router.cluster.local.context import LocalContext
from router.cluster.local.launch import LaunchSettings
from router.cluster.local.probe import ProbeFailure, Prober, extra_timeout, readiness_settings
from router.model.problems import Problem
from router.model.replica_health import ProbeReport
from router.model.services import Replica, ReplicaState, Version, VersionKey
from router.net.address import host_port

HostPort = tuple[str, int]


@dataclass(slots=True, eq=False)
class _StaticReplica:
    id: str
    address: HostPort
    prober: Prober | None = None
    probe_task: asyncio.Task[None] | None = None
    state: ReplicaState = ReplicaState.STARTING
    not_ready_reason: str | None = None
    """The last probe failure; None before `readiness_failure_threshold` consecutive failures."""


class StaticReplicas:
    """Probes all addresses of one version."""

    def __init__(
        self,
        key: VersionKey,
        version: Version,
        launch: LaunchSettings,
        context: LocalContext,
        on_change: Callable[[], None],
    ) -> None:
        """`on_change` is called when `replicas()` has changed, unless a call of a method has changed it. No address is
        probed before `update`."""
        self._key = key
        self._version = version
        self._launch = launch
        self._context = context
        self._on_change = on_change
        self._replicas: dict[HostPort, _StaticReplica] = {}
        self._draining: list[_StaticReplica] = []

    def replicas(self) -> tuple[Replica, ...]:
        """All replicas, in the order of the setting `addresses`, followed by removed ones that are draining."""
        replicas = (*self._replicas.values(), *self._draining)
        return tuple(Replica(replica.id, *replica.address, replica.state) for replica in replicas)

    def problems(self) -> list[Problem]:
        """Reasons why replicas are not ready."""
        return [
            Problem(
                f"a replica at {host_port(*replica.address)} is not ready: {replica.not_ready_reason}",
                *self._key,
                place=replica.id,
            )
            for replica in self._replicas.values()
            if replica.not_ready_reason is not None
        ]

    def probes(self) -> dict[str, ProbeReport]:
        """The last probe of each replica that was probed, by id."""
        return {
            replica.id: ProbeReport(*replica.prober.last_result, replica.not_ready_reason)
            for replica in self._replicas.values()
            if replica.prober is not None and replica.prober.last_result is not None
        }

    def update(self, version: Version, launch: LaunchSettings) -> None:
        """Apply changed settings and addresses."""
        self._version = version
        self._launch = launch
        self._set_addresses(launch.addresses)

    def retire(self) -> None:
        """Drain and remove all replicas."""
        self._set_addresses(())

    def stop(self) -> None:
        """Stop probing."""
        for replica in self._replicas.values():
            if replica.probe_task is not None:
                replica.probe_task.cancel()

    def _set_addresses(self, addresses: tuple[HostPort, ...]) -> None:
        previous = self._replicas
        self._replicas = {
            address: previous[address] if address in previous else self._start_probing(address) for address in addresses
        }
        for address, replica in previous.items():
            if address not in self._replicas:
                self._remove(replica)

    def _start_probing(self, address: HostPort) -> _StaticReplica:
        replica = _StaticReplica(self._context.new_id(self._key), address)
        prober = replica.prober = Prober(
            host=address[0],
            port=address[1],
            path=lambda: self._launch.readiness_path,
            settings=lambda: readiness_settings(self._version),
            extra_timeout=lambda: extra_timeout(self._version, has_requests=self._context.has_requests(replica.id)),
            on_change=lambda ready, reason: self._on_readiness_changed(replica, ready, reason),
            on_failure=lambda failure: self._on_probe_failed(replica, failure),
        )
        replica.probe_task = self._context.tasks.start(prober.run())
        return replica

    def _on_readiness_changed(self, replica: _StaticReplica, ready: bool, reason: str) -> None:
        replica.state = ReplicaState.READY if ready else ReplicaState.STARTING
        replica.not_ready_reason = None if ready else reason
        notify = self._context.notify
        if ready:
            notify(self._key, logging.INFO, "replica is ready", replica=replica.id)
        else:
            notify(self._key, logging.WARNING, "replica is no longer ready", replica=replica.id, reason=reason)
        self._on_change()

    def _on_probe_failed(self, replica: _StaticReplica, failure: ProbeFailure) -> None:
        if replica.not_ready_reason is None:
            address = host_port(*replica.address)
            self._context.notify(
                self._key, logging.WARNING, "replica is not ready", replica=replica.id, address=address,
                reason=failure.reason,
            )  # fmt: skip
        replica.not_ready_reason = failure.reason

    def _remove(self, replica: _StaticReplica) -> None:
        if replica.probe_task is not None:
            replica.probe_task.cancel()
        if replica.state is ReplicaState.READY:
            replica.state = ReplicaState.DRAINING
            self._draining.append(replica)
            self._context.tasks.start(self._drain(replica))

    async def _drain(self, replica: _StaticReplica) -> None:
        try:
            await self._context.drain(replica.id, self._version.replica_drain_seconds)
        finally:
            self._draining.remove(replica)
            self._on_change()
