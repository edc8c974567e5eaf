"""`azureml-fe local`: console, serving, keys and errors."""

import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.processes import free_ports, send_request, wait_until
from tests.routers import Router, StartRouter, echo_service, open_echo_service, router_environment

GIVEN_KEY = 'it\'s-a-"given"-$KEY'


@pytest.fixture(scope="module")
def router(start_for_all: StartRouter) -> Router:
    """A router that no test changes."""
    router = start_for_all(
        {
            "echo": echo_service(),
            "free": open_echo_service(),
            "given": echo_service(primary_key=GIVEN_KEY),
            "sdk": echo_service(key_headers=["api-key"]),
        },
        workers=2,
    )
    for service in ("echo", "free", "given", "sdk"):
        router.wait_for_stderr(f"{service} is ready")
    return router


def run_in_shell(line: str, directory: Path) -> str:
    """Return the output of a line that a user pastes into a shell."""
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=True, cwd=directory, env=router_environment()
    ).stdout


def azureml_fe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["azureml-fe", *arguments], capture_output=True, text=True, check=False, env=router_environment()
    )


# Console.


def test_console_shows_urls_and_replicas(router: Router) -> None:
    router.wait_for_stderr(rf"echo is ready: http://127\.0\.0\.1:{router.port}/api/v1/service/echo/\n")
    first = next(line for line in router.stderr.splitlines() if not line.startswith("{"))
    assert first.startswith(f"status page: http://127.0.0.1:{router.admin_port}/ (in a terminal: ")
    assert "\x1b" not in router.stderr


@pytest.mark.needs("curl")
@pytest.mark.parametrize("service", ["echo", "free", "sdk"])
def test_printed_command_works(router: Router, service: str, tmp_path: Path) -> None:
    line = router.wait_for_stderr(rf"  try: (curl -sS \S+/service/{service}/.*)\n")[1]
    assert " -d " not in line  # the paths of other programs than entry scripts are unknown, except the readiness path
    assert run_in_shell(line.replace("curl -sS", "curl -sS -o body -w '%{http_code}'"), tmp_path) == "200"


def test_output_to_a_file_has_no_key(router: Router) -> None:
    assert router.score("echo", Authorization=f"Bearer {router.key('echo')}").status == 200
    for key in (router.key("echo"), router.key("echo", "secondary"), GIVEN_KEY):
        assert key not in router.stderr
    assert '"Authorization: Bearer <primary_key in ' in router.wait_for_stderr(r"try: curl -sS \S+/given/.*\n")[0]


def test_workers_and_replicas_are_processes(router: Router) -> None:
    assert len(router.workers) == 2
    assert len(router.replicas()) == 4


# Serving.


