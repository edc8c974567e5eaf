"""`azureml-fe local`: what it says and serves, its keys, and how it refuses."""

import shutil
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.processes import ask, until
from tests.routers import Router, Start, echo, environment, open_echo

GIVEN_KEY = 'it\'s-a-"given"-$KEY'
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def router(start_for_all: Start) -> Router:
    """One that no test changes."""
    made = start_for_all({"echo": echo(), "free": open_echo(), "given": echo(primary_key=GIVEN_KEY)}, workers=2)
    for service in ("echo", "free", "given"):
        made.says(f"{service} is ready")
    return made


def in_a_shell(line: str, folder: Path) -> str:
    """What a line prints that a user pastes into a terminal of theirs."""
    return subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=True, cwd=folder, env=environment()
    ).stdout


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["azureml-fe", *words], capture_output=True, text=True, check=False, env=environment())


# What it says.


def test_it_says_where_models_are_scored_and_what_there_is(router: Router) -> None:
    router.says(rf"echo is ready: http://127\.0\.0\.1:{router.port}/api/v1/service/echo/score\n")
    router.says(r"  echo: starting replicas \.\.\.\n")
    router.says(r"  echo: 1 ready; 0 in flight, 0 queued\n")


@needs_curl
@pytest.mark.parametrize("service", ["echo", "free"])
def test_the_line_to_paste_works(router: Router, service: str, tmp_path: Path) -> None:
    line = router.says(rf"  try: (curl -s \S+/service/{service}/score .*)\n")[1]
    assert in_a_shell(line, tmp_path) == '{"data": []}'


def test_no_key_is_written_where_it_may_be_kept(router: Router) -> None:
    assert router.score("echo", Authorization=f"Bearer {router.key('echo')}").status == 200
    for key in (router.key("echo"), router.key("echo", "secondary"), GIVEN_KEY):
        assert key not in router.said
    assert '"Authorization: Bearer <primary_key in ' in router.says(r"try: curl -s \S+/given/.*\n")[0]


def test_each_worker_and_replica_is_its_own(router: Router) -> None:
    assert len(router.workers) == 2
    assert len(router.replicas()) == 3


# What it serves.


