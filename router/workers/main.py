"""A worker process: one gateway, controlled by the supervisor over a channel.

Started as `python -m router.workers.main CHANNEL_FD LISTENER_FD... tls:LISTENER_FD... peers:LISTENER_FD...
collection:FD`. All other data arrives over the channel: first the settings, then services, replicas and ledger
replies. `gateway_control` applies these messages. When the supervisor ends, the worker ends, too.

The worker does not use the listeners for peers. It keeps them open while it has requests: a peer that cannot connect
has the proof that none is in flight.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import signal
import socket
import sys
from collections.abc import Sequence

import uvloop

from router.net.channel import Channel
from router.telemetry.standard_error import protect_standard_error
from router.workers.gateway_control import GatewayControl
from router.workers.messages import EXIT_REQUESTS_ABORTED, Configure
from router.workers.orphan_watchdog import resume_when_parent_ends, start_watchdog

_FLUSH_SECONDS = 1.0
"""Maximum time to send the last report. The supervisor may hang and not read it."""
_GC_THRESHOLD = 5_000
"""Number of new objects between two runs of the garbage collector (Python's default is 700). It is high because each
run costs time, requests leave no reference cycles, and TLS connections leave few."""


class Worker:
    """Runs a gateway until the supervisor has it exit, or the supervisor itself ends."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        tls_listeners: Sequence[socket.socket],
        peer_listeners: Sequence[socket.socket],
        collection_socket: socket.socket | None,
    ) -> None:
        self._listeners = listeners
        self._collection_socket = collection_socket
        self._tls_listeners = tls_listeners
        self._peer_listeners = peer_listeners
        self._channel = Channel(self._on_message, self._on_channel_closed)
        self._control: asyncio.Future[GatewayControl | None] = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()

    @classmethod
    async def serve(
        cls,
        channel: socket.socket,
        listeners: Sequence[socket.socket],
        tls_listeners: Sequence[socket.socket],
        peer_listeners: Sequence[socket.socket],
        collection_socket: socket.socket | None,
    ) -> int:
        """Create a worker in the running event loop and run it. Return the exit code."""
        return await cls(listeners, tls_listeners, peer_listeners, collection_socket).run(channel)

    async def run(self, channel: socket.socket) -> int:
        """Serve until the supervisor has this worker drain, or the supervisor itself ends. Return the exit code."""
        start_watchdog(channel, asyncio.get_running_loop(), self._orphan_drain_seconds)
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=channel)
        control = await self._control
        complete = True
        if control is not None:
            await control.ending.wait()
            complete = await control.drain()
        self._channel.close()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._closed.wait()
        except TimeoutError:
            pass  # the supervisor does not read, so it does not need the report
        return 0 if complete else EXIT_REQUESTS_ABORTED

    def _on_message(self, message: object) -> None:
        if self._control.done():
            if (control := self._control.result()) is not None:
                control.handle(message)
        elif isinstance(message, Configure):
            self._control.set_result(
                GatewayControl(message, self._channel, self._listeners, self._tls_listeners, self._collection_socket)
            )
        else:
            raise TypeError(f"{type(message).__name__} arrived before Configure")

    def _on_channel_closed(self) -> None:
        self._closed.set()
        if not self._control.done():
            self._control.set_result(None)
        elif (control := self._control.result()) is not None:
            control.on_supervisor_lost()
            if not control.shares_slots:  # no peer needs the proof, and a new router may need the port
                for sock in self._peer_listeners:
                    sock.close()

    def _orphan_drain_seconds(self) -> float:
        control = self._control.result() if self._control.done() else None
        return control.orphan_drain.seconds if control is not None else 0.0


def main() -> None:
    """Run a worker with the file descriptors in the arguments, which it has inherited."""
    resume_when_parent_ends()
    protect_standard_error()
    channel_fd, *listener_fds = sys.argv[1:]
    # Only the supervisor handles signals. It drains its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = socket.socket(fileno=int(channel_fd))
    by_kind: dict[str, list[socket.socket]] = {"": [], "tls": [], "peers": [], "collection": []}
    for argument in listener_fds:
        kind, _, fd = argument.rpartition(":")
        by_kind[kind].append(socket.socket(fileno=int(fd)))
    for sock in (channel, *itertools.chain.from_iterable(by_kind.values())):
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)
    gc.collect()
    gc.freeze()  # imported modules are never collected
    gc.set_threshold(_GC_THRESHOLD, 10, 10)
    collection_socket = by_kind["collection"][0] if by_kind["collection"] else None
    sys.exit(uvloop.run(Worker.serve(channel, by_kind[""], by_kind["tls"], by_kind["peers"], collection_socket)))


if __name__ == "__main__":
    main()
