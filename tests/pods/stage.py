"""A stage for tests of several router pods: real processes, a network between them that can be cut in each direction,
replicas that count for themselves, and clients that ask all pods."""

import contextlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE_SECONDS, descendants, processes, until, workers_of
from tests.routers import environment

REPLICAS = Path(__file__).parents[1] / "servers" / "counting_replicas.py"
DELAY_MS = 20
Address = tuple[str, int]
SECRET = "a secret of tests, random enough"
SERVICES = tuple(f"s{number}" for number in range(6))  # enough for each pod to own one
REPLICAS_EACH = 2
SLOT_SECONDS = DELAY_MS / 1000


class Replicas:
    """All replicas of a test, in one process. Each may have one request at a time."""

    def __init__(self, count: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(REPLICAS), "127.0.0.1", "0", str(count), str(DELAY_MS), "1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ports: list[int] = json.loads(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def statistics(self) -> dict[str, Any]:
        """What they have counted."""
        assert self._process.stdin is not None
        self._process.stdin.write("stats\n")
        self._process.stdin.flush()
        facts: dict[str, Any] = json.loads(self._read())
        return facts

    def excesses(self, *, after: float = 0.0) -> list[tuple[float, int, int]]:
        """When a replica had more requests than slots, since a time of the monotonic clock."""
        return [tuple(excess) for excess in self.statistics()["excesses"] if excess[0] >= after]

    def end(self) -> None:
        with self._process:
            self._process.communicate(timeout=PATIENCE_SECONDS)


class Network:
    """All ways between pods. Words from one pod to another wait while that direction is cut.

    Nobody is refused a connection here, so that a pod that has died seems to be unreachable.
    """

    def __init__(self) -> None:
        self._targets: dict[socket.socket, tuple[tuple[str, str], Address]] = {}  # who dials whom, and where
        self._cut: set[tuple[str, str]] = set()
        self._pairs: dict[socket.socket, tuple[socket.socket, tuple[str, str]]] = {}  # from -> to, direction
        self._waiting: list[tuple[socket.socket, tuple[str, str], Address]] = []  # accepted while a way was cut
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def lay(self, dialling: str, dialled: str, address: Address) -> Address:
        """A way to a pod's address, for one other pod. Its own address."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._targets[listening] = ((dialling, dialled), address)
        host, port = listening.getsockname()
        return host, port

    def cut(self, *directions: tuple[str, str]) -> None:
        """Let no word through in these directions."""
        self._cut.update(directions)

    def heal(self) -> None:
        self._cut.clear()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        for sock in (*self._targets, *self._pairs, *(sock for sock, _, _ in self._waiting)):
            sock.close()

    def _run(self) -> None:
        while not self._over.is_set():
            for accepted in [each for each in self._waiting if not self._is_cut(each[1])]:
                self._waiting.remove(accepted)
                self._connect(*accepted)
            heard = [sock for sock, (_, direction) in self._pairs.items() if direction not in self._cut]
            ready, _, _ = select.select([*self._targets, *heard], [], [], 0.01)
            for sock in ready:
                if sock in self._targets:
                    self._waiting.append((sock.accept()[0], *self._targets[sock]))
                elif sock in self._pairs:
                    self._pass_on(sock)

    def _is_cut(self, ends: tuple[str, str]) -> bool:
        """A connection needs both directions to be made."""
        return ends in self._cut or ends[::-1] in self._cut

    def _connect(self, near: socket.socket, ends: tuple[str, str], address: Address) -> None:
        try:
            far = socket.create_connection(address, timeout=1)
        except OSError:
            near.close()
            return
        self._pairs[near] = (far, ends)
        self._pairs[far] = (near, ends[::-1])

    def _pass_on(self, sock: socket.socket) -> None:
        other, _ = self._pairs[sock]
        try:
            data = sock.recv(65536)
            if data:
                other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (sock, other):
                self._pairs.pop(end, None)
                end.close()


class Pod:
    """A router pod that runs."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.id: str = facts["id"]
        self.host: str = facts["host"]
        self.port: int = facts["port"]
        self._admin_port = facts["admin_port"]
        file = folder / f"{self.id}.json"
        file.write_text(json.dumps(facts))
        self._errors = folder / f"{self.id}.txt"
        self._workers: set[int] = set()  # those that have been sent a signal
        with self._errors.open("a") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.pods.pod", str(file)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def serves(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"serves\n", self.said

    @property
    def said(self) -> str:
        return self._errors.read_text()

    @property
    def workers(self) -> list[int]:
        return workers_of(self.process.pid)

    def metric(self, name: str, labels: str = "") -> float:
        """The sum of the samples of a metric that have these labels."""
        with contextlib.closing(http.client.HTTPConnection(self.host, self._admin_port, PATIENCE_SECONDS)) as line:
            line.request("GET", "/metrics")
            text = line.getresponse().read().decode()
        pattern = rf"^azureml_fe_{name}(?:{{.*{re.escape(labels)}.*}})? (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

    def is_linked_with(self, count: int) -> bool:
        return self.metric("peers", 'standing="live"') == count

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor and all its workers, also those that it has left behind."""
        there = {process.pid for process in processes() if "router.gateway.worker" in process.words}
        self._workers = (self._workers & there) | descendants(self.process.pid)
        self.process.send_signal(number)  # which does nothing once it has ended
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def is_to_end(self) -> None:
        """Tell it, as Kubernetes would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def end(self) -> None:
        """Wait for its end; what it must not have said, it has not."""
        self.is_to_end()
        self.process.wait(PATIENCE_SECONDS)
        assert "leases out of step" not in self.said, self.said
        assert "Traceback" not in self.said, self.said


class Clients:
    """Clients of all pods that ask again and again, each on a thread and a connection of its own."""

    def __init__(self, pods: Mapping[str, Pod], *, each: int) -> None:
        self.answers: dict[str, Counter[str]] = {name: Counter() for name in pods}
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(pod, number)) for pod in pods.values() for number in range(each)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, pod: Pod, number: int) -> None:
        line = http.client.HTTPConnection(pod.host, pod.port, timeout=PATIENCE_SECONDS)
        while not self._over.is_set():
            service = SERVICES[number % len(SERVICES)]
            number += 1
            try:
                line.request("POST", f"/api/v1/service/{service}/score", b"{}")
                answer = line.getresponse()
                answer.read()
                self.answers[pod.id][str(answer.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.answers[pod.id][type(error).__name__] += 1
                line.close()
                self._over.wait(0.02)
        line.close()

    def goes_on(self, *pods: str, requests: int = 50) -> None:
        """Wait until each of these pods has answered so many more with 200."""
        before = {pod: self.answers[pod]["200"] for pod in pods}
        for pod in pods:
            until(lambda pod=pod: self.answers[pod]["200"] >= before[pod] + requests, f"answers of {pod}")  # type: ignore[misc]

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


class Stage:
    """Pods p0, p1, ... on addresses of their own, linked with one another across the network."""

    def __init__(self, folder: Path, replicas: Replicas, network: Network | None) -> None:
        self._folder = folder
        self.replicas = replicas
        self._network = network
        self.pods: dict[str, Pod] = {}
        self._ports: dict[str, tuple[int, int, int]] = {}

    def begin(self, *names: str, of: int) -> None:
        """Start these of the pods p0 to p`of`-1."""
        for number in range(of):
            self._ports.setdefault(f"p{number}", _free_ports(_host(f"p{number}")))
        for name in names:
            self.pods[name] = Pod(self._folder, self._facts(name))
        for name in names:
            self.pods[name].serves()

    def _facts(self, name: str) -> dict[str, Any]:
        ports = iter(self.replicas.ports)
        port, admin_port, peer_port = self._ports[name]
        peers = []
        for peer, (_, _, its_port) in self._ports.items():
            if peer != name:
                address = (_host(peer), its_port)
                way = address if self._network is None else self._network.lay(name, peer, address)
                peers.append([*way, peer])
        return {
            "id": name,
            "host": _host(name),
            "port": port,
            "admin_port": admin_port,
            "peer_port": peer_port,
            "workers": 2,
            "secret": SECRET,
            "services": {service: {"auth_enabled": False, "num_replicas": REPLICAS_EACH} for service in SERVICES},
            "replicas": {service: [next(ports) for _ in range(REPLICAS_EACH)] for service in SERVICES},
            "peers": peers,
        }

    @property
    def network(self) -> Network:
        """What can be cut."""
        assert self._network is not None
        return self._network

    def all_linked(self) -> None:
        until(lambda: all(pod.is_linked_with(len(self.pods) - 1) for pod in self.pods.values()), "links of all")

    @contextlib.contextmanager
    def load(self, *, each: int = 5) -> Iterator[Clients]:
        """Clients in number above what the replicas can do."""
        clients = Clients(self.pods, each=each)
        try:
            clients.goes_on(*self.pods)
            yield clients
        finally:
            clients.end()

    def end(self) -> None:
        """End all as Kubernetes would; whatever went wrong, also in the test, nobody is left."""
        for pod in self.pods.values():
            pod.signal_all(signal.SIGCONT)
        try:
            for pod in self.pods.values():
                if pod.process.poll() is None:
                    assert pod.metric("slot_leaks_repaired_total") == 0
            for pod in self.pods.values():
                pod.is_to_end()
            for pod in self.pods.values():
                pod.end()
        finally:
            for pod in self.pods.values():
                pod.signal_all(signal.SIGKILL)
                pod.process.wait()
                assert pod.process.stdout is not None
                pod.process.stdout.close()


def _host(name: str) -> str:
    return f"127.0.0.{11 + int(name[1:])}"


def _free_ports(host: str) -> tuple[int, int, int]:
    """For clients, operators and peers."""
    with contextlib.ExitStack() as held:
        made = [held.enter_context(socket.create_server((host, 0))) for _ in range(3)]
        one, two, three = (int(sock.getsockname()[1]) for sock in made)
    return one, two, three


@contextlib.contextmanager
def staged(folder: Path, *, network: bool = False) -> Iterator[Stage]:
    """A stage; with a network that can be cut, or with pods that reach one another directly."""
    with contextlib.ExitStack() as ends:
        replicas = Replicas(len(SERVICES) * REPLICAS_EACH)
        ends.callback(replicas.end)
        ways = Network() if network else None
        if ways is not None:
            ends.callback(ways.end)
        stage = Stage(folder, replicas, ways)
        ends.callback(stage.end)
        yield stage
