"""Nothing is lost and nothing is sent twice, whatever the router does to itself: counted at clients and at replicas.

Clients and replicas are outside of the router. Slow requests (10 s) and large ones (100 MB, both ways) are in flight at
the moment of the change, and a load of small ones goes on all the time.
"""

import http.client
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.named_requests import PATIENCE, Address, NamedRequests, recording_server
from tests.processes import PATIENCE_SECONDS, Answer, Pending, all_gone, ask, ask_over, until
from tests.routers import Router, Start, open_echo, starting_in
from tests.sizing.flood import Flood

MODEL = "iris"


def begin(start: Start, replica: Address, *flags: str, **settings: object) -> tuple[Router, NamedRequests]:
    """A router in front of a replica that it has not started, and its clients."""
    service = {
        "addresses": [f"{replica[0]}:{replica[1]}"],
        "auth_enabled": False,
        "replica_max_concurrent_requests": 100,
        "max_request_wait_time": 10_000,
    }
    router = start({MODEL: service}, *flags, drain_seconds=PATIENCE, **settings)
    router.ready(MODEL)
    where = [("127.0.0.1", router.port)]
    return router, NamedRequests(MODEL, lambda: where, [replica])


def in_flight(router: Router, requests: NamedRequests) -> None:
    """Have slow and large requests under way: some by each worker."""
    requests.in_flight([("127.0.0.1", router.port)], slow=4, large=2)


def ready(router: Router) -> Answer:
    return ask(router.admin_port, "/readyz")


Story = Callable[[Start], None]


def workers_are_replaced(start: Start) -> None:
    with recording_server() as replica:
        router, requests = begin(start, replica, workers=2)
        former = router.workers
        with requests:
            in_flight(router, requests)
            router.send(signal.SIGHUP)
            until(lambda: len(set(router.workers) - set(former)) == 2, "new workers")
            requests.goes_on()
            assert not all_gone(former)
            until(lambda: all_gone(former), "end of the former workers", seconds=PATIENCE)
        requests.are_whole()
        assert not router.log("worker had to cut requests")


def the_router_stops(start: Start) -> None:
    """Not ready, then no more accepting, then the end; clients leave as load balancers let them."""
    with recording_server() as replica:
        router, requests = begin(start, replica, workers=2, shutdown_delay_seconds=5)
        with requests:
            in_flight(router, requests)
            router.send(signal.SIGTERM)
            until(lambda: ready(router).status == 503, "unreadiness")
            assert b"about to stop" in ready(router).body
            requests.goes_on()  # who has not noticed is served
            requests.leave()
        requests.are_whole()
        assert router.wait() == 0


class Together:
    """Stories that are told at once, as each takes as long as its slow requests. One that is asked for again is told
    again."""

    def __init__(self, pool: ThreadPoolExecutor, folder: Path, *stories: Story) -> None:
        self._pool = pool
        self._folder = folder
        self._told: dict[Story, Future[None]] = {story: self._tell(story, folder / story.__name__) for story in stories}

    def _tell(self, story: Story, folder: Path) -> Future[None]:
        def telling() -> None:
            folder.mkdir()
            with starting_in(folder) as start:
                story(start)

        return self._pool.submit(telling)

    def went_well(self, story: Story) -> None:
        """Wait for its end. Raises what it has raised."""
        told = self._told.pop(story, None) or self._tell(story, self._folder / f"{story.__name__} again")
        told.result()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    with ThreadPoolExecutor() as pool:
        yield Together(pool, tmp_path_factory.mktemp("together"), workers_are_replaced, the_router_stops)


@pytest.mark.parametrize("story", [workers_are_replaced, the_router_stops])
def test_nothing_is_lost_when(story: Story, together: Together) -> None:
    together.went_well(story)


def test_nothing_is_lost_when_workers_come_and_go_with_the_load(start: Start) -> None:
    quick = {
        "self_scaling_window_seconds": 3,
        "self_scaling_route_time_threshold_ms": 15,  # above what a busy machine adds by itself
        "self_scaling_up_cooldown_seconds": 1,
        "self_scaling_down_cooldown_seconds": 1,
    }
    with recording_server() as replica:
        router, requests = begin(start, replica, "--min-workers", "1", "--max-workers", "2", workers=None, **quick)
        with requests:
            with Flood(router.port):
                until(lambda: len(router.workers) == 2, "a second worker")
                requests.goes_on()
                in_flight(router, requests)
            until(lambda: router.metric("workers") == 1, "one worker to remain")
            requests.goes_on()
            until(lambda: len(router.workers) == 1, "the end of the other one", seconds=PATIENCE)
        requests.are_whole()
        assert not router.log("worker had to cut requests")


def test_a_connection_that_rests_outlives_its_worker_for_a_while(start: Start) -> None:
    """Its client's next request must not meet a closed connection."""
    router = start({MODEL: open_echo(replica_max_concurrent_requests=20)}, workers=1)
    (former,) = router.workers
    line = http.client.HTTPConnection("127.0.0.1", router.port, timeout=PATIENCE_SECONDS)
    path = f"/api/v1/service/{MODEL}/score"
    assert ask_over(line, path, b"[1]").status == 200
    router.send(signal.SIGHUP)
    until(lambda: router.workers not in ([former], []) and router.metric("workers") == 1, "another worker")
    answer = ask_over(line, path, b"[1]")
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    until(lambda: router.workers != [former] and former not in router.workers, "end of the former worker")


def test_who_waits_to_be_accepted_is_served_to_the_end(start: Start) -> None:
    """A stopped worker accepts nobody; connections wait in the socket's queue when it is told to end."""
    router = start({MODEL: open_echo(replica_max_concurrent_requests=20)}, workers=1)
    (worker,) = router.workers
    os.kill(worker, signal.SIGSTOP)
    waiting = [Pending(router.port, f"/api/v1/service/{MODEL}/score", b"[1]") for _ in range(20)]
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
