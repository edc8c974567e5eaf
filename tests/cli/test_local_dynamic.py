"""`azureml-fe local` with a dynamic configuration: a file that changes settings of the running router."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.cli.main import main
from tests.processes import send_request, wait_until
from tests.routers import Router, StartRouter, joined_router, open_echo_service

VALID = {"router": {"max_payload_bytes": 15}, "services": {"echo": {"scoring_timeout_ms": 50}}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "dynamic.yaml"


def write(source: Path, content: object) -> None:
    new = source.with_suffix(".new")
    new.write_text(content if isinstance(content, str) else json.dumps(content))
    new.replace(source)


def start_router(start: StartRouter, source: Path, **settings: Any) -> Router:
    echo = open_echo_service(delay=0.2)
    return start(
        {"echo": echo, "other": open_echo_service()},
        dynamic_config_file=str(source), dynamic_config_poll_seconds=0.5, **settings,
    )  # fmt: skip


def setting(router: Router, name: str) -> dict[str, Any]:
    settings: list[dict[str, Any]] = json.loads(send_request(router.admin_port, "/config").body)["router"]
    (found,) = [each for each in settings if each["name"] == name]
    return found


def test_settings_change_within_seconds_and_no_request_is_lost(start: StartRouter, source: Path) -> None:
    write(source, {})
    router = start_router(start, source, max_payload_bytes=1000)
    replicas = router.replicas()
    with router.load("other") as load:
        load.wait_for_responses()
        assert router.score("echo", b"x" * 20).status == 200
        write(source, VALID)
        wait_until(lambda: router.score("other", b"x" * 20).status == 413, "the new limit")
        assert router.score("echo", b"x").status == 504
        write(source, "{}")
        wait_until(lambda: router.score("other", b"x" * 20).status == 200, "the limit of the file")
        assert router.score("echo", b"x").status == 200
        load.wait_for_responses()
    assert load.all_succeeded, load
    assert router.replicas() == replicas
    first, second = (line["settings"] for line in router.log("settings of the router changed"))
    assert first == [f"max_payload_bytes: 1000 -> 15 ({source}, line 1: router)"]
    location = f"{router.config_file}, line {line_of(router, 'max_payload')}: router"
    assert second == [f"max_payload_bytes: 15 -> 1000 ({location})"]
    changed = router.log("settings of a service changed")
    assert [line["settings"] for line in changed] == [
        ["scoring_timeout_ms: 60000 -> 50"], ["scoring_timeout_ms: 50 -> 60000"],
    ]  # fmt: skip
    changes = [each["change"] for each in router.status()["config_changes"]]
    assert "service echo, version default: scoring_timeout_ms: 60000 -> 50" in changes


def line_of(router: Router, text: str) -> int:
    lines = router.config_file.read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if text in line)


def test_refused_document_changes_nothing_and_names_every_fault(start: StartRouter, source: Path) -> None:
    write(source, VALID)
    router = start_router(start, source)
    assert router.score("other", b"x" * 20).status == 413
    forbidden = {"max_payload_bytes": 100, "host": "0.0.0.0"}
    write(source, {"router": forbidden, "services": {"echo": {"scoring_timeout_ms": 0}}})
    router.wait_for_stderr("dynamic configuration refused")
    (line,) = router.log("dynamic configuration refused")
    assert "router: host: not allowed in the dynamic configuration" in line["error"]
    assert "service echo: scoring_timeout_ms = '0': must be a whole number from 1" in line["error"]
    assert router.score("other", b"x" * 20).status == 413
    status = router.status()
    assert status["router"]["config_in_force"] is False
    assert any("is refused, the last valid one stays in effect" in problem for problem in status["problems"])
    assert router.metric("config_last_reload_success") == 0
    write(source, VALID)
    wait_until(lambda: router.metric("config_last_reload_success") == 1, "the valid document")


def test_document_that_contradicts_the_file_is_refused_and_vice_versa(start: StartRouter, source: Path) -> None:
    write(source, {})
    router = start_router(start, source)
    write(source, {"services": {"echo": {"replica_drain_seconds": 1}}})
    router.wait_for_stderr("dynamic configuration refused")
    (line,) = router.log("dynamic configuration refused")
    assert f"{source}, line 1: service echo: replica_drain_seconds = 1.0: replica_drain_sec" in line["error"]
    write(source, {"services": {"echo": {"scoring_timeout_ms": 500, "replica_drain_seconds": 1}}})
    wait_until(lambda: router.log("settings of a service changed"), "the valid document")
    router.write_config({"echo": open_echo_service(abandoned_request_timeout_ms=0), "other": open_echo_service()})
    router.wait_for_stderr("changed file rejected")


def test_last_valid_document_is_used_after_a_restart(start: StartRouter, source: Path, tmp_path: Path) -> None:
    write(source, VALID)
    state_dir = str(tmp_path / "state")
    router = start_router(start, source, state_dir=state_dir)
    router.stop()
    source.unlink()
    router = start_router(start, source, state_dir=state_dir)
    assert router.score("other", b"x" * 20).status == 413
    assert any("cannot be read since" in problem for problem in router.status()["problems"])
    assert router.metric("dynamic_config_unreadable_seconds") > 0


def test_sources_of_values_are_visible(start: StartRouter, source: Path) -> None:
    write(source, {"router": {"max_headers": 50, "log_level": "warning", "otlp_endpoint": "http://127.0.0.1:1"}})
    router = start_router(start, source, dynamic_config_allow="otlp_endpoint")
    assert setting(router, "max_headers") == {
        "name": "max_headers", "value": 50, "source": f"{source}, line 1: router",
    }  # fmt: skip
    assert setting(router, "client_idle_timeout_seconds")["source"] == "default"
    assert setting(router, "otlp_endpoint")["value"] == "http://127.0.0.1:1"  # in effect since the start
    write(source, {"router": {"otlp_endpoint": "http://127.0.0.1:2"}})
    wait_until(lambda: "at_next_start" in setting(router, "otlp_endpoint"), "the changed setting")
    assert setting(router, "otlp_endpoint")["at_next_start"] == "http://127.0.0.1:2"
    assert setting(router, "log_level")["value"] == "info"
    send_request(router.admin_port, "/logging?log_level=error", b"")
    assert setting(router, "log_level") == {"name": "log_level", "value": "error", "source": "POST /logging"}


def test_value_of_a_flag_is_not_changed(start: StartRouter, source: Path) -> None:
    write(source, {"router": {"max_payload_bytes": 15}})
    router = start(
        {"echo": open_echo_service()}, "--max-payload-bytes", "1000",
        dynamic_config_file=str(source), dynamic_config_poll_seconds=0.5,
    )  # fmt: skip
    assert router.score("echo", b"x" * 20).status == 200
    assert setting(router, "max_payload_bytes")["source"] == "flag --max-payload-bytes"


def test_live_settings_of_the_file_take_effect_at_once(start: StartRouter) -> None:
    router = start({"echo": open_echo_service()}, max_payload_bytes=10)
    assert router.score("echo", b"x" * 20).status == 413
    router.apply_config({"echo": open_echo_service()}, max_payload_bytes=100)
    wait_until(lambda: router.score("echo", b"x" * 20).status == 200, "the new limit")


def test_config_show_prints_values_with_their_sources(
    start: StartRouter, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(source, VALID)
    router = start_router(start, source)
    url = f"http://127.0.0.1:{router.admin_port}"

    def show(*arguments: str) -> list[str]:
        capsys.readouterr()
        assert main(["config", "show", url, *arguments]) == 0
        return capsys.readouterr().out.splitlines()

    lines = show("--service", "echo")
    assert lines[0].startswith(f"dynamic configuration: {source}, version ")
    values = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert values["max_payload_bytes"] == f"15  [{source}, line 1: router]"
    assert values["port"].startswith(f"0  [{router.config_file}, line ")
    assert values["scoring_timeout_ms"] == f"50  [{source}, line 1]"
    assert values["auth_enabled"] == "false  [file]"
    assert "max_headers" not in values
    assert "  max_headers" in "\n".join(show("--all"))
    document = json.loads(show("--output", "json")[0])
    assert document["dynamic_config"]["source"] == str(source)
    assert "service" not in document
    write(source, "{")
    router.wait_for_stderr("dynamic configuration refused")
    assert "  the latest version is refused:" in show("--service=echo")
    assert main(["config", "show", url, "--service", "ecko"]) == 2
    assert "did you mean echo?" in capsys.readouterr().err
    assert main(["config", "show", "http://127.0.0.1:1"]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_joined_router_applies_settings_of_the_router(start: StartRouter, source: Path) -> None:
    write(source, VALID)
    router = start({"echo": open_echo_service()})
    with joined_router(router, dynamic_config_file=source, dynamic_config_poll_seconds=0.5) as port:

        def status() -> int:
            return send_request(port, "/api/v1/service/echo/score", b"x" * 20).status

        wait_until(lambda: status() == 413, "the dynamic configuration")
        write(source, {"router": {"max_payload_bytes": 100}})
        wait_until(lambda: status() == 200, "the changed one")
