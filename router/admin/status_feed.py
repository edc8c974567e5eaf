"""The live feed of the status page: server-sent events with the changes of the status document.

While there are subscribers, the document is built once a second for all of them. A subscriber first gets the complete
document (event `all`). Then it gets changes (event `change`): the changed services, the names of removed services, and
all other fields. A subscriber that is too slow misses changes, and then gets the complete document again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson

from router.admin.status import ServiceStatus, StatusDocument
from router.telemetry import log

_log = logging.getLogger("router.admin")

MAX_SUBSCRIBERS = 64
"""Maximum number of subscribers. Each needs a connection and a copy of the changes. Monitoring should use /metrics."""

_INTERVAL_SECONDS = 1.0
_MAX_QUEUED_EVENTS = 5  # per subscriber


class Subscriber:
    """One subscriber and the events queued for it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_QUEUED_EVENTS)
        """None ends the feed."""
        self.is_behind = False


class StatusFeed:
    """Builds the events for all subscribers."""

    def __init__(self, read: Callable[[], StatusDocument], *, seconds: float = _INTERVAL_SECONDS) -> None:
        self._read = read
        self._seconds = seconds
        self._subscribers: set[Subscriber] = set()
        self._last: dict[str, ServiceStatus] = {}
        self._running: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """True if there are `MAX_SUBSCRIBERS`."""
        return len(self._subscribers) >= MAX_SUBSCRIBERS

    async def subscribe(self) -> AsyncGenerator[bytes, None]:
        """Yield the events for one subscriber until the generator or the feed is closed."""
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        try:
            status = self._read()
            if self._running is None:
                self._last = _by_name(status)
                self._running = asyncio.ensure_future(self._run())
            yield _event("all", status)
            while (event := await subscriber.events.get()) is not None:
                yield event
                if subscriber.is_behind and subscriber.events.empty():
                    subscriber.is_behind = False
                    yield _event("all", self._read())
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers and self._running is not None:
                self._running.cancel()
                self._running = None

    def close(self) -> None:
        """End the feed of all subscribers."""
        for subscriber in self._subscribers:
            while subscriber.events.full():
                subscriber.events.get_nowait()
            subscriber.events.put_nowait(None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                change = _event("change", self._change(self._read()))
            except Exception as error:  # noqa: BLE001  (the next attempt may succeed)
                log.event(_log, logging.ERROR, "cannot build the status document", exception=error)
                continue
            for subscriber in self._subscribers:
                if subscriber.events.full():
                    subscriber.is_behind = True
                elif not subscriber.is_behind:
                    subscriber.events.put_nowait(change)

    def _change(self, status: StatusDocument) -> dict[str, Any]:
        services = _by_name(status)
        changed = [service for name, service in services.items() if self._last.get(name) != service]
        removed = [name for name in self._last if name not in services]
        self._last = services
        return {**status, "services": changed, "gone": removed}


def _by_name(status: StatusDocument) -> dict[str, ServiceStatus]:
    return {service["name"]: service for service in status["services"]}


def _event(name: str, data: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
