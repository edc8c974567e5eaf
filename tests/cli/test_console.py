"""The console of `azureml-fe local`, with a recorded supervisor."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from router.cli.console import Console
from router.cli.trial import Trial
from router.config.router import load_settings
from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, Service, VersionKey
from router.model.version_replicas import VersionReplicas
from router.supervisor.supervisor import Supervisor

SAMPLE_TRIAL = Trial("score", "[1]")


class FakeSupervisor:
    """The state that the console reads."""

    port, https_port, admin_port = 8080, 0, 9090

    def __init__(self, services: Mapping[str, Service]) -> None:
        self.services = services
        self._replicas: dict[VersionKey, VersionReplicas] = {}

    def set_ready(self, service: str, count: int, starting: int = 0) -> None:
        states = [ReplicaState.READY] * count + [ReplicaState.STARTING] * starting
        replicas = tuple(Replica(f"{service}-{number}", "127.0.0.1", 1, state) for number, state in enumerate(states))
        self._replicas[service, "default"] = cast(VersionReplicas, SimpleNamespace(replicas=replicas))

    def replicas(self, key: VersionKey) -> VersionReplicas:
        return self._replicas.get(key, cast(VersionReplicas, SimpleNamespace(replicas=())))


class World:
    """A console that has begun to serve some services without keys."""

    def __init__(self, services: int = 1, trial: Trial = SAMPLE_TRIAL, **settings: object) -> None:
        self.out = io.StringIO()
        names = [f"s{number}" for number in range(services)]
        self.supervisor = FakeSupervisor({n: parse_service(n, {"auth_enabled": False} | settings) for n in names})
        self.console = Console(cast(Supervisor, self.supervisor), self.out, lambda _: False, lambda _: trial)
        self.console.show_serving("models.yaml", Path("models.yaml"), load_settings(environ={}))

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()

    def new_lines(self) -> list[str]:
        """Update the console and return the lines that this adds."""
        before = len(self.lines)
        self.console.update()
        return self.lines[before:]


def test_status_page_is_first_and_nothing_is_said_twice() -> None:
    world = World()
    assert world.lines[0].startswith("status page: http://127.0.0.1:9090/ (in a terminal: ")
    assert world.lines[1:] == ["azureml-fe serves models.yaml at http://127.0.0.1:8080"]
    world.supervisor.set_ready("s0", 0, starting=2)
    assert world.new_lines() == []
    world.supervisor.set_ready("s0", 1, starting=1)
    url = "http://127.0.0.1:8080/api/v1/service/s0/score"
    assert world.new_lines() == [
        f"s0 is ready: {url}",
        f"  try: curl -sS {url} -H 'Content-Type: application/json' -d '[1]'",
    ]
    assert world.new_lines() == []


def test_service_whose_input_is_unknown_has_a_command_that_scores() -> None:
    world = World(trial=Trial("healthz"))
    world.supervisor.set_ready("s0", 1)
    base = "http://127.0.0.1:8080/api/v1/service/s0/"
    assert world.new_lines() == [
        f"s0 is ready: {base}healthz",
        f"  try: curl -sS {base}healthz",
        f"  score: curl -sS {base}score -H 'Content-Type: application/json' -d '<JSON input of the model>'",
    ]


def test_colours_in_a_file_do_not_make_it_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored output must have no keys."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    world = World(auth_enabled=True, primary_key="s3cret")
    world.supervisor.set_ready("s0", 1)
    world.console.update()
    assert "\x1b[32ms0 is ready" in world.out.getvalue()
    assert "s3cret" not in world.out.getvalue()
    assert "\r" not in world.out.getvalue()


def test_later_changes_of_replicas_are_lines() -> None:
    world = World()
    for ready, lines in ((1, 2), (2, 1), (2, 0), (0, 1), (1, 1)):
        world.supervisor.set_ready("s0", ready)
        assert len(world.new_lines()) == lines
    assert world.lines[-3:] == ["  s0: 2 ready", "  s0: 0 ready", "  s0: 1 ready"]


def test_service_that_starts_with_its_first_request_has_an_address() -> None:
    world = World(autoscale_min_replicas=0)
    assert world.lines[2] == "s0 starts with its first request: http://127.0.0.1:8080/api/v1/service/s0/score"
    assert world.lines[3].startswith("  try: curl ")
    world.supervisor.set_ready("s0", 1)
    assert world.new_lines() == []


@pytest.mark.parametrize("services", [11, 50, 1000])
def test_many_services_print_few_lines(services: int) -> None:
    world = World(services)
    for name in world.supervisor.services:
        world.supervisor.set_ready(name, 1)
        world.console.update() if services < 100 else None
    world.console.update()
    assert len(world.lines) == 5
    assert world.lines[2].startswith("s0 is ready: ")
    assert world.lines[4] == f"all {services} services are ready"
    world.supervisor.set_ready("s1", 2)
    assert world.new_lines() == []
