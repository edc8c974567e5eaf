"""No request is lost or sent twice while workers are replaced, scaled or drained: counted at clients and at replicas.

Slow requests (10 s) and large ones (100 MB in each direction) are in flight at the moment of the change. Small requests
are sent continuously.
"""

import http.client
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.named_requests import LONG_TIMEOUT_SECONDS, Address, NamedRequests, recording_server
from tests.processes import (
    TIMEOUT_SECONDS,
    PendingRequest,
    Response,
    all_ended,
    send_request,
    send_request_over,
    wait_until,
)
from tests.routers import Router, StartRouter, open_echo_service, router_starter
from tests.scaling.self.flood import Flood

MODEL = "iris"


def start_with_clients(
    start: StartRouter, replica: Address, *flags: str, **settings: object
) -> tuple[Router, NamedRequests]:
    """Start a router in front of a running replica. Return it, and its clients."""
    service = {
        "addresses": [f"{replica[0]}:{replica[1]}"],
        "auth_enabled": False,
        "replica_max_concurrent_requests": 100,
        "max_request_wait_time": 10_000,
    }
    router = start({MODEL: service}, *flags, drain_seconds=LONG_TIMEOUT_SECONDS, **settings)
    router.wait_for_replicas(MODEL)
    addresses = [("127.0.0.1", router.port)]
    return router, NamedRequests(MODEL, lambda: addresses, [replica])


def start_slow_and_large(router: Router, requests: NamedRequests) -> None:
    """Have slow and large requests in flight at each worker."""
    requests.start_slow_and_large([("127.0.0.1", router.port)], slow=4, large=2)


def readiness(router: Router) -> Response:
    return send_request(router.admin_port, "/readyz")


Scenario = Callable[[StartRouter], None]


def replace_workers(start: StartRouter) -> None:
    with recording_server() as replica:
        router, requests = start_with_clients(start, replica, workers=2)
        replaced = router.workers
        with requests:
            start_slow_and_large(router, requests)
            router.send_signal(signal.SIGHUP)
            wait_until(lambda: len(set(router.workers) - set(replaced)) == 2, "new workers")
            requests.wait_for_responses()
            assert not all_ended(replaced)
            wait_until(lambda: all_ended(replaced), "exit of the replaced workers")
        requests.check()
        assert not router.log("worker aborted requests")


def stop_router(start: StartRouter) -> None:
    """The router becomes unready, then clients leave, then it closes its listeners and exits."""
    with recording_server() as replica:
        router, requests = start_with_clients(start, replica, workers=2, shutdown_delay_seconds=5)
        with requests:
            start_slow_and_large(router, requests)
            router.send_signal(signal.SIGTERM)
            wait_until(lambda: readiness(router).status == 503, "unreadiness")
            assert b"stopping" in readiness(router).body
            requests.wait_for_responses()  # clients that still send requests get responses
            requests.stop_small_requests()
        requests.check()
        assert router.wait() == 0


class ConcurrentScenarios:
    """Runs scenarios at the same time, because each takes as long as its slow requests. A scenario whose result was
    already fetched runs again."""

    def __init__(self, pool: ThreadPoolExecutor, directory: Path, *scenarios: Scenario) -> None:
        self._pool = pool
        self._directory = directory
        self._results: dict[Scenario, Future[None]] = {
            each: self._run(each, directory / each.__name__) for each in scenarios
        }

    def _run(self, scenario: Scenario, directory: Path) -> Future[None]:
        def run() -> None:
            directory.mkdir()
            with router_starter(directory) as start:
                scenario(start)

        return self._pool.submit(run)

    def result(self, scenario: Scenario) -> None:
        """Wait for the end of a scenario. Raises what it has raised."""
        result = self._results.pop(scenario, None)
        (result or self._run(scenario, self._directory / f"{scenario.__name__} again")).result()


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConcurrentScenarios]:
    with ThreadPoolExecutor() as pool:
        yield ConcurrentScenarios(pool, tmp_path_factory.mktemp("scenarios"), replace_workers, stop_router)


@pytest.mark.parametrize("scenario", [replace_workers, stop_router])
def test_no_request_is_lost(scenario: Scenario, scenarios: ConcurrentScenarios) -> None:
    scenarios.result(scenario)


def test_no_request_is_lost_when_the_number_of_workers_follows_the_load(start: StartRouter) -> None:
    quick = {
        "self_scaling_window_seconds": 3,
        "self_scaling_route_time_threshold_ms": 15,  # more than the delays of a busy machine
        "self_scaling_up_cooldown_seconds": 1,
        "self_scaling_down_cooldown_seconds": 1,
    }
    with recording_server() as replica:
        router, requests = start_with_clients(
            start, replica, "--min-workers", "1", "--max-workers", "2", workers=None, **quick
        )
        with requests:
            with Flood(router.port):
                wait_until(lambda: len(router.workers) == 2, "a second worker")
                requests.wait_for_responses()
                start_slow_and_large(router, requests)
            wait_until(lambda: router.metric("workers") == 1, "metric of one worker")
            requests.wait_for_responses()
            wait_until(lambda: len(router.workers) == 1, "exit of the other worker")
        requests.check()
        assert not router.log("worker aborted requests")


def test_idle_connection_of_a_replaced_worker_serves_one_more_request(start: StartRouter) -> None:
    """The client's next request must not meet a closed connection."""
    router = start({MODEL: open_echo_service(replica_max_concurrent_requests=20)}, workers=1)
    (replaced,) = router.workers
    connection = http.client.HTTPConnection("127.0.0.1", router.port, timeout=TIMEOUT_SECONDS)
    path = f"/api/v1/service/{MODEL}/score"
    assert send_request_over(connection, path, b"[1]").status == 200
    router.send_signal(signal.SIGHUP)
    wait_until(lambda: router.workers not in ([replaced], []) and router.metric("workers") == 1, "another worker")
    response = send_request_over(connection, path, b"[1]")
    assert (response.status, response.headers["connection"]) == (200, "close")
    wait_until(lambda: replaced not in router.workers, "exit of the replaced worker")


def test_connections_in_the_accept_queue_are_served_during_a_drain(start: StartRouter) -> None:
    """The only worker is stopped, so connections wait in the accept queue when the drain begins."""
    router = start({MODEL: open_echo_service(replica_max_concurrent_requests=20)}, workers=1)
    (worker,) = router.workers
    os.kill(worker, signal.SIGSTOP)
    waiting = [PendingRequest(router.port, f"/api/v1/service/{MODEL}/score", b"[1]") for _ in range(20)]
    wait_until(lambda: _accept_queue(router.port) == 20, "twenty connections in the accept queue")
    router.send_signal(signal.SIGTERM)
    wait_until(lambda: readiness(router).status == 503, "unreadiness")
    os.kill(worker, signal.SIGCONT)
    assert [pending.response().status for pending in waiting] == [200] * 20
    assert router.wait() == 0


def _accept_queue(port: int) -> int:
    """The length of a port's accept queue: the receive queue of its listening sockets (proc_net_tcp(5))."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(
        int(words[4].partition(":")[2], 16) for words in rows if words[1].endswith(f":{port:04X}") and words[3] == "0A"
    )
