"""Data collection of whole routers into Azure Blob Storage (Azurite), whatever state the storage is in."""

import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.collection.azurite import Azurite, needs_azurite, running_azurite, settings_file
from tests.collection.reader import StoredEvent, read_folder
from tests.collection.test_routers import command, dropped
from tests.collection.throttle import throttled
from tests.processes import send_request, wait_until
from tests.routers import Router, StartRouter, joined_router, open_echo_service

pytestmark = needs_azurite
ECHO = {"echo": open_echo_service(collect_model_data=True, replica_max_concurrent_requests=0)}


@pytest.fixture
def azurite(tmp_path: Path) -> Iterator[Azurite]:
    directory = tmp_path / "azurite"
    directory.mkdir()
    with running_azurite(directory) as running:
        yield running


def settings(azurite: Azurite, directory: Path, endpoint: str | None = None, **others: Any) -> dict[str, Any]:
    return {
        "azure_connection_string_file": settings_file(directory, "connection", azurite.connection_string(endpoint)),
        "collection_container": azurite.container,
        "collection_flush_seconds": 0.1,
        "drain_seconds": 2,
        **others,
    }


def score(router: Router, count: int) -> list[str]:
    ids = []
    for number in range(count):
        response = router.score("echo", b'{"number": %d}' % number)
        assert response.status == 200
        ids.append(response.headers["x-request-id"])
    return ids


def check_complete(events: list[StoredEvent], ids: list[str]) -> None:
    """Check that each request and each response was stored once."""
    stored = Counter((event.collection, event.attributes["correlationid"]) for event in events)
    assert stored == Counter((collection, each) for collection in ("request", "response") for each in ids)


def wait_until_stored(router: Router, count: int) -> None:
    def counted() -> float:
        return router.metric("collection_events_total") + sum(dropped(router).values())

    wait_until(lambda: counted() == count, f"{count} events stored or dropped")


