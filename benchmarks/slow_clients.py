"""Success rate and latency of ordinary requests beside slow clients, through each engine.

Two replicas serve one request at a time and work 50 ms. Ordinary requests come at a fixed rate, each over its own
connection; one that has no 200 after ten seconds has failed. Beside them there are slow uploads, slow readers, or
clients that wait to be asked for a body. ``streaming`` is the router with ``request_buffer_bytes: 0`` and
``response_buffer_bytes: 0``. HAProxy has ``maxconn 1`` for each replica and ``option http-buffer-request``, Envoy the
buffer filter and ``LEAST_REQUEST``: its circuit breakers refuse what they do not admit, so it has none.
"""

import asyncio
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.engines import Launch, Target, envoy_binary, render, responds, router_launch, scoring_path
from benchmarks.harness.processes import BenchmarkError, Child, free_port, running_child, wait_until
from benchmarks.harness.session import Session, parser, session

ENGINES: Final = ("haproxy", "envoy", "streaming", "router")
REPLICAS: Final = 2
WORK_SECONDS: Final = 0.05
RATE: Final = 16  # ordinary requests per second, of the 40 that the replicas can serve
TIMEOUT_SECONDS: Final = 10.0
START_SECONDS: Final = 1.0
READY_SECONDS: Final = 20.0
MBIT: Final = 125_000  # bytes/s

Client = Callable[[int, str], Coroutine[Any, Any, None]]


def _head(key: str, length: int, *lines: str) -> bytes:
    fields = ["Host: 127.0.0.1", f"Authorization: Bearer {key}", f"Content-Length: {length}", *lines]
    return "\r\n".join([f"POST {scoring_path()} HTTP/1.1", *fields, "", ""]).encode()


@contextlib.asynccontextmanager
async def _connection(port: int, limit: int = 65_536) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, size: int, rate: float) -> None:
    """Send a body at a rate in bytes per second, a hundred times a second at most."""
    piece = max(1, int(rate / 100))
    started_at, sent = time.monotonic(), 0
    while sent < size:
        writer.write(b"x" * min(piece, size - sent))
        await writer.drain()
        sent += min(piece, size - sent)
        await asyncio.sleep(max(0.0, started_at + sent / rate - time.monotonic()))


async def upload(port: int, key: str) -> None:
    """Upload 1 MB at 600 B/s."""
    async with _connection(port) as (reader, writer):
        writer.write(_head(key, 1_000_000))
        await _send(writer, 1_000_000, 600)
        await reader.read(1000)


async def send_head_only(port: int, key: str) -> None:
    """Send heads without their bodies, one connection after the other."""
    async with _connection(port) as (_, writer):
        writer.write(_head(key, 1000))
        await asyncio.sleep(25)


async def read_slowly(port: int, key: str) -> None:
    """Read a response of 30 MB at 75 kB/s."""
    async with _connection(port, limit=8192) as (reader, writer):
        writer.write(_head(key, 2, "X-Length: 30000000") + b"{}")
        while await reader.read(7500):
            await asyncio.sleep(0.1)


async def wait_to_be_asked(port: int, key: str) -> None:
    """Send 1 MB at 10 Mbit/s after 100 (Continue)."""
    async with _connection(port) as (reader, writer):
        writer.write(_head(key, 1_000_000, "Expect: 100-continue", "Connection: close"))
        if b" 100 " in await reader.readline():
            await _send(writer, 1_000_000, 10 * MBIT)
        await reader.read()


SCENARIOS: Final[dict[str, tuple[Client | None, int]]] = {
    "none": (None, 0),
    "4 uploads at 600 B/s": (upload, 4),
    "4 heads without a body": (send_head_only, 4),
    "2 readers of 30 MB at 75 kB/s": (read_slowly, 2),
    "8 clients with 100-continue at 10 Mbit/s": (wait_to_be_asked, 8),
}


async def _repeat(client: Client, port: int, key: str) -> None:
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await client(port, key)
        await asyncio.sleep(0.01)


async def _request(port: int, key: str) -> tuple[bool, float]:
    """Send an ordinary request. Return whether it got a 200, and the seconds until its response or failure."""
    started_at = time.monotonic()
    succeeded = False
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(TIMEOUT_SECONDS), _connection(port) as (reader, writer):
            writer.write(_head(key, 2, "Connection: close") + b"{}")
            succeeded = (await reader.read()).startswith(b"HTTP/1.1 200 ")
    return succeeded, time.monotonic() - started_at


