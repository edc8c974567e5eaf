"""Routers whose standard output and standard error accept nothing: nobody reads the pipe, the disk is full, or the
parent has closed them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.telemetry.repeats import MAX_PER_SECOND
from tests.processes import TIMEOUT_SECONDS, all_ended, descendants, free_ports, send_request, wait_until
from tests.routers import ROOT, open_echo_service, router_environment
from tests.telemetry.pipes import Pipe

INVALID = "replica sent an invalid response"


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


class _InvalidReplica(socketserver.StreamRequestHandler):
    """Responds to probes, and sends garbage to clients."""

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (line := self.rfile.readline()):
                return
            head += line
        is_probe = head.startswith(b"GET")
        self.wfile.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" if is_probe else b"garbage"
        )


@contextlib.contextmanager
def invalid_replica() -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _InvalidReplica) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Router:
    """A router process with a given output."""

    def __init__(self, directory: Path, output: Any, services: dict[str, Any], shell: str = 'exec "$@"') -> None:
        self.port, self.admin_port = free_ports("127.0.0.1", 2)
        settings = {"port": self.port, "admin_port": self.admin_port, "workers": 1, "access_log": 1}
        config = {"services": services, "router": settings | {"state_dir": str(directory / "state")}}
        (directory / "models.yaml").write_text(json.dumps(config))
        command = ["sh", "-c", shell, "sh", sys.executable, "-m", "router", "local", str(directory / "models.yaml")]
        self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT, env=router_environment())

    def get(self, path: str) -> int:
        """Return the status of a response of the admin port; 0 if there is none."""
        with contextlib.suppress(OSError):
            return send_request(self.admin_port, path).status
        return 0

    def metric(self, name: str) -> float:
        """Return the value of a metric without labels."""
        lines = send_request(self.admin_port, "/metrics").body.decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"azureml_fe_{name} "))

    def score(self, service: str) -> int:
        """Send a scoring request, and return the status of its response."""
        return send_request(self.port, f"/api/v1/service/{service}/score", b"[1]").status

    def stop(self) -> None:
        """Send SIGTERM, and check that all processes end."""
        pids = {self.process.pid, *descendants(self.process.pid)}
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(TIMEOUT_SECONDS) == 0
        wait_until(lambda: all_ended(pids), "end of all processes")


@contextlib.contextmanager
def router_with(directory: Path, output: Any, services: dict[str, Any], **options: str) -> Iterator[Router]:
    router = Router(directory, output, services, **options)
    try:
        wait_until(lambda: router.get("/readyz") == 200, "readiness")
        yield router
    finally:
        router.process.kill()
        router.process.wait()


def test_router_serves_and_stops_while_nobody_reads_its_output(pipe: Pipe, tmp_path: Path) -> None:
    pipe.fill()
    with invalid_replica() as address:
        services = {
            "echo": open_echo_service(),
            "bad": {"addresses": [address], "auth_enabled": False, "outlier_detection": False},
        }
        with router_with(tmp_path, pipe.fileno(), services) as router:
            wait_until(lambda: router.score("echo") == 200, "the echo service")
            wait_until(lambda: router.score("bad") != 503, "the bad service")
            statuses = Counter(router.score("bad") for _ in range(5 * MAX_PER_SECOND))
            assert statuses == {502: 5 * MAX_PER_SECOND}
            assert router.score("echo") == 200
            assert router.metric("workers_stuck") == 0
            assert os.get_blocking(pipe.fileno())

            # The reader returns: all lines come in order.
            pipe.discard_filling()
            counted, shown = 0, 0
            while counted < 5 * MAX_PER_SECOND + 1:
                (text,) = pipe.read_lines(1)
                line = json.loads(text) if text.startswith(b"{") else {}
                if line.get("message") == INVALID:
                    shown += 1
                    counted += line.get("repeated", 1)
            assert counted == 5 * MAX_PER_SECOND + 1
            assert shown < counted
            assert router.metric("log_lines_dropped_total") == 0

            pipe.fill()
            router.stop()


@pytest.mark.parametrize(
    ("shell", "counts_lines"), [('exec "$@" >/dev/full 2>&1', True), ('exec "$@" 0<&- >&- 2>&-', False)]
)
def test_router_serves_and_stops_without_output(shell: str, counts_lines: bool, tmp_path: Path) -> None:
    with router_with(tmp_path, None, {"echo": open_echo_service()}, shell=shell) as router:
        wait_until(lambda: router.score("echo") == 200, "the echo service")
        wait_until(lambda: (router.metric("log_lines_dropped_total") > 0) == counts_lines, "dropped lines")
        wait_until(lambda: (router.metric("access_log_lines_dropped_total") > 0) == counts_lines, "dropped requests")
        router.stop()


# Processes that only log.

_PROLOGUE = """
import logging, signal, sys, threading
from router.telemetry import log
from router.telemetry.standard_error import dropped_lines, protect_standard_error

protect_standard_error()
log.configure("info", sys.stderr, human=False)
logger = logging.getLogger("router.test")
"""


def python(code: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _PROLOGUE + code], cwd=ROOT, env=router_environment(), **options)


def test_dropped_lines_are_counted_and_reported_when_the_reader_returns(pipe: Pipe) -> None:
    pipe.fill()
    code = """
for number in range(20_000):
    log.event(logger, logging.INFO, "line", number=number)
print(dropped_lines(), flush=True)
sys.stdin.read()
"""
    with python(code, stderr=pipe.fileno(), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        dropped = int(process.stdout.readline())
        assert 0 < dropped < 20_000
        pipe.discard_filling()
        lines = [json.loads(line) for line in pipe.read_lines(20_000 - dropped + 1)]
        assert [line["number"] for line in lines[:-1]] == list(range(20_000 - dropped))
        assert (lines[-1]["level"], lines[-1]["lines"]) == ("warning", dropped)
        process.communicate()


def test_lines_and_the_traceback_of_a_crash_come_out_in_order() -> None:
    code = """
log.event(logger, logging.INFO, "first")
print("second", file=sys.stderr)
for _ in range(30):
    log.event(logger, logging.WARNING, "third")
def fail(): raise ValueError("fourth")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
raise RuntimeError("fifth")
"""
    with python(code, stderr=subprocess.PIPE) as process:
        _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    assert process.returncode == 1
    text = stderr.decode()
    places = [text.index(part) for part in ("first", "second", "third", "ValueError: fourth", "RuntimeError: fifth")]
    assert places == sorted(places)
    assert text.count('"third"') == MAX_PER_SECOND + 1
    assert json.loads(text.splitlines()[-1])["repeated"] == 30 - MAX_PER_SECOND


def test_line_is_written_before_the_process_continues_to_its_end(tmp_path: Path) -> None:
    code = 'log.event(logger, logging.INFO, "line")\nsys.stdin.read()\n'
    file = tmp_path / "errors.txt"
    with file.open("w") as stderr, python(code, stderr=stderr, stdin=subprocess.PIPE) as process:
        wait_until(lambda: '"line"' in file.read_text(), "the line")
        process.communicate()


def test_crash_ends_a_process_whose_output_is_blocked(pipe: Pipe) -> None:
    pipe.fill()
    with python("raise RuntimeError", stderr=pipe.fileno()) as process:
        assert process.wait(TIMEOUT_SECONDS) == 1
