"""`azureml-fe local` as its user runs it: a process with a file, watched from outside.

    def test_something(start: Start) -> None:
        router = start({"echo": echo()})
        assert router.score("echo", b"[1]").body == b"[1]"

When the test is over each router must be at rest (no request in flight or waiting, no slot taken), end by SIGINT with
exit code 0, and leave no process behind.
"""

import contextlib
import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.processes import (
    ECHO_SERVER,
    PATIENCE_SECONDS,
    Answer,
    Load,
    Pending,
    all_gone,
    ask,
    descendants,
    processes,
    statistics,
    until,
    workers_of,
)

ROOT = Path(__file__).parents[1]
Services = Mapping[str, Mapping[str, Any]]
Metrics = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")  # in the text format of Prometheus
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def echo(**settings: Any) -> dict[str, Any]:
    """A service whose replicas answer with the request's body. `delay`, `print` and the like are options of theirs."""
    names = ("delay", "start_delay", "exit_after_start", "print", "ignore_sigterm", "fail_readiness_for")
    options = {name: settings.pop(name) for name in names if name in settings}
    words = ["python", str(ECHO_SERVER), "--port", "{port}"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    if not any(name.startswith("autoscale_") for name in settings):
        settings = {"num_replicas": 1, **settings}
    return {"command": words, "success_threshold": 1, **settings}


def open_echo(**settings: Any) -> dict[str, Any]:
    """One that asks for no key."""
    return echo(auth_enabled=False, **settings)


class Router:
    """A router process, and what can be seen of it."""

    def __init__(
        self, folder: Path, services: Services, *flags: str, token_issuers: Services | None = None, **settings: Any
    ) -> None:
        self.file = folder / "models.yaml"
        self.state = folder / "state"
        self._mark = f"mark-{secrets.token_hex(8)}"
        given = {"port": 0, "admin_port": 0, "workers": 1, "state_dir": str(self.state), **settings}
        self._settings = {name: value for name, value in given.items() if value is not None}
        self.token_issuers = token_issuers or {}
        self._errors = folder / "errors.txt"
        self._output = folder / "output.txt"
        self.write(services)
        with self._errors.open("w") as errors, self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", "local", str(self.file), *flags],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.port = self.admin_port = 0

    def write(self, services: Services, **settings: Any) -> None:
        """Write the file anew; JSON is YAML."""
        marked = {name: self._marked(service) for name, service in services.items()}
        sections = {"services": marked, "router": self._settings | settings, "token_issuers": self.token_issuers}
        text = json.dumps(sections, indent=1)
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    def change(self, services: Services, **settings: Any) -> None:
        """Write the file anew, and wait until it is in force."""
        times = len(self.log("changed file in force"))
        self.write(services, **settings)
        until(lambda: len(self.log("changed file in force")) > times, "the changed file")

    def serve(self, services: Services) -> None:
        """Have these services instead of all others, and wait until they are ready."""
        self.change(services)
        self.all_ready(services)

    def all_ready(self, services: Services) -> None:
        """Wait for the replicas that these are to have at first."""
        for name, service in services.items():
            if "num_replicas" in service:
                self.ready(name, service["num_replicas"])

    def _marked(self, service: Mapping[str, Any]) -> dict[str, Any]:
        marked = dict(service)
        if "command" in service:
            marked["command"] = [*service["command"], "--mark", self._mark]
        if "versions" in service:
            marked["versions"] = {name: self._marked(version) for name, version in service["versions"].items()}
        return marked

    # What it says.

    @property
    def said(self) -> str:
        """All of its standard error so far."""
        return self._errors.read_text()

    @property
    def access_log(self) -> list[dict[str, Any]]:
        """The lines of its access log so far."""
        whole, _, _ = self._output.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    @property
    def printed(self) -> str:
        """All of its standard output so far: the access log."""
        return self._output.read_text()

    def says(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until it has said something; the last time it did."""

        def heard() -> list[re.Match[str]]:
            return list(re.finditer(pattern, self.said))

        until(lambda: len(heard()) >= times or self.process.poll() is not None, f"{pattern!r} in\n{self.said}")
        assert len(heard()) >= times, self.said
        return heard()[-1]

    def serves(self) -> None:
        """Wait until it accepts clients."""
        self.port = int(self.says(r"serves .+ at http://127\.0\.0\.1:(\d+)")[1])
        self.admin_port = int(self.says(r"metrics and health: http://127\.0\.0\.1:(\d+)/metrics")[1])

    def log(self, message: str) -> list[dict[str, Any]]:
        """The lines of its log with this message."""
        lines = [line for line in self.said.splitlines() if line.startswith("{") and message in line]
        return [line for line in map(json.loads, lines) if line["message"] == message]

    # What it does.

    def score(self, service: str, body: bytes = b"[1]", **headers: str) -> Answer:
        """One request."""
        return ask(self.port, f"/api/v1/service/{service}/score", body, **headers)

    def load(self, service: str, **options: Any) -> Load:
        """Clients that ask again and again."""
        return Load(self.port, f"/api/v1/service/{service}/score", **options)

    def pending(self, service: str) -> Pending:
        """A request that has reached its replica."""
        running = self.replicas()
        starts = [line for line in self.log("replica starts") if line["service"] == service]
        replicas = [line["port"] for line in starts if line["pid"] in running]
        before = [statistics(port)["requests"] for port in replicas]
        pending = Pending(self.port, f"/api/v1/service/{service}/score")
        until(lambda: [statistics(port)["requests"] for port in replicas] != before, "request in flight")
        return pending

    def key(self, service: str, which: str = "primary") -> str:
        """A generated key."""
        key: str = json.loads((self.state / "keys.json").read_text())["services"][service][which]
        return key

    def metrics(self) -> Metrics:
        """All samples of a scrape, by name and labels."""
        samples = {}
        for line in ask(self.admin_port, "/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, labels, value = _SAMPLE.fullmatch(line).groups()  # type: ignore[union-attr]
                samples[name, frozenset(_LABEL.findall(labels or ""))] = float(value)
        return samples

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels."""
        return sum(
            value
            for (full_name, its), value in self.metrics().items()
            if full_name == f"azureml_fe_{name}" and labels.items() <= set(its)
        )

    def ready(self, service: str, count: int = 1) -> None:
        """Wait until a service has exactly so many replicas ready, and no other."""

        def states() -> tuple[float, ...]:
            names = ("ready", "starting", "draining")
            return tuple(self.metric("replicas", service=service, state=state) for state in names)

        until(lambda: states() == (count, 0, 0), f"{count} replicas of {service}")

    def replicas(self) -> dict[int, int]:
        """Port by process of the replicas that run."""
        running = {process.pid for process in processes()}
        return {line["pid"]: line["port"] for line in self.log("replica starts") if line["pid"] in running}

    @property
    def workers(self) -> list[int]:
        """Its worker processes."""
        return workers_of(self.pid)

    @property
    def family(self) -> set[int]:
        """It, and all that it has started."""
        return {self.pid, *descendants(self.pid)}

    # Its end.

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait(PATIENCE_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """End it by a signal; nothing of it may be left. Its exit code."""
        family = self.family
        self.send(number)
        code = self.wait()
        self.is_gone(family)
        return code

    def is_gone(self, family: set[int]) -> None:
        """Wait until nothing is left of these, nor of any replica."""
        until(lambda: all_gone(family), "end of all processes")
        assert not [process for process in processes() if self._mark in process.words]

    def at_rest(self) -> None:
        """Wait until nothing is in flight, nothing waits and no slot is taken."""
        names = ("requests_in_flight", "requests_queued", "slots_in_use")
        until(lambda: [self.metric(name) for name in names] == [0, 0, 0], "rest")
        assert self.metric("slot_leaks_repaired_total") == 0

    def end(self) -> None:
        """See that it is at rest, and that it ends as it should; if it has ended already, that nothing is left."""
        try:
            if self.process.poll() is None and self.port:
                self.at_rest()
                assert self.stop() == 0, self.said
            # Until its handlers are in place, Python answers SIGINT in its own way.
            assert "Traceback" not in self.said or self.said.endswith("KeyboardInterrupt\n")
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for process in processes():
                if self._mark in process.words:
                    os.kill(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def joined(router: Router) -> Iterator[int]:
    """A router that has joined another one; the port that its clients use."""
    peer = router.says(r"joins with: azureml-fe local --peer (\S+) ")[1]
    words = ["local", "--peer", peer, "--port", "0", "--admin-port", "0", "--workers", "1"]
    command = [sys.executable, "-m", "router", *words, "--state-dir", str(router.state)]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield int(next(line for line in process.stderr if " at http://127.0.0.1:" in line).rpartition(":")[2])
        finally:
            process.terminate()
            process.stderr.read()


def environment() -> dict[str, str]:
    """The router's environment: the user's, with this package and its command."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AZUREML_FE_")} | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


Start = Callable[..., Router]


@contextlib.contextmanager
def starting_in(folder: Path) -> Iterator[Start]:
    """What starts routers, and sees to their end."""
    with contextlib.ExitStack() as ends:
        count = itertools.count()

        def begin(services: Services, *flags: str, serving: bool = True, **settings: Any) -> Router:
            home = folder / f"router {next(count)}"
            home.mkdir()
            router = Router(home, services, *flags, **settings)
            ends.callback(router.end)
            if serving:
                router.serves()
                router.all_ready(services)
            return router

        yield begin
