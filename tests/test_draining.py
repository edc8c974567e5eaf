"""Responses in progress while their replicas are removed: streams end by themselves, or are cut at the drain limit."""

import http.client
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.processes import TIMEOUT_SECONDS, send_request, wait_until
from tests.routers import Router, StartRouter, joined_router

TOKEN_SERVER = Path(__file__).parent / "servers" / "token_server.py"
TOKEN = b"token\n"
SCALED = {
    "autoscale_min_replicas": 1,
    "autoscale_max_replicas": 3,
    "autoscale_refresh_seconds": 0.2,
    "autoscale_scale_down_seconds": 0.5,
    "autoscale_target_utilization": 100,
}


def token_service(**settings: Any) -> dict[str, Any]:
    command = ["python", str(TOKEN_SERVER), "--port", "{port}"]
    return {"command": command, "auth_enabled": False, **settings}


class Stream(threading.Thread):
    """Reads a response in a thread. `complete` is None while it is read, False if it ends before its announced end."""

    def __init__(self, port: int, path: str, service: str = "llm") -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_SECONDS * 2)
        self._connection.request("GET", f"/api/v1/service/{service}{path}")
        self.response: http.client.HTTPResponse | None = None
        self.body = b""
        self.complete: bool | None = None
        self.ended_at = 0.0
        self.start()

    def run(self) -> None:
        try:
            self.response = self._connection.getresponse()
            while piece := self.response.read1():
                self.body += piece
            self.complete = True
        except (http.client.IncompleteRead, ConnectionError):
            self.complete = False
        self.ended_at = time.monotonic()
        self._connection.close()

    def wait(self) -> None:
        self.join(TIMEOUT_SECONDS * 2)
        assert self.complete is not None

    @property
    def request_id(self) -> str:
        assert self.response is not None
        return str(self.response.headers["x-ms-request-id"])


def wait_for_first_tokens(*streams: Stream) -> None:
    wait_until(lambda: all(stream.body for stream in streams), "first token of each stream")


def streams_over_replicas(router: Router, count: int, path: str, port: int | None = None) -> list[Stream]:
    """Start streams at different replicas: each replica has one slot. Wait until each has a token."""
    streams = [Stream(port or router.port, path) for _ in range(count)]
    wait_for_first_tokens(*streams)
    return streams


def scaled_to_three(start: StartRouter, **settings: Any) -> Router:
    """A router whose service has three replicas because of its minimum."""
    router = start({"llm": token_service(**{**SCALED, "autoscale_min_replicas": 3, **settings})}, access_log="on")
    router.wait_for_replicas("llm", 3)
    return router


def scale_down(router: Router, **settings: Any) -> None:
    """Let the minimum be one replica, while three are busy with the streams and no other request is."""
    router.apply_config({"llm": token_service(**{**SCALED, **settings})})


@pytest.mark.parametrize("workers", [1, 2])
def test_streams_complete_while_the_service_scales_from_three_replicas_to_one(start: StartRouter, workers: int) -> None:
    # Each lasts longer than the scoring timeout and its previous margin. Slots are plenty, so that the streams are not
    # themselves the reason to keep three replicas.
    settings = {"scoring_timeout_ms": 1000, "replica_max_concurrent_requests": 10}
    services = {"llm": token_service(**{**SCALED, "autoscale_min_replicas": 3, **settings})}
    router = start(services, access_log="on", workers=workers)
    router.wait_for_replicas("llm", 3)
    streams = streams_over_replicas(router, 3, "/tokens/90/0.1")
    scale_down(router, **settings)
    wait_until(lambda: router.metric("replicas_desired", service="llm") == 1, "scale-down")
    for stream in streams:
        stream.wait()
    assert [(stream.complete, stream.body) for stream in streams] == [(True, TOKEN * 90)] * 3
    router.wait_for_replicas("llm", 1)
    wait_until(lambda: len(router.access_log) == 3, "access log")
    assert {line["replica"] for line in router.access_log} == {"llm-1", "llm-2", "llm-3"}
    assert [line["error"] for line in router.access_log] == [None] * 3


def replaced_by_another_program(router: Router, settings: dict[str, Any]) -> None:
    router.apply_config({"llm": token_service(num_replicas=1, environment={"EDITION": "2"}, **settings)})


