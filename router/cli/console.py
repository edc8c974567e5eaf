"""The console output of `azureml-fe local`: addresses, an example request for each service, and changes of replicas.

The log is written to the same stream. Of what both could show, replicas that start and stop are in the log off a
terminal, and here on a terminal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console as RichConsole

from router.cli.own_command import own_command
from router.cli.trial import SCORE, FindTrial, Secrets, curl_command
from router.config.router import RouterSettings
from router.model.services import ReplicaState, Service, Version, VersionKey, version_label
from router.model.version_replicas import VersionReplicas
from router.net.address import host_port, local_destination
from router.peers.dialer import PeerAddress
from router.supervisor.supervisor import Supervisor
from router.telemetry.log import CLEAR_LINE
from router.telemetry.metrics import VersionMetrics

MAX_LISTED_SERVICES = 10
"""Above this number, services have no lines of their own, except the first one that is ready."""

_STATUS_SECONDS = 1.0


class Console:
    """Writes lines for users. On a terminal, it also updates a last line with the status in place."""

    def __init__(
        self, supervisor: Supervisor, out: TextIO, has_stored_key: Callable[[str], bool], find_trial: FindTrial
    ) -> None:
        """`has_stored_key` returns True if `azureml-fe keys show` prints the primary key of a service."""
        self._supervisor = supervisor
        self._out = out
        self._has_stored_key = has_stored_key
        self._find_trial = find_trial
        self._rich = RichConsole(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)
        # Not `is_terminal` of rich, which is also true for a file if the environment has FORCE_COLOR.
        self._is_terminal = out.isatty()
        self._has_live_line = self._is_terminal and not self._rich.is_dumb_terminal
        self._shown: set[str] = set()  # services whose address was shown
        self._all_ready = 0  # number of services when all were shown as ready
        self._shown_ready: dict[VersionKey, int] = {}
        self._last_replicas: dict[VersionKey, VersionReplicas] = {}  # at the last update
        self._base = self._prefix = ""
        self._secrets: Secrets | None = None
        self._status_at = 0.0

    def show_joining(self, peers: Sequence[PeerAddress]) -> None:
        """Show that the router connects to the peers and waits for their services."""
        self._line(f"joining {addresses(peers)} ...")

    def show_no_router(self, peers: Sequence[PeerAddress]) -> None:
        """Show that no router listens at these addresses."""
        self._line(f"no router found at {addresses(peers)}; waiting for one ...")

    def show_join_command(self, peers: Sequence[PeerAddress]) -> None:
        """Show the command with which another router joins `peers`."""
        flags = " ".join(f"--peer {host_port(*peer)}" for peer in peers)
        self._line(f"another router joins with: {own_command()} local {flags} --port 0 --admin-port 0", "dim")

    def show_serving(self, what: str, file: Path | None, settings: RouterSettings) -> None:
        """Show that the router accepts clients. `what` names the services in the first line. `file` is None if the
        router has joined another one."""
        command = own_command()
        self._secrets = Secrets(
            command=command,
            state_dir=settings.state_dir,
            file=str(file) if file is not None else "the file of the joined router",
            shows_keys=self._is_terminal,
            has_stored_key=self._has_stored_key,
        )
        self._prefix = settings.scoring_prefix
        bases = [
            f"{scheme}://{host_port(local_destination(settings.host), port)}"
            for scheme, port in (("http", self._supervisor.port), ("https", self._supervisor.https_port))
            if port
        ]
        self._base = bases[0]
        page = f"http://{host_port(local_destination(settings.admin_host), self._supervisor.admin_port)}/"
        self._line(f"status page: {page} (in a terminal: {command} top {page})", "bold")
        self._line(f"azureml-fe serves {what} at {' and '.join(bases)}")
        self.update()

    def update(self) -> None:
        """Show the changes since the last call."""
        services = self._supervisor.services
        if len(services) > MAX_LISTED_SERVICES:
            self._show_progress()
        else:
            for service in services.values():
                self._show_service(service)
        keys = {(service.name, version.name) for service in services.values() for version in service.versions}
        self._shown &= services.keys()
        self._shown_ready = {key: ready for key, ready in self._shown_ready.items() if key in keys}
        self._last_replicas = {key: replicas for key, replicas in self._last_replicas.items() if key in keys}
        now = time.monotonic()
        if self._has_live_line and now - self._status_at >= _STATUS_SECONDS:
            self._status_at = now
            self._show_status()

    def show_stopping(self, seconds: float) -> None:
        """Show that requests in flight may finish within `seconds`."""
        self._line(f"finishing requests in flight (at most {seconds:g} s; a second signal stops at once) ...")

    def show_stopped(self, complete: bool) -> None:
        """Show that all processes have ended."""
        self._line("stopped" if complete else "stopped; some requests did not finish in time and were aborted")

    # Services.

    def _show_service(self, service: Service) -> None:
        if service.name not in self._shown and self._is_available(service):
            self._show_address(service)
        for version in service.versions:
            self._show_replicas((service.name, version.name))

    def _show_progress(self) -> None:
        """Show the first service that is ready, and when all are."""
        services = self._supervisor.services.values()
        if len(services) == self._all_ready:
            return
        available = list(filter(self._is_available, services))
        if available and not self._shown:
            self._show_address(available[0])
        if len(available) == len(services):
            self._all_ready = len(services)
            self._line(f"all {len(services)} services are ready", "green")

    def _is_available(self, service: Service) -> bool:
        return self._has_ready(service) or all(map(_starts_on_request, service.versions))

    def _show_address(self, service: Service) -> None:
        assert self._secrets is not None, "show_serving comes first"
        self._shown.add(service.name)
        trial = self._find_trial(service)
        base = f"{self._base}{self._prefix}{service.name}/"
        url = base + trial.path
        state = "is ready" if self._has_ready(service) else "starts with its first request"
        self._line(f"{service.name} {state}: {url}", "green")
        self._line(f"  try: {curl_command(service, url, trial, self._secrets)}")
        if trial.body is None:
            self._line(f"  score: {curl_command(service, base + SCORE.path, SCORE, self._secrets)}")

    def _has_ready(self, service: Service) -> bool:
        return any(
            replica.state is ReplicaState.READY
            for version in service.versions
            for replica in self._supervisor.replicas((service.name, version.name)).replicas
        )

    def _show_replicas(self, key: VersionKey) -> None:
        """Show a changed number of ready replicas. The first one is shown by the address of the service."""
        replicas = self._supervisor.replicas(key)
        if self._last_replicas.get(key) is replicas:
            return
        self._last_replicas[key] = replicas
        ready = sum(replica.state is ReplicaState.READY for replica in replicas.replicas)
        before = self._shown_ready.get(key)
        if before is not None or ready:
            self._shown_ready[key] = ready
        if before is not None and ready != before:
            self._line(f"  {version_label(key)}: {ready} ready", "" if ready else "yellow")

    # Output.

    def _show_status(self) -> None:
        """Update the last line."""
        text = " | ".join(self._status_parts())[: self._rich.width - 1]
        self._write(f"{CLEAR_LINE}{text}\r")

    def _status_parts(self) -> list[str]:
        """Return the replicas and requests of each version, or of all together if there are many services."""
        services = self._supervisor.services.values()
        keys = [(service.name, version.name) for service in services for version in service.versions]
        metrics = {key: self._supervisor.version_metrics(key) for key in keys}
        if len(services) > MAX_LISTED_SERVICES:
            ready = sum(map(self._is_available, services))
            in_flight = sum(each.in_flight for each in metrics.values())
            queued = sum(each.queued for each in metrics.values())
            return [f"{ready}/{len(services)} services ready, {in_flight} in flight, {queued} queued"]
        return [
            f"{version_label(key)} {each.replicas_by_state[ReplicaState.READY]}/{each.desired} replicas, {_load(each)}"
            for key, each in metrics.items()
        ]

    def _line(self, text: str, style: str = "") -> None:
        if self._has_live_line:
            self._write(CLEAR_LINE)
        try:
            self._rich.print(text, style=style or None)
        except OSError:
            pass  # the reader has closed the pipe; the router must continue

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            pass  # as above


def addresses(peers: Sequence[PeerAddress]) -> str:
    """Return the addresses as text: `HOST:PORT, HOST:PORT`."""
    return ", ".join(host_port(*peer) for peer in peers)


def _starts_on_request(version: Version) -> bool:
    return version.autoscale_enabled and version.autoscale_min_replicas == 0


def _load(metrics: VersionMetrics) -> str:
    return f"{metrics.in_flight} in flight, {metrics.queued} queued"
