"""Data collection of whole routers: from clients to the files."""

import http.client
import json
import os
import signal
import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from tests.collection.reader import StoredEvent, read_folder
from tests.processes import PendingRequest, descendants, send_request, wait_until
from tests.routers import Router, StartRouter, joined_router, open_echo_service

PAYLOADS = {"collections": {"request": {"enabled": True}, "response": {"enabled": True}}}


def collected(router: Router) -> list[StoredEvent]:
    return read_folder(router.state_dir / "collected")


def wait_for_events(router: Router, count: int) -> list[StoredEvent]:
    """Return the events when `count` are stored: until then the end of a file may be half a line."""
    wait_until(lambda: router.metric("collection_events_total") >= count, f"{count} events")
    return collected(router)


def blob_path(event: StoredEvent) -> Path:
    return Path(unquote(urlsplit(event.attributes["data"]).path))


def collector_pid(router: Router) -> int:
    def pids() -> list[int]:
        return [pid for pid in descendants(router.pid) if b"router.collection.main" in command(pid)]

    wait_until(lambda: len(pids()) == 1, "a collector")
    return pids()[0]


def command(pid: int) -> bytes:
    """Return the command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def dropped(router: Router) -> dict[str, float]:
    """Return the dropped events by reason."""
    reasons: Counter[str] = Counter()
    for (name, labels), value in router.metrics().items():
        if name == "azureml_fe_collection_dropped_total":
            reasons[dict(labels)["reason"]] += int(value)
    return dict(reasons)


def test_requests_and_responses_are_stored_with_the_id_of_the_request(start: StartRouter) -> None:
    collector = PAYLOADS | {"request_logging": {"capture_headers": ["X-Tenant", "Accept"]}}
    router = start({"echo": open_echo_service(data_collector=collector)}, collection_flush_seconds=0.1)
    ids = {}
    for number in range(20):
        response = router.score("echo", b"[1,\n%d]" % number, **{"X-Tenant": "t", "Content-Type": "application/json"})
        ids[response.headers["x-request-id"]] = [1, number]
    events = wait_for_events(router, 40)
    for collection in ("request", "response"):
        data = {e.attributes["correlationid"]: e.attributes["data"] for e in events if e.collection == collection}
        assert data == ids
    request = next(event.attributes for event in events if event.collection == "request")
    assert (request["xtenant"], request["path"], request["method"]) == ("t", "/score", "POST")
    assert request["datacontenttype"] == "application/json"
    response_event = next(event.attributes for event in events if event.collection == "response")
    assert response_event["statuscode"] == 200
    wait_until(lambda: router.metric("collection_events_total") == 40, "the metric")
    assert dropped(router) == {}


def test_nothing_is_started_or_stored_for_services_that_collect_nothing(start: StartRouter) -> None:
    router = start({"echo": open_echo_service()})
    router.score("echo")
    assert not any(b"router.collection" in command(pid) for pid in descendants(router.pid))
    assert not (router.state_dir / "collected").exists()


def test_collection_begins_and_ends_with_a_changed_file(start: StartRouter) -> None:
    router = start({"echo": open_echo_service()}, collection_flush_seconds=0.1)
    router.score("echo", b"[0]")
    router.apply_services({"echo": open_echo_service(collect_model_data=True)})
    wait_until(
        lambda: bool(router.score("echo", b"[1]")) and router.metric("collection_events_total") > 0, "collected events"
    )
    router.apply_services({"echo": open_echo_service()})
    router.score("echo", b"[2]")
    assert router.stop() == 0
    assert {str(event.attributes["data"]) for event in collected(router)} == {"[1]"}


def test_sampling_rate_is_the_share_of_the_requests(start: StartRouter) -> None:
    collector = PAYLOADS | {"sampling_rate": 0.5}
    router = start({"echo": open_echo_service(data_collector=collector)}, collection_flush_seconds=0.1)
    for _ in range(200):
        router.score("echo")
    assert router.stop() == 0
    events = collected(router)
    by_id = Counter(event.attributes["correlationid"] for event in events)
    assert set(by_id.values()) == {2}  # a request is collected with its response
    assert 50 < len(by_id) < 150


def test_everything_is_stored_when_the_router_stops(start: StartRouter) -> None:
    router = start({"echo": open_echo_service(collect_model_data=True)}, collection_flush_seconds=600)
    bodies = [b"[%d]" % number for number in range(50)]
    large = b"[" + b"1," * 3_000_000 + b"1]"
    for body in [*bodies, large]:
        assert router.score("echo", body).status == 200
    assert collected(router) == []
    wait_until(lambda: router.metric("collection_bytes_total") == 2 * len(large), "the last exchange at the collector")
    assert router.stop() == 0
    events = collected(router)
    assert len(events) == 102
    blobs = [event for event in events if "datainblob" in event.attributes]
    assert len(blobs) == 2
    for event in blobs:
        assert blob_path(event).read_bytes() == large


def test_two_routers_with_two_workers_each_share_a_folder(start: StartRouter, tmp_path: Path) -> None:
    folder = str(tmp_path / "shared")
    service = open_echo_service(collect_model_data=True, replica_max_concurrent_requests=0)
    settings = {"collection_folder": folder, "collection_flush_seconds": 0.05, "workers": 2}
    router = start({"echo": service}, **settings)
    with joined_router(router, **(settings | {"collection_folder": folder})) as port:
        ids: list[str] = []

        def send(to: int, offset: int) -> None:
            for number in range(150):
                response = send_request(to, "/api/v1/service/echo/score", b"[%d]" % (offset + number))
                assert response.status == 200
                ids.append(response.headers["x-request-id"])

        threads = [
            threading.Thread(target=send, args=(to, 1000 * index))
            for index, to in enumerate([router.port, port, router.port, port])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert router.stop() == 0
    events = read_folder(Path(folder))
    assert len(ids) == 600
    for collection in ("request", "response"):
        stored = [event.attributes["correlationid"] for event in events if event.collection == collection]
        assert Counter(stored) == Counter(ids)
    assert len({event.instance for event in events}) == 2


def test_killed_collector_is_replaced_and_its_loss_counted(start: StartRouter) -> None:
    router = start({"echo": open_echo_service(collect_model_data=True)}, collection_flush_seconds=600)
    for _ in range(30):
        router.score("echo")
    wait_until(lambda: router.metric("collection_buffered_bytes") > 0, "buffered events")
    wait_until(lambda: router.metric("collection_lag_seconds") > 1, "all events in a report")
    first = collector_pid(router)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: router.metric("collector_restarts_total") == 1, "the end of the collector")
    assert dropped(router) == {"collector-ended": 60}
    for _ in range(20):  # waits in the socket for the next collector
        router.score("echo")
    assert collector_pid(router) != first
    assert router.stop() == 0
    assert len(collected(router)) == 40


def test_router_that_stops_before_the_next_collector_starts_stores_everything(start: StartRouter) -> None:
    router = start({"echo": open_echo_service(collect_model_data=True)}, collection_flush_seconds=600)

    def has_restarted(count: int) -> bool:
        return router.metric("collector_restarts_total") == count

    for count in range(1, 5):  # the next one starts after 4 s
        os.kill(collector_pid(router), signal.SIGKILL)
        wait_until(partial(has_restarted, count), "the end of the collector")
    for _ in range(20):
        router.score("echo")
    assert router.stop() == 0
    assert len(collected(router)) == 40


def test_exchanges_of_a_worker_that_ended_while_there_was_no_collector_are_counted(start: StartRouter) -> None:
    router = start({"echo": open_echo_service(collect_model_data=True, delay=60.0, scoring_timeout_ms=300_000)})
    collector, worker = collector_pid(router), router.workers[0]
    os.kill(collector, signal.SIGSTOP)
    # Its beginning is sent before its end, as it is longer than a packet.
    pending = PendingRequest(router.port, "/api/v1/service/echo/score", b"x" * 130_000)
    wait_until(lambda: router.metric("requests_in_flight") == 1, "a request in flight")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(router.workers) == 1 and router.workers != [worker], "another worker")
    os.kill(collector, signal.SIGKILL)
    with pytest.raises((OSError, http.client.HTTPException)):
        pending.response()
    wait_until(lambda: dropped(router) == {"worker-ended": 1}, "the counted request")


def test_stopped_collector_blocks_no_request_and_what_has_no_room_is_counted(start: StartRouter) -> None:
    router = start(
        {"echo": open_echo_service(collect_model_data=True)},
        collection_buffer_bytes=2**20, collection_flush_seconds=0.1,
    )  # fmt: skip
    router.score("echo")
    pid = collector_pid(router)
    wait_for_events(router, 2)
    os.kill(pid, signal.SIGSTOP)
    sent = 1
    try:
        while dropped(router).get("worker-buffer", 0) == 0:
            for _ in range(200):
                assert router.score("echo", b'"%s"' % (b"x" * 20_000)).status == 200
                sent += 1
            assert sent < 20_000
    finally:
        os.kill(pid, signal.SIGCONT)

    def counted() -> float:
        return router.metric("collection_events_total") + sum(dropped(router).values())

    wait_until(lambda: counted() == 2 * sent, "all counted")
    events = collected(router)
    assert len(events) == router.metric("collection_events_total")
    truncated = [event for event in events if "truncated" in event.attributes]
    assert len(truncated) == router.metric("collection_truncated_total") > 0


def test_what_a_collector_killed_at_a_stop_has_not_read_is_counted(start: StartRouter) -> None:
    services = {"echo": open_echo_service(collect_model_data=True)}
    router = start(services, collection_flush_seconds=0.1, drain_seconds=1)
    router.score("echo")
    assert len(wait_for_events(router, 2)) == 2
    os.kill(collector_pid(router), signal.SIGSTOP)
    for _ in range(30):
        router.score("echo")
    assert router.stop() == 0
    assert router.log("the collector did not exit in time, killing it")
    (lost,) = router.log("collected data was dropped")
    assert (lost["events"], lost["reason"]) == (60, "collector-ended")
    assert len(collected(router)) == 2


def test_folder_that_cannot_be_written_is_a_problem_and_everything_is_stored_later(start: StartRouter) -> None:
    router = start({"echo": open_echo_service(collect_model_data=True)}, collection_flush_seconds=0.1)
    obstacle = router.state_dir / "collected"
    obstacle.write_text("a file in the place of the folder")
    router.score("echo", b"[1]")
    wait_until(lambda: router.metric("collection_storage_failures_total") > 0, "a failure")
    wait_until(lambda: "collected data cannot be stored" in json.dumps(router.status()), "the problem")
    obstacle.unlink()
    assert len(wait_for_events(router, 2)) == 2
    wait_until(lambda: "cannot be stored" not in json.dumps(router.status()), "no problem")


def test_request_without_a_response_of_a_replica_is_collected_alone(start: StartRouter) -> None:
    services: dict[str, Any] = {"echo": open_echo_service(collect_model_data=True, delay=1.0, scoring_timeout_ms=100)}
    router = start(services, collection_flush_seconds=0.1)
    assert router.score("echo", b"[1]").status == 504
    events = wait_for_events(router, 1)
    assert [(event.collection, event.attributes["data"]) for event in events] == [("request", [1])]
