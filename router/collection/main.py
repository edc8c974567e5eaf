"""The collector process.

Started as `python -m router.collection.main CHANNEL_FD PACKETS_FD [LOG_FD]`. All other data arrives over the channel:
first the settings, then those of the versions. When the supervisor ends, the collector stores what the workers still
send, and ends, too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

from router.collection.collector import Collector
from router.collection.messages import CollectorsUpdate, ConfigureCollector, LogSources, StopCollector, WorkersEnded
from router.collection.stores import make_fallback, make_store
from router.net.channel import Channel
from router.telemetry import log
from router.telemetry.standard_error import protect_standard_error

_NICENESS = 5
"""Below workers: requests go first. With SCHED_BATCH the collector does not preempt a worker that sends it a packet."""
_FLUSH_SECONDS = 1.0  # for the last report


class CollectorMain:
    """Connects a collector with the supervisor."""

    def __init__(self, packets: socket.socket, log_socket: socket.socket | None) -> None:
        self._packets = packets
        self._log_socket = log_socket
        self._channel = Channel(self._on_message, self._on_closed)
        self._collector: asyncio.Future[Collector | None] = asyncio.get_running_loop().create_future()
        self._drain_seconds = 0.0
        self._closed = asyncio.Event()

    async def run(self, channel: socket.socket) -> None:
        """Collect until the supervisor stops this process, or ends."""
        await asyncio.get_running_loop().create_connection(lambda: self._channel, sock=channel)
        collector = await self._collector
        if collector is not None:
            await collector.run()
        self._channel.close()
        try:
            async with asyncio.timeout(_FLUSH_SECONDS):
                await self._closed.wait()
        except TimeoutError:
            pass  # the supervisor does not read, so it does not need the report

    def _on_message(self, message: object) -> None:
        if isinstance(message, ConfigureCollector):
            settings = message.settings
            log.configure(settings.log_level, sys.stderr, human=message.human_log)
            self._drain_seconds = settings.drain_seconds
            store, fallback = make_store(settings), make_fallback(settings)
            self._collector.set_result(
                Collector(
                    settings, message.instance, self._packets, self._log_socket, store, fallback, self._channel.send
                )
            )
            return
        current = self._collector.result()
        assert current is not None, "messages after the end of the channel"
        if isinstance(message, CollectorsUpdate):
            current.set_collectors(message.collectors)
        elif isinstance(message, LogSources):
            current.set_log_sources(message)
        elif isinstance(message, WorkersEnded):
            current.on_workers_ended(message.pids)
        elif isinstance(message, StopCollector):
            current.stop(message.seconds)

    def _on_closed(self) -> None:
        self._closed.set()
        if not self._collector.done():
            self._collector.set_result(None)
        elif (collector := self._collector.result()) is not None:
            collector.stop(self._drain_seconds)


def main() -> None:
    """Run a collector with the file descriptors in the arguments, which it has inherited."""
    protect_standard_error()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the supervisor handles signals, and stops its processes
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    channel, packets, *log_sockets = (socket.socket(fileno=int(argument)) for argument in sys.argv[1:])
    for sock in (channel, packets, *log_sockets):
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)

    async def run() -> None:
        await CollectorMain(packets, log_sockets[0] if log_sockets else None).run(channel)

    asyncio.run(run())


if __name__ == "__main__":
    main()
