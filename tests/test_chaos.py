"""Replicas, workers and a peer are killed under load while every display is read: each stays true, and none fails.

Read all the while: `/metrics`, `/status.json`, the screen of `top` and the events of the status page. Counters never go
back; each death shows, and what comes after it; when it is over nothing is counted twice.
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

from router.top import Screen, from_url
from tests.processes import PATIENCE_SECONDS, ask, descendants, until
from tests.routers import Router, Start, environment, open_echo

_LEVELS = ("_bucket", "_sum", "_count", "_total")


class Watch:
    """Reads every display again and again, and notes what is not as it should be."""

    def __init__(self, router: Router) -> None:
        self.faults: list[str] = []
        self.reads = 0
        self.status: dict[str, Any] = {}
        self._router = router
        self._url = f"http://127.0.0.1:{router.admin_port}"
        self._counters: dict[Any, float] = {}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(read,)) for read in (self._read, self._follow)]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, read: Any) -> None:
        try:
            read()
        except Exception as fault:  # noqa: BLE001  (whatever it is, the test must hear of it)
            self.faults.append(f"{read.__name__}: {fault!r}")

    def _read(self) -> None:
        while not self._over.wait(0.05):
            for key, value in self._router.metrics().items():
                if key[0].endswith(_LEVELS) and key[0].startswith("azureml_fe_"):
                    if value < self._counters.get(key, 0.0):
                        self.faults.append(f"{key} went back from {self._counters[key]} to {value}")
                    self._counters[key] = value
            self.status = from_url(self._url)()
            lines = Screen(coloured=True).lines(self.status, 100, 30, "name")
            if not any("iris" in line for line in lines):
                self.faults.append(f"top does not show the service: {lines}")
            self.reads += 1

    def _follow(self) -> None:
        """The page's events until the end."""
        with urllib.request.urlopen(f"{self._url}/status/events", timeout=PATIENCE_SECONDS) as events:
            while not self._over.is_set():
                line = events.readline()
                if line.startswith(b"data: "):
                    json.loads(line[6:])

    def workers(self) -> set[int]:
        """Processes that are shown as accepting clients."""
        return {each["pid"] for each in self.status.get("workers", ()) if each["state"] == "accepting"}

    def replicas(self) -> set[str]:
        """Replicas that are shown as ready."""
        return {
            replica["id"]
            for service in self.status.get("services", ())
            for version in service["versions"]
            for replica in version["replicas"]
            if replica["state"] == "ready"
        }

    def standings(self) -> list[str]:
        """Of other pods."""
        return [peer["standing"] for peer in self.status.get("peers", ())]


@contextlib.contextmanager
def joined(router: Router, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A second router that has joined the first; its process and the port of its clients."""
    peer = router.says(r"joins with: azureml-fe local --peer (\S+)")[1]
    errors = folder / "joined.txt"
    words = ["local", "--peer", peer, "--port", "0", "--admin-port", "0", "--workers", "1", "--state-dir"]
    with errors.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "router", *words, str(router.state)],
            env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        serves = re.compile(r"serves .+ at http://127\.0\.0\.1:(\d+)")
        until(lambda: serves.search(errors.read_text()), "the second router")
        found = serves.search(errors.read_text())
        assert found is not None
        yield process, int(found[1])
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait(PATIENCE_SECONDS)
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _at_a_standstill(read: Callable[[], float]) -> float:
    """What is read once it has not changed for longer than workers take to report."""
    last, since = read(), time.monotonic()

    def stands() -> bool:
        nonlocal last, since
        now = read()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 2.5

    until(stands, "a standstill")
    return last


def test_every_display_stays_true_while_all_kinds_of_processes_are_killed(start: Start, tmp_path: Path) -> None:
    services = {"iris": open_echo(delay=0.005, num_replicas=3, max_request_wait_time=10_000)}
    router = start(services, workers=2)
    with joined(router, tmp_path) as (second, _), Watch(router) as watch, router.load("iris", clients=6) as load:
        until(lambda: watch.standings() == ["live"] and len(watch.replicas()) == 3, "the whole on display")
        load.goes_on()

        replicas = watch.replicas()
        os.kill(min(router.replicas()), signal.SIGKILL)
        until(
            lambda: len(watch.replicas() - replicas) == 1 and len(watch.replicas()) == 3, "another replica on display"
        )
        load.goes_on()

        worker = min(router.workers)
        os.kill(worker, signal.SIGKILL)
        until(lambda: worker not in watch.workers() and len(watch.workers()) == 2, "a successor on display")
        load.goes_on()

        second.kill()
        until(lambda: "live" not in watch.standings(), "the peer's end on display")
        load.goes_on()
        reads = watch.reads
        until(lambda: watch.reads > reads + 3, "more reads")
    assert watch.faults == []
    assert router.metric("worker_restarts_total") == 1
    router.at_rest()
    counted = _at_a_standstill(lambda: router.metric("requests_total", service="iris"))
    # What a worker counted within a second of being killed ended with it; nothing is ever counted twice.
    assert 0 < counted <= load.answers.total() + len(load.failures)
    for _ in range(20):
        assert router.score("iris").status == 200
    until(lambda: router.metric("requests_total", service="iris") == counted + 20, "each request counted once")
    told = json.loads(ask(router.admin_port, "/status.json").body)
    assert (told["totals"]["in_flight"], told["totals"]["queued"], told["totals"]["replicas_ready"]) == (0, 0, 3)
