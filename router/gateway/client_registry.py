"""The client connections of one gateway, with the limits of their number.

At the limit the connection that has been idle for longest is evicted for a new one, first among those that have not had
a response of a replica yet. Finding it costs time for each connection. So one search finds several, and a search that
found none is not repeated at once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import Final, Protocol

from router.telemetry.counters import GatewayCounters

_SEARCH_SECONDS: Final = 0.25  # between two searches
# A client that has just connected, or had a response, may send a request at this moment. It could not safely repeat it.
MIN_IDLE_SECONDS: Final = 1.0
_ROUNDING_SECONDS: Final = 1e-6
_FOUND_SHARE: Final = 16  # a search finds up to this fraction of the connections


class ClientConnectionControl(Protocol):
    """The methods of a client connection that the gateway calls, for any protocol."""

    address: bytes
    """The IP address of the client."""
    is_trusted_proxy: bool
    """True if the peer is one of `trusted_proxies`."""
    has_been_served: bool
    """True if the client has had a response of a replica."""

    def evictable_seconds(self, now: float) -> float:
        """Return the seconds since the last request ended; negative if more than a part of a head has arrived since."""

    @property
    def idle(self) -> bool:
        """True if no request is in progress."""

    def idle_seconds(self, now: float) -> float:
        """Return the seconds since the last request ended; negative if a request is in progress."""

    def enforce_timeouts(self, now: float) -> None:
        """Close the connection, or refuse its request, if the client is too slow. Called several times a second."""

    @property
    def streaming_replicas(self) -> list[str]:
        """The replicas whose responses are being sent to the client, one element for each response."""

    def abort_requests_at(self, replica_ids: frozenset[str]) -> None:
        """Abort the requests in progress at these replicas, whose drain time is over."""

    def retire(self) -> None:
        """Close the connection with its next response, after which the client has sent nothing more."""

    def close(self) -> None:
        """Close the connection once the client has received what was written."""

    def abort(self) -> None:
        """Close the connection at once."""


class ClientRegistry:
    """All client connections of one gateway."""

    def __init__(self, counters: GatewayCounters, max_connections: int, max_per_address: int = 0) -> None:
        """`max_per_address`: of clients that are no trusted proxies; 0 for no limit."""
        self._counters = counters
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._connections: set[ClientConnectionControl] = set()
        self._by_address: Counter[bytes] = Counter()  # only with a limit
        self._evicted: set[ClientConnectionControl] = set()  # they are removed in the next turn of the event loop
        self._candidates: list[tuple[bool, float, ClientConnectionControl]] = []  # the last one is evicted first
        self._searched_at = 0.0
        self._empty = asyncio.Event()

    def __len__(self) -> int:
        return len(self._connections)

    def __iter__(self) -> Iterator[ClientConnectionControl]:
        """Iterate over a copy, as connections may close meanwhile."""
        return iter(tuple(self._connections))

    @property
    def count(self) -> int:
        """The number of connections without those that were evicted."""
        return len(self._connections) - len(self._evicted)

    def change_limits(self, max_connections: int, max_per_address: int) -> None:
        """Apply other limits to new connections; see the constructor."""
        self._max_connections = max_connections
        if max_per_address and not self._max_per_address:
            self._by_address = Counter(each.address for each in self._connections if not each.is_trusted_proxy)
        elif not max_per_address:
            self._by_address.clear()
        self._max_per_address = max_per_address

    def add(self, connection: ClientConnectionControl) -> bool:
        """Add a new connection; return False if there are too many."""
        limit, is_limited = self._max_per_address, not connection.is_trusted_proxy
        if (limit and is_limited and self._by_address[connection.address] >= limit) or (
            self.count >= self._max_connections and not self.evict_idle(monotonic())
        ):
            self._counters.connections_refused += 1
            return False
        if limit and is_limited:
            self._by_address[connection.address] += 1
        self._counters.connections_accepted += 1
        self._counters.connections_open += 1
        self._connections.add(connection)
        return True

    def replace(self, previous: ClientConnectionControl, connection: ClientConnectionControl) -> None:
        """Replace a connection whose client has changed the protocol. It counts as the same connection."""
        self._connections.discard(previous)
        self._evicted.discard(previous)
        self._connections.add(connection)

    def remove(self, connection: ClientConnectionControl) -> None:
        """Remove a connection that was closed, if it was added."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._evicted.discard(connection)
        self._counters.connections_open -= 1
        if self._max_per_address and not connection.is_trusted_proxy:
            self._by_address[connection.address] -= 1
            if not self._by_address[connection.address]:
                del self._by_address[connection.address]
        if not self._connections:
            self._empty.set()

    def evict_idle(self, now: float) -> bool:
        """Close the connection that has been idle for longest. Return False if none is idle."""
        while True:
            if not self._candidates:
                if now - self._searched_at < _SEARCH_SECONDS:
                    return False
                self._search(now)
                if not self._candidates:
                    return False
            _, idle_since, connection = self._candidates.pop()
            is_open = connection in self._connections and connection not in self._evicted
            if is_open and now - connection.evictable_seconds(now) <= idle_since + _ROUNDING_SECONDS:
                self._evicted.add(connection)
                self._counters.connections_evicted += 1
                connection.abort()
                return True

    def _search(self, now: float) -> None:
        """Find the next connections to evict."""
        found = [
            (connection.has_been_served, now - seconds, connection)
            for connection in self._connections - self._evicted
            if (seconds := connection.evictable_seconds(now)) >= MIN_IDLE_SECONDS
        ]
        found.sort(key=lambda candidate: candidate[:2])
        self._candidates = found[: len(self._connections) // _FOUND_SHARE + 1][::-1]
        # Candidates that were found are used up first, so only a search without a result must not be repeated soon.
        self._searched_at = now if not found else self._searched_at

    async def wait_until_empty(self, seconds: float) -> None:
        """Wait until there is no connection, for at most `seconds`."""
        self._empty.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            pass
