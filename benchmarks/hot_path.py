"""The CPU time of one request in Python: the data plane between two transports that do nothing.

Without sockets, kernel and other processes, it measures the router's own work for one small JSON POST over keep-alive
connections on both sides, with key authentication, slots and metrics. The result varies less than any throughput and
shows the effect of a change to the hot path. `--profile` shows where the time is spent.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from collections.abc import Sequence

import uvloop

from router.config.router import load_settings
from router.config.service import parse_service
from router.gateway.client_connection import ClientConnection
from router.gateway.gateway import Gateway
from router.gateway.replica_connection import ReplicaConnection
from router.model.services import Replica, ReplicaState, VersionKey
from router.model.version_replicas import VersionReplicas
from router.slots.coordinator import Coordinator
from router.slots.messages import ToLedger
from router.telemetry.access_log import AccessLog
from router.telemetry.counters import VersionCounters
from router.telemetry.journal import Journal

_KEY = "0123456789abcdef0123456789abcdef"
_BODY = b'{"data": [[1, 2, 3, 4]]}'
_REQUEST = (
    b"POST /api/v1/service/bench/score HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer " + _KEY.encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(_BODY) + _BODY
)
_RESPONSE = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 23 Nov 2026 08:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: 26\r\nConnection: keep-alive\r\n\r\n"
    b'{"predictions": [1, 2, 3]}'
)


class _NullTransport(asyncio.Transport):
    """A transport that accepts all calls and does nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def close(self) -> None:
        pass


def _rounds(client: ClientConnection, replica: ReplicaConnection, count: int) -> None:
    for _ in range(count):
        client.data_received(_REQUEST)
        replica.data_received(_RESPONSE)


def _count(counters: VersionCounters, journal: Journal, count: int) -> None:
    """Do what one request does for metrics and journal, and nothing else (the loop itself costs 0.02 us)."""
    queued_seconds, error_code, attempts = 0.0, "", 0
    for _ in range(count):
        counters.route_time.observe(0.0001)
        counters.first_byte.observe(0.0008)
        counters.responses[200, error_code] += 1
        counters.duration.observe(0.001)
        if queued_seconds or error_code or attempts:
            raise AssertionError
        counters.queue_wait.counts[0] += 1
        if journal.budget < 0:
            raise AssertionError
        counters.request_bytes += 24
        counters.response_bytes += 26


async def _measure(count: int, rounds: int, profile: bool) -> None:
    coordinator = Coordinator()

    def send(key: VersionKey, messages: Sequence[ToLedger]) -> None:
        coordinator.receive("bench", key, messages)

    gateway = Gateway(load_settings(environ={}, file={"max_connection_requests": 0}), AccessLog(0.0, sys.stderr), send)
    coordinator.connect_worker("bench", gateway.deliver)
    settings = {"primary_key": _KEY, "num_replicas": 1, "replica_max_concurrent_requests": 100}
    gateway.apply({"bench": parse_service("bench", settings)})
    key = ("bench", "default")
    replicas = VersionReplicas((Replica("r", "127.0.0.1", 1, ReplicaState.READY),), slots=100)
    gateway.set_replicas(key, replicas)
    coordinator.set_replicas(key, replicas)
    client = ClientConnection(gateway.context, gateway.clients)
    client.connection_made(_NullTransport({"peername": ("127.0.0.1", 50000)}))
    (pool,) = gateway.versions[key].pools()
    replica = ReplicaConnection(pool.rules, pool.turns, pool.discard)
    replica.connection_made(_NullTransport())
    pool.put(replica, time.monotonic())
    client.data_received(_REQUEST)  # the first request has to wait for a lease
    await asyncio.sleep(0.01)
    replica.data_received(_RESPONSE)
    _rounds(client, replica, 1000)
    served = gateway.versions[key].counters.responses[200, ""]
    if served != 1001:
        raise RuntimeError(f"{served} of 1001 requests were served")
    best = counting = float("inf")
    for _ in range(rounds):
        started_at = time.perf_counter()
        _rounds(client, replica, count)
        served_at = time.perf_counter()
        _count(gateway.versions[key].counters, gateway.journal, count)
        best, counting = min(best, served_at - started_at), min(counting, time.perf_counter() - served_at)
        await asyncio.sleep(0)
    print(f"{best / count * 1e6:.2f} us of Python per request (best of {rounds} rounds of {count})")
    print(f"{counting / count * 1e6:.2f} us of it are metrics and journal")
    if profile:
        with cProfile.Profile() as profiler:
            _rounds(client, replica, count)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(32)
    gateway.close()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=5000, help="requests per round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="also print a profile")
    arguments = parser.parse_args()
    uvloop.run(_measure(arguments.count, arguments.rounds, arguments.profile))


if __name__ == "__main__":
    main()
