"""Overload: memory of idle connections, and the latency of one service while another one is overloaded.

Helper processes open idle connections, with and without TLS, which send one request each. Then one worker serves two
services: one has a single replica that takes 0.1 s per request, and wrk sends far more requests than that. The latency
of the other one is measured over one connection, before and during the overload.
"""

import asyncio
import contextlib
import http.client
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from benchmarks.harness.backends import nginx_backend
from benchmarks.harness.engines import Running, Target, render, responds, scoring_path
from benchmarks.harness.processes import BenchmarkError, Child, free_port, running_child, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import BODY, background, script, wrk_argv
from benchmarks.tls import running_tls_engine, write_certificate

IDLE_CONNECTIONS: Final = 20_000
CONNECTIONS_PER_PROCESS: Final = 5_000
WORKERS: Final = 2  # each has its own limit of file descriptors
OVERLOAD_CLIENTS: Final = 200
SLOW_SECONDS: Final = 0.1
CONNECT_TIMEOUT_SECONDS: Final = 60.0
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n"


def hold_connections(port: int, count: int, tls: bool) -> None:
    """Open connections, print a line, and keep them open until standard input ends. Runs in a helper process."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connections: list[socket.socket] = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port), timeout=CONNECT_TIMEOUT_SECONDS)
        connections.append(sock := context.wrap_socket(sock) if tls else sock)
        sock.sendall(_REQUEST)  # connections without any request have a shorter timeout
        sock.recv(4096)
    print("open", flush=True)
    sys.stdin.read()


@contextmanager
def idle_connections(port: int, count: int, *, tls: bool) -> Iterator[None]:
    """Keep `count` idle connections open within the block."""
    code = (
        "import sys; from benchmarks.siege import hold_connections; "
        "hold_connections(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == 'tls')"
    )
    argv = [sys.executable, "-c", code, str(port)]
    holders = [
        subprocess.Popen(
            [*argv, str(min(CONNECTIONS_PER_PROCESS, count - started_before)), "tls" if tls else "plain"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for started_before in range(0, count, CONNECTIONS_PER_PROCESS)
    ]  # fmt: skip
    try:
        for holder in holders:
            assert holder.stdout is not None
            if holder.stdout.readline() != "open\n":
                raise BenchmarkError(f"{count} connections could not be opened")
        yield
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def worker_memory(child: Child) -> int:
    """Return the resident memory of all workers, in bytes."""
    workers = [p for p in child.process.children(recursive=True) if "router.workers.main" in " ".join(p.cmdline())]
    return sum(worker.memory_info().rss for worker in workers)


def measure_idle(current: Session, backend: str, count: int) -> list[dict[str, object]]:
    """Measure the memory of each idle connection."""
    cells: list[dict[str, object]] = []
    pem = write_certificate(current.directory)
    for tls in (False, True):
        with running_tls_engine("router", current, backend, pem, tls=tls, workers=WORKERS) as engine:
            assert engine.child is not None
            before = worker_memory(engine.child)
            with idle_connections(engine.port, count, tls=tls):
                time.sleep(1)
                bytes_each = (worker_memory(engine.child) - before) / count
                cells.append({"what": "idle", "tls": tls, "connections": count, "bytes_each": bytes_each})
                current.log(
                    f"  {count:,} idle connections{' with TLS' if tls else ''}: {bytes_each / 1024:.1f} KiB each"
                )
    return cells


def slow_replica() -> int:
    """Start a replica that takes `SLOW_SECONDS` for each request, in a thread. Return its port."""
    ready = threading.Event()
    ports: list[int] = []

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                await asyncio.sleep(SLOW_SECONDS)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(serve_connection, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait()
    return ports[0]


def latencies(port: int, key: str, seconds: float) -> list[float]:
    """Send requests to the service `calm` one after another. Return the latency of each in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        started_at = time.monotonic()
        connection.request("POST", scoring_path("calm"), BODY, headers)
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            raise BenchmarkError(f"the service calm responded with status {response.status}")
        found.append((time.monotonic() - started_at) * 1e3)
    return found


def measure_latency_under_overload(current: Session, backend: str) -> list[dict[str, object]]:
    """Measure the latency of the service `calm` alone, and while the service `busy` is overloaded."""
    port, admin = free_port(), free_port()
    path = render(
        "router-two.yaml", current.directory, SLOW=f"127.0.0.1:{slow_replica()}", BACKEND=backend, KEY=current.key
    )
    flags = ("--workers", "1", "--port", str(port), "--admin-port", str(admin), "--access-log", "off")
    argv = (sys.executable, "-m", "router", "local", str(path), *flags)
    cells: list[dict[str, object]] = []
    with running_child(argv, name="router", cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: responds(admin, "/readyz"), child=child, seconds=30)
        target = Target(backends=(backend,), key=current.key, services=("busy",))
        engine = Running(name="router", port=port, child=child, ready_seconds=0)
        lua = script(current.directory, target, cycle=False)
        for what in ("alone", "during the overload"):
            overload = None
            if what != "alone":
                command = wrk_argv(engine, target, lua=lua, connections=OVERLOAD_CLIENTS, seconds=current.seconds + 2)
                overload = background(command, current.cpus)
                time.sleep(1)
            found = latencies(port, current.key, current.seconds)
            if overload is not None:
                overload.terminate()
                overload.wait()
            p50, p99 = statistics.median(found), statistics.quantiles(found, n=100)[98]
            cells.append({"what": what, "requests": len(found), "p50_ms": p50, "p99_ms": p99})
            current.log(f"  {what}: {len(found)} requests, median {p50:.2f} ms, 99th percentile {p99:.2f} ms")
    return cells


def main() -> None:
    """Run the command line."""
    parsed = parser(__doc__ or "", engines=("router",), rounds=1, seconds=5).parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with (
        session("siege", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory) as port,
    ):
        backend = f"127.0.0.1:{port}"
        count = 200 if current.quick else min(IDLE_CONNECTIONS, hard * WORKERS * 3 // 4)
        current.store([*measure_idle(current, backend, count), *measure_latency_under_overload(current, backend)])


if __name__ == "__main__":
    main()
