"""How many requests fail beside a replica that fails, and how long the others take.

Three replicas are behind each engine. After a second without a fault the replica that has served the last request
begins to fail: it hangs (SIGSTOP), closes each connection after it has read the request, answers 503 or 500 at once,
or its process ends. All engines have the same timeout of a request (2 s), and detect failures by the requests
themselves: HAProxy with ``observe layer7``, Envoy with outlier detection, each with five failures in a row, Envoy with
a share of 50 %. Their active checks are by TCP or rare, so that they do not find the fault. One client waits for each
response before its next request, or clients with eight addresses send at a fixed rate.
"""

import asyncio
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness.engines import Launch, envoy_binary, render, responds, scoring_path
from benchmarks.harness.processes import Child, free_port, running_child, wait_until
from benchmarks.harness.session import Session, parser, session

REPLICAS: Final = 3
ADDRESSES: Final = 8
CLIENT_TIMEOUT_SECONDS: Final = 10.0
FAULTS: Final = ("hang", "close", "unavailable", "error", "end")
ENGINES: Final = ("router", "off", "haproxy", "envoy")
TITLES: Final = {
    "router": "azureml-fe",
    "off": "azureml-fe, outlier_detection: false",
    "haproxy": "HAProxy, observe layer7",
    "envoy": "Envoy, outlier detection",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement. Latencies are those of the successful requests, in milliseconds."""

    engine: str
    fault: str
    clients: str
    requests: int
    succeeded: int
    results: Mapping[str, int]
    p50_ms: float
    p99_ms: float


def launch(engine: str, directory: Path, port: int, backends: list[str], key: str) -> Launch:
    """Return how to start an engine."""
    if engine in ("router", "off"):
        admin = free_port()
        addresses = ", ".join(f'"{backend}"' for backend in backends)
        detection = "true" if engine == "router" else "false"
        path = render("router-failing.yaml", directory, ADDRESSES=addresses, KEY=key, DETECTION=detection)
        flags = ("--workers", "1", "--port", str(port), "--admin-port", str(admin), "--access-log", "off")
        return Launch(argv=(sys.executable, "-m", "router", "local", str(path), *flags), ready=(admin, "/readyz"))
    if engine == "haproxy":
        servers = "\n".join(f"    server replica{number} {backend}" for number, backend in enumerate(backends))
        path = render("haproxy-failing.cfg", directory, PORT=port, SERVERS=servers)
        return Launch(argv=("haproxy", "-db", "-f", str(path)), ready=(port, "/"))
    hosts_and_ports = [backend.split(":") for backend in backends]
    endpoint_addresses = [f"{{address: {host}, port_value: {number}}}" for host, number in hosts_and_ports]
    endpoints = "\n".join(
        f"              - endpoint: {{address: {{socket_address: {address}}}}}" for address in endpoint_addresses
    )
    path = render("envoy-failing.yaml", directory, PORT=port, ENDPOINTS=endpoints)
    envoy_flags = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
    return Launch(argv=(envoy_binary(), "-c", str(path), *envoy_flags), ready=(port, "/"))


@contextmanager
def replicas(current: Session) -> Iterator[list[tuple[str, Child]]]:
    """Run the replicas. Yield the address and the process of each."""
    with ExitStack() as cleanup:
        found: list[tuple[str, Child]] = []
        for number in range(REPLICAS):
            port = free_port()
            argv = (sys.executable, "-m", "benchmarks.load.failing_replica", str(port))
            child = cleanup.enter_context(
                running_child(argv, name=f"replica{number}", cpus=current.cpus.load, directory=current.directory)
            )
            wait_until(lambda port=port: responds(port, "/"), child=child, seconds=20)  # type: ignore[misc]
            found.append((f"127.0.0.1:{port}", child))
        yield found


def begin(fault: str, address: str, child: Child) -> None:
    """Make a replica fail."""
    if fault == "hang":
        for process in child.tree():
            os.kill(process.pid, signal.SIGSTOP)
    elif fault == "end":
        for process in child.tree():
            os.kill(process.pid, signal.SIGKILL)
    else:
        responds(int(address.rpartition(":")[2]), f"/fault/{fault}")


async def send(port: int, key: str, results: Counter[str], seconds: list[float], client: int = 0) -> str:
    """Send one request on a connection of its own, and record the result. Return the body of the response."""
    local_address = (f"127.0.0.{client + 2}", 0)
    response = b""
    started_at = time.monotonic()
    try:
        async with asyncio.timeout(CLIENT_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=local_address)
            try:
                head = f"POST {scoring_path()} HTTP/1.1\r\nHost: fe\r\nAuthorization: Bearer {key}\r\n"
                writer.write(f"{head}Content-Length: 2\r\nConnection: close\r\n\r\n[]".encode())
                response = await reader.read()
            finally:
                writer.close()
        status = response[9:12].decode() if response.startswith(b"HTTP/1.1 ") else "closed"
    except TimeoutError:
        status = "timeout"
    except OSError:
        status = "refused"
    results[status] += 1
    if status == "200":
        seconds.append(time.monotonic() - started_at)
    return response.rpartition(b"\r\n")[2].decode("latin-1")


async def send_at_rate(
    port: int, key: str, rate: float, duration: float, results: Counter[str], seconds: list[float]
) -> None:
    """Send requests at a fixed rate, in requests per second."""
    async with asyncio.TaskGroup() as group:
        started_at = time.monotonic()
        for number in range(int(duration * rate)):
            await asyncio.sleep(max(started_at + number / rate - time.monotonic(), 0))
            group.create_task(send(port, key, results, seconds, number % ADDRESSES))


async def send_one_by_one(port: int, key: str, duration: float, results: Counter[str], seconds: list[float]) -> None:
    """Send each request after the response to the previous one."""
    end = time.monotonic() + duration
    while time.monotonic() < end:
        await send(port, key, results, seconds)


async def load(port: int, key: str, rate: float, duration: float, results: Counter[str], seconds: list[float]) -> None:
    """Send requests for some seconds. A `rate` of 0: one client, which waits for each response."""
    if rate:
        await send_at_rate(port, key, rate, duration, results, seconds)
    else:
        await send_one_by_one(port, key, duration, results, seconds)


CLIENTS: Final = {"one by one": 0.0, "15/s": 15.0, "200/s": 200.0}


def measure(current: Session, engine: str, fault: str, clients: str) -> Cell:
    """Measure one engine beside one fault."""
    with replicas(current) as running:
        port = free_port()
        how = launch(engine, current.directory, port, [address for address, _ in running], current.key)
        with running_child(how.argv, name=engine, cpus=current.cpus.engine, directory=current.directory) as proxy:
            wait_until(lambda: responds(*how.ready), child=proxy, seconds=60)
            results: Counter[str] = Counter()
            seconds: list[float] = []
            asyncio.run(load(port, current.key, CLIENTS[clients], 1.0, Counter(), []))
            serving = asyncio.run(send(port, current.key, Counter(), []))
            failing = next((address, child) for address, child in running if address.endswith(f":{serving}"))
            begin(fault, *failing)
            asyncio.run(load(port, current.key, CLIENTS[clients], current.seconds, results, seconds))
            if fault == "hang":
                for process in failing[1].tree():
                    os.kill(process.pid, signal.SIGCONT)
    quantiles = statistics.quantiles(seconds, n=100) if len(seconds) > 1 else [0.0] * 99
    count = results.total()
    return Cell(engine, fault, clients, count, results["200"], dict(results), quantiles[49] * 1e3, quantiles[98] * 1e3)


def main() -> None:
    """Run the command line."""
    arguments = parser(__doc__ or "", engines=(), rounds=1, seconds=20)
    arguments.add_argument("--faults", nargs="+", default=list(FAULTS), choices=FAULTS)
    arguments.add_argument("--proxies", nargs="+", default=list(ENGINES), choices=ENGINES)
    parsed = arguments.parse_args()
    with session("failing_replicas", parsed) as current:
        cells: list[dict[str, object]] = []
        for fault in parsed.faults:
            for clients in CLIENTS:
                for engine in parsed.proxies:
                    cell = measure(current, engine, fault, clients)
                    cells.append({name: getattr(cell, name) for name in Cell.__slots__})
                    current.log(
                        f"  {fault}, {clients}, {TITLES[engine]}: {cell.succeeded} of {cell.requests} succeeded "
                        f"({cell.succeeded / max(cell.requests, 1):.2%}), median {cell.p50_ms:.1f} ms, "
                        f"99th percentile {cell.p99_ms:.0f} ms; {cell.results}"
                    )
        current.store(cells)


if __name__ == "__main__":
    main()