def test_lines_and_large_bodies_are_stored_in_the_container(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    router = start(ECHO, **settings(azurite, tmp_path))
    ids = score(router, 30)
    large, binary = b"[" + b"1," * 2_500_000 + b"1]", b"\xff\xd8\x00"
    for body in (large, binary):
        ids.append(router.score("echo", body).headers["x-request-id"])
    wait_until_stored(router, 2 * len(ids))
    events = azurite.events()
    check_complete(events, ids)
    in_blobs = [event.attributes["data"] for event in events if "datainblob" in event.attributes]
    blobs = azurite.blobs()
    contents = [blobs[url.removeprefix(azurite.url + "/")] for url in in_blobs]
    assert Counter(map(len, contents)) == {len(large): 2, len(binary): 2}
    assert set(contents) == {large, binary}
    assert not (router.state_dir / "collected").exists()


def test_two_routers_with_two_workers_each_share_a_container(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    shared = settings(azurite, tmp_path, workers=2, drain_seconds=15)
    router = start(ECHO, **shared)
    ids: list[str] = []
    with joined_router(router, **shared) as port:

        def send(to: int) -> None:
            responses = (send_request(to, "/api/v1/service/echo/score", b"[1]") for _ in range(100))
            ids.extend(response.headers["x-request-id"] for response in responses)

        threads = [threading.Thread(target=send, args=(to,)) for to in (router.port, port, router.port, port)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert router.stop() == 0
    events = azurite.events()
    check_complete(events, ids)
    assert len({event.instance for event in events}) == 2


def test_nothing_is_lost_while_storage_hangs_and_requests_are_served(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    router = start(ECHO, **settings(azurite, tmp_path))
    ids = score(router, 10)
    wait_until_stored(router, 20)
    azurite.send_signal(signal.SIGSTOP)
    ids += score(router, 50)
    wait_until(lambda: router.metric("collection_storage_failures_total", reason="timeout") > 0, "a timeout")
    azurite.send_signal(signal.SIGCONT)
    ids += score(router, 10)
    wait_until_stored(router, 2 * len(ids))
    assert dropped(router) == {}
    check_complete(azurite.events(), ids)


def test_nothing_is_lost_while_storage_refuses_connections(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    router = start(ECHO, **settings(azurite, tmp_path))
    ids = score(router, 10)
    azurite.stop()
    ids += score(router, 30)
    wait_until(lambda: router.metric("collection_storage_failures_total", reason="unreachable") > 0, "a failure")
    azurite.start()
    wait_until_stored(router, 2 * len(ids))
    check_complete(azurite.events(), ids)
    assert dropped(router) == {}


def test_lines_wait_for_a_container_that_was_removed(start: StartRouter, azurite: Azurite, tmp_path: Path) -> None:
    router = start(ECHO, **settings(azurite, tmp_path))
    score(router, 10)
    wait_until_stored(router, 20)
    azurite.client.delete_container()
    ids = score(router, 30)
    wait_until(lambda: router.metric("collection_storage_failures_total", reason="missing") > 0, "a failure")
    wait_until(lambda: "(missing)" in json.dumps(router.status()), "the problem")
    azurite.client.create_container()
    wait_until_stored(router, 80)
    check_complete(azurite.events(), ids)  # the first ones were removed with their container
    assert dropped(router) == {}


def test_each_line_is_stored_once_by_storage_that_throttles(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    with throttled(azurite) as throttle:
        router = start(ECHO, **settings(azurite, tmp_path, throttle.endpoint))
        ids = []
        for _ in range(10):
            ids += score(router, 10)
            time.sleep(0.15)  # several batches
        ids.append(router.score("echo", b"[" + b"1," * 2_500_000 + b"1]").headers["x-request-id"])
        wait_until_stored(router, 2 * len(ids))
        assert throttle.refused[429] + throttle.refused[503] > 2
        assert router.metric("collection_storage_failures_total", reason="throttled") > 2
    assert dropped(router) == {}
    check_complete(azurite.events(), ids)


def test_retry_after_is_observed(start: StartRouter, azurite: Azurite, tmp_path: Path) -> None:
    with throttled(azurite) as throttle:
        throttle.retry_after = "600"
        router = start(ECHO, **settings(azurite, tmp_path, throttle.endpoint))
        wait_until(lambda: bool(score(router, 1)) and throttle.refused.total() > 0, "a refused request")
        before = throttle.refused.total()
        failures = router.metric("collection_storage_failures_total")
        score(router, 20)
        wait_until(lambda: router.metric("collection_lag_seconds") > 2, "waiting events")
        assert throttle.refused.total() - before <= 8  # those that were in flight
        assert failures <= router.metric("collection_storage_failures_total") <= failures + 8


def test_rest_goes_to_the_folder_when_the_router_stops_without_storage(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    folder = tmp_path / "rest"
    azurite.stop()
    router = start(ECHO, **settings(azurite, tmp_path, collection_folder=str(folder), drain_seconds=1))
    ids = score(router, 20)
    ids.append(router.score("echo", b"\xff").headers["x-request-id"])
    wait_until(lambda: router.metric("collection_lag_seconds") > 0, "a running collector")
    assert router.stop() == 0
    check_complete(read_folder(folder), ids)


def test_rest_is_counted_when_there_is_no_folder(start: StartRouter, azurite: Azurite, tmp_path: Path) -> None:
    azurite.stop()
    router = start(ECHO, **settings(azurite, tmp_path, drain_seconds=1))
    score(router, 20)
    wait_until(lambda: router.metric("collection_lag_seconds") > 1, "a running collector")
    assert router.stop() == 0
    (lost,) = router.log("collected data was dropped")
    assert lost["events"] == 40


def test_credentials_are_in_no_output(start: StartRouter, azurite: Azurite, tmp_path: Path) -> None:
    sas = azurite.sas_token(read=True)  # refused for writes
    login: dict[str, Any] = {
        "azure_sas_token_file": settings_file(tmp_path, "sas", sas),
        "collection_container": azurite.url,
    }
    router = start(ECHO, log_level="debug", collection_flush_seconds=0.1, drain_seconds=1, **login)
    score(router, 3)
    wait_until(lambda: router.metric("collection_storage_failures_total", reason="denied") > 0, "a refused login")
    signature = next(part for part in sas.split("&") if part.startswith("sig=")).removeprefix("sig=")
    pages = [send_request(router.admin_port, path).body.decode() for path in ("/metrics", "/status.json")]
    arguments = [command(pid).decode() for pid in router.process_tree]
    for text in (router.stderr, router.stdout, *pages, *arguments):
        assert signature not in text
        assert signature[:20] not in text
