"""Events of Deployments: what operators see in `kubectl describe` and `kubectl get events`.

The name of an Event follows from what it says, so that the routers, and one router after another, add to one Event in
place of posting the same again. `Memory` decides what is worth a request and does no I/O; `Recorder` sends.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from router.cluster.kubernetes.client import FIELD_MANAGER, MERGE_PATCH, Api, ApiError, ApiUnreachable
from router.cluster.kubernetes.objects import Name
from router.telemetry.log import event

_log = logging.getLogger("router.kubernetes")

REPEAT_SECONDS = 300.0
"""The same again within this time is no news."""
BURST = 25
REFILL_SECONDS = 3.0
"""So many Events at once, then one each so many seconds."""
REMEMBERED = 4096
_LONGEST_MESSAGE = 1024  # the API server refuses longer ones


@dataclass(frozen=True, slots=True)
class Said:
    """What one Event says of a Deployment."""

    deployment: Name
    uid: str
    kind: str
    """`Normal` or `Warning`."""
    reason: str
    message: str

    @property
    def name(self) -> str:
        """The name of the Event."""
        text = "\0".join((self.uid, self.kind, self.reason, self.message))
        return f"{self.deployment[1][:220]}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class Memory:
    """What was said lately, and how much more may be. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}
        self._tokens = float(BURST)
        self._at = 0.0

    def is_news(self, said: Said, now: float) -> bool:
        """Whether to send it; if so, it counts as sent."""
        last = self._said.get(said.name)
        if last is not None and now - last < REPEAT_SECONDS:
            return False
        self._tokens = min(self._tokens + (now - self._at) / REFILL_SECONDS, BURST)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        self._said.pop(said.name, None)
        self._said[said.name] = now
        while len(self._said) > REMEMBERED:
            del self._said[next(iter(self._said))]
        return True


class Recorder:
    """Sends Events, one after the other, while `run` runs."""

    def __init__(self, api: Api, source: str) -> None:
        """`source` is the pod that reports."""
        self._api = api
        self._source = source
        self._memory = Memory()
        self._queue: deque[Said] = deque(maxlen=200)
        self._wake = asyncio.Event()
        self.sent = 0
        self.lost = 0

    def say(
        self, deployment: Name, uid: str, reason: str, message: str, *, kind: str = "Warning", logged: bool = True
    ) -> None:
        """Post an Event, unless it was posted lately. `logged`: say it in the log as well."""
        said = Said(deployment, uid, kind, reason, message[:_LONGEST_MESSAGE])
        if self._memory.is_news(said, time.monotonic()):
            level = logging.WARNING if kind == "Warning" else logging.INFO
            namespace, name = deployment
            if logged:
                event(_log, level, "event", namespace=namespace, deployment=name, reason=reason, text=message)
            self._queue.append(said)
            self._wake.set()

    async def run(self) -> None:
        """Send, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                try:
                    await self._send(self._queue.popleft())
                    self.sent += 1
                except (ApiError, ApiUnreachable) as error:
                    self.lost += 1
                    event(_log, logging.WARNING, "an Event cannot be posted", error=str(error))

    async def _send(self, said: Said) -> None:
        path = f"/api/v1/namespaces/{said.deployment[0]}/events"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            params = {"fieldManager": FIELD_MANAGER}
            await self._api.request("POST", path, params=params, body=self._body(said, now))
        except ApiError as error:
            if error.status != 409:
                raise
            # The count of an Event that two routers add to at once may miss one; nobody decides anything by it.
            await self._api.request(
                "PATCH", f"{path}/{said.name}", body={"lastTimestamp": now}, content_type=MERGE_PATCH
            )

    def _body(self, said: Said, now: str) -> dict[str, Any]:
        namespace, name = said.deployment
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": said.name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": "apps/v1", "kind": "Deployment", "namespace": namespace, "name": name, "uid": said.uid,
            },
            "type": said.kind,
            "reason": said.reason,
            "message": said.message,
            "source": {"component": "azureml-fe", "host": self._source},
            "reportingComponent": "azureml-fe",
            "reportingInstance": self._source,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }  # fmt: skip
