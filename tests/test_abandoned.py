"""Abandoned requests at real servers that go on with them: over several workers and over two routers.

The replicas have one thread and one slot each. A request that is sent to one that is busy with an abandoned request
takes as long as that.
"""

import http.client
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import send_request, wait_until
from tests.routers import ROOT, Router, StartRouter, joined_router

SLEEPING_SERVER = ROOT / "tests" / "servers" / "sleeping_server.py"
SLOW_SECONDS = 4
PATH = "/api/v1/service/slow/score"
ENTRY_SCRIPT = """
import time

def init():
    global slept
    slept = []

def run(data):
    seconds = float(data)
    if seconds:
        slept.append(seconds)
    time.sleep(seconds)
    return slept
"""


def sleeping_service(**settings: Any) -> dict[str, Any]:
    command = ["python", str(SLEEPING_SERVER), "--port", "{port}"]
    return {
        "command": command, "num_replicas": 2, "auth_enabled": False, "success_threshold": 1,
        "max_request_wait_time": 60_000, "half_close": "cancel", **settings,
    }  # fmt: skip


def body_of(seconds: float) -> bytes:
    return json.dumps(seconds).encode()


def leave(port: int, seconds: float = SLOW_SECONDS) -> None:
    """Send a request, and leave once a replica works on it."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json", "x-ms-client-request-id": "gone"}
    connection.request("POST", PATH, body_of(seconds), headers)
    time.sleep(0.4)
    connection.close()


def assert_replica_is_avoided(*ports: int, slow: float) -> None:
    """Send quick requests, each on a new connection, so that all workers get some. None of them may wait for the
    replica that sleeps for `slow` seconds."""
    for _ in range(4):
        for port in ports:
            response = send_request(port, PATH, body_of(0), **{"Content-Type": "application/json"})
            assert response.status == 200
            assert slow not in json.loads(response.body)


def version_status(router: Router) -> dict[str, Any]:
    status: dict[str, Any] = router.status()["services"][0]["versions"][0]
    return status


@contextmanager
def ports_of(start: StartRouter, layout: str, service: dict[str, Any]) -> Iterator[tuple[Router, list[int]]]:
    """Start one router with two workers, or two routers, and yield the first one and all ports."""
    if layout == "workers":
        router = start({"slow": service}, workers=2)
        yield router, [router.port]
    else:
        router = start({"slow": service})
        with joined_router(router) as port:
            assert send_request(port, PATH, body_of(0)).status == 200
            yield router, [router.port, port]


@pytest.mark.parametrize("layout", ["workers", "routers"])
@pytest.mark.parametrize(("cancellation", "field"), [("none", "abandoned"), ("unknown", "suspect_slots")])
def test_quick_request_is_not_sent_to_a_replica_that_works_for_a_client_that_left(
    start: StartRouter, layout: str, cancellation: str, field: str
) -> None:
    with ports_of(start, layout, sleeping_service(cancellation=cancellation)) as (router, ports):
        for number, port in enumerate(ports):
            slow = SLOW_SECONDS + number / 1000
            if number:
                time.sleep(SLOW_SECONDS)  # until the replica has ended the previous request
            leave(port, slow)
            if port == router.port and layout == "workers":
                wait_until(lambda: version_status(router)[field] == 1, field)
                wait_until(lambda: version_status(router)["in_flight"] == 0, "no request in flight")
                explanation = json.loads(send_request(router.admin_port, "/explain/gone").body)
                assert explanation["abandoned"]["handling"] == {"none": "kept", "unknown": "suspect"}[cancellation]
            assert_replica_is_avoided(*ports, slow=slow)


@pytest.mark.parametrize("layout", ["workers", "routers"])
@pytest.mark.parametrize("cancellation", ["none", "unknown"])
def test_quick_request_is_not_sent_to_a_replica_whose_request_got_504(
    start: StartRouter, layout: str, cancellation: str
) -> None:
    service = sleeping_service(cancellation=cancellation, scoring_timeout_ms=500, abandoned_request_timeout_ms=10_000)
    with ports_of(start, layout, service) as (_, ports):
        assert send_request(ports[-1], PATH, body_of(SLOW_SECONDS)).status == 504
        assert_replica_is_avoided(*ports, slow=SLOW_SECONDS)


def test_all_replicas_may_be_suspect(start: StartRouter) -> None:
    """Leaving clients are no denial of service: requests get the slots, and their responses end the suspicion."""
    router = start({"slow": sleeping_service()}, workers=2)
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda _: leave(router.port, 0.5), range(8)))
    wait_until(lambda: router.metric("suspect_slots") == 2, "suspicion of both replicas")
    with ThreadPoolExecutor(4) as clients:
        responses = list(clients.map(lambda _: send_request(router.port, PATH, body_of(0)), range(12)))
    assert {response.status for response in responses} == {200}
    wait_until(lambda: router.metric("suspect_slots") < 2, "end of a suspicion")


def test_azures_model_server(start: StartRouter, tmp_path: Path) -> None:
    """An entry script is known to go on with an abandoned request."""
    script = tmp_path / "score.py"
    script.write_text(ENTRY_SCRIPT)
    service = {
        "entry_script": str(script), "num_replicas": 2, "auth_enabled": False, "success_threshold": 1,
        "max_request_wait_time": 60_000, "half_close": "cancel",
    }  # fmt: skip
    router = start({"slow": service}, workers=2)
    leave(router.port)
    wait_until(lambda: router.metric("abandoned_requests") == 1, "abandoned request")
    assert router.metric("slots_in_use") >= 1
    assert_replica_is_avoided(router.port, slow=SLOW_SECONDS)
    wait_until(lambda: router.metric("abandoned_requests") == 0, "response to the abandoned request")
    assert router.metric("abandonments_total", handling="kept") == 1
