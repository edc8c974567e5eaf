"""Open-loop generator: requests at a fixed rate. Each latency starts when the request was due.

A slow response does not delay later due times, so there is no coordinated omission. The event loop's timers have a
resolution of milliseconds. A timerfd is precise to tens of microseconds, and its delay counts as latency.
Standard input: a ``Job`` as JSON. Standard output: one line of JSON.
"""

import asyncio
import ctypes
import gc
import itertools
import json
import os
import ssl
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop

CLOCK_MONOTONIC = 1
TFD_TIMER_ABSTIME = 1
TFD_NONBLOCK = os.O_NONBLOCK
GRACE_SECONDS = 10.0  # for responses that are missing when the last request has been sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The server, the requests, and the rate per second. The warm-up has the same rate and is not counted."""

    host: str
    port: int
    request: str
    rate: int
    seconds: float
    warmup_seconds: float
    connections: int
    others: tuple[str, ...] = ()  # sent in turn with `request`
    tls: bool = False


class Ticker:
    """A timerfd that becomes readable at ``start`` and then every ``interval`` (seconds, monotonic)."""

    def __init__(self, start: float, interval: float) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        spec = struct.pack("qqqq", *_timespec(interval), *_timespec(start))
        if self.fd < 0 or libc.timerfd_settime(self.fd, TFD_TIMER_ABSTIME, spec, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd")

    def ticks(self) -> int:
        """Return the number of ticks since the last call."""
        return cast(int, struct.unpack("Q", os.read(self.fd, 8))[0])


def _timespec(seconds: float) -> tuple[int, int]:
    return divmod(round(seconds * 1e9), 1_000_000_000)


def unverified_context() -> ssl.SSLContext:
    """Return a TLS context without verification, because the client's own work is not measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self, generator: "Generator") -> None:
        self.generator = generator
        self.parser = httptools.HttpResponseParser(self)
        self.due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, due: float) -> None:
        self.due = due
        self.transport.write(next(self.generator.requests))

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.generator.on_response(self, self.parser.get_status_code())

    def connection_lost(self, exc: Exception | None) -> None:
        self.generator.lost += 1


class Generator:
    """Sends requests over idle connections, the longest idle first. Due requests wait in order if none is idle."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.requests = itertools.cycle([each.encode("latin-1") for each in (job.request, *job.others)])
        self.idle: deque[Connection] = deque()
        self.waiting: deque[float] = deque()
        self.total = round(job.rate * (job.seconds + job.warmup_seconds))
        self.sent = 0
        self.in_flight = 0
        self.lost = 0
        self.not_200 = 0
        self.queued = 0
        self.latencies: list[float] = []

    async def run(self) -> dict[str, float]:
        loop = asyncio.get_running_loop()
        context = unverified_context() if self.job.tls else None
        for _ in range(self.job.connections):
            _, connection = await loop.create_connection(
                lambda: Connection(self), self.job.host, self.job.port, ssl=context
            )
            self.idle.append(connection)
        gc.collect()
        gc.disable()
        self.interval = 1.0 / self.job.rate
        self.start = time.monotonic() + 0.1
        self.counted_from = self.start + self.job.warmup_seconds
        self.done: asyncio.Future[None] = loop.create_future()
        self.ticker = Ticker(self.start, self.interval)
        loop.add_reader(self.ticker.fd, self.tick)
        await asyncio.wait_for(self.done, self.job.warmup_seconds + self.job.seconds + GRACE_SECONDS)
        return self.result()

    def tick(self) -> None:
        for _ in range(min(self.ticker.ticks(), self.total - self.sent)):
            due = self.start + self.sent * self.interval
            self.sent += 1
            self.in_flight += 1
            if self.idle:
                self.idle.popleft().send(due)
            else:
                self.queued += 1
                self.waiting.append(due)
        if self.sent == self.total:
            asyncio.get_running_loop().remove_reader(self.ticker.fd)
            os.close(self.ticker.fd)

    def on_response(self, connection: Connection, status: int) -> None:
        self.in_flight -= 1
        if status != 200:
            self.not_200 += 1
        if connection.due >= self.counted_from:
            self.latencies.append(time.monotonic() - connection.due)
        if self.waiting:
            connection.send(self.waiting.popleft())
        else:
            self.idle.append(connection)
        if self.sent == self.total and self.in_flight == 0:
            self.done.set_result(None)

    def result(self) -> dict[str, float]:
        ordered = sorted(self.latencies)
        percentiles = {f"p{p:g}": 1e6 * ordered[int(len(ordered) * p / 100)] for p in (50, 90, 99, 99.9)}
        counts = {"requests": len(ordered), "not_200": self.not_200, "lost": self.lost, "queued": self.queued}
        return {**percentiles, "max": 1e6 * ordered[-1], "mean": 1e6 * sum(ordered) / len(ordered), **counts}


if __name__ == "__main__":
    print(json.dumps(uvloop.run(Generator(Job(**json.load(sys.stdin))).run())))
