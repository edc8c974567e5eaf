"""Collects messages of lease caches to their ledgers, and sends them once per turn of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from router.gateway.routes import VersionRoute
from router.model.services import VersionKey
from router.slots.messages import ToLedger

Send = Callable[[VersionKey, Sequence[ToLedger]], None]


class LedgerOutbox:
    """Sends the messages of lease caches to their ledgers, in one batch for any number of requests."""

    __slots__ = ("_loop", "_pending", "_send", "_versions")

    def __init__(self, loop: asyncio.AbstractEventLoop, send: Send, versions: dict[VersionKey, VersionRoute]) -> None:
        """`versions` are the current routes. Messages of a route that was replaced in the meantime are dropped."""
        self._loop = loop
        self._send = send
        self._versions = versions
        self._pending: dict[VersionRoute, None] = {}

    def notify(self, route: VersionRoute) -> None:
        """Send the messages of a route's lease cache, if it has any, at the end of this turn of the event loop."""
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending[route] = None

    def flush(self, route: VersionRoute) -> None:
        """Send the messages of a route's lease cache now."""
        messages = route.lease_cache.flush()
        if messages:
            self._send(route.key, messages)

    def register(self, route: VersionRoute) -> None:
        """Send the `Register` of a new route's lease cache."""
        self._send(route.key, [route.lease_cache.register()])

    def _flush(self) -> None:
        pending, self._pending = self._pending, {}
        for route in pending:
            if self._versions.get(route.key) is route:
                self.flush(route)
