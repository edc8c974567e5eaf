"""How a connection to a replica is opened: the one thing on a request's way that waits in a coroutine.

A file of its own, as coroutines are not compiled (`setup.py`): those of mypyc take errors in a form that Python 3.12
and later warn of.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, cast

from router.gateway.upstream import ReplicaConnection

if TYPE_CHECKING:
    from router.gateway.exchange import Exchange
    from router.gateway.pool import ReplicaPool


async def connect(loop: asyncio.AbstractEventLoop, pool: ReplicaPool, exchange: Exchange, seconds: float) -> None:
    """Open one within `seconds` for an exchange, which hears of it by `connected` or `connect_failed`."""
    connection = ReplicaConnection(pool)
    protocol = cast(asyncio.Protocol, connection)
    try:
        async with asyncio.timeout(seconds):
            await loop.create_connection(lambda: protocol, pool.host, pool.port)
    except (OSError, TimeoutError) as error:
        exchange.connect_failed(pool, error)
        return
    pool.failures = 0
    if not exchange.connected(pool, connection):
        pool.put(connection, monotonic())
