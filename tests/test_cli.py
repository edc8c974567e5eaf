"""The command line: what reaches the work, exit codes, and errors as one line."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from router import __version__
from router.build import hot_path
from router.cli import main
from router.values import SettingsError

Peers = Sequence[tuple[str, int]]
Calls = list[tuple[Path | None, Mapping[str, object], Peers]]
Local = Callable[[Path | None, Mapping[str, object], Peers], int]

FILE = """
services:
  iris: {entry_script: score.py, autoscale_max_replicas: 4, primary_key: s3cret}
  remote: {addresses: ["127.0.0.1:9001", "127.0.0.1:9002"], auth_enabled: false, replica_max_concurrent_requests: 0}
  tokens: {command: [sh, "--secret=s3cret", "{port}"], token_auth_enabled: true, num_replicas: 2}
  ab:
    versions:
      blue: {entry_script: score.py}
      green: {entry_script: score.py, traffic_percentile: 10, replica_max_concurrent_requests: 8}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "score.py").touch()
    path = tmp_path / "m.yaml"
    path.write_text(FILE)
    return path


def supervise_with(monkeypatch: pytest.MonkeyPatch, run_local: Local) -> None:
    module = ModuleType("router.local")
    module.run_local = run_local  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "router.local", module)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found: Calls = []

    def run_local(path: Path | None, flags: Mapping[str, object], peers: Peers) -> int:
        found.append((path, flags, peers))
        return 0

    supervise_with(monkeypatch, run_local)
    return found


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("azureml-fe: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("azureml-fe: ").rstrip()


def test_local_without_a_file_runs_with_nothing_given(calls: Calls) -> None:
    assert main(["local"]) == 0
    assert calls == [(None, {}, [])]


def test_local_passes_the_file_and_typed_flags(calls: Calls) -> None:
    words = "local m.yaml --host 0.0.0.0 --port 80 --admin-port 0 --peer-port 1 --workers 2 --log-level debug"
    assert main([*words.split(), "--access-log", "0.1", "--state-dir", "/state"]) == 0
    flags = {
        "host": "0.0.0.0",
        "port": 80,
        "admin_port": 0,
        "peer_port": 1,
        "workers": 2,
        "state_dir": "/state",
        "log_level": "debug",
        "access_log": 0.1,
    }
    assert calls == [(Path("m.yaml"), flags, [])]


@pytest.mark.parametrize(("word", "share"), [("on", 1.0), ("off", 0.0), ("0.5", 0.5)])
def test_access_log_is_on_off_or_a_rate(calls: Calls, word: str, share: float) -> None:
    assert main(["local", "--access-log", word]) == 0
    assert calls == [(None, {"access_log": share}, [])]


def test_local_passes_peers_instead_of_a_file(calls: Calls) -> None:
    assert main(["local", "--peer", "there:9091", "--peer", "[::1]:80"]) == 0
    assert calls == [(None, {}, [("there", 9091), ("::1", 80)])]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_exit_code_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    supervise_with(monkeypatch, lambda path, flags, peers: code)
    assert main(["local"]) == code


def test_settings_error_of_the_run_is_bad_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_local(path: Path | None, flags: Mapping[str, object], peers: Peers) -> int:
        raise SettingsError("port", 80, "must be another", "here")

    supervise_with(monkeypatch, run_local)
    assert main(["local"]) == 2
    assert complaint(capsys) == "here: port = 80: must be another"


def test_system_error_of_the_run_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_local(path: Path | None, flags: Mapping[str, object], peers: Peers) -> int:
        raise OSError(98, "Address already in use\nreally")

    supervise_with(monkeypatch, run_local)
    assert main(["local"]) == 1
    assert complaint(capsys) == "[Errno 98] Address already in use really"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND (see azureml-fe --help)"),
        (["bogus"], "invalid choice: 'bogus'"),
        (["check"], "FILE or --cluster is missing (see azureml-fe check --help)"),
        (["check", "m.yaml", "--cluster"], "FILE = 'm.yaml': not allowed with --cluster"),
        (["local", "a", "b"], "unrecognized arguments: b"),
        (["local", "--por", "1"], "unrecognized arguments: --por"),
        (["local", "--port"], "argument --port: expected one argument (see azureml-fe local --help)"),
        (["local", "--port", "http"], "flag --port: port = 'http': must be a whole number from 0 to 65535"),
        (["local", "--workers", "0"], "flag --workers: workers = '0': must be a whole number from 1 to 1024"),
        (["local", "m.yaml", "--peer", "a:1"], "FILE = 'm.yaml': not allowed with --peer"),
        (["local", "--peer", "nonsense"], "--peer: 'nonsense' is not an address; allowed: HOST:PORT"),
        (["local", "--peer", "a:0"], "--peer: 'a:0' is not an address"),
        (["local", "--peer", ":80"], "--peer: ':80' is not an address"),
        (["local", "--peer", "a:65536"], "--peer: 'a:65536' is not an address"),
        (["check", "none.yaml"], "none.yaml: file: cannot be read: No such file or directory"),
    ],
)
def test_bad_usage_is_one_line(
    words: list[str], message: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert message in complaint(capsys)
    assert calls == []


def test_check_says_what_the_file_sets_up_and_no_secret(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file)]) == 0
    said = capsys.readouterr()
    script = f"entry script {file.parent / 'score.py'}"
    one, many = "at most 1 request at a time each", "at most 8 requests at a time each"
    any_number = "any number of requests at a time each"
    silent = "azureml-fe: service remote, version default: 127.0.0.1:900"
    assert all(line.startswith(silent) for line in said.err.splitlines())
    assert said.out.splitlines() == [
        "service iris: keys (primary given, secondary generated)",
        f"  version default: 100 % of traffic; 1 to 4 replicas at 70 % utilization; {one}; {script}",
        "service remote: no authentication",
        f"  version default: 100 % of traffic; 2 replicas, not scaled; {any_number}; at 127.0.0.1:9001, 127.0.0.1:9002",
        "service tokens: tokens of the router",
        f"  version default: 100 % of traffic; 2 replicas, fixed; {one}; command sh",
        "service ab: keys (primary generated, secondary generated)",
        f"  version blue: 90 % of traffic; 1 to 10 replicas at 70 % utilization; {one}; {script}",
        f"  version green: 10 % of traffic; 1 to 10 replicas at 70 % utilization; {many}; {script}",
    ]


