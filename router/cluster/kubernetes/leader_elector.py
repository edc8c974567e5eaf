"""Leader election: writes the Lease when `Election` requires it, and reports changes of the leader."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from router.cluster.kubernetes.client import ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.election import Election, LeaseWrite, lease_body, pod_of
from router.cluster.kubernetes.objects import Lease, NamespacedName
from router.cluster.kubernetes.parsing import parse_lease
from router.cluster.kubernetes.resources import lease_named
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")
# Shorter than `POLL_SECONDS`: it bounds how late a Lease is renewed or taken over.
_TICK_SECONDS = 0.25

OnLeaderChange = Callable[[bool, int, str], None]
"""Called with: whether this router leads, the leadership term, and the pod of the leader, "" if unknown."""


class _Leadership(NamedTuple):
    leads: bool
    term: int
    leader: str


class LeaderElector:
    """One candidate. The caller watches `resource` and passes its changes to `on_lease_changed`."""

    def __init__(self, api: ApiClient, lease: NamespacedName, identity: str, on_leader_change: OnLeaderChange) -> None:
        self._api = api
        self._lease = lease
        self._on_leader_change = on_leader_change
        self._last_reported: _Leadership | None = None
        self._spec: dict[str, Any] | None = None  # `spec` of the Lease that this router wrote last
        self._release: LeaseWrite | None = None
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._election = Election(identity, random.random)
        self._failing_since: float | None = None  # monotonic time of the first failed write of an outage
        self._last_failure = ""
        self.resource = lease_named(lease.name)

    def leads(self) -> bool:
        """True if this router may write to the cluster now."""
        return self._election.leads(time.monotonic())

    def failing_seconds(self) -> float:
        """Return the seconds for which the API server has not been able to store this router's writes; 0 if it is. This
        detects a store (etcd) that hangs behind an API server whose watches stay open."""
        return time.monotonic() - self._failing_since if self._failing_since is not None else 0.0

    @property
    def failure(self) -> str:
        """The error of the last failed write; "" if the last one succeeded."""
        return self._last_failure

    def on_lease_changed(self, lease: Lease | None) -> None:
        """Record the Lease that the list or watch reports; None if it does not exist."""
        self._election.observe(lease, time.monotonic())
        self._wake.set()

    def on_peer_ended(self, pod: str) -> None:
        """Record that the process of another router has ended."""
        self._election.pod_ended(pod)
        self._wake.set()

    def on_peer_up(self, pod: str, incarnation: str) -> None:
        """Record the current process of another router."""
        self._election.pod_restarted(pod, incarnation)
        self._wake.set()

    async def run(self) -> None:
        """Take part in the election until cancelled."""
        while True:
            self._wake.clear()
            async with self._writing:
                write = self._election.next_write(time.monotonic())
                if write is not None:
                    await self._write(write)
            self._report()
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def resign(self) -> None:
        """Stop leading now and never lead again. The Lease stays held until `release`."""
        self._release = self._election.resign(time.monotonic())
        self._report()

    async def release(self) -> None:
        """Release the Lease after `resign`, so that another router may lead at once. Call it only when no write to the
        cluster is in progress."""
        async with self._writing:
            write, self._release = self._release, None
            if write is not None:
                await self._write(write)

    def _report(self) -> None:
        current = _Leadership(self.leads(), self._election.term, pod_of(self._election.holder))
        before = self._last_reported
        if current == before:
            return
        self._last_reported = current
        if before is None or (before.leads, before.leader) != (current.leads, current.leader):
            log_event(_log, logging.INFO, "leader", leads=current.leads, leader=current.leader, term=current.term)
        self._on_leader_change(*current)

    async def _write(self, write: LeaseWrite) -> None:
        path = self.resource.path(self._lease.namespace)
        spec = self._spec if write.holder else (self._spec or {})
        time_text = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = lease_body(write, self._lease.namespace, self._lease.name, spec, time_text)
        sent_at = time.monotonic()
        try:
            if write.replaces:
                written = await self._api.request("PUT", f"{path}/{self._lease.name}", body=body)
            else:
                written = await self._api.request("POST", path, body=body)
        except (ApiError, ApiUnreachable) as error:
            self._election.write_failed(time.monotonic())
            if not (isinstance(error, ApiError) and error.status == 409):  # 409: another router was faster
                self._on_write_failed(error, sent_at)
            else:
                self._on_write_succeeded()  # the API server has compared versions, so its store responds
            return
        self._on_write_succeeded()
        self._spec = dict(written.get("spec") or {})
        if write.holder:
            self._election.write_succeeded(parse_lease(written), sent_at, time.monotonic())

    def _on_write_failed(self, error: ApiError | ApiUnreachable, sent_at: float) -> None:
        """Log an outage of the API server once, not with each retry. Another error is logged again."""
        if self._failing_since is None and (isinstance(error, ApiUnreachable) or error.status >= 500):
            self._failing_since = sent_at
        if str(error) != self._last_failure:
            self._last_failure = str(error)
            log_event(_log, logging.WARNING, "the Lease cannot be written", error=self._last_failure)

    def _on_write_succeeded(self) -> None:
        if self._last_failure:
            log_event(
                _log, logging.INFO, "the Lease can be written again", seconds=round(self.failing_seconds(), 1)
            )  # fmt: skip
        self._failing_since, self._last_failure = None, ""
