"""`azureml-fe local` with its dynamic configuration in a blob, while the storage hangs, is away, and comes back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.collection.azurite import Azurite, needs_azurite, running_azurite, settings_file
from tests.processes import wait_until
from tests.routers import Router, StartRouter, open_echo_service

pytestmark = needs_azurite

BLOB = "dynamic.yaml"


@pytest.fixture
def azurite(tmp_path: Path) -> Iterator[Azurite]:
    directory = tmp_path / "azurite"
    directory.mkdir()
    with running_azurite(directory) as server:
        yield server


def upload(azurite: Azurite, content: object) -> None:
    azurite.client.upload_blob(BLOB, content if isinstance(content, bytes) else json.dumps(content), overwrite=True)


def start_router(start: StartRouter, azurite: Azurite, directory: Path, **settings: Any) -> Router:
    return start(
        {"echo": open_echo_service()},
        dynamic_config_blob=f"{azurite.container}/{BLOB}", dynamic_config_poll_seconds=0.5,
        azure_connection_string_file=settings_file(directory, "login", azurite.connection_string()), **settings,
    )  # fmt: skip


def limited(router: Router) -> bool:
    return router.score("echo", b"x" * 20).status == 413


def problems(router: Router) -> str:
    return "\n".join(router.status()["problems"])


def test_blob_changes_settings_and_storage_that_fails_harms_no_request(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    upload(azurite, {})
    state_dir = str(tmp_path / "state")
    router = start_router(start, azurite, tmp_path, state_dir=state_dir)
    with router.load("echo") as load:
        load.wait_for_responses()
        upload(azurite, {"router": {"max_payload_bytes": 15}})
        wait_until(lambda: limited(router), "the new limit")
        upload(azurite, b"router: {max_payload_bytes: 20, port: 1")
        wait_until(lambda: "is refused, the last valid one stays in effect" in problems(router), "the refusal")
        azurite.client.delete_blob(BLOB)
        wait_until(lambda: "missing: status 404 BlobNotFound; the last valid one" in problems(router), "the problem")
        azurite.send_signal(signal.SIGSTOP)
        wait_until(lambda: "no response within" in problems(router), "the problem of hanging storage")
        azurite.send_signal(signal.SIGCONT)
        assert limited(router)
        load.wait_for_responses()
    assert load.all_succeeded, load
    assert len(router.log("the source of the dynamic configuration cannot be read")) <= 3
    assert router.stop() == 0
    azurite.stop()
    router = start_router(start, azurite, tmp_path, state_dir=state_dir)
    assert limited(router)
    assert "unreachable: no connection; the last valid one stays in effect" in problems(router)
    azurite.start()
    upload(azurite, {})
    wait_until(lambda: not limited(router), "the blob")
    assert problems(router) == ""


def test_missing_credentials_and_denied_login_do_not_keep_a_router_from_starting(
    start: StartRouter, azurite: Azurite, tmp_path: Path
) -> None:
    upload(azurite, {"router": {"max_payload_bytes": 15}})
    file = settings_file(tmp_path, "sas", azurite.sas_token(list=True))
    router = start(
        {"echo": open_echo_service()},
        dynamic_config_blob=f"{azurite.url}/{BLOB}", dynamic_config_poll_seconds=0.5, azure_sas_token_file=file,
    )  # fmt: skip
    assert not limited(router)
    assert "denied: status 403" in problems(router)
    assert "sig=" not in router.stderr + problems(router)
    Path(file).write_text(azurite.sas_token(read=True))
    wait_until(lambda: limited(router), "the setting of the blob")


def test_libraries_of_azure_are_loaded_only_for_a_blob() -> None:
    program = "import sys, router.cli.local, router.cli.serve; print([m for m in sys.modules if m[:6] == 'azure.'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
