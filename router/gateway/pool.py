"""The pool of connections to one replica: keeps idle connections, and opens new ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from router.config.router import RouterSettings
from router.gateway.connecting import open_replica_connection
from router.gateway.replica_connection import ReplicaConnection
from router.gateway.replica_health import ReplicaHealth
from router.gateway.turns import TurnQueue
from router.http.header_rules import HeaderRules
from router.http.streams import ReplicaStream
from router.net.backoff import Backoff

FIRST_SUSPENSION_SECONDS = 0.1  # how long a replica gets no requests after its first refused connection
_MAX_SUSPENSION_SECONDS = 1.0  # between two probes, which cost no request
_EARLY_CLOSE_SECONDS = 1.0  # a connection closed within this time was not closed by an idle timeout
_CAUTIOUS_SECONDS = 60.0  # how long connections of a replica that closes early are reused only after settling
_SETTLING_SECONDS = 0.05  # a FIN sent with or right after a response has arrived by then


class ReplicaPool:
    """Connections to one replica. The last used one is used next, so that surplus ones stay idle and are closed."""

    __slots__ = (
        "_cautious_until", "_idle", "_loop", "_moved", "_suspension", "_tasks", "health", "host", "port", "replica_id",
        "retired", "rules", "settings", "turns",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        replica_id: str,
        host: str,
        port: int,
        *,
        rules: HeaderRules,
        settings: RouterSettings,
        turns: TurnQueue,
    ) -> None:
        """`rules` are those of response headers."""
        self._loop = loop
        self.replica_id = replica_id
        self.host = host
        self.port = port
        self.rules = rules
        self.settings = settings
        """Those of the router. They apply to connections that are opened from now on."""
        self.turns = turns
        self._idle: dict[ReplicaStream, None] = {}  # in the order in which they became idle
        self._cautious_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self.health = ReplicaHealth(replica_id)
        self._suspension = Backoff(FIRST_SUSPENSION_SECONDS, _MAX_SUSPENSION_SECONDS)
        self.retired = False
        self._moved = False

    def __len__(self) -> int:
        """Return the number of idle connections."""
        return len(self._idle)

    def take(self, now: float) -> ReplicaStream | None:
        """Return an idle connection, or None if there is none. `now` is in seconds of the monotonic clock."""
        if now < self._cautious_until:
            return self._take_settled(now)
        while self._idle:
            stream, _ = self._idle.popitem()
            if not stream.closed and not stream.transport.is_closing():  # the same as `is_open`, without a call
                return stream
        return None

    def _take_settled(self, now: float) -> ReplicaStream | None:
        """Return the connection that has been idle longest, if it has been idle for `_SETTLING_SECONDS`."""
        while self._idle:
            stream = next(iter(self._idle))
            if now - stream.idle_since < _SETTLING_SECONDS:
                return None
            del self._idle[stream]
            if stream.is_open:
                return stream
        return None

    def on_unannounced_close(self, stream: ReplicaStream, now: float) -> None:
        """Record that the replica has closed a connection after a response that did not announce the close.

        A replica that closes at once, and not after an idle timeout, may close other connections just when they are
        reused. So for `_CAUTIOUS_SECONDS`, its connections are reused only once they have been idle for
        `_SETTLING_SECONDS`.
        """
        if now - stream.idle_since < _EARLY_CLOSE_SECONDS:
            self._cautious_until = now + _CAUTIOUS_SECONDS

    def put(self, stream: ReplicaStream, now: float) -> None:
        """Add an idle connection. `now` is in seconds of the monotonic clock."""
        if self.retired or (self._moved and not self._leads_here(stream)):
            stream.close_idle()
        else:
            stream.idle_since = now
            self._idle[stream] = None

    def discard(self, stream: ReplicaStream) -> None:
        """Remove an idle connection that was closed."""
        if stream in self._idle:
            del self._idle[stream]
            self.on_unannounced_close(stream, monotonic())

    def next_suspension(self) -> float:
        """Count a refused connection. Return the seconds for which the replica gets no requests."""
        return self._suspension.next_delay()

    def connect(
        self,
        on_connected: Callable[[ReplicaPool, ReplicaStream], bool],
        on_failed: Callable[[ReplicaPool, BaseException], None],
    ) -> None:
        """Open a connection, then call `on_connected` or `on_failed`.

        `on_connected` returns False if the connection is not needed any more. It is closed: a server with one thread
        that has accepted it would wait for a request, and serve no other connection.
        """

        def connected(stream: ReplicaStream) -> None:
            self._suspension.reset()
            if not on_connected(self, stream):
                stream.close_idle()

        def failed(error: BaseException) -> None:
            on_failed(self, error)

        task = self._loop.create_task(
            open_replica_connection(
                self._loop,
                self.host,
                self.port,
                self.settings,
                ReplicaConnection(self.rules, self.turns, self.discard),
                connected,
                failed,
            )
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close_idle(self, before: float) -> None:
        """Close the connections that have been idle since before this time of the monotonic clock."""
        while self._idle:
            stream = next(iter(self._idle))
            if stream.idle_since > before:
                return
            del self._idle[stream]
            stream.close_idle()

    def move(self, host: str, port: int) -> None:
        """Use another address from now on, as when the annotation with the port has changed. Connections to the
        previous one are closed once they are idle."""
        self.host, self.port = host, port
        self._moved = True
        self.close_idle(float("inf"))

    def _leads_here(self, stream: ReplicaStream) -> bool:
        peer = stream.transport.get_extra_info("peername")
        return peer is not None and tuple(peer[:2]) == (self.host, self.port)

    def retire(self) -> None:
        """Close idle connections now, and the others once they are idle. Called when the replica was removed."""
        self.retired = True
        self.close_idle(float("inf"))
