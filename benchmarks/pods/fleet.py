"""Several router pods on their own loopback addresses, and an open-loop load on them.

The pods are `azureml-fe local FILE` and routers that have joined it with `--peer`, or independent routers for
comparison.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from benchmarks.harness.processes import ROOT, BenchmarkError
from tests.processes import free_ports
from tests.servers.counting import CountingReplicas

_LEASE_PER_REQUEST = Path(__file__).parent / "lease_per_request"
_START_TIMEOUT_SECONDS = 60.0
_QUEUE_TIME = re.compile(rb"queue;dur=([0-9.]+)")  # in the Server-Timing header


@dataclass(slots=True)
class Pod:
    """A running router."""

    host: str
    port: int
    admin_port: int
    peer_port: int
    process: subprocess.Popen[bytes]

    def metric(self, name: str, labels: str = "") -> float:
        """Return the sum of the samples of a metric with these labels."""
        with urllib.request.urlopen(f"http://{self.host}:{self.admin_port}/metrics", timeout=10) as response:
            text = response.read().decode()
        pattern = rf"^azureml_fe_{name}(?:{{.*{re.escape(labels)}.*}})? (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

    def owns(self, service: str) -> bool:
        """Return True if this pod has the ledgers of a service."""
        return self.metric("service_owned", f'service="{service}"') == 1

    def messages(self) -> float:
        """Return the number of messages about slots between the pod's ledgers and workers of all pods."""
        return self.metric("slot_messages_total")


@contextmanager
def running_pods(
    count: int,
    services: Mapping[str, Sequence[int]],
    *,
    workers: int = 2,
    joined: bool = True,
    lease_per_request: bool = False,
    split_replicas: bool = False,
) -> Iterator[list[Pod]]:
    """Run routers for services (name -> ports of their replicas), and wait until they are ready.

    With `joined`, they are one router. Otherwise they are independent, each with all replicas, or with `split_replicas`
    each with its part of them.
    """
    with ExitStack() as cleanup:
        directory = Path(cleanup.enter_context(tempfile.TemporaryDirectory()))
        pods: list[Pod] = []
        for number in range(count):
            host = f"127.0.1.{number + 1}"
            port, admin_port, peer_port = free_ports(host, 3)
            command = [sys.executable, "-m", "router", "local", "--host", host, "--port", str(port)]
            command += ["--peer-port", str(peer_port), "--workers", str(workers), "--log-level", "warning"]
            if number and joined:
                for pod in pods:
                    command += ["--peer", f"{pod.host}:{pod.peer_port}"]
            else:
                file = directory / f"services-{number}.yaml"
                file.write_text(_config(services, *((number, count) if split_replicas else (0, 1))))
                command.append(str(file))
            environment = {**os.environ, "AZUREML_FE_STATE_DIR": str(directory / "state")}
            environment |= {"AZUREML_FE_ADMIN_HOST": host, "AZUREML_FE_ADMIN_PORT": str(admin_port)}
            environment["PYTHONPATH"] = os.pathsep.join([str(_LEASE_PER_REQUEST)] * lease_per_request + [str(ROOT)])
            log_file = directory / f"log-{number}"
            with log_file.open("wb") as log:
                process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=log)
            pods.append(Pod(host, port, admin_port, peer_port, process))
            cleanup.callback(_stop, process)
            peers = count - 1 if joined and number == count - 1 else 0
            _wait_until_ready(pods[-1], len(services), peers, log_file)
        yield pods


def _config(services: Mapping[str, Sequence[int]], part: int, parts: int) -> str:
    """Return the configuration file with every `parts`-th replica, starting at number `part`."""
    sections = {
        name: {
            "addresses": [f"127.0.0.1:{port}" for port in ports[part::parts]],
            "auth_enabled": False,
            "replica_max_concurrent_requests": 1,
            "max_queue_length": 1000,
            "success_threshold": 1,
            "period_seconds": 60,
        }
        for name, ports in services.items()
    }
    return json.dumps({"services": sections})


