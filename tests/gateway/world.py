"""A world for tests of the data plane: a gateway on uvloop in the test's own event loop, real sockets, and clients and
replicas that follow a script.

    @story()
    async def test_a_request_reaches_the_replica(world: World) -> None:
        replica = await world.replica()
        client = await world.client()
        client.send(post(b"[1, 2]"))
        line = await replica.accept()
        assert (await line.message()).body == b"[1, 2]"
        line.send(ok(b"[3]"))
        assert (await client.message()).body == b"[3]"

After each story everything must be as before it: no slot taken, nobody queued, what the ledger has on record is what
the gateway holds, no connection, task, timer entry or descriptor left. A story that ends with an exception in a
callback of the event loop fails, whatever it asserted.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec
from unittest import mock

import uvloop

from router.gateway.gateway import Gateway
from router.gateway.table import VersionRoute
from router.services import Replica, ReplicaState, Service, VersionKey, parse_service
from router.settings import load_settings
from router.slots.coordinator import Coordinator
from router.slots.messages import ToLedger
from router.telemetry.access_log import AccessLog
from tests.gateway.wire import KEY, PATIENCE_SECONDS, Line, Message, ok, post, turns

LONGEST_STORY_SECONDS = 60.0

P = ParamSpec("P")
Script = Callable[[Line], Coroutine[Any, Any, None]]


class ScriptedReplica:
    """A replica of which a test plays every connection."""

    def __init__(self, world: World, name: str) -> None:
        self.id = name
        self.lines: list[Line] = []  # every connection that was ever accepted
        self.host = "127.0.0.1"
        self.port = 0
        self._world = world
        self._fresh: asyncio.Queue[Line] = asyncio.Queue()
        self._script: Script | None = None
        self._server: asyncio.Server | None = None
        self._stuck: list[socket.socket] = []

    async def listen(self, *, receive_buffer: int | None = None) -> None:
        """Accept connections, on the same port as before."""
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((self.host, self.port))
        self.port = sock.getsockname()[1]
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Line(self._accepted), sock=sock, backlog=4096)

    def refuse(self) -> None:
        """Stop listening; connections that are open stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for sock in self._stuck:
            sock.close()
        self._stuck.clear()

    def stop_accepting(self) -> None:
        """Be where connections are neither accepted nor refused: behind a full queue of connections to accept."""
        self.refuse()
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self.host, self.port))
        sock.listen(0)
        self._stuck.append(sock)
        for _ in range(3):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex((self.host, self.port))
            self._stuck.append(waiting)

    async def accept(self) -> Line:
        """The next new connection."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self._fresh.get()

    def plays(self, script: Script) -> ScriptedReplica:
        """Let a script play each new connection."""
        self._script = script
        return self

    def answers(self, answer: bytes = ok()) -> ScriptedReplica:
        """Give this answer to each request."""

        async def script(line: Line) -> None:
            while await more(line):
                await line.message()
                line.send(answer)
            line.close()

        return self.plays(script)

    def _accepted(self, line: Line) -> None:
        self.lines.append(line)
        if self._script is not None:
            self._world.do(self._script(line))
        else:
            self._fresh.put_nowait(line)


async def more(line: Line) -> bool:
    """Whether another message begins; False once the other side has closed. Waits as long as it takes."""
    while not line.received and not line.ended:
        line._news.clear()
        await line._news.wait()
    return bool(line.received)


class World:
    """Gateway, ledger, clients and replicas of one story."""

    def __init__(self, *, descriptors: int = 1_048_576, **settings: Any) -> None:
        self.loop = asyncio.get_running_loop()
        self.failures: list[str] = []  # what no test may leave behind
        self.loop.set_exception_handler(lambda _, context: self.failures.append(repr(context)))
        self.asked: list[str] = []  # token issuers of whom the gateway wants to know more
        self.coordinator = Coordinator()
        self.gateway = Gateway(
            replace(load_settings(environ={}), **settings),
            AccessLog(0.0, sys.stderr),
            self._send,
            self.asked.append,
            descriptors=descriptors,
        )
        self.coordinator.attach("w0", self.gateway.deliver)
        self.port = 0
        self.clients: list[Line] = []
        self.replicas: dict[VersionKey, list[ScriptedReplica]] = {}
        self._made: list[ScriptedReplica] = []
        self._services: dict[str, Service] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def _send(self, key: VersionKey, messages: Sequence[ToLedger]) -> None:
        self.coordinator.receive("w0", key, messages)

    async def open(self) -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = sock.getsockname()[1]
        await self.gateway.doors.open(sock)

    # What there is.

    def serve(self, name: str = "iris", **settings: object) -> None:
        """Add a service, or change one."""
        described = {"primary_key": KEY, "num_replicas": 1, **settings}
        if "autoscale_min_replicas" in described:
            del described["num_replicas"]
        self._services[name] = parse_service(name, described)
        self.gateway.apply(self._services)
        for version in self._services[name].versions:
            self.announce((name, version.name))

    def withdraw(self, name: str) -> None:
        """Remove a service."""
        del self._services[name]
        self.gateway.apply(self._services)
        self.coordinator.set_versions(self.gateway.versions.keys())

    async def replica(
        self, service: str = "iris", version: str = "default", *, listening: bool = True
    ) -> ScriptedReplica:
        """One more replica that is ready; makes the service if there is none."""
        if service not in self._services:
            self.serve(service)
        replicas = self.replicas.setdefault((service, version), [])
        replica = ScriptedReplica(self, f"{service}-{version}-{len(replicas)}")
        await replica.listen()
        if not listening:
            replica.refuse()
        replicas.append(replica)
        self._made.append(replica)
        self.announce((service, version))
        return replica

    def remove(self, replica: ScriptedReplica) -> None:
        """A replica is no more, as far as the gateway is told."""
        for key, replicas in self.replicas.items():
            if replica in replicas:
                replicas.remove(replica)
                self.announce(key)

    def announce(self, key: VersionKey, *, cordoned: Sequence[str] = ()) -> None:
        """Tell gateway and ledger of the replicas as they are."""
        version = next(v for v in self._services[key[0]].versions if v.name == key[1])
        known = self.replicas.get(key, [])
        self.gateway.set_replicas(
            key, tuple(Replica(r.id, r.host, r.port, ReplicaState.READY) for r in known), frozenset(cordoned)
        )
        limit = version.replica_max_concurrent_requests
        self.coordinator.set_replicas(key, {r.id: limit for r in known} if limit else {}, cordoned)

    def route(self, service: str = "iris", version: str = "default") -> VersionRoute:
        return self.gateway.versions[service, version]

    def busy(self, service: str = "iris", version: str = "default") -> int:
        """Requests in flight."""
        return self.route(service, version).holder.busy

    def queued(self, service: str = "iris", version: str = "default") -> int:
        """Requests waiting for a slot."""
        return len(self.route(service, version).holder.waiters)

    # Who asks.

    async def client(self, *, receive_buffer: int | None = None) -> Line:
        """A connection to the gateway."""
        sock = socket.socket()
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await self.loop.sock_connect(sock, ("127.0.0.1", self.port))
        _, line = await self.loop.create_connection(Line, sock=sock)
        self.clients.append(line)
        return line

    async def ask(self, *request: bytes) -> Message:
        """The answer to one request over a connection of its own."""
        client = await self.client()
        client.send(*request)
        answer = await client.message(until_close=True)
        client.close()
        return answer

    async def in_flight(self, replica: ScriptedReplica, *request: bytes) -> tuple[Line, Line]:
        """A request that has reached a replica whole over a new connection: the client's end and the replica's."""
        client = await self.client()
        client.send(*request or (post(),))
        line = await replica.accept()
        await line.message()
        return client, line

    def do(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Play a part beside the story; if it fails, so does the story."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"a part failed: {error!r}")

    # What must hold.

    async def until(self, holds: Callable[[], object], what: str = "what was waited for") -> None:
        """Wait until something holds of which no line tells."""
        deadline = self.loop.time() + PATIENCE_SECONDS
        while not holds():
            assert self.loop.time() < deadline, f"{what} did not come about; {self.leftovers()} {self.failures}"
            await asyncio.sleep(0.001)

    async def at_rest(self) -> None:
        """Wait until no request is under way and every slot is free; fails if that does not come about."""
        await self.until(lambda: not self.leftovers(), "rest")

    def leftovers(self) -> list[str]:
        """What is taken, waiting or not as the ledger has it."""
        found: list[str] = []
        for key, route in self.gateway.versions.items():
            holder = route.holder
            ledger = self.coordinator.ledger(key)
            assert ledger is not None
            recorded = ledger.held_by("w0")
            facts = {
                "busy": holder.busy,
                "in flight": holder.busy_by_replica(),
                "waiting": len(holder.waiters),
                "wanted": ledger.waiting,
                "timeouts": len(route.timeouts),
                "held, not recorded": {k: v for k, v in holder.held().items() if recorded.get(k) != v},
                "recorded, not held": {k: v for k, v in recorded.items() if holder.held().get(k) != v},
            }
            found += [f"{key}: {name} {fact}" for name, fact in facts.items() if fact]
        return found

    async def abandon(self) -> None:
        """Drop everything of a story that has failed."""
        for task in tuple(self._tasks):
            task.cancel()
        for client in self.clients:
            client.transport.abort()
        for inside in self.gateway._clients:
            inside.transport.abort()
        self.gateway.close()
        for replica in self._made:
            replica.refuse()
            for line in replica.lines:
                line.transport.abort()
        await turns(20)

    async def end(self) -> None:
        """Close everything; what then is left over is a failure."""
        for client in self.clients:
            client.transport.abort()
        await self.until(lambda: not self.gateway._clients, "farewell of the clients")
        await self.at_rest()
        for key, holds in self.gateway.holds(0, 1).items():
            assert self.coordinator.reconcile("w0", key, holds) == []
        counters = self.gateway.counters
        assert counters.connections_open == 0
        self.gateway.close()
        for replica in self._made:
            replica.refuse()
            for line in replica.lines:
                line.listen_on()
                await line.end()  # else the gateway has left a connection open
                line.transport.abort()
        for task in tuple(self._tasks):
            task.cancel()
        await turns()
        await self.until(lambda: len(asyncio.all_tasks()) == 1, f"end of the tasks {asyncio.all_tasks()}")
        assert not self.failures, "\n".join(self.failures)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@functools.cache
def _let_uvloop_open_its_own() -> None:
    """The first loop of a process opens a pipe that stays."""
    uvloop.run(turns(1))


def play(tell: Callable[[World], Awaitable[None]], **settings: Any) -> None:
    """Play a story in a world of its own, and look at what is left of it."""

    async def run() -> None:
        world = World(**settings)
        await world.open()
        try:
            async with asyncio.timeout(LONGEST_STORY_SECONDS):
                await tell(world)
                await world.end()
        except BaseException:
            await world.abandon()
            raise

    _let_uvloop_open_its_own()
    before = open_descriptors()
    patience = mock.patch.multiple("router.gateway.gateway", _SWEEP_SECONDS=0.02, _SUSPENSION_SECONDS=0.03)
    with patience:
        uvloop.run(run())
    assert open_descriptors() == before


def story(
    **settings: Any,
) -> Callable[[Callable[Concatenate[World, P], Awaitable[None]]], Callable[P, None]]:
    """Make a test of a story. `settings` are the router's."""

    def decorate(test: Callable[Concatenate[World, P], Awaitable[None]]) -> Callable[P, None]:
        @functools.wraps(test)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            play(lambda world: test(world, *args, **kwargs), **settings)

        signature = inspect.signature(test)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[p for name, p in signature.parameters.items() if name != "world"]
        )
        return run

    return decorate
