"""`azureml-fe local` as a process with a configuration file, observed from outside.

    def test_something(start: StartRouter) -> None:
        router = start({"echo": echo_service()})
        assert router.score("echo", b"[1]").body == b"[1]"

At the end of a test each router must become idle (no request in flight or waiting, no slot in use), exit with code 0 on
SIGINT, and leave no process behind.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from router.config.router import flag_name
from tests.processes import (
    ECHO_SERVER,
    TIMEOUT_SECONDS,
    Load,
    PendingRequest,
    Response,
    all_ended,
    descendants,
    handles_signal,
    pids_with,
    running_processes,
    send_request,
    statistics,
    wait_until,
    worker_pids,
)

ROOT = Path(__file__).parents[1]
Services = Mapping[str, Mapping[str, Any]]
Metrics = Mapping[tuple[str, frozenset[tuple[str, str]]], float]

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")  # in the text format of Prometheus
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def echo_service(**settings: Any) -> dict[str, Any]:
    """Return a service of echo servers, which respond with the request's body.

    `delay`, `print` and others are options of the echo server.
    """
    names = ("delay", "start_delay", "exit_after_start", "print", "ignore_sigterm", "fail_readiness_for")
    options = {name: settings.pop(name) for name in names if name in settings}
    command = ["python", str(ECHO_SERVER), "--port", "{port}"]
    for name, value in options.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    if not any(name.startswith("autoscale_") for name in settings):
        settings = {"num_replicas": 1, **settings}
    return {"command": command, "success_threshold": 1, **settings}


def open_echo_service(**settings: Any) -> dict[str, Any]:
    """Return an echo service without authentication."""
    return echo_service(auth_enabled=False, **settings)


class Router:
    """A router process and what can be observed of it."""

    def __init__(
        self,
        directory: Path,
        services: Services,
        *flags: str,
        token_issuers: Services | None = None,
        files: Sequence[Path] = (),
        **settings: Any,
    ) -> None:
        """With `files`, the router serves these instead of a file with `services`, and has its settings as flags."""
        self.config_file = directory / "models.yaml"
        self.state_dir = directory / "state"
        self._mark = f"mark-{secrets.token_hex(8)}"  # in the command line of every replica
        all_settings = {"port": 0, "admin_port": 0, "workers": 1, "state_dir": str(self.state_dir), **settings}
        self._settings = {name: value for name, value in all_settings.items() if value is not None}
        self.token_issuers = token_issuers or {}
        if files:
            flags = (
                *flags,
                *itertools.chain(*((flag_name(name), str(self._settings[name])) for name in self._settings)),
            )
        self._stderr = directory / "errors.txt"
        self._stdout = directory / "output.txt"
        self.write_config(services)
        with self._stderr.open("w") as stderr, self._stdout.open("w") as stdout:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "router", "local", *map(str, files or [self.config_file]), *flags],
                cwd=directory,
                env=router_environment(),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self.process.pid
        self.port = self.admin_port = 0

    def write_config(self, services: Services, **settings: Any) -> None:
        """Replace the configuration file. JSON is valid YAML."""
        marked = {name: self._marked(service) for name, service in services.items()}
        sections = {"services": marked, "router": self._settings | settings, "token_issuers": self.token_issuers}
        new_file = self.config_file.with_suffix(".new")
        new_file.write_text(json.dumps(sections, indent=1))
        new_file.replace(self.config_file)

    def apply_config(self, services: Services, **settings: Any) -> None:
        """Replace the configuration file and wait until the router has applied it."""
        times = len(self.log("changed file applied"))
        self.write_config(services, **settings)
        wait_until(lambda: len(self.log("changed file applied")) > times, "changed file applied")

    def apply_services(self, services: Services) -> None:
        """Make these the complete set of services, and wait until their replicas are ready."""
        self.apply_config(services)
        self.wait_for_all_replicas(services)

    def wait_for_all_replicas(self, services: Services) -> None:
        """Wait until the services with a fixed number of replicas have this number of ready replicas."""
        for name, service in services.items():
            if "num_replicas" in service:
                self.wait_for_replicas(name, service["num_replicas"])

    def _marked(self, service: Mapping[str, Any]) -> dict[str, Any]:
        marked = dict(service)
        if "command" in service:
            marked["command"] = [*service["command"], "--mark", self._mark]
        if "versions" in service:
            marked["versions"] = {name: self._marked(version) for name, version in service["versions"].items()}
        return marked

    # Output.

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self._stderr.read_text()

    @property
    def access_log(self) -> list[dict[str, Any]]:
        """The complete lines of the access log so far."""
        complete, _, _ = self._stdout.read_text().rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]

    @property
    def stdout(self) -> str:
        """Standard output so far: the access log."""
        return self._stdout.read_text()

    def wait_for_stderr(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until a pattern occurs on standard error, and return the last match."""

        def matches() -> list[re.Match[str]]:
            return list(re.finditer(pattern, self.stderr))

        wait_until(lambda: len(matches()) >= times or self.process.poll() is not None, f"{pattern!r} in\n{self.stderr}")
        assert len(matches()) >= times, self.stderr
        return matches()[-1]

    def wait_until_serving(self) -> None:
        """Wait until the router accepts clients."""
        self.port = int(self.wait_for_stderr(r"serves .+ at http://127\.0\.0\.1:(\d+)")[1])
        self.admin_port = int(self.wait_for_stderr(r"status page: http://127\.0\.0\.1:(\d+)/")[1])

    def log(self, message: str) -> list[dict[str, Any]]:
        """Return the log entries with this message."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("{") and message in line]
        return [line for line in map(json.loads, lines) if line["message"] == message]

    # Requests.

    def score(self, service: str, body: bytes = b"[1]", **headers: str) -> Response:
        """Send a scoring request."""
        return send_request(self.port, f"/api/v1/service/{service}/score", body, **headers)

    def load(self, service: str, **options: Any) -> Load:
        """Return clients that send scoring requests in a loop."""
        return Load(self.port, f"/api/v1/service/{service}/score", **options)

    def start_request(self, service: str) -> PendingRequest:
        """Start a scoring request, and wait until a replica has received it."""
        running = self.replicas()
        starts = [line for line in self.log("replica starts") if line["service"] == service]
        replicas = [line["port"] for line in starts if line["pid"] in running]
        before = [statistics(port)["requests"] for port in replicas]
        pending = PendingRequest(self.port, f"/api/v1/service/{service}/score")
        wait_until(lambda: [statistics(port)["requests"] for port in replicas] != before, "request in flight")
        return pending

    def key(self, service: str, which: str = "primary") -> str:
        """Return a generated key."""
        key: str = json.loads((self.state_dir / "keys.json").read_text())["services"][service][which]
        return key

    def metrics(self) -> Metrics:
        """Scrape the metrics, and return the samples by name and labels."""
        samples = {}
        for line in send_request(self.admin_port, "/metrics").body.decode().splitlines():
            if not line.startswith("#"):
                name, labels, value = _SAMPLE.fullmatch(line).groups()  # type: ignore[union-attr]
                samples[name, frozenset(_LABEL.findall(labels or ""))] = float(value)
        return samples

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples with these labels."""
        return sum(
            value
            for (full_name, sample_labels), value in self.metrics().items()
            if full_name == f"azureml_fe_{name}" and labels.items() <= set(sample_labels)
        )

    def status(self) -> dict[str, Any]:
        """Return `/status.json`."""
        status: dict[str, Any] = json.loads(send_request(self.admin_port, "/status.json").body)
        return status

    def wait_for_replicas(self, service: str, count: int = 1) -> None:
        """Wait until a service has exactly `count` ready replicas, and none that are starting or draining."""

        def counts_by_state() -> tuple[float, ...]:
            states = ("ready", "starting", "draining")
            return tuple(self.metric("replicas", service=service, state=state) for state in states)

        wait_until(lambda: counts_by_state() == (count, 0, 0), f"{count} replicas of {service}")

    def replicas(self) -> dict[int, int]:
        """Return the ports of the running replicas, by process id."""
        running = {process.pid for process in running_processes()}
        return {line["pid"]: line["port"] for line in self.log("replica starts") if line["pid"] in running}

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        return worker_pids(self.pid)

    @property
    def process_tree(self) -> set[int]:
        """The process ids of the router and its descendants."""
        return {self.pid, *descendants(self.pid)}

    # End.

    def wait_until_handling_signals(self) -> None:
        """Wait until the router has installed its first signal handlers. Before, Python handles SIGINT with a
        traceback."""
        wait_until(lambda: handles_signal(self.pid, signal.SIGTERM), "signal handlers")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the router."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait until the router has ended, and return its exit code."""
        return self.process.wait(TIMEOUT_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        """Stop the router by a signal, check that no process is left, and return the exit code."""
        pids = self.process_tree
        self.send_signal(number)
        code = self.wait()
        self.wait_until_ended(pids)
        return code

    def wait_until_ended(self, pids: set[int]) -> None:
        """Wait until these processes have ended, and check that no replica is left."""
        wait_until(lambda: all_ended(pids), "end of all processes")
        assert not pids_with(self._mark)

    def wait_until_idle(self) -> None:
        """Wait until no request is in flight or waits and no slot is in use."""
        names = ("requests_in_flight", "requests_queued", "slots_in_use")
        wait_until(lambda: [self.metric(name) for name in names] == [0, 0, 0], "idle router")
        assert self.metric("slot_leaks_repaired_total") == 0

    def end(self) -> None:
        """Check that the router becomes idle and stops in order. Leave no process behind, even if the test failed."""
        try:
            if self.process.poll() is None and self.port:
                self.wait_until_idle()
                assert self.stop() == 0, self.stderr
            assert "Traceback" not in self.stderr
            assert "KeyboardInterrupt" not in self.stderr
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            for pid in pids_with(self._mark):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def joined_router(router: Router, **settings: object) -> Iterator[int]:
    """Run a router that has joined another one, and yield its port."""
    environment = {f"AZUREML_FE_{name.upper()}": str(value) for name, value in settings.items()}
    peer = router.wait_for_stderr(r"joins with: .+ local --peer (\S+) ")[1]
    flags = ["--peer", peer, "--port", "0", "--admin-port", "0", "--workers", "1"]
    command = [sys.executable, "-m", "router", "local", *flags, "--state-dir", str(router.state_dir)]
    with subprocess.Popen(
        command, cwd=ROOT, env=router_environment() | environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            yield int(next(line for line in process.stderr if " at http://127.0.0.1:" in line).rpartition(":")[2])
        finally:
            process.terminate()
            process.stderr.read()


def router_environment() -> dict[str, str]:
    """Return the environment of a router: this process's, without settings, with this package and its command."""
    return {name: value for name, value in os.environ.items() if not name.startswith("AZUREML_FE_")} | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


StartRouter = Callable[..., Router]


@contextlib.contextmanager
def router_starter(directory: Path) -> Iterator[StartRouter]:
    """Yield a function that starts a router; check and stop the routers at the end."""
    with contextlib.ExitStack() as cleanup:
        count = itertools.count()

        def start(services: Services, *flags: str, serving: bool = True, **settings: Any) -> Router:
            router_directory = directory / f"router {next(count)}"
            router_directory.mkdir()
            router = Router(router_directory, services, *flags, **settings)
            cleanup.callback(router.end)
            if serving:
                router.wait_until_serving()
                router.wait_for_all_replicas(services)
            return router

        yield start