def _wait_until_ready(pod: Pod, services: int, peers: int, log_file: Path) -> None:
    """Wait until the pod has workers, ready replicas of all services, and links with `peers` (0: not checked)."""
    deadline = time.monotonic() + _START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and pod.process.poll() is None:
        try:
            ready = pod.metric("replicas", 'state="ready"')
            linked = not peers or pod.metric("peers", 'standing="live"') == peers
            if linked and ready >= services and ready == pod.metric("replicas") and pod.metric("workers"):
                time.sleep(0.5)
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise BenchmarkError(f"router does not become ready: {log_file.read_text()[-2000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# Load.


@dataclass(slots=True)
class LoadResult:
    """The responses that clients got."""

    statuses: dict[str, Counter[int]] = field(default_factory=dict)
    """The number of responses by host of the pod and status. Status 0: the connection was closed."""
    queued_ms: list[float] = field(default_factory=list)
    latency_ms: list[float] = field(default_factory=list)

    def total(self, status: int) -> int:
        """Return the number of responses with a status, of all pods."""
        return sum(by_status[status] for by_status in self.statuses.values())

    @property
    def requests(self) -> int:
        """The number of requests."""
        return sum(by_status.total() for by_status in self.statuses.values())


class _Connection(asyncio.Protocol):
    """A client's connection, with one request at a time."""

    def __init__(self) -> None:
        self._buffer = b""
        self._response: asyncio.Future[tuple[int, float]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes) -> asyncio.Future[tuple[int, float]]:
        """Send a request. The future's result is the status, and the ms for which the request waited for a slot."""
        self._response = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._response

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or self._response is None:
            return
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        if len(body) >= length:
            self._buffer = b""
            queued = _QUEUE_TIME.search(head)
            self._response.set_result((int(head[9:12]), float(queued[1]) if queued else 0.0))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response is not None and not self._response.done():
            self._response.set_result((0, 0.0))


class Clients:
    """Clients of several pods, which keep their connections."""

    def __init__(self, pods: Sequence[Pod]) -> None:
        self._idle: dict[str, list[_Connection]] = {pod.host: [] for pod in pods}

    async def send(self, pod: Pod, service: str) -> tuple[int, float]:
        """Send a request. Return its status (0: the connection was closed), and the ms that it waited for a slot."""
        idle = self._idle[pod.host]
        if idle:
            connection = idle.pop()
        else:
            _, connection = await asyncio.get_running_loop().create_connection(_Connection, pod.host, pod.port)
        request = f"POST /api/v1/service/{service}/score HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{{}}"
        status, queued_ms = await connection.send(request.encode())
        if status:
            idle.append(connection)
        return status, queued_ms

    def close(self) -> None:
        """Close all connections."""
        for idle in self._idle.values():
            for connection in idle:
                connection.transport.close()


async def run_load(
    pods: Sequence[Pod], services: Sequence[str], rate: float, seconds: float, *, warm_up: float = 1.0
) -> LoadResult:
    """Send `rate` requests per second to random pods and services, at random times (a Poisson process).

    Requests of the first `warm_up` seconds are not counted.
    """
    clients, result, rng = Clients(pods), LoadResult(), random.Random(1)
    result.statuses = {pod.host: Counter() for pod in pods}
    tasks: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    started_at = next_at = loop.time()

    async def send(pod: Pod, service: str, counted: bool) -> None:
        sent_at = time.perf_counter()  # the loop's clock has a resolution of milliseconds
        status, queued_ms = await clients.send(pod, service)
        if counted:
            result.statuses[pod.host][status] += 1
            if status == 200:
                result.queued_ms.append(queued_ms)
                result.latency_ms.append((time.perf_counter() - sent_at) * 1000)

    while next_at < started_at + warm_up + seconds:
        next_at += rng.expovariate(rate)
        if next_at > loop.time():
            await asyncio.sleep(next_at - loop.time())
        counted = next_at >= started_at + warm_up
        task = asyncio.ensure_future(send(rng.choice(pods), rng.choice(services), counted))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks)
    clients.close()
    return result


def assign_replicas(replicas: CountingReplicas, services: int, replicas_per_service: int) -> dict[str, list[int]]:
    """Return the ports of the replicas of each service, by name."""
    ports = iter(replicas.ports)
    return {f"s{number}": [next(ports) for _ in range(replicas_per_service)] for number in range(services)}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a `share` (0 to 1) of the values are; 0 without values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
