"""A gateway for tests, in the event loop of the test, with clients and replicas on real sockets that the test controls.

    async def test_request_reaches_the_replica(harness: GatewayHarness) -> None:
        replica = await harness.add_replica()
        client = await harness.client()
        client.send(post(b"[1, 2]"))
        connection = await replica.accept()
        assert (await connection.read_message()).body == b"[1, 2]"
        connection.send(ok(b"[3]"))
        assert (await client.read_message()).body == b"[3]"

The fixture `harness` (`conftest.py`) checks at the end that nothing is left: no request in flight or queued, no
timeout, connection, task or file descriptor, and no difference between ledger and lease cache. It also fails the test
for each exception in a callback of the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

from router.config.router import load_settings
from router.config.service import parse_service
from router.gateway.client_connection import ClientConnection
from router.gateway.gateway import Gateway
from router.gateway.replica_connection import ReplicaConnection
from router.gateway.routes import VersionRoute
from router.model.services import Replica, ReplicaState, Service, VersionKey
from router.model.version_replicas import VersionReplicas
from router.slots.coordinator import Coordinator
from router.slots.messages import ToLedger
from router.telemetry.access_log import AccessLog
from tests.gateway.http_connection import KEY, TIMEOUT_SECONDS, Connection, Message, ok, post, run_loop

TEST_TIMEOUT_SECONDS = 60.0

Script = Callable[[Connection], Coroutine[Any, Any, None]]


class ScriptedReplica:
    """A replica. The test controls each of its connections, by itself or by a script."""

    def __init__(self, harness: GatewayHarness, name: str) -> None:
        self.id = name
        self.connections: list[Connection] = []  # all that were ever accepted
        self.host = "127.0.0.1"
        self._port_reservation = _bound_socket(self.host, 0)  # until the end, also while the replica does not listen
        self.port: int = self._port_reservation.getsockname()[1]
        self.state = ReplicaState.READY
        self._harness = harness
        self._accepted: asyncio.Queue[Connection] = asyncio.Queue()
        self._script: Script | None = None
        self._server: asyncio.Server | None = None
        self._backlog_sockets: list[socket.socket] = []

    async def listen(self, *, receive_buffer: int | None = None) -> None:
        """Accept connections, on the same port as before. `receive_buffer`: bytes."""
        sock = _bound_socket(self.host, self.port)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self._on_connect), sock=sock, backlog=4096)

    def stop_listening(self) -> None:
        """Refuse new connections. Open connections stay open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for sock in self._backlog_sockets:
            sock.close()
        self._backlog_sockets.clear()

    def stop_accepting(self) -> None:
        """Neither accept nor refuse new connections: fill the backlog of the listening socket."""
        self.stop_listening()
        sock = _bound_socket(self.host, self.port)
        sock.listen(0)
        self._backlog_sockets.append(sock)
        for _ in range(3):
            pending = socket.socket()
            pending.setblocking(False)
            pending.connect_ex((self.host, self.port))
            self._backlog_sockets.append(pending)

    def end(self) -> None:
        """Stop listening, and give up the port."""
        self.stop_listening()
        self._port_reservation.close()

    async def accept(self) -> Connection:
        """Return the next new connection."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await self._accepted.get()

    @property
    def has_unaccepted_connection(self) -> bool:
        return not self._accepted.empty()

    def run_script(self, script: Script) -> ScriptedReplica:
        """Run the script for each new connection."""
        self._script = script
        return self

    def auto_respond(self, response: bytes = ok()) -> ScriptedReplica:
        """Respond to each request with `response`."""

        async def script(connection: Connection) -> None:
            while await connection.wait_for_data():
                await connection.read_message()
                connection.send(response)
            connection.close()

        return self.run_script(script)

    def _on_connect(self, connection: Connection) -> None:
        self.connections.append(connection)
        if self._script is not None:
            self._harness.start_task(self._script(connection))
        else:
            self._accepted.put_nowait(connection)


def _bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that does not listen yet. Other sockets of this function may be bound to the same port."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


class GatewayHarness:
    """Gateway, ledgers, clients and replicas of one test."""

    def __init__(self, *, descriptors: int = 1_048_576, **settings: Any) -> None:
        """`settings` are the router's."""
        self.loop = asyncio.get_running_loop()
        self.unexpected_errors: list[str] = []  # of callbacks and tasks; fail the test
        self.loop.set_exception_handler(lambda _, context: self.unexpected_errors.append(repr(context)))
        self.key_requests: list[str] = []  # token issuers whose keys the gateway has requested
        self.coordinator = Coordinator()
        self.gateway = Gateway(
            replace(load_settings(environ={}), **settings),
            AccessLog(0.0, sys.stderr),
            self._send,
            self.key_requests.append,
            descriptors=descriptors,
        )
        self.coordinator.connect_worker("w0", self.gateway.deliver)
        self.port = 0
        self.clients: list[Connection] = []
        self.replicas: dict[VersionKey, list[ScriptedReplica]] = {}
        self._all_replicas: list[ScriptedReplica] = []  # also removed ones
        self._services: dict[str, Service] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def _send(self, key: VersionKey, messages: Sequence[ToLedger]) -> None:
        self.coordinator.receive("w0", key, messages, self.loop.time())

    async def open(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = sock.getsockname()[1]
        self._listening_socket = sock
        await self.gateway.acceptor.open(sock)

    def accept_queue_is_empty(self) -> bool:
        """Return True if the gateway has accepted each connection that was made."""
        return not select.select([self._listening_socket], [], [], 0)[0]

    # Services and replicas.

    def set_service(self, name: str = "iris", **settings: object) -> None:
        """Add a service, or replace its settings.

        `half_close` is cancel, so that `Connection.close` ends requests; None means its own default.
        """
        described = {"primary_key": KEY, "num_replicas": 1, "half_close": "cancel", **settings}
        if described["half_close"] is None:
            del described["half_close"]
        if "autoscale_min_replicas" in described:
            del described["num_replicas"]
        self._services[name] = parse_service(name, described)
        self.gateway.apply(self._services)
        for version in self._services[name].versions:
            self.publish_replicas((name, version.name))

    def set_standby(self, name: str, *, standby: bool) -> None:
        """Put a service on standby, or end it."""
        self._services[name] = replace(self._services[name], standby=standby)
        self.gateway.apply(self._services)

    def remove_service(self, name: str) -> None:
        del self._services[name]
        self.gateway.apply(self._services)
        self.coordinator.set_versions(self.gateway.versions.keys())

    async def add_replica(
        self,
        service: str = "iris",
        version: str = "default",
        *,
        listening: bool = True,
        state: ReplicaState = ReplicaState.READY,
    ) -> ScriptedReplica:
        """Add a replica, by default a ready one. Add the service if there is none."""
        if service not in self._services:
            self.set_service(service)
        replicas = self.replicas.setdefault((service, version), [])
        replica = ScriptedReplica(self, f"{service}-{version}-{len(replicas)}")
        replica.state = state
        await replica.listen()
        if not listening:
            replica.stop_listening()
        replicas.append(replica)
        self._all_replicas.append(replica)
        self.publish_replicas((service, version))
        return replica

    def set_state(self, replica: ScriptedReplica, state: ReplicaState) -> None:
        """Report another state of a replica."""
        replica.state = state
        for key, replicas in self.replicas.items():
            if replica in replicas:
                self.publish_replicas(key)

    def remove_replica(self, replica: ScriptedReplica) -> None:
        """Remove a replica from its version. It continues to run."""
        for key, replicas in self.replicas.items():
            if replica in replicas:
                replicas.remove(replica)
                self.publish_replicas(key)

    def abort_requests_at(self, *replica_ids: str) -> None:
        """End the drain time of these replicas of the service iris."""
        self.publish_replicas(("iris", "default"), cordoned=replica_ids, aborted=replica_ids)

    def publish_replicas(self, key: VersionKey, *, cordoned: Sequence[str] = (), aborted: Sequence[str] = ()) -> None:
        """Send the current replicas of a version to gateway and ledger."""
        version = next(v for v in self._services[key[0]].versions if v.name == key[1])
        reported = tuple(Replica(r.id, r.host, r.port, r.state) for r in self.replicas.get(key, []))
        slots = version.replica_max_concurrent_requests
        replicas = VersionReplicas(reported, frozenset(cordoned), slots, frozenset(aborted))
        self.gateway.set_replicas(key, replicas)
        self.coordinator.set_replicas(key, replicas)

    # State of the gateway.

    def route(self, service: str = "iris", version: str = "default") -> VersionRoute:
        return self.gateway.versions[service, version]

    def in_flight(self, service: str = "iris", version: str = "default") -> int:
        """Return the number of requests in flight."""
        return self.route(service, version).lease_cache.busy

    def queued(self, service: str = "iris", version: str = "default") -> int:
        """Return the number of queued requests."""
        return len(self.route(service, version).lease_cache.waiters)

    def client_connection(self) -> ClientConnection:
        """Return the gateway's side of the only client connection."""
        (connection,) = self.gateway.clients
        assert isinstance(connection, ClientConnection)
        return connection

    def replica_connection(self) -> ReplicaConnection:
        """Return the gateway's side of the replica connection that serves the only client."""
        exchange = self.client_connection()._current
        assert exchange is not None
        assert isinstance(exchange._replica, ReplicaConnection)
        return exchange._replica

    def suspect_slots(self, service: str = "iris", version: str = "default") -> int:
        """Return the number of suspect slots."""
        ledger = self.coordinator.ledger((service, version))
        assert ledger is not None
        return ledger.suspect_slots

    # Clients.

    async def client(self, *, receive_buffer: int | None = None, address: str = "127.0.0.1") -> Connection:
        """Connect a client from an address of this machine. `receive_buffer`: bytes."""
        sock = socket.socket()
        sock.bind((address, 0))
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await self.loop.sock_connect(sock, ("127.0.0.1", self.port))
        _, client = await self.loop.create_connection(Connection, sock=sock)
        self.clients.append(client)
        return client

    async def response_to(self, request: bytes, *, address: str = "127.0.0.1") -> Message:
        """Return the response to a request on a new connection from an address of this machine."""
        client = await self.client(address=address)
        client.send(request)
        response = await client.read_message(until_close=True)
        client.close()
        return response

    async def start_request(
        self, replica: ScriptedReplica, request: bytes | None = None
    ) -> tuple[Connection, Connection]:
        """Send a request on a new connection, by default a POST, and wait until the replica has received it.

        Return the client connection and the replica connection, as the client and the replica see them.
        """
        client = await self.client()
        client.send(post() if request is None else request)
        connection = await replica.accept()
        await connection.read_message()
        return client, connection

    def start_task(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine concurrently. Its exception fails the test."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    async def wait_for_tasks(self) -> None:
        """Wait until all tasks of `start_task` have ended."""
        await self.wait_until(lambda: not self._tasks, "end of the tasks")

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.unexpected_errors.append(f"a task failed: {error!r}")

    # Checks.

    async def wait_until(self, condition: Callable[[], object], description: str = "expected state") -> None:
        """Poll until the condition is true."""
        deadline = self.loop.time() + TIMEOUT_SECONDS
        while not condition():
            assert self.loop.time() < deadline, f"no {description}; {self.leftovers()} {self.unexpected_errors}"
            await asyncio.sleep(0.001)

    async def wait_idle(self) -> None:
        """Wait until no request is in progress and each slot is free."""
        await self.wait_until(lambda: not self.leftovers(), "idle gateway")

    def leftovers(self) -> list[str]:
        """Return what an idle gateway must not have, and differences between lease cache and ledger."""
        found: list[str] = []
        if buffered := self.gateway.counters.buffered_bytes:
            found.append(f"{buffered} buffered bytes")
        for key, route in self.gateway.versions.items():
            lease_cache = route.lease_cache
            ledger = self.coordinator.ledger(key)
            assert ledger is not None
            recorded = ledger.held_by("w0")
            leftovers = {
                "in flight": lease_cache.busy,
                "in flight by replica": lease_cache.busy_by_replica(),
                "waiters": len(lease_cache.waiters),
                "waiters of the ledger": ledger.waiting,
                "timeouts": len(route.scoring_timeouts) + len(route.abandoned_timeouts),
                "abandoned": lease_cache.abandoned,
                "leases that only the cache has": {k: v for k, v in lease_cache.held().items() if recorded.get(k) != v},
                "leases that only the ledger has": {
                    k: v for k, v in recorded.items() if lease_cache.held().get(k) != v
                },
            }
            found += [f"{key}: {name} {value}" for name, value in leftovers.items() if value]
        return found

    async def abort(self) -> None:
        """Drop everything after a failure."""
        for task in tuple(self._tasks):
            task.cancel()
        for client in self.clients:
            client.transport.abort()
        for client_connection in self.gateway.clients:
            client_connection.abort()
        self.gateway.close()
        for replica in self._all_replicas:
            replica.end()
            for connection in replica.connections:
                connection.transport.abort()
        await run_loop(20)

    async def close(self) -> None:
        """Close everything, and check that nothing is left."""
        for client in self.clients:
            client.transport.abort()
        await self.wait_until(lambda: not self.gateway.clients, "end of the client connections")
        await self.wait_idle()
        for key, held in self.gateway.held_snapshots(0, 1).items():
            assert self.coordinator.reconcile("w0", key, held) == []
        counters = self.gateway.counters
        assert counters.connections_open == 0
        self.gateway.close()
        for replica in self._all_replicas:
            replica.end()
            for connection in replica.connections:
                connection.discard_input()
                await connection.wait_closed()  # else the gateway has left a connection open
                connection.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await run_loop()
        await self.wait_until(lambda: len(asyncio.all_tasks()) == 1, f"end of the tasks {asyncio.all_tasks()}")
        assert not self.unexpected_errors, "\n".join(self.unexpected_errors)


def open_descriptors() -> int:
    """Return the number of open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


@contextlib.asynccontextmanager
async def running_gateway(**arguments: Any) -> AsyncIterator[GatewayHarness]:
    """Run a gateway. At the end, close it, and check that nothing is left. `arguments` are those of `GatewayHarness`.

    Some periods of the gateway are shorter than usual.
    """
    sweep = mock.patch("router.gateway.gateway._CLIENT_CHECK_SECONDS", 0.02)
    suspension = mock.patch("router.gateway.pool.FIRST_SUSPENSION_SECONDS", 0.03)
    with sweep, suspension:
        harness = GatewayHarness(**arguments)
        await harness.open()
        try:
            async with asyncio.timeout(TEST_TIMEOUT_SECONDS):
                yield harness
                await harness.close()
        except BaseException:
            await harness.abort()
            raise
