"""Several router pods on loopback addresses of their own, replicas that count for themselves, and an open-loop load.

The pods are `azureml-fe local FILE` and routers that have joined it with `--peer`; or routers on their own, to compare.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
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

_REPLICAS = ROOT / "tests" / "servers" / "counting_replicas.py"
_ASK_ALWAYS = Path(__file__).parent / "ask_always"
_START_SECONDS = 60.0
_QUEUE = re.compile(rb"queue;dur=([0-9.]+)")


class Replicas:
    """Replicas that answer after a fixed time and count what they have in flight."""

    def __init__(self, count: int, delay_ms: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(_REPLICAS), "127.0.0.1", "0", str(count), str(delay_ms), "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: list[int] = json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()

    def reset(self) -> None:
        """Begin to count anew."""
        self._say("reset")

    def highest(self) -> int:
        """The most requests that any of them had at a time."""
        self._say("stats")
        return int(max(json.loads(self._read())["highest"].values()))

    def end(self) -> None:
        """Stop them."""
        with self._process:
            self._process.communicate()


@dataclass(slots=True)
class Pod:
    """One router."""

    host: str
    port: int
    admin_port: int
    peer_port: int
    process: subprocess.Popen[bytes]

    def metric(self, name: str, labels: str = "") -> float:
        """The sum of the samples of a metric that have these labels."""
        with urllib.request.urlopen(f"http://{self.host}:{self.admin_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        pattern = rf"^azureml_fe_{name}(?:{{.*{re.escape(labels)}.*}})? (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

    def owns(self, service: str) -> bool:
        """Whether its ledgers grant the slots of a service."""
        return self.metric("service_owned", f'service="{service}"') == 1

    def messages(self) -> float:
        """Messages about slots: those of its ledgers with front-ends."""
        return self.metric("slot_messages_total")


def _free_ports(host: str) -> tuple[int, int, int]:
    with ExitStack() as held:
        made = [held.enter_context(socket.create_server((host, 0))) for _ in range(3)]
        one, two, three = (int(sock.getsockname()[1]) for sock in made)
    return one, two, three


@contextmanager
def pods(
    count: int,
    services: Mapping[str, Sequence[int]],
    *,
    workers: int = 2,
    together: bool = True,
    ask_always: bool = False,
    partition: bool = False,
) -> Iterator[list[Pod]]:
    """Routers for services (name -> ports of their replicas): `together` as one, or each on its own, with all replicas
    or, with `partition`, with a part of them each. Ready when this returns."""
    with ExitStack() as ends:
        folder = Path(ends.enter_context(tempfile.TemporaryDirectory()))
        made: list[Pod] = []
        for number in range(count):
            host = f"127.0.1.{number + 1}"
            port, admin_port, peer_port = _free_ports(host)
            words = [sys.executable, "-m", "router", "local", "--host", host, "--port", str(port)]
            words += ["--peer-port", str(peer_port), "--workers", str(workers), "--log-level", "warning"]
            if number and together:
                for pod in made:
                    words += ["--peer", f"{pod.host}:{pod.peer_port}"]
            else:
                file = folder / f"services-{number}.yaml"
                part = (number, count) if partition else (0, 1)
                file.write_text(_file(services, *part))
                words.append(str(file))
            environment = {**os.environ, "AZUREML_FE_STATE_DIR": str(folder / "state")}
            environment |= {"AZUREML_FE_ADMIN_HOST": host, "AZUREML_FE_ADMIN_PORT": str(admin_port)}
            environment["PYTHONPATH"] = os.pathsep.join([str(_ASK_ALWAYS)] * ask_always + [str(ROOT)])
            log = (folder / f"log-{number}").open("wb")
            process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=log)
            made.append(Pod(host, port, admin_port, peer_port, process))
            ends.callback(_end, process)
            _wait(
                made[-1], len(services), count - 1 if together and number == count - 1 else 0, folder / f"log-{number}"
            )
        yield made


def _file(services: Mapping[str, Sequence[int]], part: int, parts: int) -> str:
    described = {
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
    return json.dumps({"services": described})


def _wait(pod: Pod, services: int, peers: int, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and pod.process.poll() is None:
        try:
            ready = pod.metric("replicas", 'state="ready"')
            linked = not peers or pod.metric("peers", 'standing="live"') == peers
            if linked and ready >= services and ready == pod.metric("replicas") and pod.metric("workers"):
                time.sleep(0.5)
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise BenchmarkError(f"router does not get ready: {log.read_text()[-2000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


# Load.


@dataclass(slots=True)
class Outcome:
    """What clients saw, by pod."""

    answers: dict[str, Counter[int]] = field(default_factory=dict)
    queued_ms: list[float] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def total(self, status: int) -> int:
        """Answers of a status, of all pods."""
        return sum(answers[status] for answers in self.answers.values())

    @property
    def requests(self) -> int:
        """All that were answered."""
        return sum(answers.total() for answers in self.answers.values())


class _Line(asyncio.Protocol):
    """One connection of a client, with one request at a time."""

    def __init__(self) -> None:
        self.buffer = b""
        self.answered: asyncio.Future[tuple[int, float]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, float]]:
        """Its status, and the ms that it waited for a slot."""
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answered

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found or self.answered is None:
            return
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])  # type: ignore[index]
        if len(body) >= length:
            self.buffer = b""
            queued = _QUEUE.search(head)
            self.answered.set_result((int(head[9:12]), float(queued[1]) if queued else 0.0))

    def connection_lost(self, exc: Exception | None) -> None:
        if self.answered is not None and not self.answered.done():
            self.answered.set_result((0, 0.0))


class Clients:
    """Clients of several pods, who keep connections."""

    def __init__(self, made: Sequence[Pod]) -> None:
        self._idle: dict[str, list[_Line]] = {pod.host: [] for pod in made}

    async def ask(self, pod: Pod, service: str) -> tuple[int, float]:
        """One request: its status (0: the connection was lost) and the ms that it waited for a slot."""
        idle = self._idle[pod.host]
        if idle:
            line = idle.pop()
        else:
            _, line = await asyncio.get_running_loop().create_connection(_Line, pod.host, pod.port)
        request = f"POST /api/v1/service/{service}/score HTTP/1.1\r\nHost: r\r\nContent-Length: 2\r\n\r\n{{}}"
        answer = await line.ask(request.encode())
        if answer[0]:
            idle.append(line)
        return answer

    def close(self) -> None:
        """Close all connections."""
        for idle in self._idle.values():
            for line in idle:
                line.transport.close()


async def load(
    made: Sequence[Pod], services: Sequence[str], rate: float, seconds: float, *, warm: float = 1.0
) -> Outcome:
    """Requests at random moments (Poisson), `rate` per second in all, to pods and services at random. What comes in the
    first `warm` seconds is not counted."""
    clients, outcome, rng = Clients(made), Outcome(seconds=seconds), random.Random(1)
    outcome.answers = {pod.host: Counter() for pod in made}
    asking: set[asyncio.Task[None]] = set()
    loop = asyncio.get_running_loop()
    began = due = loop.time()

    async def one(pod: Pod, service: str, counts: bool) -> None:
        asked = time.perf_counter()  # the loop's clock counts whole milliseconds
        status, queued = await clients.ask(pod, service)
        if counts:
            outcome.answers[pod.host][status] += 1
            if status == 200:
                outcome.queued_ms.append(queued)
                outcome.took_ms.append((time.perf_counter() - asked) * 1000)

    while due < began + warm + seconds:
        due += rng.expovariate(rate)
        if due > loop.time():
            await asyncio.sleep(due - loop.time())
        task = asyncio.ensure_future(one(rng.choice(made), rng.choice(services), due >= began + warm))
        asking.add(task)
        task.add_done_callback(asking.discard)
    if asking:
        await asyncio.wait(asking)
    clients.close()
    return outcome


def services_of(replicas: Replicas, count: int, each: int) -> dict[str, list[int]]:
    """So many services, with so many replicas each."""
    ports = iter(replicas.ports)
    return {f"s{number}": [next(ports) for _ in range(each)] for number in range(count)}


def percentile(values: Sequence[float], share: float) -> float:
    """Of sorted or unsorted values; 0 where there are none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
