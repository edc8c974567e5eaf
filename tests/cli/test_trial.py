"""The printed `curl` command."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from router.cli.own_command import own_command
from router.cli.trial import Secrets, Trial, curl_command, trial_of
from router.config.service import parse_service
from tests.cluster.local.helpers import launch_settings

URL = "http://127.0.0.1:8080/api/v1/service/iris/score"


def secrets(*, shows_keys: bool = False, has_stored_key: bool = True) -> Secrets:
    return Secrets("/opt/azureml-fe", Path("/state dir"), "models.yaml", shows_keys, lambda _: has_stored_key)


def test_entry_script_is_tried_with_the_sample_beside_it(tmp_path: Path) -> None:
    launch = launch_settings(tmp_path, entry_script=tmp_path / "score.py")
    assert trial_of(launch) == Trial("score", "<JSON input of the model>")
    (tmp_path / "sample-request.json").write_text("{}")
    assert trial_of(launch) == Trial("score", f"@{tmp_path}/sample-request.json")


def test_other_servers_are_tried_with_their_readiness_path(tmp_path: Path) -> None:
    launch = launch_settings(tmp_path, command=("python", "serve.py", "{port}"), readiness_path="/v1/health")
    assert trial_of(launch) == Trial("v1/health")
    assert trial_of(launch_settings(tmp_path, addresses=(("127.0.0.1", 9001),))) == Trial("")


@pytest.mark.parametrize(
    ("settings", "options", "header"),
    [
        ({"auth_enabled": False}, {}, None),
        ({"primary_key": "k'1"}, {"shows_keys": True}, "Authorization: Bearer k'1"),
        ({"key_headers": ["api-key"], "primary_key": "k1"}, {"shows_keys": True}, "api-key: k1"),
        ({"primary_key": "k1"}, {"has_stored_key": False}, "Authorization: Bearer <primary_key in models.yaml>"),
        (
            {},
            {},
            "Authorization: Bearer $(/opt/azureml-fe keys show iris --key primary --state-dir '/state dir')",
        ),
        (
            {"token_auth_enabled": True},
            {"shows_keys": True},
            "Authorization: Bearer $(/opt/azureml-fe token iris --bare --state-dir '/state dir')",
        ),
    ],
)
def test_command_has_the_credential_of_the_service(
    settings: dict[str, object], options: dict[str, bool], header: str | None
) -> None:
    command = curl_command(parse_service("iris", settings), URL, Trial("score", "{}"), secrets(**options))
    body = ["-H", "Content-Type: application/json", "-d", "{}"]
    assert shlex.split(command) == ["curl", "-sS", URL, *(["-H", header] if header else []), *body]


def test_own_command_is_a_name_only_if_that_is_this_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bin", "other bin"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "azureml-fe").touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "other bin" / "azureml-fe")])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert shlex.split(own_command()) == [str(tmp_path / "other bin" / "azureml-fe")]
    monkeypatch.setenv("PATH", f"{tmp_path}/other bin:{tmp_path}/bin")
    assert own_command() == "azureml-fe"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "router" / "__main__.py")])
    assert own_command() == f"{sys.executable} -m router"
