"""Posts Kubernetes Events of Deployments and of the router's own pod, for `kubectl describe` and `kubectl get events`.

The name of an Event has a hash of its content. So a router updates an existing Event with the same content instead of
posting another one, even if another router has posted it. `EventFilter` decides which Events are sent, without I/O;
`EventRecorder` sends them. Messages of the log are a different thing (`telemetry.log`, here `log_event`).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from router.cluster.kubernetes.client import MERGE_PATCH, ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.objects import NamespacedName
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")

REPEAT_SECONDS = 300.0
"""An Event is not sent again within this time."""
BURST = 25
REFILL_SECONDS = 3.0
"""Rate limit: a token bucket of `BURST` Events, which gains one every `REFILL_SECONDS`."""
MAX_REMEMBERED = 4096
_MAX_QUEUED = 200
_MAX_MESSAGE_CHARACTERS = 1024  # the API server rejects longer messages

EventType = Literal["Normal", "Warning"]
ObjectKind = Literal["Deployment", "Pod"]
_API_VERSIONS: dict[ObjectKind, str] = {"Deployment": "apps/v1", "Pod": "v1"}


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """The content of an Event of an object."""

    kind: ObjectKind
    object: NamespacedName
    uid: str
    type: EventType
    reason: str
    message: str

    @property
    def name(self) -> str:
        """The name of the Event object: a DNS subdomain, like the name of the object that it begins with."""
        text = "\0".join((self.uid, self.type, self.reason, self.message))
        return f"{self.object.name[:220].rstrip('.-')}.{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class EventFilter:
    """Drops Events that repeat too soon or exceed the rate limit. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._sent_at: dict[str, float] = {}  # by name of the Event, the oldest first
        self._tokens = float(BURST)
        self._refilled_at = 0.0

    def admit(self, candidate: ObjectEvent, now: float) -> bool:
        """True if the Event should be sent. The caller must send it then: it counts as sent."""
        sent_at = self._sent_at.get(candidate.name)
        if sent_at is not None and now - sent_at < REPEAT_SECONDS:
            return False
        self._tokens = min(self._tokens + (now - self._refilled_at) / REFILL_SECONDS, BURST)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        self._sent_at.pop(candidate.name, None)
        self._sent_at[candidate.name] = now
        while len(self._sent_at) > MAX_REMEMBERED:
            del self._sent_at[next(iter(self._sent_at))]
        return True


class EventRecorder:
    """Sends Events one after the other while `run` runs."""

    def __init__(self, api: ApiClient, source: str) -> None:
        """`source` is the name of this router's pod."""
        self._api = api
        self._source = source
        self._filter = EventFilter()
        self._queue: deque[ObjectEvent] = deque(maxlen=_MAX_QUEUED)
        self._wake = asyncio.Event()

    def record(
        self,
        name: NamespacedName,
        uid: str,
        reason: str,
        message: str,
        *,
        kind: ObjectKind = "Deployment",
        event_type: EventType = "Warning",
        logged: bool = True,
        service: str = "",
    ) -> None:
        """Queue an Event of an object unless the filter drops it. If `logged`, also write it to the log; only Events of
        Deployments may be. The log has the `service` if it is given."""
        candidate = ObjectEvent(kind, name, uid, event_type, reason, message[:_MAX_MESSAGE_CHARACTERS])
        if not self._filter.admit(candidate, time.monotonic()):
            return
        if logged:
            level = logging.WARNING if event_type == "Warning" else logging.INFO
            fields: dict[str, Any] = {"service": service} if service else {}
            fields |= {"namespace": name.namespace, "deployment": name.name, "reason": reason}
            log_event(_log, level, "event", text=message, **fields)
        self._queue.append(candidate)
        self._wake.set()

    async def run(self) -> None:
        """Send queued Events until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                try:
                    await self._send(self._queue.popleft())
                except (ApiError, ApiUnreachable) as error:
                    log_event(_log, logging.WARNING, "an Event cannot be posted", error=str(error))

    async def _send(self, queued: ObjectEvent) -> None:
        path = f"/api/v1/namespaces/{queued.object.namespace}/events"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        try:
            await self._api.request("POST", path, body=self._body(queued, now))
        except ApiError as error:
            if error.status != 409:
                raise
            # The Event exists. Its `count` stays 1, as no tool depends on it.
            await self._api.request(
                "PATCH", f"{path}/{queued.name}", body={"lastTimestamp": now}, content_type=MERGE_PATCH
            )

    def _body(self, queued: ObjectEvent, now: str) -> dict[str, Any]:
        namespace, name = queued.object
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": queued.name, "namespace": namespace},
            "involvedObject": {
                "apiVersion": _API_VERSIONS[queued.kind], "kind": queued.kind, "namespace": namespace, "name": name,
                "uid": queued.uid,
            },
            "type": queued.type,
            "reason": queued.reason,
            "message": queued.message,
            "source": {"component": "azureml-fe", "host": self._source},
            "reportingComponent": "azureml-fe",
            "reportingInstance": self._source,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }  # fmt: skip
