"""How evenly connections spread over workers: with one shared listening socket, or one for each (SO_REUSEPORT).

Workers are processes with uvloop that only accept connections and respond. Clients open connections and keep them. The
result is the share of the worker with the most connections, relative to an equal share.

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
REQUEST_CPU_SECONDS = 0.0003
_RESPONSE = b"1" * 64
# Name, seconds between two connections, number of busy connections that are opened before.
_ARRIVALS = (("all at once", 0.0, 0), ("one by one", 0.002, 0), ("one by one, load", 0.002, 16))


class Worker(asyncio.Protocol):
    """Sends the id of its process to each client, and responds to each message after some work."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert hasattr(transport, "write")
        self.transport = transport  # type: ignore[assignment]
        self.transport.write(os.getpid().to_bytes(8, "big"))  # type: ignore[union-attr]

    def data_received(self, data: bytes) -> None:
        until = time.perf_counter() + REQUEST_CPU_SECONDS
        while time.perf_counter() < until:
            pass
        assert self.transport is not None
        self.transport.write(_RESPONSE)


async def _run_worker(fd: int) -> None:
    server = await asyncio.get_running_loop().create_server(Worker, sock=socket.socket(fileno=fd), backlog=4096)
    await server.serve_forever()


def _listen(port: int = 0, *, reuse_port: bool) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((HOST, port))
    sock.listen(4096)
    return sock


@contextmanager
def _workers(
    count: int, *, own_sockets: bool
) -> Iterator[tuple[int, list[subprocess.Popen[bytes]], list[socket.socket]]]:
    first = _listen(reuse_port=own_sockets)
    port = int(first.getsockname()[1])
    sockets = [first, *(_listen(port, reuse_port=True) for _ in range(count - 1))] if own_sockets else [first]
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


async def _open_connections(port: int, connections: int, pause: float, busy: int) -> tuple[list[int], list[float]]:
    """Open connections, `pause` seconds apart, after `busy` connections that continuously send requests.

    Return the process id of each connection's worker, and how long it took to be accepted, in milliseconds.
    """
    busy_clients = [asyncio.ensure_future(_send_requests(port)) for _ in range(busy)]
    await asyncio.sleep(0.3 if busy else 0)
    opening, durations = [], []

    async def timed() -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
        started_at = time.perf_counter()
        connection = await _connect(port)
        durations.append((time.perf_counter() - started_at) * 1000)
        return connection

    for _ in range(connections):
        opening.append(asyncio.ensure_future(timed()))
        if pause:
            await asyncio.sleep(pause)
    opened = await asyncio.gather(*opening)
    for client in busy_clients:
        client.cancel()
    for _, _, writer in opened:
        writer.transport.abort()
    return [pid for pid, _, _ in opened], durations


async def _send_requests(port: int) -> None:
    _, reader, writer = await _connect(port)
    try:
        while True:
            writer.write(b"?")
            await reader.readexactly(len(_RESPONSE))
            await asyncio.sleep(0.001)
    finally:
        writer.transport.abort()


def _row(name: str, workers: int, sockets: str, pids: Sequence[int], durations: Sequence[float]) -> str:
    most = max(pids.count(pid) for pid in set(pids)) / (len(pids) / workers)
    p99 = statistics.quantiles(durations, n=100)[98]
    return f"| {workers} | {sockets} | {name} | {most:.2f} | {len(set(pids))} | {p99:.1f} |"


def main() -> None:
    """Measure, and print the results as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--connections", type=int, default=400)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        uvloop.run(_run_worker(arguments.worker))
        return
    print("| workers | sockets | arrival of connections | busiest worker's share (1: even) | workers used | p99, ms |")
    print("|---|---|---|---|---|---|")
    for workers in arguments.workers:
        for own_sockets in (False, True):
            sockets = "one each" if own_sockets else "shared"
            for name, pause, busy in _ARRIVALS:
                with _workers(workers, own_sockets=own_sockets) as (port, _, _):
                    pids, durations = uvloop.run(_open_connections(port, arguments.connections, pause, busy))
                    print(_row(name, workers, sockets, pids, durations), flush=True)


if __name__ == "__main__":
    main()
