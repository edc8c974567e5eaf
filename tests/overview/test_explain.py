"""What became of a request: asked of a router that runs."""

import json
from typing import Any

from tests.processes import Answer, Pending, ask, until
from tests.routers import Router, Start, open_echo


def explained(router: Router, answer: Answer) -> dict[str, Any]:
    asked = ask(router.admin_port, f"/explain/{answer.headers['x-ms-request-id']}")
    told: dict[str, Any] = json.loads(asked.body)
    assert asked.status == 200, told
    return told


def test_a_request_that_went_well(start: Start) -> None:
    router = start({"free": open_echo()})
    router.score("free")  # the first one has to ask for its lease
    answer = router.score("free", b"[1, 2]", **{"x-ms-client-request-id": "mine-1"})
    told = explained(router, answer)
    assert (told["service"], told["version"], told["status"], told["error"]) == ("free", "default", 200, None)
    assert (told["answered_by"], told["queue"]) == ("replica", None)
    assert told["choice"]["replica"].startswith("free-")
    assert (told["choice"]["attempts"], told["bytes"]["request"]) == (1, 6)
    assert told["timings_ms"]["total"] >= told["timings_ms"]["replica_first_byte"] > 0
    assert told["worker"] == "worker-0"
    assert "The replica answered 200" in told["story"][-1]
    assert ask(router.admin_port, "/explain/mine-1").status == 200


def test_requests_that_waited_and_one_that_waited_in_vain(start: Start) -> None:
    router = start({"slow": open_echo(delay=0.4, max_request_wait_time=100)})
    router.score("slow")
    pending = router.pending("slow")
    refused = router.score("slow")
    assert refused.status == 503
    told = explained(router, refused)
    assert (told["status"], told["error"], told["answered_by"]) == (503, "overloaded", "router")
    assert told["queue"]["position_at_arrival"] == 1
    assert [seen["in_flight_of_this_worker"] for seen in told["queue"]["replicas_at_arrival"]] == [1]
    assert told["choice"] is None
    assert told["timings_ms"]["queue"] >= 100
    assert "No slot became free in time" in " ".join(told["story"])
    assert pending.answer().status == 200
    router.change({"slow": open_echo(delay=0.4, max_request_wait_time=5000)})
    several = [Pending(router.port, "/api/v1/service/slow/score") for _ in range(3)]
    places = [explained(router, each.answer())["queue"] for each in several]
    assert sorted(place["position_at_arrival"] if place else 0 for place in places) in ([0, 1, 2], [1, 1, 2])


def test_state_of_the_version_and_its_autoscaler_at_that_moment_is_told(start: Start) -> None:
    router = start({"slow": open_echo(delay=0.2, autoscale_max_replicas=1)})
    until(lambda: explained(router, router.score("slow"))["autoscaler_then"], "an observation of the autoscaler")
    pending = router.pending("slow")
    until(lambda: router.metric("requests_in_flight") == 1, "word of the request in flight")
    told = explained(router, router.score("slow"))
    assert told["autoscaler_then"]["desired"] == 1
    assert sum(told["version_then"]["in_flight_by_replica"].values()) <= 1
    assert told["version_then"]["age_seconds"] >= 0
    assert "target" in told["autoscaler_reason_now"]
    assert pending.answer().status == 200


def test_the_worker_that_had_it_is_found(start: Start) -> None:
    router = start({"free": open_echo()}, workers=2)
    for _ in range(20):
        assert explained(router, router.score("free"))["status"] == 200


def test_request_that_got_no_version(start: Start) -> None:
    router = start({"keys": {**open_echo(), "auth_enabled": True}})
    told = explained(router, router.score("keys"))
    assert (told["service"], told["version"], told["status"], told["error"]) == ("keys", None, 401, "unauthorized")
    assert told["story"] == ["It had no valid key or token for this service: 401."]
    assert told["timings_ms"]["authentication"] is None
    assert explained(router, router.score("nothing"))["service"] is None


def test_unknown_request_is_not_found(start: Start) -> None:
    router = start({"free": open_echo()})
    for unknown in ("nothing", "%00", "%C3%A4", "x" * 500):
        answer = ask(router.admin_port, f"/explain/{unknown}")
        assert answer.status == 404
        assert "remembers" in json.loads(answer.body)["error"]
