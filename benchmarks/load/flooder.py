"""Floods: clients that make an engine work as much as they can for each byte that they send.

Standard input: a ``Job`` as JSON. It runs until it is terminated. A connection that the engine closes is replaced by a
new one. Responses are read and discarded.
"""

import asyncio
import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Final, cast

import uvloop

from benchmarks.load.openloop import unverified_context

TICK_SECONDS: Final = 0.005
RETRY_SECONDS: Final = 0.01
NICENESS: Final = 5  # the latencies of the other clients are measured on the same CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What each connection sends: ``start`` once, then ``unit`` again and again, at ``rate`` bytes per second.

    ``each`` bytes are written at once, 0 for all that are due. With a rate of 0 only the response is read.
    """

    host: str
    port: int
    connections: int
    tls: bool
    start: str
    unit: str
    rate: float
    each: int = 0


class Flood(asyncio.Protocol):
    """One connection."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.closed = asyncio.get_running_loop().create_future()
        self.block = job.unit.encode("latin-1")
        self.block *= max(1, 65_536 // max(1, len(self.block)))
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.job.start.encode("latin-1"))
        self.started_at = time.monotonic()
        self.sent = 0
        self.send()

    def send(self) -> None:
        """Send what is due by now."""
        if self.job.rate == 0 or self.transport.is_closing():
            return
        due = int((time.monotonic() - self.started_at) * self.job.rate)
        while self.sent < due and not self.paused and not self.transport.is_closing():
            at = self.sent % len(self.block)
            piece = self.block[at : at + (self.job.each or due - self.sent)]
            self.transport.write(piece)
            self.sent += len(piece)
        self.sent = max(self.sent, due - int(self.job.rate))  # at most one second's bytes are made up for
        asyncio.get_running_loop().call_later(TICK_SECONDS, self.send)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


async def keep_connected(job: Job) -> None:
    """Flood over one connection after the other."""
    loop = asyncio.get_running_loop()
    context = unverified_context() if job.tls else None
    while True:
        try:
            _, flood = await loop.create_connection(lambda: Flood(job), job.host, job.port, ssl=context)
            await flood.closed
        except OSError:
            pass
        await asyncio.sleep(RETRY_SECONDS)


async def run(job: Job) -> None:
    """Flood over all connections."""
    await asyncio.gather(*(keep_connected(job) for _ in range(job.connections)))


if __name__ == "__main__":
    os.nice(NICENESS)
    uvloop.run(run(Job(**json.load(sys.stdin))))