def test_check_of_a_bad_file_names_line_and_setting(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(FILE.replace("autoscale_max_replicas: 4", "autoscale_max_replicas: 0"))
    assert main(["check", str(file)]) == 2
    assert complaint(capsys) == (
        f"{file}, line 3: service iris: autoscale_max_replicas = '0': must be a whole number, at least 1 (replicas)"
    )


ROUTER_FILE = """
router: {drain_seconds: 600, peer_tls: required}
token_issuers: {corp: {issuer: "https://login.example.com", audience: "api://models"}}
"""


def test_check_of_a_file_for_serve_says_what_it_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(ROUTER_FILE)
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "router in a cluster: sets drain_seconds, peer_tls",
        "token issuer corp: https://login.example.com",
    ]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (ROUTER_FILE.replace("required", "on"), "peer_tls = 'on': must be one of off, preferred, required"),
        (ROUTER_FILE.replace("600", "-1"), "line 2: router: drain_seconds = '-1'"),
        (ROUTER_FILE + "service: {}", "service: no such setting; did you mean services?"),
        ("router: {min_workers: 3, max_workers: 2}", "min_workers = 3: must not exceed max_workers"),
        ("{}", "services: must be a mapping"),
    ],
)
def test_check_of_a_bad_file_for_serve(
    tmp_path: Path, text: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(text)
    assert main(["check", str(file)]) == 2
    assert word in complaint(capsys)


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["local", "--help"], ["check", "-h"]])
def test_help_and_version_end_well(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert "azureml-fe" in capsys.readouterr().out


def test_help_of_serve_has_the_defaults_of_a_pod(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "an address or a host name; default: 0.0.0.0" in said
    assert "default: /var/lib/azureml-fe" in said


def test_module_runs_as_the_command_and_loads_no_event_loop() -> None:
    program = "import runpy, sys; sys.argv[1:] = ['--version']\ntry: runpy.run_module('router', run_name='__main__')\n"
    program += "finally: assert not {'asyncio', 'uvloop', 'aiohttp'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"azureml-fe {__version__} ({hot_path()})\n", "")
