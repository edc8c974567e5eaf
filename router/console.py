"""What `azureml-fe local` tells the person who started it: how to score, and what changes, a line each."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from router.authority import authority
from router.peers.dialling import Address
from router.services import Replica, ReplicaState, Service, VersionKey
from router.settings import RouterSettings
from router.telemetry.metrics import VersionFacts

if TYPE_CHECKING:
    from router.supervisor import Supervisor

_STATUS_SECONDS = 1.0
_COLUMNS = 80  # of a terminal that does not tell


class Console:
    """Writes for people. On a terminal the last line is a live one; elsewhere only what changes is written."""

    def __init__(self, supervisor: Supervisor, out: TextIO, made_here: Callable[[str], bool]) -> None:
        """`made_here` tells of a service whether its primary key was generated, not given by the file."""
        self._supervisor = supervisor
        self._out = out
        self._made_here = made_here
        self._on_terminal = out.isatty()
        self._live_length = 0
        self._announced: set[str] = set()
        self._replicas: dict[VersionKey, tuple[int, int]] = {}
        self._seen: dict[VersionKey, tuple[Replica, ...]] = {}  # at the last look
        self._base = ""
        self._file = ""
        self._sample = ""
        self._state_dir = ""
        self._shown_at = 0.0

    def joining(self, peers: Sequence[Address]) -> None:
        """Other routers are being asked what there is to serve."""
        self._line(f"joining {addresses(peers)} ...")

    def absent(self, peers: Sequence[Address]) -> None:
        """They cannot be asked."""
        self._line(f"there is no router to join at {addresses(peers)}; waiting for one ...")

    def joins(self, members: Sequence[Address]) -> None:
        """Other routers may join, with all of `members`."""
        peers = " ".join(f"--peer {authority(*member)}" for member in members)
        self._line(f"another router joins with: azureml-fe local {peers} --port 0 --admin-port 0")

    def began(self, what: str, file: Path | None, settings: RouterSettings, sample: str) -> None:
        """The router accepts clients; replicas of what `file` says are starting, those of another router's file may
        be at work."""
        self._file = str(file) if file is not None else "the file of the router that was joined"
        self._sample = sample
        self._state_dir = str(settings.state_dir.absolute())
        self._prefix = settings.scoring_prefix
        bases = [
            f"{scheme}://{authority(settings.host, port)}"
            for scheme, port in (("http", self._supervisor.port), ("https", self._supervisor.https_port))
            if port
        ]
        self._base = bases[0]
        self._line(f"azureml-fe serves {what} at {' and '.join(bases)}")
        admin = authority(settings.admin_host, self._supervisor.admin_port)
        self._line(f"metrics and health: http://{admin}/metrics")
        for service in self._supervisor.services.values():
            if file is not None:
                self._line(f"  {service.name}: starting replicas ...")
            elif not self._has_ready(service):
                self._line(f"  {service.name}: no replica is ready yet")
        self.show()

    def show(self) -> None:
        """Tell what has changed since the last call."""
        services = self._supervisor.services.values()
        for service in services:
            if service.name not in self._announced and self._has_ready(service):
                self._announced.add(service.name)
                self._announce(service)
            for version in service.versions:
                self._tell_replicas((service.name, version.name))
        present = {(service.name, version.name) for service in services for version in service.versions}
        self._announced &= {name for name, _ in present}
        self._replicas = {key: told for key, told in self._replicas.items() if key in present}
        self._seen = {key: seen for key, seen in self._seen.items() if key in present}
        now = time.monotonic()
        if self._on_terminal and now - self._shown_at >= _STATUS_SECONDS:
            self._shown_at = now
            self._status()

    def stopping(self, seconds: float) -> None:
        """A signal came."""
        self._line(f"finishing requests in flight (at most {seconds:g} s; once more to stop at once) ...")

    def stopped(self, complete: bool) -> None:
        """All processes are gone."""
        self._line("stopped" if complete else "stopped; some requests did not finish in time and were cut")

    def _announce(self, service: Service) -> None:
        url = f"{self._base}{self._prefix}{service.name}/score"
        self._line(f"{service.name} is ready: {url}")
        words = ["curl -s", url, "-H 'Content-Type: application/json'"]
        if service.has_keys:
            words.append(f"-H {self._authorization(service)}")
        words.append(f"-d {self._sample}")
        self._line("  try: " + " ".join(words))

    def _authorization(self, service: Service) -> str:
        """The header with the key itself, if this is the user's terminal. What is not one may be kept, and no key
        belongs there, nor a token."""
        if service.token_auth_enabled:
            state = shlex.quote(self._state_dir)
            return f'"Authorization: Bearer $(azureml-fe token {service.name} --bare --state-dir {state})"'
        if self._on_terminal:
            return shlex.quote(f"Authorization: Bearer {service.primary_key}")
        if not self._made_here(service.name):
            return f'"Authorization: Bearer <primary_key in {self._file}>"'
        state = shlex.quote(self._state_dir)
        return f'"Authorization: Bearer $(azureml-fe keys show {service.name} --key primary --state-dir {state})"'

    def _has_ready(self, service: Service) -> bool:
        return any(
            replica.state is ReplicaState.READY
            for version in service.versions
            for replica in self._supervisor.replicas((service.name, version.name))
        )

    def _tell_replicas(self, key: VersionKey) -> None:
        replicas = self._supervisor.replicas(key)
        if self._seen.get(key) is replicas:
            return
        self._seen[key] = replicas
        facts = self._supervisor.facts(key)
        ready, starting = (
            facts.replicas_by_state[state.value] for state in (ReplicaState.READY, ReplicaState.STARTING)
        )
        if self._replicas.get(key, (0, 0)) != (ready, starting):
            self._replicas[key] = ready, starting
            coming = f", {starting} starting" if starting else ""
            self._line(f"  {_name(key)}: {ready} ready{coming}; {_load(facts)}")

    def _status(self) -> None:
        """The live line: each version's replicas and requests."""
        parts = [
            f"{_name(key)} {facts.replicas_by_state[ReplicaState.READY.value]}/{facts.desired} replicas, {_load(facts)}"
            for key in self._replicas
            for facts in (self._supervisor.facts(key),)
        ]
        text = " | ".join(parts)[: self._columns() - 1]
        self._write("\r" + text.ljust(self._live_length) + "\r")
        self._live_length = len(text)

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._out.fileno()).columns or _COLUMNS
        except OSError:
            return _COLUMNS

    def _line(self, text: str) -> None:
        wiped = "\r" + " " * self._live_length + "\r" if self._live_length else ""
        self._live_length = 0
        self._write(f"{wiped}{text}\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            pass  # nobody reads any more, which must not end the service


def addresses(several: Sequence[Address]) -> str:
    """For people to read."""
    return ", ".join(authority(*each) for each in several)


def _name(key: VersionKey) -> str:
    service, version = key
    return service if version == "default" else f"{service}/{version}"


def _load(facts: VersionFacts) -> str:
    return f"{facts.in_flight} in flight, {facts.queued} queued"
