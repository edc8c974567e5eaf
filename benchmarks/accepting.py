"""How evenly connections spread over workers: one listening socket for all, or one each (SO_REUSEPORT).

Workers are processes with uvloop that accept and answer, as the router's do, and nothing else; clients open
connections and keep them. What counts is the share of the worker that got the most, where an even share is 1.

    python -m benchmarks.accepting [--workers 2 4] [--connections 400]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import uvloop

HOST = "127.0.0.1"
BURN_SECONDS = 0.0003  # CPU time of a request
_ANSWER = b"1" * 64
_WAYS_TO_COME = (("all at once", 0.0, 0), ("one by one", 0.002, 0), ("one by one, load", 0.002, 16))


class Worker(asyncio.Protocol):
    """Answers each message after some work, with the number of its process."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(os.getpid().to_bytes(8, "big"))  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        until = time.perf_counter() + BURN_SECONDS
        while time.perf_counter() < until:
            pass
        assert self.transport is not None
        self.transport.write(_ANSWER)


async def _work(fd: int) -> None:
    server = await asyncio.get_running_loop().create_server(Worker, sock=socket.socket(fileno=fd), backlog=4096)
    await server.serve_forever()


def _listening(reuse: bool, port: int = 0) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    sock.listen(4096)
    return sock


@contextmanager
def _workers(count: int, *, own: bool) -> Iterator[tuple[int, list[subprocess.Popen[bytes]], list[socket.socket]]]:
    first = _listening(own)
    port = int(first.getsockname()[1])
    sockets = [first, *(_listening(True, port) for _ in range(count - 1))] if own else [first]
    processes = [_start(sockets[number % len(sockets)]) for number in range(count)]
    time.sleep(0.5)
    try:
        yield port, processes, sockets
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for sock in sockets:
            sock.close()


def _start(sock: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.accepting", "--worker", str(sock.fileno())], pass_fds=[sock.fileno()]
    )


async def _connect(port: int) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(HOST, port)
    return int.from_bytes(await reader.readexactly(8), "big"), reader, writer


async def _spread(port: int, connections: int, pause: float, busy: int) -> tuple[list[int], list[float]]:
    """Open connections at once, or one after a pause each; before that `busy` ones that ask all the time. Who got each,
    and how long it took, in ms."""
    asking = [asyncio.ensure_future(_ask(port)) for _ in range(busy)]
    await asyncio.sleep(0.3 if busy else 0)
    opening, took = [], []

    async def timed() -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        began = time.perf_counter()
        made = await _connect(port)
        took.append((time.perf_counter() - began) * 1000)
        return made

    for _ in range(connections):
        opening.append(asyncio.ensure_future(timed()))
        if pause:
            await asyncio.sleep(pause)
    opened = await asyncio.gather(*opening)
    for each in asking:
        each.cancel()
    for _, _, writer in opened:
        writer.transport.abort()
    return [pid for pid, _, _ in opened], took


async def _ask(port: int) -> None:
    _, reader, writer = await _connect(port)
    try:
        while True:
            writer.write(b"?")
            await reader.readexactly(len(_ANSWER))
            await asyncio.sleep(0.001)
    finally:
        writer.transport.abort()


def _line(name: str, workers: int, way: str, pids: Sequence[int], took: Sequence[float]) -> str:
    most = max(pids.count(pid) for pid in set(pids)) / (len(pids) / workers)
    p99 = statistics.quantiles(took, n=100)[98]
    return f"| {workers} | {way} | {name} | {most:.2f} | {len(set(pids))} | {p99:.1f} |"


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--connections", type=int, default=400)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        uvloop.run(_work(arguments.worker))
        return
    print("| workers | sockets | connections come | busiest worker's share (1: even) | workers used | p99 accept, ms |")
    print("|---|---|---|---|---|---|")
    for workers in arguments.workers:
        for own in (False, True):
            way = "one each" if own else "shared"
            for name, pause, busy in _WAYS_TO_COME:
                with _workers(workers, own=own) as (port, _, _):
                    pids, took = uvloop.run(_spread(port, arguments.connections, pause, busy))
                    print(_line(name, workers, way, pids, took), flush=True)


if __name__ == "__main__":
    main()
