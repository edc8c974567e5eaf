"""A fleet of router pods for tests: real processes, replicas that count their requests, clients of all pods, and a
network between the pods that can be cut in each direction."""

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

from tests.processes import TIMEOUT_SECONDS, descendants, free_ports, running_processes, wait_until, worker_pids
from tests.routers import ROOT, router_environment
from tests.servers.counting import CountingReplicas

RESPONSE_TIME_MS = 20
RESPONSE_SECONDS = RESPONSE_TIME_MS / 1000
Address = tuple[str, int]
SECRET = "a secret of tests, random enough"
SERVICES = tuple(f"s{number}" for number in range(6))  # enough for each pod to own some
REPLICAS_PER_SERVICE = 2


class Network:
    """Relays between all pairs of pods. Data waits while its direction is cut.

    A relay accepts connections even if its target has ended, so a dead pod looks unreachable.
    """

    def __init__(self) -> None:
        self._listeners: dict[socket.socket, tuple[tuple[str, str], Address]] = {}  # (dialing, dialed) pod, target
        self._cut: set[tuple[str, str]] = set()  # directions: (from pod, to pod)
        self._connections: dict[
            socket.socket, tuple[socket.socket, tuple[str, str]]
        ] = {}  # by source: destination, direction
        self._waiting: list[tuple[socket.socket, tuple[str, str], Address]] = []  # accepted while a direction was cut
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def add_relay(self, dialing: str, dialed: str, address: Address) -> Address:
        """Add a relay to the address of the dialed pod, for one dialing pod. Return the address of the relay."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listeners[listener] = ((dialing, dialed), address)
        host, port = listener.getsockname()
        return host, port

    def cut(self, *directions: tuple[str, str]) -> None:
        """Hold back all data in these directions."""
        self._cut.update(directions)

    def heal(self) -> None:
        self._cut.clear()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for sock in (*self._listeners, *self._connections, *(sock for sock, _, _ in self._waiting)):
            sock.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            for accepted in [each for each in self._waiting if not self._is_cut(each[1])]:
                self._waiting.remove(accepted)
                self._connect(*accepted)
            open_connections = [
                sock for sock, (_, direction) in self._connections.items() if direction not in self._cut
            ]
            readable, _, _ = select.select([*self._listeners, *open_connections], [], [], 0.01)
            for sock in readable:
                if sock in self._listeners:
                    self._waiting.append((sock.accept()[0], *self._listeners[sock]))
                elif sock in self._connections:
                    self._relay(sock)

    def _is_cut(self, pods: tuple[str, str]) -> bool:
        """True if no connection can be made, because one direction is cut."""
        return pods in self._cut or pods[::-1] in self._cut

    def _connect(self, near: socket.socket, pods: tuple[str, str], address: Address) -> None:
        try:
            far = socket.create_connection(address, timeout=1)
        except OSError:
            near.close()
            return
        self._connections[near] = (far, pods)
        self._connections[far] = (near, pods[::-1])

    def _relay(self, sock: socket.socket) -> None:
        destination, _ = self._connections[sock]
        try:
            data = sock.recv(65536)
            if data:
                destination.sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (sock, destination):
                self._connections.pop(each, None)
                each.close()


class Pod:
    """A router pod that runs. `checkout` is the directory with its code."""

    def __init__(self, directory: Path, config: dict[str, Any], module: str, checkout: Path) -> None:
        self.id: str = config["id"]
        self.host: str = config["host"]
        self.port: int = config["port"]
        self._admin_port = config["admin_port"]
        file = directory / f"{self.id}.json"
        file.write_text(json.dumps(config))
        self._stderr = directory / f"{self.id}.txt"
        self._workers: set[int] = set()  # processes to which a signal was sent
        with self._stderr.open("a") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(file)],
                cwd=checkout,
                env=router_environment() | {"PYTHONPATH": str(checkout)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline(), self.log

    @property
    def log(self) -> str:
        """Standard error of all processes with this pod's id so far."""
        return self._stderr.read_text()

    @property
    def workers(self) -> list[int]:
        return worker_pids(self.process.pid)

    def metric(self, name: str, labels: str = "") -> float:
        """Return the sum of the samples of a metric with these labels."""
        with contextlib.closing(http.client.HTTPConnection(self.host, self._admin_port, TIMEOUT_SECONDS)) as client:
            client.request("GET", "/metrics")
            text = client.getresponse().read().decode()
        pattern = rf"^azureml_fe_{name}(?:{{.*{re.escape(labels)}.*}})? (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))

    def has_links(self, count: int) -> bool:
        return self.metric("peers", 'standing="live"') == count

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor and all its workers, including orphaned ones."""
        running = {process.pid for process in running_processes() if "router.workers.main" in process.command_line}
        self._workers = (self._workers & running) | descendants(self.process.pid)
        self.process.send_signal(number)  # no effect if the process has ended
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def begin_termination(self) -> None:
        """Send SIGTERM, like Kubernetes."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def terminate(self) -> int:
        """Drain and end the pod, and check its log. Return the exit code."""
        self.begin_termination()
        code = self.process.wait(TIMEOUT_SECONDS)
        for message in ("lease mismatch repaired", "leases out of step", "Traceback"):  # the latter: earlier releases
            assert message not in self.log, self.log
        return code


