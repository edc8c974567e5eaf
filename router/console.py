"""What `azureml-fe local` tells the person who started it: how to score, and what changes, a line each."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from router.services import ReplicaState, Service, VersionKey
from router.settings import RouterSettings
from router.telemetry.metrics import VersionFacts

if TYPE_CHECKING:
    from router.supervisor import Supervisor

_STATUS_SECONDS = 1.0


class Console:
    """Writes for people. On a terminal the last line is a live one; elsewhere only what changes is written."""

    def __init__(self, supervisor: Supervisor, out: TextIO) -> None:
        self._supervisor = supervisor
        self._out = out
        self._live = out.isatty()
        self._live_length = 0
        self._announced: set[str] = set()
        self._replicas: dict[VersionKey, tuple[int, int]] = {}
        self._sample = ""
        self._state_dir = ""
        self._shown_at = 0.0

    def began(self, path: Path, settings: RouterSettings, sample: str) -> None:
        """The router accepts clients; replicas are starting."""
        self._sample = sample
        self._state_dir = str(settings.state_dir)
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        self._base = f"http://{host}:{self._supervisor.port}"
        self._line(f"azureml-fe serves {path} at {self._base}")
        self._line(f"metrics and health: http://{settings.admin_host}:{self._supervisor.admin_port}/metrics")
        for name in self._supervisor.services:
            self._line(f"  {name}: starting replicas ...")
        self.show()

    def show(self) -> None:
        """Tell what has changed since the last call."""
        for service in self._supervisor.services.values():
            if service.name not in self._announced and self._has_ready(service):
                self._announced.add(service.name)
                self._announce(service)
            for version in service.versions:
                self._tell_replicas((service.name, version.name))
        self._announced &= set(self._supervisor.services)
        now = time.monotonic()
        if self._live and now - self._shown_at >= _STATUS_SECONDS:
            self._shown_at = now
            self._status()

    def stopping(self, seconds: float) -> None:
        """A signal came."""
        self._line(f"finishing requests in flight (at most {seconds:g} s; once more to stop at once) ...")

    def stopped(self, complete: bool) -> None:
        """All processes are gone."""
        self._line("stopped" if complete else "stopped; some requests did not finish in time and were cut")

    def _announce(self, service: Service) -> None:
        url = f"{self._base}/api/v1/service/{service.name}/score"
        self._line(f"{service.name} is ready: {url}")
        words = ["curl -s", url, "-H 'Content-Type: application/json'"]
        if service.auth_enabled:
            words.append(f'-H "Authorization: Bearer {self._key_words(service)}"')
        words.append(f"-d {self._sample}")
        self._line("  try: " + " ".join(words))

    def _key_words(self, service: Service) -> str:
        """The key itself on the user's terminal. What is not a terminal may be kept, and no key belongs there."""
        if self._out.isatty():
            return service.primary_key or ""
        state = f" --state-dir {shlex.quote(self._state_dir)}" if self._state_dir else ""
        return f"$(azureml-fe keys show {service.name} --key primary{state})"

    def _has_ready(self, service: Service) -> bool:
        return any(
            replica.state is ReplicaState.READY
            for version in service.versions
            for replica in self._supervisor.replicas((service.name, version.name))
        )

    def _tell_replicas(self, key: VersionKey) -> None:
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
            if key[0] in self._supervisor.services
            for facts in (self._supervisor.facts(key),)
        ]
        text = " | ".join(parts)[:160]
        self._out.write("\r" + text.ljust(self._live_length) + "\r")
        self._live_length = len(text)
        self._out.flush()

    def _line(self, text: str) -> None:
        if self._live_length:
            self._out.write("\r" + " " * self._live_length + "\r")
            self._live_length = 0
        self._out.write(text + "\n")
        self._out.flush()


def _name(key: VersionKey) -> str:
    service, version = key
    return service if version == "default" else f"{service}/{version}"


def _load(facts: VersionFacts) -> str:
    return f"{facts.in_flight} in flight, {facts.queued} queued"
