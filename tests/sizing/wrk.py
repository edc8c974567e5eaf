"""wrk as the load of router pods: one for each pod that clients are sent to, and what it has counted.

wrk goes on over another connection when an answer says `Connection: close`, and counts no error; whatever else ends a
connection it counts (`read`), as it always has requests under way.
"""

import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.named_requests import Address

_MOST_SECONDS = 300
_LOOK_SECONDS = 0.05
# Health checks in one write keep a worker busy and cost their client little.
_SCRIPT = """
local all
init = function(args)
  local score = wrk.format("POST", "{path}", {{["Content-Type"] = "application/json"}}, "[1]")
  all = string.rep(wrk.format("GET", "/"), 1000) .. score
end
request = function() return all end
"""


class Report(NamedTuple):
    """What one wrk has counted."""

    requests: int
    not_successful: int
    connect: int
    read: int
    write: int
    timeout: int


def parsed(text: str) -> Report:
    """The report that wrk prints; it leaves out errors where there were none."""

    def count(pattern: str) -> int:
        found = re.search(pattern, text)
        return int(found[1]) if found else 0

    done = re.search(r"(\d+) requests in ", text)
    assert done, text
    errors = [count(rf"Socket errors:.* {kind} (\d+)") for kind in ("connect", "read", "write", "timeout")]
    return Report(int(done[1]), count(r"Non-2xx or 3xx responses: (\d+)"), *errors)


class Wrk:
    """The load, until the end. `routers` are where a load balancer would send clients, now."""

    def __init__(self, folder: Path, routers: Callable[[], Sequence[Address]], path: str) -> None:
        self.reports: dict[str, Report] = {}
        """Of each that has ended, by the router's address."""
        self.broken: list[str] = []
        self._script = folder / "load.lua"
        self._script.write_text(_SCRIPT.format(path=path))
        self._routers = routers
        self._running: dict[Address, subprocess.Popen[str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def total(self) -> Report:
        """Of all that have ended."""
        return Report(*(sum(counts) for counts in zip(*self.reports.values(), strict=True)))

    def _follow(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            present = set(self._routers())
            for router in present - self._running.keys():
                self._running[router] = self._begin(router)
            for router in self._running.keys() - present:
                self._end(router)
        for router in list(self._running):
            self._end(router)

    def _begin(self, router: Address) -> subprocess.Popen[str]:
        options = ["--threads", "1", "--connections", "2", "--duration", f"{_MOST_SECONDS}s", "--timeout", "20s"]
        words = ["wrk", *options, "--script", str(self._script), f"http://{router[0]}:{router[1]}/"]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _end(self, router: Address) -> None:
        """Have it say what it has counted."""
        with self._running.pop(router) as process:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate()
        if process.returncode == 0:
            self.reports[router[0]] = parsed(said)
        elif process.returncode != -signal.SIGINT:  # then it had only begun
            self.broken.append(f"wrk against {router[0]}: {said}")
