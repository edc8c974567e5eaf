"""`/explain/<request-id>` of a running router."""

import json
from typing import Any

import pytest

from tests.processes import PendingRequest, Response, send_request, wait_until
from tests.routers import Router, StartRouter, open_echo_service


@pytest.fixture(scope="module")
def router(start_for_all: StartRouter) -> Router:
    return start_for_all({"free": open_echo_service(), "keys": {**open_echo_service(), "auth_enabled": True}})


def explain(router: Router, scored: Response) -> dict[str, Any]:
    response = send_request(router.admin_port, f"/explain/{scored.headers['x-ms-request-id']}")
    explanation: dict[str, Any] = json.loads(response.body)
    assert response.status == 200, explanation
    return explanation


def test_successful_request(router: Router) -> None:
    router.score("free")  # the first request has to wait for a lease
    scored = router.score("free", b"[1, 2]", **{"x-ms-client-request-id": "mine-1"})
    explanation = explain(router, scored)
    assert (explanation["service"], explanation["version"], explanation["status"], explanation["error"]) == (
        "free",
        "default",
        200,
        None,
    )
    assert (explanation["answered_by"], explanation["queue"]) == ("replica", None)
    assert (explanation["client"], explanation["method"]) == ("127.0.0.1", "POST")
    assert explanation["path"] == "/api/v1/service/free/score"
    assert explanation["choice"]["replica"].startswith("free-")
    assert (explanation["choice"]["attempts"], explanation["bytes"]["request"]) == (1, 6)
    assert explanation["timings_ms"]["total"] >= explanation["timings_ms"]["replica_first_byte"] > 0
    assert explanation["worker"] == "worker-0"
    assert "The replica responded with 200" in explanation["story"][-1]
    assert send_request(router.admin_port, "/explain/mine-1").status == 200


def test_queued_requests_and_one_that_timed_out_in_the_queue(start: StartRouter) -> None:
    router = start({"slow": open_echo_service(delay=0.4, max_request_wait_time=100)})
    router.score("slow")
    pending = router.start_request("slow")
    refused = router.score("slow")
    assert refused.status == 503
    explanation = explain(router, refused)
    assert (explanation["status"], explanation["error"], explanation["answered_by"]) == (503, "overloaded", "router")
    assert explanation["queue"]["position_at_arrival"] == 1
    assert [replica["in_flight_of_this_worker"] for replica in explanation["queue"]["replicas_at_arrival"]] == [1]
    assert explanation["choice"] is None
    assert explanation["timings_ms"]["queue"] >= 100
    assert "No slot became free in time" in " ".join(explanation["story"])
    assert pending.response().status == 200
    router.apply_config({"slow": open_echo_service(delay=0.4, max_request_wait_time=5000)})
    requests = [PendingRequest(router.port, "/api/v1/service/slow/score") for _ in range(3)]
    queues = [explain(router, each.response())["queue"] for each in requests]
    assert sorted(queue["position_at_arrival"] if queue else 0 for queue in queues) in ([0, 1, 2], [1, 1, 2])


def test_state_of_the_version_and_the_autoscaler_at_arrival(start: StartRouter) -> None:
    router = start({"slow": open_echo_service(delay=0.2, autoscale_max_replicas=1)})
    wait_until(lambda: explain(router, router.score("slow"))["autoscaler_then"], "an observation of the autoscaler")
    pending = router.start_request("slow")
    wait_until(lambda: router.metric("requests_in_flight") == 1, "a report of the request in flight")
    explanation = explain(router, router.score("slow"))
    assert explanation["autoscaler_then"]["desired"] == 1
    assert sum(explanation["version_then"]["in_flight_by_replica"].values()) <= 1
    assert explanation["version_then"]["age_seconds"] >= 0
    assert "target" in explanation["autoscaler_reason_now"]
    assert pending.response().status == 200


def test_request_of_any_worker_is_found(start: StartRouter) -> None:
    router = start({"free": open_echo_service()}, workers=2)
    for _ in range(20):
        assert explain(router, router.score("free"))["status"] == 200


def test_request_without_a_version(router: Router) -> None:
    explanation = explain(router, router.score("keys"))
    assert (explanation["service"], explanation["version"], explanation["status"], explanation["error"]) == (
        "keys",
        None,
        401,
        "unauthorized",
    )
    assert explanation["story"] == ["It had no valid key or token for this service: 401."]
    assert explanation["timings_ms"]["authentication"] is None
    unrouted = explain(router, router.score("nothing"))
    assert (unrouted["service"], unrouted["path"], unrouted["client"]) == (None, None, "127.0.0.1")


def test_unknown_request_is_not_found(router: Router) -> None:
    for unknown in ("nothing", "%00", "%C3%A4", "x" * 500):
        response = send_request(router.admin_port, f"/explain/{unknown}")
        assert response.status == 404
        assert "remembers" in json.loads(response.body)["error"]