def test_a_key_is_asked_for(router: Router) -> None:
    for key in (None, "wrong", router.key("given", "secondary")):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        answer = router.score("echo", b"[1]", **headers)
        assert (answer.status, answer.headers["azureml-fe-error"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("which", ["primary", "secondary"])
def test_both_keys_are_valid(router: Router, which: str) -> None:
    answer = router.score("echo", b"[5]", Authorization=f"Bearer {router.key('echo', which)}")
    assert (answer.status, answer.body) == (200, b"[5]")


def test_a_key_given_by_the_file_is_valid_and_its_secondary_is_made(router: Router) -> None:
    for key in (GIVEN_KEY, router.key("given", "secondary")):
        assert router.score("given", Authorization=f"Bearer {key}").status == 200
    assert router.score("given", Authorization=f"Bearer {router.key('given')}").status == 401


def test_unknown_services_are_not_found(router: Router) -> None:
    assert router.score("nobody").status == 404


def test_operators_are_told_of_health_and_numbers(router: Router) -> None:
    assert ask(router.admin_port, "/healthz").body == b"ok\n"
    assert ask(router.admin_port, "/readyz").body == b"ok\n"
    before = router.metric("requests_total", service="free", code="200")
    for _ in range(3):
        assert router.score("free").status == 200
    until(lambda: router.metric("requests_total", service="free", code="200") >= before + 3)
    assert router.metric("replicas", service="free", state="ready") == 1
    assert router.metric("replicas_desired", service="free") == 1
    assert router.metric("workers") == 2
    assert router.metric("config_last_reload_success") == 1


def test_numbers_can_be_asked_for_before_a_worker_has_reported(start: Start) -> None:
    """The admin port answers while workers start."""
    router = start({"free": open_echo(start_delay=0.2)}, serving=False, admin_port=(port := free_port()))
    until(lambda: _is_scraped(port))
    router.serves()
    router.ready("free")


def _is_scraped(port: int) -> bool:
    try:
        assert b"azureml_fe_slots_in_use" in ask(port, "/metrics").body
    except ConnectionRefusedError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Keys.


def test_keys_are_the_users_alone(router: Router) -> None:
    facts = (router.state / "keys.json").stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600
    assert stat.S_IMODE(router.state.stat().st_mode) == 0o700


def test_keys_are_shown(router: Router) -> None:
    shown = command("keys", "show", "echo", "--state-dir", str(router.state))
    primary, secondary = router.key("echo"), router.key("echo", "secondary")
    assert (shown.returncode, shown.stdout) == (0, f"primary: {primary}\nsecondary: {secondary}\n")
    one = command("keys", "show", "echo", "--key", "secondary", "--state-dir", str(router.state))
    assert one.stdout == f"{secondary}\n"


def test_keys_of_an_unknown_service_are_not_made(router: Router) -> None:
    for words in (["show", "ecko"], ["regenerate", "ecko", "--key", "primary"]):
        refused = command("keys", *words, "--state-dir", str(router.state))
        assert refused.returncode == 2
        assert refused.stderr.count("\n") == 1
        assert "must be a service with generated keys: echo, given" in refused.stderr
    assert "ecko" not in (router.state / "keys.json").read_text()


def test_a_key_made_anew_is_in_force_while_the_other_stays_valid(start: Start) -> None:
    router = start({"echo": echo()})
    old, secondary = router.key("echo"), router.key("echo", "secondary")
    with router.load("echo", Authorization=f"Bearer {secondary}") as load:
        made = command("keys", "regenerate", "echo", "--key", "primary", "--state-dir", str(router.state))
        new = router.key("echo")
        assert (made.returncode, made.stdout) == (0, f"{new}\n")
        assert new != old
        until(lambda: router.score("echo", Authorization=f"Bearer {new}").status == 200, "new key")
        assert router.score("echo", Authorization=f"Bearer {old}").status == 401
        load.goes_on()
    assert load.all_well, load
    assert new not in router.said


@needs_curl
def test_the_line_to_paste_works_whatever_the_folders_are_called(start: Start, tmp_path: Path) -> None:
    router = start({"echo": echo()}, "--state-dir", "it's my $HOME")  # relative to where it is started
    line = router.says(r"  try: (curl .*)\n")[1]
    assert in_a_shell(line, tmp_path) == '{"data": []}'


# Refusals.


@pytest.mark.parametrize("setting", ["port", "admin_port"])
def test_a_port_that_is_taken_is_a_failure_in_one_line(start: Start, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        router = start({"echo": echo()}, serving=False, **{setting: port})
        assert router.wait() == 1
    assert router.said.count("\n") == 1
    assert f"azureml-fe: {setting}: {port} cannot be listened on at 127.0.0.1: Address already in use" in router.said


def test_a_bad_file_is_bad_usage_in_one_line(start: Start) -> None:
    router = start({"echo": echo(scoring_timeout_ms=0)}, serving=False)
    assert router.wait() == 2
    assert router.said.count("\n") == 1
    assert "models.yaml, line " in router.said
    assert "service echo: scoring_timeout_ms = '0': must be a whole number from 1" in router.said
    assert not router.state.exists()


def test_keys_that_cannot_be_read_are_bad_usage_and_nothing_is_left(start: Start, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text("no keys")
    router = start({"echo": echo()}, "--state-dir", str(tmp_path), serving=False)
    assert router.wait() == 2
    assert router.said.splitlines()[-1].endswith(
        "keys.json: keys file: is not a keys file; remove it to have new keys made"
    )


def test_a_replica_that_cannot_start_shows_why(start: Start) -> None:
    router = start({"bad": open_echo(print="no such model", exit_after_start=3), "good": open_echo()}, serving=False)
    router.serves()
    router.says("replica cannot start")
    (*_, line) = router.log("replica cannot start")
    assert (line["service"], line["how"], line["output"]) == ("bad", "exit code 3", "no such model")
    router.ready("good")
    assert router.score("good").status == 200
    answer = router.score("bad")
    assert (answer.status, answer.headers["azureml-fe-error"]) == (503, "no-ready-replicas")