def removed_with_its_version(router: Router, settings: dict[str, Any]) -> None:
    router.apply_config({"other": token_service(num_replicas=1)})


@pytest.mark.parametrize("remove", [replaced_by_another_program, removed_with_its_version])
def test_stream_is_cut_by_the_router_at_the_drain_limit(start: StartRouter, remove: Any) -> None:
    settings = {"scoring_timeout_ms": 1000, "replica_drain_seconds": 2}
    router = start({"llm": token_service(num_replicas=1, **settings)}, access_log="on")
    stream = Stream(router.port, "/tokens/600/0.1")
    wait_for_first_tokens(stream)
    removed_at = time.monotonic()
    remove(router, settings)
    stream.wait()
    check_cut(router, stream, 200)
    assert 2 <= stream.ended_at - removed_at < 2 + TIMEOUT_SECONDS


def check_cut(router: Router, stream: Stream, status: int) -> None:
    """Check that the access log, metrics and the explanation name the router's drain limit."""
    wait_until(lambda: router.access_log, "access log")
    (line,) = [line for line in router.access_log if line["error"]]
    assert (line["status"], line["error"]) == (status, "drain-timeout")
    explained = json.loads(send_request(router.admin_port, f"/explain/{stream.request_id}").body)
    assert "replica_drain_seconds" in json.dumps(explained)
    if "llm" in router.status()["services"]:
        assert router.metric("requests_total", code=str(status), error="drain-timeout") == 1
    assert not stream.complete if status == 200 else stream.complete


def test_cut_at_scale_down_spares_other_streams(start: StartRouter) -> None:
    settings = {"scoring_timeout_ms": 1000, "replica_drain_seconds": 2, "replica_max_concurrent_requests": 10}
    router = scaled_to_three(start, **settings)
    streams = streams_over_replicas(router, 3, "/tokens/80/0.1")
    scale_down(router, **settings)
    for stream in streams:
        stream.wait()
    assert sorted(bool(stream.complete) for stream in streams) == [False, False, True]
    wait_until(lambda: len(router.access_log) == 3, "access log")
    assert sorted(line["error"] or "" for line in router.access_log) == ["", "drain-timeout", "drain-timeout"]
    assert router.metric("requests_total", error="drain-timeout") == 2
    (cut, _) = router.log("drain time is over, aborting the requests of a replica")
    assert cut["in_flight"] == 1


def test_replica_with_a_stream_is_kept_and_one_with_more_quick_requests_is_removed(start: StartRouter) -> None:
    settings = {"replica_max_concurrent_requests": 10}
    service = token_service(**{**SCALED, "autoscale_min_replicas": 2, "autoscale_max_replicas": 2, **settings})
    router = start({"llm": service}, access_log="on")
    router.wait_for_replicas("llm", 2)
    (stream,) = streams_over_replicas(router, 1, "/tokens/120/0.1")
    silent = [Stream(router.port, "/silence/4") for _ in range(3)]  # two or three of them at the other replica
    time.sleep(1.5)  # until the worker has reported its responses in progress
    router.apply_config({"llm": token_service(**{**SCALED, "autoscale_max_replicas": 1, **settings})})
    router.wait_for_replicas("llm", 1)
    assert stream.complete is None, "the replica that was kept has the stream"
    for each in (*silent, stream):
        each.wait()
    assert {line["error"] for line in router.access_log} == {None}


def test_stream_of_a_joined_router_is_cut_in_its_own_words(start: StartRouter) -> None:
    settings = {"scoring_timeout_ms": 1000, "replica_drain_seconds": 2}
    router = start({"llm": token_service(num_replicas=1, **settings)}, access_log="on")
    with joined_router(router) as port:
        wait_until(lambda: send_request(port, "/api/v1/service/llm/x").status == 200, "joined router")
        stream = Stream(port, "/tokens/600/0.1")
        wait_for_first_tokens(stream)
        replaced_by_another_program(router, settings)
        stream.wait()
        assert stream.complete is False
        explained = send_request(router.admin_port, f"/explain/{stream.request_id}").body.decode()
        assert "replica_drain_seconds" in explained
    wait_until(lambda: router.metric("replicas", service="llm", state="draining") == 0, "end of the replica")
