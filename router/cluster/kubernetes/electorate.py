"""Takes part in the election: writes the Lease when `Election` says so, and tells when it is won or lost."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from router.cluster.kubernetes.access import LEASE_NAME
from router.cluster.kubernetes.client import FIELD_MANAGER, Api, ApiError, ApiUnreachable
from router.cluster.kubernetes.leader import Election, Write, body_of, pod_of
from router.cluster.kubernetes.objects import Lease, lease, leases
from router.telemetry.log import event

_log = logging.getLogger("router.kubernetes")
_TICK_SECONDS = 0.25

Told = Callable[[bool, int, str], None]
"""Whether this router leads, the term, and the pod that leads as far as is known."""


class Electorate:
    """One router among those that may lead. `follows` is handed to whoever follows the Lease."""

    def __init__(self, api: Api, namespace: str, identity: str, told: Told) -> None:
        self._api = api
        self._namespace = namespace
        self._told = told
        self._last_told: tuple[bool, int, str] | None = None
        self._spec: dict[str, Any] | None = None  # as this router has written it last
        self._release: Write | None = None
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self.election = Election(identity, random.random)
        self.resource = leases(LEASE_NAME)
        self.changes = 0

    def leads(self) -> bool:
        """Whether this router may write, at this moment."""
        return self.election.leads(time.monotonic())

    def changed(self, _: Lease | None, after: Lease | None) -> None:
        """The watch tells of the Lease."""
        self.election.seen(after, time.monotonic())
        self._wake.set()

    def listed(self, found: Lease | None) -> None:
        """The first list is complete."""
        self.election.seen(found, time.monotonic())
        self._wake.set()

    def peer_ended(self, pod: str) -> None:
        """The process of another router has ended."""
        self.election.ended(pod)
        self._wake.set()

    def peer_up(self, pod: str, incarnation: str) -> None:
        """This is the process of another router."""
        self.election.replaced(pod, incarnation)
        self._wake.set()

    async def run(self) -> None:
        """Take part, for ever."""
        while True:
            self._wake.clear()
            async with self._writing:
                write = self.election.step(time.monotonic())
                if write is not None:
                    await self._write(write)
            self._tell()
            try:
                async with asyncio.timeout(_TICK_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def give_up(self) -> None:
        """Lead no more, from this moment on."""
        self._release = self.election.give_up(time.monotonic())
        self._tell()

    async def release(self) -> None:
        """After `give_up`, and when no write is under way any more: let another router begin."""
        async with self._writing:
            write, self._release = self._release, None
            if write is not None:
                await self._write(write)

    def _tell(self) -> None:
        now = (self.leads(), self.election.term, pod_of(self.election.holder))
        if now != self._last_told:
            before, self._last_told = self._last_told, now
            if before is None or before[0] != now[0] or before[2] != now[2]:
                self.changes += 1
                event(_log, logging.INFO, "leader", leads=now[0], leader=now[2], term=now[1])
            self._told(*now)

    async def _write(self, write: Write) -> None:
        path = self.resource.path(self._namespace)
        spec = self._spec if write.holder else (self._spec or {})
        text = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = body_of(write, self._namespace, LEASE_NAME, spec, text)
        sent_at = time.monotonic()
        try:
            params = {"fieldManager": FIELD_MANAGER}
            if write.replaces:
                answer = await self._api.request("PUT", f"{path}/{LEASE_NAME}", params=params, body=body)
            else:
                answer = await self._api.request("POST", path, params=params, body=body)
        except (ApiError, ApiUnreachable) as error:
            self.election.refused(time.monotonic())
            if not (isinstance(error, ApiError) and error.status == 409):  # 409: another one was first
                event(_log, logging.WARNING, "the Lease cannot be written", error=str(error))
            return
        self._spec = dict(answer.get("spec") or {})
        if write.holder:
            self.election.written(lease(answer), sent_at, time.monotonic())
