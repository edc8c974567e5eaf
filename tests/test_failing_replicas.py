"""Replicas that are stopped by a signal, as if they hung: requests to whole routers go to the others."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.processes import send_request, stopped, wait_until
from tests.routers import Router, joined_router, open_echo_service, router_starter

SETTINGS: dict[str, Any] = {"num_replicas": 3, "scoring_timeout_ms": 500, "max_request_wait_time": 5000}
PATH = "/api/v1/service/echo/score"


def replica_of(router: Router, replica_id: str) -> dict[str, Any]:
    (service,) = router.status()["services"]
    return next(replica for replica in service["versions"][0]["replicas"] if replica["id"] == replica_id)


def ask(*ports: int, times: int, at_once: int = 1) -> Counter[int]:
    """Send requests to the ports in turn. Return how many had each status."""

    def score(number: int) -> int:
        return send_request(ports[number % len(ports)], PATH, b"[1]").status

    with ThreadPoolExecutor(at_once) as clients:
        return Counter(clients.map(score, range(times)))


@pytest.mark.parametrize("limit", [0, 1, 4])
@pytest.mark.parametrize("workers", [1, 2])
def test_few_requests_fail_while_a_replica_hangs(tmp_path: Path, workers: int, limit: int) -> None:
    with router_starter(tmp_path) as start:
        service = open_echo_service(**SETTINGS, replica_max_concurrent_requests=limit)
        router = start({"echo": service}, workers=workers)
        assert ask(router.port, times=20) == {200: 20}
        hanging = next(iter(router.replicas()))
        with stopped(hanging):
            one_by_one = ask(router.port, times=60)
            assert one_by_one[504] <= 3 * workers
            assert one_by_one[200] == 60 - one_by_one[504]
        assert ask(router.port, times=20)[200] >= 20 - workers


def test_hanging_replica_is_ejected_shown_and_used_again(tmp_path: Path) -> None:
    with router_starter(tmp_path) as start:
        service = open_echo_service(**SETTINGS, outlier_ejection_seconds=2, delay=0.02)
        router = start({"echo": service})
        hanging = next(iter(router.replicas()))
        with stopped(hanging):
            wait_until(lambda: ask(router.port, times=40, at_once=8) and router.metric("replicas_ejected"), "ejection")
            assert ask(router.port, times=60, at_once=2)[200] >= 59  # one may be the trial
            (ejected,) = router.log("replica ejected")
            assert ejected["reason"].endswith("no response within scoring_timeout_ms")
            shown = replica_of(router, ejected["replica"])["health"]
            assert (shown["errors"] >= 3, shown["last_error"]) == (True, "timeout")
            assert shown["ejected_until"] > router.status()["time"] - 2
            assert shown["ejected_for"] == ejected["reason"]
            assert router.metric("replica_ejections_total", reason="failures") >= 1
            assert router.metric("replica_failures_total", reason="timeout") >= 3
            response = send_request(router.port, PATH, b"[1]")
            story = json.loads(send_request(router.admin_port, f"/explain/{response.headers['x-ms-request-id']}").body)[
                "story"
            ]
            assert any(ejected["reason"] in sentence for sentence in story), story
        wait_until(
            lambda: ask(router.port, times=40, at_once=8) == {200: 40} and not router.metric("replicas_ejected"),
            "return of the replica",
        )
        assert replica_of(router, ejected["replica"])["health"]["ejected_until"] is None
        assert router.log("replica is used again")


def test_few_requests_fail_at_two_routers_while_a_replica_hangs(tmp_path: Path) -> None:
    with router_starter(tmp_path) as start:
        router = start({"echo": open_echo_service(**SETTINGS)}, workers=2)
        with joined_router(router) as port:
            assert ask(router.port, port, times=40, at_once=2) == {200: 40}
            with stopped(next(iter(router.replicas()))):
                results = ask(router.port, port, times=150, at_once=3)
                assert results[504] <= 3 * 3  # workers
                assert results[200] == 150 - results[504]


def test_requests_wait_while_the_only_replica_is_restarted(tmp_path: Path) -> None:
    with router_starter(tmp_path) as start:
        router = start({"echo": open_echo_service(max_request_wait_time=15_000, start_delay=0.5)})
        with ThreadPoolExecutor(4) as clients:
            os.kill(next(iter(router.replicas())), signal.SIGKILL)
            results = Counter(clients.map(lambda _: send_request(router.port, PATH, b"[1]").status, range(40)))
        assert results[200] >= 39  # one may have been in flight
