"""The log configuration changes at run time, through the file and the admin port."""

import http.client
import json
import os
import signal
from typing import Any

import pytest

from tests.processes import TIMEOUT_SECONDS, wait_until
from tests.routers import Router, StartRouter, open_echo_service


@pytest.fixture(scope="module")
def router(start_for_all: StartRouter) -> Router:
    """A router that no test changes."""
    return start_for_all({"free": open_echo_service()})


def post(router: Router, query: str, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", router.admin_port, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("POST", f"/logging?{query}", headers=headers)
        response = connection.getresponse()
        body = response.read()
        return response.status, json.loads(body) if response.headers.get_content_type() == "application/json" else body
    finally:
        connection.close()


def test_access_log_is_switched_on_and_off_without_a_restart(start: StartRouter) -> None:
    router = start({"free": open_echo_service()}, workers=2)
    workers = router.workers
    assert router.score("free").status == 200
    assert post(router, "access_log=on") == (200, {"log_level": "info", "access_log": 1.0})
    wait_until(lambda: router.score("free").status == 200 and router.access_log, "a line")
    (first, *_) = router.access_log
    assert (first["logger"], first["message"], first["service"], first["status"]) == (
        "router.access", "request", "free", 200,
    )  # fmt: skip
    assert post(router, "access_log=off")[0] == 200

    def is_off() -> bool:
        before = len(router.access_log)
        request_id = router.score("free").headers["x-ms-request-id"]
        wait_until(lambda: router.metric("requests_in_flight") == 0)
        return len(router.access_log) == before and all(each["request_id"] != request_id for each in router.access_log)

    wait_until(is_off, "the access log to stop")
    assert router.workers == workers


def test_later_workers_have_the_same_log_config(start: StartRouter) -> None:
    router = start({"free": open_echo_service()})
    assert post(router, "access_log=on&log_level=debug")[1] == {"log_level": "debug", "access_log": 1.0}
    (line,) = router.log("settings of the router changed")
    assert line["settings"] == ["log_level: info -> debug (POST /logging)", "access_log: 0 -> 1 (POST /logging)"]
    assert router.metric("worker_restarts_total") == 0
    (worker,) = router.workers
    os.kill(worker, signal.SIGKILL)
    wait_until(
        lambda: router.metric("worker_restarts_total") == 1 and router.workers not in ([], [worker]),
        "a new worker",
    )
    before = len(router.access_log)
    wait_until(
        lambda: router.score("free").status == 200 and len(router.access_log) > before, "a line of the new worker"
    )


def test_file_changes_the_log_config(start: StartRouter) -> None:
    router = start({"free": open_echo_service()}, access_log="off")
    router.apply_config({"free": open_echo_service()}, access_log="on", log_level="warning")
    wait_until(lambda: router.score("free").status == 200 and router.access_log, "a line")
    assert not router.log("settings of the router take effect at the next start")


def test_invalid_value_is_rejected_with_its_name(router: Router) -> None:
    for query in ("log_level=loud", "access_log=2", "port=80", "nothing=1"):
        status, body = post(router, query)
        assert status == 400
        assert query.partition("=")[0] in body["error"]
    assert post(router, "") == (200, {"log_level": "info", "access_log": 0.0})


def test_page_of_another_origin_is_rejected(router: Router) -> None:
    assert post(router, "log_level=info", Origin="http://elsewhere.example")[0] == 403
    assert post(router, "log_level=info", Origin=f"http://127.0.0.1:{router.admin_port}")[0] == 200
