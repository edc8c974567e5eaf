"""The command line: arguments passed on, exit codes, and errors as one line."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from router import __version__
from router.cli.main import main
from router.cluster.local.key_store import KeyStore
from router.cluster.local.known_services import KnownServices
from router.cluster.local.service_files import ServiceFiles
from router.config.declaration import declared_settings
from router.config.kubernetes_settings import KubernetesSettings
from router.config.router import ROUTER_SETTINGS, flag_name
from router.config.schema import SettingsError
from router.telemetry.build_info import hot_path

Peers = Sequence[tuple[str, int]]
Calls = list[tuple[Path | None, Mapping[str, object], Peers]]
Local = Callable[[ServiceFiles | None, Mapping[str, object], Peers], int]

KUBERNETES = {setting.name for setting in declared_settings(KubernetesSettings)}

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


def replace_run_local(monkeypatch: pytest.MonkeyPatch, run_local: Local) -> None:
    module = ModuleType("router.cli.local")
    module.run_local = run_local  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "router.cli.local", module)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls: Calls = []

    def run_local(files: ServiceFiles | None, flags: Mapping[str, object], peers: Peers) -> int:
        calls.append((None if files is None else files.paths[0], flags, peers))
        return 0

    replace_run_local(monkeypatch, run_local)
    return calls


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("azureml-fe: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("azureml-fe: ").rstrip()


def test_local_runs_without_arguments(calls: Calls) -> None:
    assert main(["local"]) == 0
    assert calls == [(None, {}, [])]


def test_local_passes_the_file_and_typed_flags(calls: Calls) -> None:
    arguments = "local m.yaml --host 0.0.0.0 --port 80 --admin-port 0 --peer-port 1 --workers 2 --log-level debug"
    assert main([*arguments.split(), "--access-log", "0.1", "--state-dir", "/state"]) == 0
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


@pytest.mark.parametrize(("text", "rate"), [("on", 1.0), ("off", 0.0), ("0.5", 0.5)])
def test_access_log_is_on_off_or_a_rate(calls: Calls, text: str, rate: float) -> None:
    assert main(["local", "--access-log", text]) == 0
    assert calls == [(None, {"access_log": rate}, [])]


def test_local_passes_peers_instead_of_a_file(calls: Calls) -> None:
    assert main(["local", "--peer", "there:9091", "--peer", "[::1]:80"]) == 0
    assert calls == [(None, {}, [("there", 9091), ("::1", 80)])]


@pytest.mark.parametrize("code", [0, 1, 2])
def test_exit_code_is_that_of_the_run(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    replace_run_local(monkeypatch, lambda path, flags, peers: code)
    assert main(["local"]) == code


def test_settings_error_of_the_run_is_invalid_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_local(files: ServiceFiles | None, flags: Mapping[str, object], peers: Peers) -> int:
        raise SettingsError("port", 80, "must be different", "here")

    replace_run_local(monkeypatch, run_local)
    assert main(["local"]) == 2
    assert error_line(capsys) == "here: port = 80: must be different"


def test_system_error_of_the_run_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_local(files: ServiceFiles | None, flags: Mapping[str, object], peers: Peers) -> int:
        raise OSError(98, "Address already in use\nreally")

    replace_run_local(monkeypatch, run_local)
    assert main(["local"]) == 1
    assert error_line(capsys) == "[Errno 98] Address already in use really"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bogus"], "unknown command 'bogus' (see azureml-fe --help)"),
        (["lokal"], "unknown command 'lokal'; did you mean local? (see azureml-fe --help)"),
        (["keys", "shwo"], "unknown command 'shwo'; did you mean show? (see azureml-fe keys --help)"),
        (["help", "bogus"], "unknown command 'bogus' (see azureml-fe --help)"),
        (["completion", "fish"], "argument SHELL: invalid choice: 'fish'"),
        (["check"], "FILE or --cluster is missing (see azureml-fe check --help)"),
        (["check", "m.yaml", "--cluster"], "FILE = 'm.yaml': not allowed with --cluster"),
        (["local", "--name", "iris"], "--name = 'iris': allowed only for files of Azure ML"),
        (["local", "--por", "1"], "unknown flag --por; did you mean --port? (see azureml-fe local --help)"),
        (["local", "--admin-hots=1"], "unknown flag --admin-hots; did you mean --admin-hosts? (see azureml-fe local"),
        (["keys", "show", "iris", "--state"], "did you mean --state-dir? (see azureml-fe keys show --help)"),
        (["local", "--kubeconfig", "k"], "unknown flag --kubeconfig (see azureml-fe local --help)"),
        (["--frobnicate"], "unknown flag --frobnicate (see azureml-fe --help)"),
        (["local", "--max-headers", "0"], "flag --max-headers: max_headers = '0': must be a whole number from 1 to"),
        (["local", "--port"], "argument --port: expected one argument (see azureml-fe local --help)"),
        (["local", "--port", "http"], "flag --port: port = 'http': must be a whole number from 0 to 65535"),
        (["local", "--workers", "0"], "flag --workers: workers = '0': must be a whole number from 1 to 1024"),
        (["local", "m.yaml", "--peer", "a:1"], "FILE = 'm.yaml': not allowed with --peer"),
        (["local", "--peer", "invalid"], "--peer: 'invalid' is not an address; allowed: HOST:PORT"),
        (["local", "--peer", "a:0"], "--peer: 'a:0' is not an address"),
        (["local", "--peer", ":80"], "--peer: ':80' is not an address"),
        (["local", "--peer", "a:65536"], "--peer: 'a:65536' is not an address"),
        (["check", "none.yaml"], "none.yaml: file: cannot be read: No such file or directory"),
    ],
)
def test_invalid_usage_is_one_line(
    arguments: list[str], message: str, calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in error_line(capsys)
    assert calls == []


def test_check_prints_a_summary_of_the_file_without_secrets(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(file)]) == 0
    output = capsys.readouterr()
    script = f"entry script {file.parent / 'score.py'}"
    one, many = "at most 1 request at a time each", "at most 8 requests at a time each"
    any_number = "any number of requests at a time each"
    weak_key, *unresponsive = output.err.splitlines()
    assert weak_key.startswith("azureml-fe: service iris: primary_key has fewer than 16 characters")
    assert all(line.startswith("azureml-fe: service remote, version default: 127.0.0.1:900") for line in unresponsive)
    assert "s3cret" not in output.err + output.out
    assert output.out.splitlines() == [
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


def test_check_of_an_invalid_file_names_line_and_setting(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(FILE.replace("autoscale_max_replicas: 4", "autoscale_max_replicas: 0"))
    assert main(["check", str(file)]) == 2
    assert error_line(capsys) == (
        f"{file}, line 3: service iris: autoscale_max_replicas = '0': must be a whole number, at least 1 (replicas)"
    )


ROUTER_FILE = """
router: {drain_seconds: 600, peer_tls: required}
token_issuers: {corp: {issuer: "https://login.example.com", audience: "api://models"}}
"""


def test_check_of_a_file_for_serve_prints_its_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(ROUTER_FILE)
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "router in a cluster: sets drain_seconds, peer_tls",
        "token issuer corp: https://login.example.com",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROUTER_FILE.replace("required", "on"), "peer_tls = 'on': must be one of off, preferred, required"),
        (ROUTER_FILE.replace("600", "-1"), "line 2: router: drain_seconds = '-1'"),
        (ROUTER_FILE + "service: {}", "service: no such setting; did you mean services?"),
        ("router: {min_workers: 3, max_workers: 2}", "min_workers = 3: must not exceed max_workers"),
        ("{}", "services: must be a mapping"),
    ],
)
def test_check_of_an_invalid_file_for_serve(
    tmp_path: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(text)
    assert main(["check", str(file)]) == 2
    assert message in error_line(capsys)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["local", "--help"], ["check", "-h"]])
def test_help_and_version_exit_with_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    assert "azureml-fe" in capsys.readouterr().out


def test_help_of_serve_has_the_defaults_of_a_pod(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    output = " ".join(capsys.readouterr().out.split())
    assert "an address or a host name; default: ::" in output
    assert "default: /var/lib/azureml-fe" in output


def test_module_runs_the_command_and_imports_no_event_loop() -> None:
    program = "import runpy, sys; sys.argv[1:] = ['--version']\ntry: runpy.run_module('router', run_name='__main__')\n"
    program += "finally: assert not {'asyncio', 'uvloop', 'aiohttp'} & sys.modules.keys()"
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout, completed.stderr) == (
        0,
        f"azureml-fe {__version__} ({hot_path()})\n",
        "",
    )


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        ([], "azureml-fe [-h] [-V] COMMAND"),
        (["keys"], "azureml-fe keys [-h] ACTION"),
        (["help", "keys", "show"], "azureml-fe keys show [-h]"),
        (["help"], "azureml-fe [-h] [-V] COMMAND"),
    ],
)
def test_help_is_printed(arguments: list[str], usage: str) -> None:
    done = subprocess.run([sys.executable, "-m", "router", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {usage}")


def test_each_setting_is_a_flag(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {setting.name: flag_name(setting.name) for setting in ROUTER_SETTINGS if setting.name not in KUBERNETES}
    assert main(["local", "--max-headers", "50", "--trusted-proxies", "10.0.0.0/8,fd00::/8", "--traces", "otlp"]) == 0
    given = {"max_headers": 50, "trusted_proxies": ("10.0.0.0/8", "fd00::/8"), "traces": "otlp"}
    assert calls == [(None, given, [])]
    with pytest.raises(SystemExit):
        main(["local", "--help-all"])
    listed = capsys.readouterr().out
    assert all(flag in listed for flag in flags.values())
    with pytest.raises(SystemExit):
        main(["local", "--help"])
    assert "--max-headers" not in capsys.readouterr().out


@pytest.mark.needs("bash")
def test_bash_completes_commands_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    complete = """
        COMP_WORDS=(azureml-fe "$@"); COMP_CWORD=$#; _shtab_azureml_fe; echo "${COMPREPLY[@]}"
    """
    script = capsys.readouterr().out + complete
    for words, expected in ((["lo"], "local"), (["keys", "sh"], "show"), (["local", "--admin-p"], "--admin-port")):
        done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected], done.stderr


@pytest.mark.parametrize("module", ["router.workers.main", "router.cli.serve", "router.cli.main"])
def test_processes_without_a_terminal_do_not_load_rich(module: str) -> None:
    code = f"import {module}, sys; sys.exit('rich' in sys.modules or 'shtab' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_serve_outside_of_a_cluster_names_the_command_for_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["serve"]) == 2
    assert "use `azureml-fe local` on this machine" in error_line(capsys)


def test_token_needs_a_known_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KnownServices(tmp_path).add(["iris", "mnist"])
    assert main(["token", "irs", "--state-dir", str(tmp_path)]) == 2
    assert error_line(capsys) == f'{tmp_path}: no service "irs"; did you mean iris? services: iris, mnist'
    for flags in (["--output", "text"], ["--bare"]):
        assert main(["token", "iris", "--state-dir", str(tmp_path), *flags]) == 0
        assert re.fullmatch(r"[\w-]+[.][\w-]+[.][\w-]+\n", capsys.readouterr().out)
    for flags in ([], ["--output", "json"]):
        assert main(["token", "iris", "--state-dir", str(tmp_path), *flags]) == 0
        assert json.loads(capsys.readouterr().out)["tokenType"] == "Bearer"


def test_keys_are_printed_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (primary, secondary) = KeyStore(tmp_path).keys_for(["iris"])["iris"]
    flags = ["iris", "--state-dir", str(tmp_path), "--output", "json"]
    assert main(["keys", "show", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"service": "iris", "primary": primary, "secondary": secondary}
    assert main(["keys", "regenerate", "--key", "primary", *flags]) == 0
    changed = json.loads(capsys.readouterr().out)
    assert changed == {"service": "iris", "primary": KeyStore(tmp_path).stored_keys("iris")["primary"]}
    assert changed["primary"] != primary


def test_keys_have_the_form_of_the_sdks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (primary, secondary) = KeyStore(tmp_path).keys_for(["iris"])["iris"]
    flags = ["iris", "--state-dir", str(tmp_path), "--output", "sdk"]
    assert main(["keys", "show", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"primaryKey": primary, "secondaryKey": secondary}
    assert main(["keys", "show", "--key", "secondary", *flags]) == 0
    assert json.loads(capsys.readouterr().out) == {"secondaryKey": secondary}


@pytest.mark.parametrize("command", ["names list", "names release iris", "keys prune"])
def test_command_for_a_cluster_needs_one(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    name = " ".join(command.split()[:2])
    assert error_line(capsys) == f"--cluster is missing (see azureml-fe {name} --help)"


def test_names_with_namespaces_are_refused_outside_of_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = (
        "service_names = 'namespace/name': must be name: outside of a Kubernetes cluster, services have no namespace"
    )
    services = 'services: {remote: {addresses: ["127.0.0.1:9001"], auth_enabled: false}}\n'
    file = tmp_path / "m.yaml"
    file.write_text(services + "router: {service_names: namespace/name}\n")
    for command in ("check", "local"):
        assert main([command, str(file)]) == 2
        assert error_line(capsys) == problem
    monkeypatch.setenv("AZUREML_FE_SERVICE_NAMES", "namespace/name")
    assert main(["local", "--peer", "127.0.0.1:9"]) == 2
    assert error_line(capsys) == problem
