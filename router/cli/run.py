"""Common parts of the commands that run a router: the signals that stop it, and the listener for peers."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from router.net.listen import bind_listener, listen_error


class StopSignal:
    """Handles SIGINT and SIGTERM. The first one stops the router gracefully, each further one calls `on_repeat`."""

    def __init__(self, on_repeat: Callable[[], None]) -> None:
        self._on_repeat = on_repeat
        self._received = asyncio.Event()

    @property
    def is_received(self) -> bool:
        """True once a signal has arrived."""
        return self._received.is_set()

    def send(self) -> None:
        """Act as if a signal had arrived."""
        if self._received.is_set():
            self._on_repeat()
        self._received.set()

    async def run_until_received(self, start: Coroutine[Any, Any, None]) -> None:
        """Run `start`, then wait for a signal. A signal during `start` cancels it. Raises the exceptions of `start`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.send)
        starting = asyncio.ensure_future(start)
        stopping = asyncio.ensure_future(self._received.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                await stopping
        finally:
            stopping.cancel()
            if not starting.done():
                starting.cancel()
                await asyncio.wait((starting,))


def bind_peer_listener(host: str, port: int, *, host_setting: str = "host") -> socket.socket:
    """Return the listening socket for peers. Raises OSError, which names the wrong setting."""
    try:
        return bind_listener(host, port)
    except OSError as error:
        raise listen_error("peer_port", port, host, error, host_setting=host_setting) from error