async def load(port: int, key: str, seconds: float, client: Client | None, count: int) -> dict[str, float]:
    """Send ordinary requests beside ``count`` slow clients."""
    slow = [asyncio.create_task(_repeat(client, port, key)) for _ in range(count) if client is not None]
    await asyncio.sleep(START_SECONDS)
    started_at = time.monotonic()
    requests = []
    for number in range(round(RATE * seconds)):
        await asyncio.sleep(max(0.0, started_at + number / RATE - time.monotonic()))
        requests.append(asyncio.create_task(_request(port, key)))
    results = await asyncio.gather(*requests)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    latencies = sorted(latency for _, latency in results)
    return {
        "requests": len(results),
        "success": sum(succeeded for succeeded, _ in results) / len(results),
        "p50": statistics.median(latencies),
        "p99": latencies[int(len(latencies) * 0.99)],
    }


@contextmanager
def models(current: Session) -> Iterator[tuple[str, ...]]:
    """Run the replicas. Yield their addresses."""
    with ExitStack() as stack:
        ports = [free_port() for _ in range(REPLICAS)]
        for port in ports:
            argv = (sys.executable, "-m", "benchmarks.load.model", str(port), str(WORK_SECONDS))
            child = stack.enter_context(
                running_child(argv, name=f"model-{port}", cpus=current.cpus.load, directory=current.directory)
            )
            wait_until(lambda port=port: responds(port, "/"), child=child, seconds=READY_SECONDS)  # type: ignore[misc]
        yield tuple(f"127.0.0.1:{port}" for port in ports)


def _launch(name: str, directory: Path, port: int, target: Target) -> Launch:
    addresses = [backend.split(":") for backend in target.backends]
    if name == "haproxy":
        servers = "\n".join(f"    server replica{n} {backend} maxconn 1" for n, backend in enumerate(target.backends))
        path = render("haproxy-slots.cfg", directory, PORT=port, SERVERS=servers)
        return Launch(argv=("haproxy", "-db", "-f", str(path)), ready=(port, "/"))
    if name == "envoy":
        endpoints = "\n".join(
            f"              - endpoint: {{address: {{socket_address: {{address: {host}, port_value: {number}}}}}}}"
            for host, number in addresses
        )
        path = render("envoy-slots.yaml", directory, PORT=port, ENDPOINTS=endpoints)
        flags = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
        return Launch(argv=(envoy_binary(), "-c", str(path), *flags), ready=(port, "/"))
    admin = free_port()
    launch = router_launch(directory, port, admin, target, "--workers", "1")
    path = directory / "router.yaml"
    slots = "replica_max_concurrent_requests: 1\n    max_request_wait_time: 5000"
    path.write_text(path.read_text().replace("replica_max_concurrent_requests: 1000", slots))
    if name == "streaming":
        streaming = ("AZUREML_FE_REQUEST_BUFFER_BYTES=0", "AZUREML_FE_RESPONSE_BUFFER_BYTES=0")
        return Launch(argv=("env", *streaming, *launch.argv), ready=launch.ready)
    return launch


@contextmanager
def running(name: str, current: Session, backends: tuple[str, ...]) -> Iterator[tuple[int, Child]]:
    """Run an engine. Yield its port and process."""
    port = free_port()
    launch = _launch(name, current.directory, port, Target(backends=backends, key=current.key))
    with running_child(launch.argv, name=name, cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: responds(*launch.ready), child=child, seconds=READY_SECONDS)
        yield port, child


def main() -> None:
    """Run from the command line."""
    arguments = parser(__doc__ or "", engines=(), rounds=1, seconds=20)
    arguments.add_argument("--only", nargs="+", default=list(ENGINES), choices=ENGINES, help="engines to measure")
    parsed = arguments.parse_args()
    with session("slow_clients", parsed) as current:
        cells: list[dict[str, object]] = []
        for number in range(1, current.rounds + 1):
            for scenario, (client, count) in SCENARIOS.items():
                current.log(f"round {number}, slow clients: {scenario}")
                for name in parsed.only:
                    with models(current) as backends, running(name, current, backends) as (port, child):
                        child.reset_peaks()
                        result = asyncio.run(load(port, current.key, current.seconds, client, count))
                        memory = child.peak_rss()
                    if scenario == "none" and result["success"] < 1:
                        raise BenchmarkError(f"{name}: {result} without any slow client")
                    cells.append({"round": number, "engine": name, "scenario": scenario, "peak_rss": memory, **result})
                    current.log(
                        f"  {name:9} {result['success']:7.1%} of {result['requests']}, "
                        f"p50 {result['p50'] * 1e3:7,.0f} ms, p99 {result['p99'] * 1e3:7,.0f} ms, "
                        f"peak RSS {memory / 2**20:.0f} MiB"
                    )
        current.store(cells)


if __name__ == "__main__":
    main()
