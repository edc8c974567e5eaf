"""Replicas, workers and a peer are killed under load, while the state of the router is read.

The test continuously reads `/metrics`, `/status.json`, the screen of `top` and the events of the status page. Counters
never decrease, each crash and each replacement is visible, and at the end no request was counted twice.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from router.cli.top import from_url
from router.cli.top_view import TopView
from tests.processes import TIMEOUT_SECONDS, descendants, wait_until
from tests.routers import Router, StartRouter, open_echo_service, router_environment

_COUNTER_SUFFIXES = ("_bucket", "_sum", "_count", "_total")


class StatusReader:
    """Continuously reads the state of a router, and records contradictions."""

    def __init__(self, router: Router) -> None:
        self.errors: list[str] = []
        self.reads = 0
        self.status: dict[str, Any] = {}
        self._router = router
        self._url = f"http://127.0.0.1:{router.admin_port}"
        self._counters: dict[Any, float] = {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(read,)) for read in (self._read_pages, self._read_events)
        ]

    def __enter__(self) -> "StatusReader":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, read: Callable[[], None]) -> None:
        try:
            read()
        except Exception as error:  # noqa: BLE001  (the main thread reports it)
            self.errors.append(f"{read.__name__}: {error!r}")

    def _read_pages(self) -> None:
        while not self._stop.wait(0.05):
            for key, value in self._router.metrics().items():
                if key[0].endswith(_COUNTER_SUFFIXES) and key[0].startswith("azureml_fe_"):
                    if value < self._counters.get(key, 0.0):
                        self.errors.append(f"{key} decreased from {self._counters[key]} to {value}")
                    self._counters[key] = value
            self.status = from_url(self._url)()
            lines = TopView().lines(self.status, 100, 30)
            if not any("iris" in line.plain for line in lines):
                self.errors.append(f"top does not show the service: {lines}")
            self.reads += 1

    def _read_events(self) -> None:
        """Read the events of the status page."""
        with urllib.request.urlopen(f"{self._url}/status/events", timeout=TIMEOUT_SECONDS) as events:
            while not self._stop.is_set():
                line = events.readline()
                if line.startswith(b"data: "):
                    json.loads(line[6:])

    def workers(self) -> set[int]:
        """Return the workers that are shown as accepting clients, by process id."""
        return {each["pid"] for each in self.status.get("workers", ()) if each["state"] == "accepting"}

    def replicas(self) -> set[str]:
        """Return the ids of the replicas that are shown as ready."""
        return {
            replica["id"]
            for service in self.status.get("services", ())
            for version in service["versions"]
            for replica in version["replicas"]
            if replica["state"] == "ready"
        }

    def peer_statuses(self) -> list[str]:
        """Return the status of each peer."""
        return [peer["standing"] for peer in self.status.get("peers", ())]


@contextlib.contextmanager
def joined_router(router: Router, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a second router that joins the first one."""
    peer = router.wait_for_stderr(r"joins with: .+ local --peer (\S+)")[1]
    errors = directory / "joined.txt"
    arguments = ["local", "--peer", peer, "--port", "0", "--admin-port", "0", "--workers", "1", "--state-dir"]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "router", *arguments, str(router.state_dir)],
            env=router_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: re.search(r"serves .+ at http://", errors.read_text()), "start of the second router")
        yield process
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait(TIMEOUT_SECONDS)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _final_value(read: Callable[[], float]) -> float:
    """Return the value once it has not changed for longer than the interval of reports."""
    last, since = read(), time.monotonic()

    def is_final() -> bool:
        nonlocal last, since
        now = read()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 2.5

    wait_until(is_final, "a value that does not change")
    return last


def test_status_and_metrics_stay_correct_while_processes_are_killed(start: StartRouter, tmp_path: Path) -> None:
    services = {"iris": open_echo_service(delay=0.005, num_replicas=3, max_request_wait_time=10_000)}
    router = start(services, workers=2)
    with (
        joined_router(router, tmp_path) as second,
        StatusReader(router) as reader,
        router.load("iris", clients=6) as load,
    ):
        wait_until(lambda: reader.peer_statuses() == ["live"] and len(reader.replicas()) == 3, "complete status")
        load.wait_for_responses()

        replicas = reader.replicas()
        os.kill(min(router.replicas()), signal.SIGKILL)
        wait_until(lambda: len(reader.replicas() - replicas) == 1 and len(reader.replicas()) == 3, "another replica")
        load.wait_for_responses()

        worker = min(router.workers)
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in reader.workers() and len(reader.workers()) == 2, "another worker")
        load.wait_for_responses()

        second.kill()
        wait_until(lambda: "live" not in reader.peer_statuses(), "end of the peer")
        load.wait_for_responses()
        reads = reader.reads
        wait_until(lambda: reader.reads > reads + 3, "more reads")
    assert reader.errors == []
    assert router.metric("worker_restarts_total") == 1
    router.wait_until_idle()
    counted = _final_value(lambda: router.metric("requests_total", service="iris"))
    # The counts of a worker's last second are lost when it is killed. No request is counted twice.
    assert 0 < counted <= load.responses.total() + len(load.failures)
    for _ in range(20):
        assert router.score("iris").status == 200
    wait_until(lambda: router.metric("requests_total", service="iris") == counted + 20, "each request counted once")
    totals = router.status()["totals"]
    assert (totals["in_flight"], totals["queued"], totals["replicas_ready"]) == (0, 0, 3)
