"""Nothing is lost and nothing is sent twice, whatever the router does to itself: counted at clients and at replicas.

Clients and replicas are outside of the router. Slow requests and uploads of 100 MB are in flight at the moment of the
change, and a load of small ones goes on all the time.
"""

import http.client
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.processes import (
    PATIENCE_SECONDS,
    Answer,
    Load,
    Pending,
    all_gone,
    ask,
    ask_over,
    echo_server,
    statistics,
    until,
)
from tests.routers import Router, Start
from tests.sizing.flood import Flood

LARGE = 100_000_000
SLOW_SECONDS = 1.0
PIECE = b"x" * 1_000_000


class Upload:
    """A request with 100 MB, of which half is sent at once and the rest when it is told to."""

    def __init__(self, port: int) -> None:
        self._go_on = threading.Event()
        self._half = threading.Event()
        self._answer = b""
        self._thread = threading.Thread(target=self._run, args=(port,))
        self._thread.start()
        assert self._half.wait(PATIENCE_SECONDS)

    def _run(self, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as line:
            line.settimeout(3 * PATIENCE_SECONDS)  # the test takes its time before it lets the rest go
            head = f"POST /api/v1/service/large/score HTTP/1.1\r\nHost: router\r\nContent-Length: {LARGE}\r\n\r\n"
            line.sendall(head.encode())
            answer = threading.Thread(target=self._read, args=(line,))
            answer.start()
            for number in range(LARGE // len(PIECE)):
                if number == LARGE // len(PIECE) // 2:
                    self._half.set()
                    self._go_on.wait(3 * PATIENCE_SECONDS)
                line.sendall(PIECE)
            answer.join()

    def _read(self, line: socket.socket) -> None:
        received = 0
        head, wanted = b"", 1
        while received < wanted and (data := line.recv(2**20)):
            if wanted == 1:
                head += data
                if b"\r\n\r\n" in head:
                    head, _, data = head.partition(b"\r\n\r\n")
                    wanted = LARGE
                    received = len(data)
            else:
                received += len(data)
        self._answer = head if received == LARGE else b"cut after %d bytes: %b" % (received, head)

    def is_answered(self) -> bool:
        """Send the rest; whether all of it came back."""
        self._go_on.set()
        self._thread.join()
        return self._answer.startswith(b"HTTP/1.1 200 ")


class Traffic:
    """Slow and large requests in flight, and small ones all the time, from clients that leave when they are told."""

    def __init__(self, router: Router, replicas: dict[str, int]) -> None:
        self._router = router
        self._replicas = replicas
        self._before = {name: statistics(port)["requests"] for name, port in replicas.items()}
        path = "/api/v1/service/slow/score"
        self._slow = [Pending(router.port, path) for _ in range(4)]
        self._large = [Upload(router.port) for _ in range(2)]
        self.small = Load(router.port, "/api/v1/service/small/score", pause=0.02)
        self.short = Load(router.port, "/api/v1/service/small/score", clients=2, keep_alive=False, pause=0.02)
        until(lambda: statistics(replicas["slow"])["concurrent"] == 4, "slow requests in flight")

    def __enter__(self) -> "Traffic":
        self.small.__enter__()
        self.short.__enter__()
        self.small.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        """The clients of small requests go elsewhere."""
        self.small.__exit__()
        self.short.__exit__()

    def is_whole(self) -> None:
        """All were answered, and replicas got each of them once."""
        assert [pending.answer().status for pending in self._slow] == [200] * 4
        assert [upload.is_answered() for upload in self._large] == [True] * 2
        assert self.small.all_well, self.small
        assert self.short.all_well, self.short
        got = {name: statistics(port)["requests"] - self._before[name] for name, port in self._replicas.items()}
        assert got == {"slow": 4, "large": 2, "small": self.small.answers.total() + self.short.answers.total()}


@pytest.fixture(scope="module")
def replicas() -> Iterator[dict[str, int]]:
    """Ports of model servers, by service."""
    with ExitStack() as servers:
        options: dict[str, dict[str, object]] = {"small": {}, "slow": {"delay": SLOW_SECONDS}, "large": {}}
        yield {name: servers.enter_context(echo_server(**its)) for name, its in options.items()}


@pytest.fixture
def begin(start: Start, replicas: dict[str, int]) -> Callable[..., Router]:
    """Starts a router in front of them."""
    services = {
        name: {
            "addresses": [f"127.0.0.1:{port}"],
            "auth_enabled": False,
            "replica_max_concurrent_requests": 8,
            "max_request_wait_time": 10_000,
        }
        for name, port in replicas.items()
    }

    def starting(*flags: str, **settings: object) -> Router:
        router = start(services, *flags, **settings)
        for name in services:
            router.ready(name)
        return router

    return starting


def ready(router: Router) -> Answer:
    return ask(router.admin_port, "/readyz")


def test_workers_are_replaced(begin: Callable[..., Router], replicas: dict[str, int]) -> None:
    router = begin(workers=2)
    former = router.workers
    with Traffic(router, replicas) as traffic:
        router.send(signal.SIGHUP)
        until(lambda: len(set(router.workers) - set(former)) == 2, "new workers")
        traffic.small.goes_on()
    traffic.is_whole()
    until(lambda: all_gone(former), "end of the former workers")
    assert not router.log("worker had to cut requests")


def test_the_router_stops(begin: Callable[..., Router], replicas: dict[str, int]) -> None:
    """Not ready, then no more accepting, then the end; clients leave as load balancers let them."""
    router = begin(workers=2, shutdown_delay_seconds=1)
    with Traffic(router, replicas) as traffic:
        router.send(signal.SIGTERM)
        until(lambda: ready(router).status == 503, "unreadiness")
        assert b"about to stop" in ready(router).body
        answer = router.score("small")  # who has not noticed is served
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        traffic.leave()
    traffic.short.answers[200] += 1
    traffic.is_whole()
    assert router.wait() == 0


def test_workers_come_and_go_with_the_load(begin: Callable[..., Router], replicas: dict[str, int]) -> None:
    quick = {
        "self_scaling_window_seconds": 3,
        "self_scaling_route_time_threshold_ms": 15,  # above what a busy machine adds by itself
        "self_scaling_up_cooldown_seconds": 1,
        "self_scaling_down_cooldown_seconds": 1,
    }
    router = begin("--min-workers", "1", "--max-workers", "2", workers=None, **quick)
    with Traffic(router, replicas) as traffic:
        with Flood(router.port):
            until(lambda: len(router.workers) == 2, "a second worker")
            traffic.small.goes_on()
        until(lambda: router.metric("workers") == 1, "one worker to remain")
        traffic.small.goes_on()
    traffic.is_whole()
    assert not router.log("worker had to cut requests")


def test_a_connection_that_rests_outlives_its_worker_for_a_while(begin: Callable[..., Router]) -> None:
    """Its client's next request must not meet a closed connection."""
    router = begin(workers=1)
    (former,) = router.workers
    line = http.client.HTTPConnection("127.0.0.1", router.port, timeout=PATIENCE_SECONDS)
    path = "/api/v1/service/small/score"
    assert ask_over(line, path, b"[1]").status == 200
    router.send(signal.SIGHUP)
    until(lambda: router.workers not in ([former], []) and router.metric("workers") == 1, "another worker")
    answer = ask_over(line, path, b"[1]")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    until(lambda: router.workers != [former] and former not in router.workers, "end of the former worker")


def test_who_waits_to_be_accepted_is_served_to_the_end(begin: Callable[..., Router]) -> None:
    """A stopped worker accepts nobody; connections wait in the socket's queue when it is told to end."""
    router = begin(workers=1)
    (worker,) = router.workers
    os.kill(worker, signal.SIGSTOP)
    waiting = [Pending(router.port, "/api/v1/service/small/score", b"[1]") for _ in range(20)]
    until(lambda: _queued(router.port) == 20, "twenty in the queue")
    router.send(signal.SIGTERM)
    until(lambda: ready(router).status == 503, "unreadiness")
    os.kill(worker, signal.SIGCONT)
    assert [pending.answer().status for pending in waiting] == [200] * 20
    assert router.wait() == 0


def _queued(port: int) -> int:
    """Connections that wait to be accepted (proc_net_tcp(5): of a listening socket, the receive queue)."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(
        int(words[4].partition(":")[2], 16) for words in rows if words[1].endswith(f":{port:04X}") and words[3] == "0A"
    )