class Clients:
    """Clients that send requests to the pods in a loop, each on a thread and its own connection."""

    def __init__(self, pods: Mapping[str, Pod], *, per_pod: int) -> None:
        self.results: dict[str, Counter[str]] = {pod_id: Counter() for pod_id in pods}
        """By pod: the number of requests by status, or by exception if there was no response."""
        self._paused = {pod_id: threading.Event() for pod_id in pods}
        self._idle = {pod_id: threading.Semaphore(0) for pod_id in pods}
        self._per_pod = per_pod
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(pod, number)) for pod in pods.values() for number in range(per_pod)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, pod: Pod, number: int) -> None:
        client = http.client.HTTPConnection(pod.host, pod.port, timeout=TIMEOUT_SECONDS)
        while not self._stop.is_set():
            if self._paused[pod.id].is_set():
                client.close()
                self._idle[pod.id].release()
                while self._paused[pod.id].is_set() and not self._stop.wait(0.01):
                    pass
                continue
            service = SERVICES[number % len(SERVICES)]
            number += 1
            try:
                client.request("POST", f"/api/v1/service/{service}/score", b"{}")
                response = client.getresponse()
                response.read()
                self.results[pod.id][str(response.status)] += 1
            except (OSError, http.client.HTTPException) as error:
                self.results[pod.id][type(error).__name__] += 1
                client.close()
                self._stop.wait(0.02)
        client.close()

    @contextlib.contextmanager
    def paused(self, pod_id: str) -> Iterator[None]:
        """Send no requests to a pod, like a load balancer that has removed it. Its last responses are awaited first."""
        self._paused[pod_id].set()
        try:
            for _ in range(self._per_pod):
                assert self._idle[pod_id].acquire(timeout=TIMEOUT_SECONDS)
            yield
        finally:
            self._paused[pod_id].clear()

    def wait_for_successes(self, *pods: str, requests: int = 50) -> None:
        """Wait until each of these pods has responded with 200 to this many more requests."""
        before = {pod: self.results[pod]["200"] for pod in pods}
        for pod in pods:
            wait_until(lambda pod=pod: self.results[pod]["200"] >= before[pod] + requests, f"responses of {pod}")  # type: ignore[misc]

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


