"""The live feed of the status page: server-sent events with what has changed since the last one.

The document is made once a second for all who watch, and not at all while nobody does. A watcher gets the whole
document first and then changes: services that differ, names that are gone, and the short rest. One that does not keep
up misses nothing: its next event is the whole document again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson

from router.overview.document import ServiceStatus, Status
from router.telemetry import log

_log = logging.getLogger("router.overview")

MOST_WATCHERS = 64
"""Each costs a connection and a copy of what has changed; more than this are dashboards that should use /metrics."""

_SECONDS = 1.0
_BEHIND = 5  # events that may wait for a watcher


class Watcher:
    """One who watches: the events that wait for it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue(_BEHIND)
        """None is the end."""
        self.is_behind = False


class Feed:
    """Makes events for all watchers."""

    def __init__(self, read: Callable[[], Status], *, seconds: float = _SECONDS) -> None:
        self._read = read
        self._seconds = seconds
        self._watchers: set[Watcher] = set()
        self._last: dict[str, ServiceStatus] = {}
        self._running: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether nobody else may watch."""
        return len(self._watchers) >= MOST_WATCHERS

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """The events for one watcher, until it is closed or the feed is."""
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            status = self._read()
            if self._running is None:
                self._last = _by_name(status)
                self._running = asyncio.ensure_future(self._run())
            yield _event("all", status)
            while (event := await watcher.events.get()) is not None:
                yield event
                if watcher.is_behind and watcher.events.empty():
                    watcher.is_behind = False
                    yield _event("all", self._read())
        finally:
            self._watchers.discard(watcher)
            if not self._watchers and self._running is not None:
                self._running.cancel()
                self._running = None

    def close(self) -> None:
        """End all events."""
        for watcher in self._watchers:
            while watcher.events.full():
                watcher.events.get_nowait()
            watcher.events.put_nowait(None)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                change = _event("change", self._change(self._read()))
            except Exception as fault:  # noqa: BLE001  (who watches sees that nothing comes; the next may succeed)
                log.event(_log, logging.ERROR, "status cannot be told", exception=fault)
                continue
            for watcher in self._watchers:
                if watcher.events.full():
                    watcher.is_behind = True
                elif not watcher.is_behind:
                    watcher.events.put_nowait(change)

    def _change(self, status: Status) -> dict[str, Any]:
        services = _by_name(status)
        changed = [service for name, service in services.items() if self._last.get(name) != service]
        gone = [name for name in self._last if name not in services]
        self._last = services
        return {**status, "services": changed, "gone": gone}


def _by_name(status: Status) -> dict[str, ServiceStatus]:
    return {service["name"]: service for service in status["services"]}


def _event(name: str, data: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + orjson.dumps(data) + b"\n\n"
