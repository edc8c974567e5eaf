"""Connections to one replica that rest between two requests. New ones are opened in `connecting`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from router.gateway.connecting import connect
from router.http.headers import HeaderKinds

if TYPE_CHECKING:
    from router.gateway.exchange import Exchange
    from router.gateway.upstream import ReplicaConnection


class ReplicaPool:
    """Connections to one replica. The one that rested least is used next, so that those too many grow old and close."""

    __slots__ = ("_idle", "_loop", "_tasks", "_timeout", "failures", "host", "kinds", "port", "replica_id", "retired")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        replica_id: str,
        host: str,
        port: int,
        *,
        kinds: HeaderKinds,
        connect_timeout_seconds: float,
    ) -> None:
        self._loop = loop
        self.replica_id = replica_id
        self.host = host
        self.port = port
        self.kinds = kinds
        self._timeout = connect_timeout_seconds
        self._idle: dict[ReplicaConnection, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.failures = 0  # how often in a row it was left alone for refusing connections
        self.retired = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> ReplicaConnection | None:
        """An idle connection; None if there is none."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.closed and not connection.transport.is_closing():
                return connection
        return None

    def put(self, connection: ReplicaConnection, now: float) -> None:
        """Take back a connection on which nothing is under way; `now` in seconds of the monotonic clock."""
        if self.retired:
            connection.closed = True
            connection.transport.close()
        else:
            self._idle[connection] = now

    def forget(self, connection: ReplicaConnection) -> None:
        """Drop an idle connection that has closed."""
        self._idle.pop(connection, None)

    def connect(self, exchange: Exchange) -> None:
        """Open a connection for an exchange, which hears of it by `connected` or `connect_failed`."""
        task = self._loop.create_task(connect(self._loop, self, exchange, self._timeout))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close_idle(self, before: float) -> None:
        """Close the connections that rest since before a time of the monotonic clock."""
        while self._idle:
            connection, since = next(iter(self._idle.items()))
            if since > before:
                return
            del self._idle[connection]
            connection.closed = True
            connection.transport.close()

    def retire(self) -> None:
        """Close what is idle now, and the rest as soon as it is: the replica is gone."""
        self.retired = True
        self.close_idle(float("inf"))
