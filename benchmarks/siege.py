"""What a siege costs: memory of idle connections, and the latency of one service while another is overloaded.

Idle connections, plain and with TLS, are opened by processes of their own and send nothing after one request. Then
two services stand behind one worker: one has a single replica that takes 0.1 s and is sent far more than that by wrk;
the other is asked again and again over one connection, before and during that.
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
from benchmarks.harness.engines import Running, Target, answers, render, scoring_path
from benchmarks.harness.processes import BenchmarkError, Child, free_port, started, wait_until
from benchmarks.harness.session import Session, parser, session
from benchmarks.harness.wrk import BODY, background, script, wrk_argv
from benchmarks.tls import certificate, serving

IDLE: Final = 20_000
PER_PROCESS: Final = 5_000
WORKERS: Final = 2  # each has file descriptors of its own
CROWD: Final = 200
SLOW_SECONDS: Final = 0.1
PATIENCE_SECONDS: Final = 60.0
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: fe\r\n\r\n"


def hold(port: int, count: int, tls: bool) -> None:
    """Open connections, say so, and hold them until standard input ends. Runs in a process of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held: list[socket.socket] = []
    for _ in range(count):
        line = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS)
        held.append(line := context.wrap_socket(line) if tls else line)
        line.sendall(_REQUEST)  # who has never sent one is not given the time of an idle connection
        line.recv(4096)
    print("held", flush=True)
    sys.stdin.read()


@contextmanager
def idle(port: int, count: int, *, tls: bool) -> Iterator[None]:
    """So many idle connections, for as long as the block lasts."""
    code = (
        "import sys; from benchmarks.siege import hold; hold(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == 'tls')"
    )
    words = [sys.executable, "-c", code, str(port)]
    holders = [
        subprocess.Popen(
            [*words, str(min(PER_PROCESS, count - begun)), "tls" if tls else "plain"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for begun in range(0, count, PER_PROCESS)
    ]  # fmt: skip
    try:
        for holder in holders:
            assert holder.stdout is not None
            if holder.stdout.readline() != "held\n":
                raise BenchmarkError(f"{count} connections could not be opened")
        yield
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def worker_memory(child: Child) -> int:
    """Resident bytes of the workers."""
    workers = [p for p in child.process.children(recursive=True) if "router.gateway.worker" in " ".join(p.cmdline())]
    return sum(worker.memory_info().rss for worker in workers)


def measure_idle(current: Session, backend: str, count: int) -> list[dict[str, object]]:
    """Memory per idle connection, and whether a request is still served among them."""
    cells: list[dict[str, object]] = []
    pem = certificate(current.directory)
    for tls in (False, True):
        with serving("router", current, backend, pem, tls=tls, workers=WORKERS) as engine:
            assert engine.child is not None
            before = worker_memory(engine.child)
            with idle(engine.port, count, tls=tls):
                time.sleep(1)
                each = (worker_memory(engine.child) - before) / count
                cells.append({"what": "idle", "tls": tls, "connections": count, "bytes_each": each})
                current.say(f"  {count:,} idle connections{' with TLS' if tls else ''}: {each / 1024:.1f} KiB each")
    return cells


def slow_replica() -> int:
    """A replica in a thread that takes its time for each request; its port."""
    ready = threading.Event()
    ports: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                await reader.readexactly(int(length or 0))
                await asyncio.sleep(SLOW_SECONDS)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait()
    return ports[0]


def latencies(port: int, key: str, seconds: float) -> list[float]:
    """Milliseconds of one request after another to the calm service."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        line.request("POST", scoring_path("calm"), BODY, headers)
        answer = line.getresponse()
        answer.read()
        if answer.status != 200:
            raise BenchmarkError(f"the calm service answered {answer.status}")
        found.append((time.monotonic() - began) * 1e3)
    return found


def measure_neighbour(current: Session, backend: str) -> list[dict[str, object]]:
    """The calm service alone, and beside the busy one."""
    port, admin = free_port(), free_port()
    path = render(
        "router-two.yaml", current.directory, SLOW=f"127.0.0.1:{slow_replica()}", BACKEND=backend, KEY=current.key
    )
    flags = ("--workers", "1", "--port", str(port), "--admin-port", str(admin), "--access-log", "off")
    argv = (sys.executable, "-m", "router", "local", str(path), *flags)
    cells: list[dict[str, object]] = []
    with started(argv, name="router", cpus=current.cpus.engine, directory=current.directory) as child:
        wait_until(lambda: answers(admin, "/readyz"), child=child, seconds=30)
        target = Target(backends=(backend,), key=current.key, services=("busy",))
        engine = Running(name="router", port=port, child=child, ready_seconds=0)
        lua = script(current.directory, target, cycle=False)
        for what in ("alone", "beside an overloaded one"):
            crowd = None
            if what != "alone":
                asking = wrk_argv(engine, target, lua=lua, connections=CROWD, seconds=current.seconds + 2)
                crowd = background(asking, current.cpus)
                time.sleep(1)
            found = latencies(port, current.key, current.seconds)
            if crowd is not None:
                crowd.terminate()
                crowd.wait()
            p50, p99 = statistics.median(found), statistics.quantiles(found, n=100)[98]
            cells.append({"what": what, "requests": len(found), "p50_ms": p50, "p99_ms": p99})
            current.say(f"  {what}: {len(found)} requests, median {p50:.2f} ms, 99th percentile {p99:.2f} ms")
    return cells


def main() -> None:
    """Command line."""
    parsed = parser(__doc__ or "", engines=("router",), rounds=1, seconds=5).parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with (
        session("siege", parsed) as current,
        nginx_backend(cpus=current.cpus, directory=current.directory) as port,
    ):
        backend = f"127.0.0.1:{port}"
        count = 200 if current.quick else min(IDLE, hard * WORKERS * 3 // 4)
        current.store([*measure_idle(current, backend, count), *measure_neighbour(current, backend)])


if __name__ == "__main__":
    main()
