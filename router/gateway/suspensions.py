"""Sends replicas of one version no requests for a while: those that refuse connections, and outliers.

    on_refused -> REFUSING --connect succeeds--> in use
    on_failure, on_response -> AVOIDED --time--> in use
                            -> EJECTED --time, connect succeeds--> HALF_OPEN --next request--> ON_TRIAL
    ON_TRIAL -> in use, or EJECTED again

Lives here: the effects of the decisions of `outliers`: leases, timers, probes, log. A probe only opens a connection
and closes it: a server that is starting or gone fails it, and it costs no request. A server that hangs passes it,
because its kernel accepts the connection; that is why an ejected replica has its trial.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from router.gateway.outliers import OutlierDetector, Suspension
from router.gateway.pool import FIRST_SUSPENSION_SECONDS, ReplicaPool
from router.gateway.replica_health import AVOIDED, EJECTED, HALF_OPEN, IN_USE, ON_TRIAL, REFUSED, REFUSING
from router.http.streams import ReplicaStream
from router.model.services import VersionKey
from router.slots.lease_cache import LeaseCache
from router.slots.replica_leases import ReplicaLeases
from router.telemetry.counters import VersionCounters
from router.telemetry.log import event

_log = logging.getLogger("router.gateway")

Lease = ReplicaLeases[ReplicaPool]


class Suspensions:
    """The suspended replicas of one version in one worker."""

    def __init__(
        self,
        key: VersionKey,
        detector: OutlierDetector,
        lease_cache: LeaseCache[Any, ReplicaPool],
        counters: VersionCounters,
        loop: asyncio.AbstractEventLoop,
        on_resumed: Callable[[list[tuple[Any, Lease]]], None],
    ) -> None:
        """`on_resumed` is called with the waiters to start when a replica may be used again."""
        self._key = key
        self._detector = detector
        self._lease_cache = lease_cache
        self._counters = counters
        self._loop = loop
        self._on_resumed = on_resumed
        self._stopped = False

    def stop(self) -> None:
        """Do nothing any more: the version was removed or is replaced."""
        self._stopped = True

    # Connections.

    def on_refused(self, lease: Lease, error: BaseException) -> None:
        """A replica refused a connection."""
        self._counters.connect_failures[connect_failure(error)] += 1
        health, now = lease.target.health, monotonic()
        if health.state in (HALF_OPEN, ON_TRIAL):
            self.on_failure(lease, REFUSED, b"", now)
            return
        self._detector.count_error(health, REFUSED)
        if health.state in (EJECTED, REFUSING):
            return
        self._detector.on_refused(health)
        self._lease_cache.suspend(lease, now)
        seconds = self._probe_later(lease)
        event(
            _log, logging.WARNING if seconds <= FIRST_SUSPENSION_SECONDS else logging.DEBUG,
            "replica refuses connections", service=self._key[0], version=self._key[1], replica=lease.id,
            error=str(error) or type(error).__name__,
        )  # fmt: skip
        self.readmit()

    def _probe_later(self, lease: Lease) -> float:
        seconds = lease.target.next_suspension()
        self._loop.call_later(seconds, self._probe, lease)
        return seconds

    def _probe(self, lease: Lease) -> None:
        """Open a connection and close it. If that succeeds, use the replica again, or give it its trial."""
        if self._is_gone(lease):
            return
        health = lease.target.health

        def on_connected(_: ReplicaPool, connection: ReplicaStream) -> bool:
            connection.close_idle()
            health.last_probe = "accepted"
            if not self._is_gone(lease) and health.state in (EJECTED, REFUSING):
                self._detector.on_time_over(health)
                self._resume(lease)
            return True

        def on_failed(_: ReplicaPool, error: BaseException) -> None:
            health.last_probe = connect_failure(error)
            self._detector.revision += 1
            if not self._is_gone(lease) and health.state in (EJECTED, REFUSING):
                self._probe_later(lease)

        lease.target.connect(on_connected, on_failed)

    def _is_gone(self, lease: Lease) -> bool:
        return self._stopped or self._lease_cache.leases_of(lease.id) is not lease

    # Outliers.

    def on_failure(self, lease: Lease, kind: str, client: bytes, now: float) -> None:
        """An attempt at the replica has failed. To be called while the attempt still holds its lease, which then goes
        to no other request."""
        self._counters.replica_failures[kind] += 1
        self._apply(lease, self._detector.on_failure(lease.target.health, kind, client, now))

    def on_response(self, lease: Lease, status: int, client: bytes, now: float) -> None:
        """A response is complete; see `OutlierDetector.on_response`. To be called as `on_failure`."""
        errors = lease.target.health.errors
        suspension = self._detector.on_response(lease.target.health, status, client, now)
        if lease.target.health.errors != errors:
            self._counters.replica_failures[lease.target.health.last_error] += 1
        self._apply(lease, suspension)
        if suspension is None and status >= 400 and self._detector.should_return_slots(lease.target.health, now):
            self._lease_cache.suspend(lease, now)
            self._loop.call_soon(self._end_return, lease)  # when this attempt has given back its slot, too

    def _end_return(self, lease: Lease) -> None:
        if lease.target.health.state == IN_USE and not self._is_gone(lease):
            self._resume(lease)

    def begin_trial(self, lease: Lease, request: object, now: float) -> None:
        """A request is sent to a `HALF_OPEN` replica, which gets no other one until it has responded."""
        self._detector.begin_trial(lease.target.health, request, now)
        self._lease_cache.suspend(lease, now)

    def on_trial_responds(self, lease: Lease, status: int, now: float) -> None:
        """The response to a trial has begun."""
        health = lease.target.health
        suspension = self._detector.on_trial_responds(health, status, now)
        if suspension is not None:
            self._apply(lease, suspension)
        elif health.state != ON_TRIAL:
            if health.state != HALF_OPEN:
                event(
                    _log, logging.INFO, "replica is used again",
                    service=self._key[0], version=self._key[1], replica=lease.id,
                )  # fmt: skip
            self._resume(lease)

    def on_trial_released(self, lease: Lease) -> None:
        """The trial has ended without a result: its client has left."""
        self._detector.on_trial_without_result(lease.target.health)
        self._resume(lease)

    def sweep(self, now: float) -> None:
        """See `OutlierDetector.sweep`."""
        for health in self._detector.sweep(now):
            self._resume_by_id(health.replica_id)

    def readmit(self) -> None:
        """Use replicas again that the limits require; to be called after changes of settings and replicas."""
        for health in self._detector.to_readmit():
            self._resume_by_id(health.replica_id)

    def _apply(self, lease: Lease, suspension: Suspension | None) -> None:
        if suspension is None:
            return
        self._lease_cache.suspend(lease, monotonic())
        health = lease.target.health
        self._loop.call_later(suspension.seconds, self._on_time_over, lease, health.until)
        if suspension.reason:
            self._counters.ejections["rate" if health.by_rate else "failures"] += 1
            event(
                _log, logging.WARNING, "replica ejected", service=self._key[0], version=self._key[1],
                replica=lease.id, reason=suspension.reason, seconds=round(suspension.seconds, 3),
            )  # fmt: skip
        self.readmit()

    def _on_time_over(self, lease: Lease, until: float) -> None:
        health = lease.target.health
        if health.until != until or self._is_gone(lease):
            return  # suspended again meanwhile, or removed
        if health.state == EJECTED:
            self._probe(lease)
        elif health.state == AVOIDED:
            self._detector.on_time_over(health)
            self._resume(lease)

    def _resume_by_id(self, replica_id: str) -> None:
        lease = self._lease_cache.leases_of(replica_id)
        if lease is not None:
            self._resume(lease)

    def _resume(self, lease: Lease) -> None:
        self._on_resumed(self._lease_cache.resume(lease, monotonic()))


def connect_failure(error: BaseException) -> str:
    """Return the metric label of a failed connect."""
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return "timeout" if isinstance(error, TimeoutError) else "other"
