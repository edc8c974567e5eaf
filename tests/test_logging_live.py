"""What is logged changes while the router runs: by its file, and over the admin port."""

import http.client
import json
import os
import signal
from typing import Any

from tests.processes import PATIENCE_SECONDS, until
from tests.routers import Router, Start, open_echo


def post(router: Router, query: str, **headers: str) -> tuple[int, Any]:
    line = http.client.HTTPConnection("127.0.0.1", router.admin_port, timeout=PATIENCE_SECONDS)
    try:
        line.request("POST", f"/logging?{query}", headers=headers)
        answer = line.getresponse()
        body = answer.read()
        return answer.status, json.loads(body) if answer.headers.get_content_type() == "application/json" else body
    finally:
        line.close()


def test_access_log_is_switched_on_and_off_without_a_restart(start: Start) -> None:
    router = start({"free": open_echo()}, workers=2)
    workers = router.workers
    assert router.score("free").status == 200
    assert post(router, "access_log=on") == (200, {"log_level": "info", "access_log": 1.0})
    until(lambda: router.score("free").status == 200 and router.access_log, "a line")
    (first, *_) = router.access_log
    assert (first["logger"], first["message"], first["service"], first["status"]) == (
        "router.access", "request", "free", 200,
    )  # fmt: skip
    assert post(router, "access_log=off")[0] == 200

    def is_silent() -> bool:
        before = len(router.access_log)
        request_id = router.score("free").headers["x-ms-request-id"]
        until(lambda: router.metric("requests_in_flight") == 0)
        return len(router.access_log) == before and all(each["request_id"] != request_id for each in router.access_log)

    until(is_silent, "silence")
    assert router.workers == workers


def test_workers_that_come_later_log_the_same(start: Start) -> None:
    router = start({"free": open_echo()})
    assert post(router, "access_log=on&log_level=debug")[1] == {"log_level": "debug", "access_log": 1.0}
    (line,) = router.log("logging changed")
    assert line["log_level"] == "debug"
    assert router.metric("worker_restarts_total") == 0
    (worker,) = router.workers
    os.kill(worker, signal.SIGKILL)
    until(lambda: router.metric("worker_restarts_total") == 1 and router.workers not in ([], [worker]), "a new worker")
    before = len(router.access_log)
    until(lambda: router.score("free").status == 200 and len(router.access_log) > before, "a line of the new worker")


def test_file_changes_what_is_logged(start: Start) -> None:
    router = start({"free": open_echo()}, access_log="off")
    router.change({"free": open_echo()}, access_log="on", log_level="warning")
    until(lambda: router.score("free").status == 200 and router.access_log, "a line")
    assert not router.log("settings of the router section take effect at the next start")


def test_bad_value_is_refused_with_what_is_allowed(start: Start) -> None:
    router = start({"free": open_echo()})
    for query in ("log_level=loud", "access_log=2", "port=80", "nothing=1"):
        status, body = post(router, query)
        assert status == 400
        assert query.partition("=")[0] in body["error"]
    assert post(router, "") == (200, {"log_level": "info", "access_log": 0.0})


def test_page_of_another_origin_changes_nothing(start: Start) -> None:
    router = start({"free": open_echo()})
    assert post(router, "log_level=debug", Origin="http://elsewhere.example")[0] == 403
    assert post(router, "log_level=debug", Origin=f"http://127.0.0.1:{router.admin_port}")[0] == 200