def test_request_without_a_valid_key_is_unauthorized(router: Router) -> None:
    for key in (None, "wrong", router.key("given", "secondary")):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        response = router.score("echo", b"[1]", **headers)
        assert (response.status, response.headers["azureml-fe-error"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("which", ["primary", "secondary"])
def test_both_keys_are_valid(router: Router, which: str) -> None:
    response = router.score("echo", b"[5]", Authorization=f"Bearer {router.key('echo', which)}")
    assert (response.status, response.body) == (200, b"[5]")


def test_primary_key_of_the_file_is_valid_and_the_secondary_is_generated(router: Router) -> None:
    for key in (GIVEN_KEY, router.key("given", "secondary")):
        assert router.score("given", Authorization=f"Bearer {key}").status == 200
    assert router.score("given", Authorization=f"Bearer {router.key('given')}").status == 401


def test_unknown_service_is_not_found(router: Router) -> None:
    assert router.score("unknown").status == 404


def test_admin_port_serves_health_and_metrics(router: Router) -> None:
    assert send_request(router.admin_port, "/healthz").body == b"ok\n"
    assert send_request(router.admin_port, "/readyz").body == b"ok\n"
    before = router.metric("requests_total", service="free", code="200")
    for _ in range(3):
        assert router.score("free").status == 200
    wait_until(lambda: router.metric("requests_total", service="free", code="200") >= before + 3)
    assert router.metric("replicas", service="free", state="ready") == 1
    assert router.metric("replicas_desired", service="free") == 1
    assert router.metric("workers") == 2
    assert router.metric("config_last_reload_success") == 1


def test_metrics_are_served_before_a_worker_has_reported(start: StartRouter) -> None:
    """The admin port responds while workers start."""
    (port,) = free_ports("127.0.0.1", 1)
    router = start({"free": open_echo_service(start_delay=0.2)}, serving=False, admin_port=port)
    wait_until(lambda: _is_scraped(port))
    router.wait_until_serving()
    router.wait_for_replicas("free")


def _is_scraped(port: int) -> bool:
    try:
        assert b"azureml_fe_slots_in_use" in send_request(port, "/metrics").body
    except ConnectionRefusedError:
        return False
    return True


# Keys.


def test_keys_file_is_readable_only_by_its_owner(router: Router) -> None:
    status = (router.state_dir / "keys.json").stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(router.state_dir.stat().st_mode) == 0o700


def test_keys_show_prints_the_keys(router: Router) -> None:
    shown = azureml_fe("keys", "show", "echo", "--state-dir", str(router.state_dir))
    primary, secondary = router.key("echo"), router.key("echo", "secondary")
    assert (shown.returncode, shown.stdout) == (0, f"primary: {primary}\nsecondary: {secondary}\n")
    one = azureml_fe("keys", "show", "echo", "--key", "secondary", "--state-dir", str(router.state_dir))
    assert one.stdout == f"{secondary}\n"


def test_keys_of_an_unknown_service_are_an_error(router: Router) -> None:
    for arguments in (["show", "unknown"], ["regenerate", "unknown", "--key", "primary"]):
        failed = azureml_fe("keys", *arguments, "--state-dir", str(router.state_dir))
        assert failed.returncode == 2
        assert failed.stderr.count("\n") == 1
        assert "services with stored keys: echo, given, sdk" in failed.stderr
    assert "unknown" not in (router.state_dir / "keys.json").read_text()


def test_regenerated_key_is_valid_and_the_other_stays_valid(start: StartRouter) -> None:
    router = start({"echo": echo_service()})
    old, secondary = router.key("echo"), router.key("echo", "secondary")
    with router.load("echo", Authorization=f"Bearer {secondary}") as load:
        regenerated = azureml_fe("keys", "regenerate", "echo", "--key", "primary", "--state-dir", str(router.state_dir))
        new = router.key("echo")
        assert (regenerated.returncode, regenerated.stdout) == (0, f"{new}\n")
        assert new != old
        wait_until(lambda: router.score("echo", Authorization=f"Bearer {new}").status == 200, "new key")
        assert router.score("echo", Authorization=f"Bearer {old}").status == 401
        load.wait_for_responses()
    assert load.all_succeeded, load
    assert new not in router.stderr


@pytest.mark.needs("curl")
def test_printed_command_works_with_special_characters_in_the_state_directory(
    start: StartRouter, tmp_path: Path
) -> None:
    router = start({"echo": echo_service()}, "--state-dir", "it's my $HOME")  # relative to where it is started
    line = router.wait_for_stderr(r"  try: (curl .*)\n")[1]
    assert run_in_shell(line.replace("curl -sS", "curl -sS -o body -w '%{http_code}'"), tmp_path) == "200"


# Errors.


@pytest.mark.parametrize("setting", ["port", "admin_port"])
def test_port_in_use_is_a_failure_in_one_line(start: StartRouter, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        router = start({"echo": echo_service()}, serving=False, **{setting: port})
        assert router.wait() == 1
    assert router.stderr.count("\n") == 1
    assert f"azureml-fe: {setting}: cannot listen on 127.0.0.1:{port}: Address already in use" in router.stderr


def test_invalid_file_is_invalid_usage_in_one_line(start: StartRouter) -> None:
    router = start({"echo": echo_service(scoring_timeout_ms=0)}, serving=False)
    assert router.wait() == 2
    assert router.stderr.count("\n") == 1
    assert "models.yaml, line " in router.stderr
    assert "service echo: scoring_timeout_ms = '0': must be a whole number from 1" in router.stderr
    assert not router.state_dir.exists()


def test_unreadable_keys_file_is_invalid_usage_and_leaves_no_process(start: StartRouter, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("no keys")
    router = start({"echo": echo_service()}, "--state-dir", str(tmp_path), serving=False)
    assert router.wait() == 2
    assert router.stderr.splitlines()[-1].endswith(
        "keys.json: keys file: is not a keys file; remove it to have new keys generated"
    )


def test_replica_that_cannot_start_is_logged_with_its_output(start: StartRouter) -> None:
    router = start(
        {"bad": open_echo_service(print="no such model", exit_after_start=3), "good": open_echo_service()},
        serving=False,
    )
    router.wait_until_serving()
    router.wait_for_stderr("replica cannot start")
    (*_, line) = router.log("replica cannot start")
    assert (line["service"], line["how"], line["output"]) == ("bad", "exit code 3", "no such model")
    router.wait_for_replicas("good")
    assert router.score("good").status == 200
    response = router.score("bad")
    assert (response.status, response.headers["azureml-fe-error"]) == (503, "no-ready-replicas")
