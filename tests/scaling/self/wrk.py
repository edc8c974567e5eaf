"""wrk as the load of router pods: one process for each pod that gets clients, and the sum of their reports.

When a response has `Connection: close`, wrk opens another connection and counts no error. Any other end of a connection
counts as a `read` error, as wrk always has requests in flight.
"""

import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.named_requests import Address

_MAX_SECONDS = 300
_POLL_SECONDS = 0.05
# Busy event loops delay each other's connections only if there are many of them. More than two requests in one write
# would not add delay: the router leaves the others for later turns of the event loop.
_CONNECTIONS = 800
# Health checks keep a worker busy at little cost for the client and the replicas. wrk wants the same number of requests
# in each write.
_SCRIPT = """
local checks, score
local writes = 0
init = function(args)
  local check = wrk.format("GET", "/")
  checks = check .. check
  score = check .. wrk.format("POST", "{path}", {{["Content-Type"] = "application/json"}}, "[1]")
end
request = function()
  writes = writes + 1
  return writes % 100 == 0 and score or checks
end
"""


class Report(NamedTuple):
    """The counts of one wrk process."""

    requests: int
    not_successful: int
    connect: int
    read: int
    write: int
    timeout: int


def parse_report(text: str) -> Report:
    """Parse the output of wrk, which omits the errors if there were none."""

    def count(pattern: str) -> int:
        found = re.search(pattern, text)
        return int(found[1]) if found else 0

    done = re.search(r"(\d+) requests in ", text)
    assert done, text
    errors = [count(rf"Socket errors:.* {kind} (\d+)") for kind in ("connect", "read", "write", "timeout")]
    return Report(int(done[1]), count(r"Non-2xx or 3xx responses: (\d+)"), *errors)


class Wrk:
    """The load, within a `with` block. `routers` returns the pods to which a load balancer would send clients now."""

    def __init__(self, directory: Path, routers: Callable[[], Sequence[Address]], path: str) -> None:
        self.reports: dict[str, Report] = {}
        """The reports of processes that have ended, by the router's address."""
        self.failures: list[str] = []
        self._script = directory / "load.lua"
        self._script.write_text(_SCRIPT.format(path=path))
        self._routers = routers
        self._running: dict[Address, subprocess.Popen[str]] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    @property
    def total(self) -> Report:
        """The sum over all processes that have ended."""
        return Report(*(sum(counts) for counts in zip(*self.reports.values(), strict=True)))

    def _follow(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            present = set(self._routers())
            for router in present - self._running.keys():
                self._running[router] = self._start(router)
            for router in self._running.keys() - present:
                self._stop(router)
        for router in list(self._running):
            self._stop(router)

    def _start(self, router: Address) -> subprocess.Popen[str]:
        options = ["--threads", "1", "--connections", str(_CONNECTIONS), "--timeout", "20s"]
        command = [
            "wrk",
            *options,
            "--duration",
            f"{_MAX_SECONDS}s",
            "--script",
            str(self._script),
            f"http://{router[0]}:{router[1]}/",
        ]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _stop(self, router: Address) -> None:
        """Interrupt wrk, so that it prints its report."""
        with self._running.pop(router) as process:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
        if process.returncode == 0:
            self.reports[router[0]] = parse_report(output)
        elif process.returncode != -signal.SIGINT:  # otherwise it ended before it had started the load
            self.failures.append(f"wrk against {router[0]}: {output}")
