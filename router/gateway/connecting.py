"""Opens a connection to a replica. This is the only coroutine on the path of a request.

It has a file of its own because modules with coroutines are not compiled (see `setup.py`): coroutines that mypyc has
compiled raise errors in a form that Python 3.12 and later warn about.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from router.config.router import RouterSettings
from router.gateway.replica_connection import ReplicaConnection
from router.http.streams import ReplicaStream
from router.net.keepalive import set_keepalive


async def open_replica_connection(
    loop: asyncio.AbstractEventLoop,
    host: str,
    port: int,
    settings: RouterSettings,
    connection: ReplicaConnection,
    on_connected: Callable[[ReplicaStream], None],
    on_failed: Callable[[BaseException], None],
) -> None:
    """Open `connection` within `connect_timeout_ms`, then call `on_connected` with it, or `on_failed`."""
    protocol = cast(asyncio.Protocol, connection)
    failure: BaseException | None = None
    try:
        async with asyncio.timeout(settings.connect_timeout_ms / 1000):
            transport, _ = await loop.create_connection(lambda: protocol, host, port)
    except (OSError, TimeoutError) as error:
        failure = error
    if failure is not None:  # not within the handler, so that errors of later requests have no foreign context
        on_failed(failure)
        return
    try:
        sock = transport.get_extra_info("socket")
        set_keepalive(sock, settings.tcp_keepalive_seconds, settings.replica_tcp_user_timeout_seconds)
    except OSError:
        pass  # it was closed meanwhile, which the connection itself detects
    on_connected(connection)