class Fleet:
    """Pods p0, p1, ... on their own addresses, linked through the network if there is one."""

    def __init__(self, directory: Path, replicas: CountingReplicas, network: Network | None) -> None:
        self._directory = directory
        self.replicas = replicas
        self._network = network
        self.pods: dict[str, Pod] = {}
        self._ports: dict[str, list[int]] = {}  # for clients, operators and peers
        self._ended: list[Pod] = []

    def start(
        self,
        *pod_ids: str,
        pod_count: int,
        module: str = "tests.pods.pod",
        checkout: Path = ROOT,
        max_request_wait_time: int = 500,
    ) -> None:
        """Start some pods of a fleet of `pod_count` pods that expect each other, and wait until they are ready."""
        for number in range(pod_count):
            self._ports.setdefault(f"p{number}", free_ports(_host(f"p{number}"), 3))
        for pod_id in pod_ids:
            if pod_id in self.pods:
                self._ended.append(self.pods[pod_id])
            self.pods[pod_id] = Pod(self._directory, self._config(pod_id, max_request_wait_time), module, checkout)
        for pod_id in pod_ids:
            self.pods[pod_id].wait_until_ready()

    def _config(self, pod_id: str, max_request_wait_time: int) -> dict[str, Any]:
        replica_ports = iter(self.replicas.ports)
        port, admin_port, peer_port = self._ports[pod_id]
        peers = []
        for peer, (_, _, its_port) in self._ports.items():
            if peer != pod_id:
                address = (_host(peer), its_port)
                if self._network is not None:
                    address = self._network.add_relay(pod_id, peer, address)
                peers.append([*address, peer])
        service = {
            "auth_enabled": False,
            "num_replicas": REPLICAS_PER_SERVICE,
            "max_request_wait_time": max_request_wait_time,
        }
        return {
            "id": pod_id,
            "host": _host(pod_id),
            "port": port,
            "admin_port": admin_port,
            "peer_port": peer_port,
            "workers": 2,
            "secret": SECRET,
            "services": dict.fromkeys(SERVICES, service),
            "replicas": {name: [next(replica_ports) for _ in range(REPLICAS_PER_SERVICE)] for name in SERVICES},
            "peers": peers,
        }

    @property
    def network(self) -> Network:
        assert self._network is not None
        return self._network

    def wait_until_all_linked(self) -> None:
        wait_until(
            lambda: all(pod.has_links(len(self.pods) - 1) for pod in self.pods.values()), "links between all pods"
        )

    @contextlib.contextmanager
    def load(self, *, per_pod: int = 5) -> Iterator[Clients]:
        """Run clients of all pods. With three pods, the default exceeds the capacity of the replicas."""
        clients = Clients(self.pods, per_pod=per_pod)
        try:
            clients.wait_for_successes(*self.pods)
            yield clients
        finally:
            clients.stop()

    def stop(self) -> None:
        """Terminate all pods like Kubernetes and check their logs. Leave no process behind, even if the test failed."""
        for pod in self.pods.values():
            pod.signal_all(signal.SIGCONT)
        try:
            for pod in self.pods.values():
                if pod.process.poll() is None:
                    assert pod.metric("slot_leaks_repaired_total") == 0
            for pod in self.pods.values():
                pod.begin_termination()
            for pod in self.pods.values():
                pod.terminate()
        finally:
            for pod in (*self._ended, *self.pods.values()):
                pod.signal_all(signal.SIGKILL)
                pod.process.wait()
                assert pod.process.stdout is not None
                pod.process.stdout.close()


def _host(pod_id: str) -> str:
    return f"127.0.0.{11 + int(pod_id[1:])}"


@contextlib.contextmanager
def running_fleet(directory: Path, *, network: bool = False) -> Iterator[Fleet]:
    """Run replicas, and a network that can be cut if asked for. Yield a fleet without pods."""
    with contextlib.ExitStack() as cleanup:
        replicas = CountingReplicas(len(SERVICES) * REPLICAS_PER_SERVICE, RESPONSE_TIME_MS)
        cleanup.callback(replicas.stop)
        relays = Network() if network else None
        if relays is not None:
            cleanup.callback(relays.stop)
        fleet = Fleet(directory, replicas, relays)
        cleanup.callback(fleet.stop)
        yield fleet
