"""`check FILE` on the commands, certificates and addresses of a file."""

import json
import socket
import sys
from pathlib import Path

import pytest

from router.cli.main import main


def check(directory: Path, text: str) -> int:
    file = directory / "f.yaml"
    file.write_text(text)
    return main(["check", str(file)])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    output = capsys.readouterr()
    assert output.err.startswith("azureml-fe: ")
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize("executable", ["no-such-program", "./m.py", "/no/such/program", "."])
def test_command_that_cannot_be_run_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], executable: str
) -> None:
    (tmp_path / "m.py").touch()  # not executable
    assert check(tmp_path, f"services: {{m: {{command: [{executable}, '{{port}}']}}}}") == 2
    error = error_line(capsys)
    assert f"service m: command = '{executable}': must be an executable" in error


@pytest.mark.parametrize("executable", ["python", "sh", "./m.py", sys.executable])
def test_command_that_can_be_run(tmp_path: Path, executable: str) -> None:
    (tmp_path / "m.py").touch(0o755)
    assert check(tmp_path, f"services: {{m: {{command: [{executable}, '{{port}}']}}}}") == 0


@pytest.mark.parametrize("executable", ["python", "python3"])
def test_missing_script_of_a_command_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], executable: str
) -> None:
    text = f"services: {{m: {{command: [{executable}, SCRIPT, '{{port}}']}}}}"
    assert check(tmp_path, text.replace("SCRIPT", "serve.py")) == 2
    problem = f"must name a script that exists; there is none at {tmp_path / 'serve.py'}"
    assert f"line 1: service m: command = 'serve.py': {problem}" in error_line(capsys)
    (tmp_path / "serve.py").touch()
    for given in ("serve.py", str(tmp_path / "serve.py"), "-m", "'{host}.py'"):
        assert check(tmp_path, text.replace("SCRIPT", given)) == 0


def test_executable_is_found_with_the_path_of_the_replicas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "serve-it").touch(0o755)
    service = f"{{command: [serve-it, '{{port}}'], environment: {{PATH: '{tmp_path}'}}}}"
    assert check(tmp_path, f"services: {{m: {service}}}") == 0
    assert check(tmp_path, f"services: {{m: {service.replace(str(tmp_path), '/none')}}}") == 2


LONG, OTHER = "k7Qm-2ZpX9wLr4TbV8", "N3yHs-6DcF1jUa5EgW0"


@pytest.mark.parametrize(
    ("services", "warnings"),
    [
        ({"a": (LONG, OTHER), "b": ("", "")}, []),
        ({"a": ("x", OTHER)}, ["service a: primary_key has fewer than 16 characters, so it can be guessed"]),
        ({"a": ("", LONG[:15])}, ["service a: secondary_key has fewer than 16 characters, so it can be guessed"]),
        ({"a": (LONG, LONG)}, ["service a: both keys are equal, so clients cannot move from one to the other"]),
        (
            {"a": (LONG, ""), "b": (OTHER, LONG), "c": ("", OTHER)},
            [
                "services a, b: have a key in common, so a client of one can use the others",
                "services b, c: have a key in common, so a client of one can use the others",
            ],
        ),
    ],
)
def test_weak_and_shared_keys_are_warnings_that_show_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], services: dict[str, tuple[str, str]], warnings: list[str]
) -> None:
    sections = {
        name: {"command": ["sh", "{port}"]}
        | {setting: key for setting, key in zip(("primary_key", "secondary_key"), keys, strict=True) if key}
        for name, keys in services.items()
    }
    assert check(tmp_path, json.dumps({"services": sections})) == 0
    output = capsys.readouterr()
    assert sorted(output.err.splitlines()) == sorted(f"azureml-fe: {warning}" for warning in warnings)
    assert LONG not in output.err + output.out


def test_keys_without_authentication_are_no_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "services: {m: {command: [sh, '{port}'], auth_enabled: false, primary_key: x}}") == 0
    assert capsys.readouterr().err == ""


REMOTE = "services: {m: {addresses: ['127.0.0.1:1'], auth_enabled: false}}\n"


@pytest.mark.parametrize(
    ("router", "expected"),
    [
        ("host: 0.0.0.0", "host = '0.0.0.0': is reachable from outside: set tls_cert_file and tls_key_file, or"),
        ("tls_cert_file: none.pem", "tls_key_file"),
        ("{tls_cert_file: none.pem, tls_key_file: none.pem}", "none.pem"),
        ("{peer_tls_cert_file: none.pem, peer_tls_key_file: none.pem}", "peer_tls_ca_file"),
    ],
)
def test_router_settings_that_prevent_the_start_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], router: str, expected: str
) -> None:
    section = router if router.startswith("{") else f"{{{router}}}"
    assert check(tmp_path, f"{REMOTE}router: {section}") == 2
    assert expected in error_line(capsys)


def test_address_that_does_not_respond_is_reported_but_not_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert check(tmp_path, f"services: {{m: {{addresses: {json.dumps([address])}, auth_enabled: false}}}}") == 0
    assert f"service m, version default: {address} does not respond to GET / now: Connection refused" in error_line(
        capsys
    )


ALL_FAULTS = """\
services:
  iris:
    entry_script: missing.py
    max_replicas: 4
    autoscale_target_utilization: 170
    port: 80
  ab:
    versions:
      blue: {command: [sh, "{port}"], is_default: true, maxQueueWaitMs: 4}
      green: {command: [sh, "{port}"], autoscale_min_replicas: 20, cpu_cores: 2, cpu_cores_limit: 1}
  Bad: {command: [sh, "{port}"]}
router:
  portt: 80
  admin_port: 99999
  scoring_timeout_ms: 4
token_issuers:
  corp: {audience: [x], isuer: y}
servces: {}
"""


def test_all_faults_of_a_file_are_found_with_their_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, ALL_FAULTS) == 2
    lines = capsys.readouterr().err.splitlines()
    expected = {
        3: "service iris: entry_script = 'missing.py': must be a file",
        4: "service iris: max_replicas: no such setting; did you mean autoscale_max_replicas?",
        5: "service iris: autoscale_target_utilization = '170': must be a whole number from 1 to 100 (percent)",
        6: "service iris: port: no such setting here; it belongs to the section router",
        9: "service ab, version blue: maxQueueWaitMs: no such setting; did you mean max_request_wait_time?",
        11: "service name = 'Bad': must be 1 to 63 of",
        13: "router: portt: no such setting; did you mean port?",
        14: "router: admin_port = '99999': must be a whole number from 0 to 65535",
        15: "router: scoring_timeout_ms: no such setting here; it belongs to a service",
        17: "token issuer corp: isuer: no such setting; did you mean issuer?",
        18: "servces: no such setting; did you mean services?",
    }
    for number, text in expected.items():
        assert sum(f"f.yaml, line {number}: {text}" in line for line in lines) == 1, (number, lines)
    (scaling,) = [line for line in lines if "autoscale_min_replicas = 20" in line]
    (limit,) = [line for line in lines if "cpu_cores_limit = 1.0: must be at least cpu_cores" in line]
    assert "line 10: service ab, version green" in scaling
    assert "line 10: service ab, version green" in limit
    assert len(lines) == len(expected) + 2
    assert all(line.startswith("azureml-fe: ") for line in lines)


def test_faults_of_programs_and_of_the_router_are_found_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "score.py").write_text("def init(:\n    pass\n")
    text = """
services:
  iris: {entry_script: score.py}
  other: {entry_script: score.py, python: PYTHON}
  ab: {command: [nosuchprogram, "{port}"]}
router:
  host: 0.0.0.0
  port: 8080
  admin_port: 9090
"""
    assert check(tmp_path, text.replace("PYTHON", sys.executable)) == 2
    lines = [line.partition("f.yaml, line ")[2] for line in capsys.readouterr().err.splitlines()]
    script = tmp_path / "score.py"
    assert lines[0] == f"3: service iris: entry_script = '{script}': does not compile: invalid syntax (line 1)"
    assert lines[1] == f"4: service other: entry_script = '{script}': does not compile: invalid syntax (line 1)"
    assert lines[2].startswith("5: service ab: command = 'nosuchprogram': must be an executable")
    assert lines[3].startswith("7: router: host = '0.0.0.0': is reachable from outside")
    assert len(lines) == 4


def test_rule_between_router_settings_has_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, REMOTE + "router:\n  admin_port: 8080\n") == 2
    assert "f.yaml, line 3: router: admin_port = 8080: must differ from port" in error_line(capsys)


def test_traces_need_their_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    assert check(tmp_path, REMOTE + "router: {traces: otlp}") == 2
    assert "line 2: router: traces = 'otlp': needs the extra: in the checkout: pip install '.[otel]'" in error_line(
        capsys
    )


def test_entry_scripts_need_their_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "score.py").touch()
    assert check(tmp_path, "services: {iris: {entry_script: score.py}}") == 2
    package = "azureml-inference-server-http"
    assert (
        error_line(capsys)
        .rstrip()
        .endswith(f": needs {package}: in the checkout: pip install '.[example]', or: pip install {package}")
    )


def test_percentile_of_the_default_version_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = "{a: {command: [sh, '{port}'], traffic_percentile: 20}, b: {command: [sh, '{port}']}}"
    assert check(tmp_path, f"services: {{ab: {{versions: {versions}}}}}") == 0
    assert capsys.readouterr().err.startswith(
        "azureml-fe: service ab, version a: traffic_percentile has no effect, as this is the default version"
    )


def test_json_has_the_faults_as_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.yaml").write_text("services: {m: {command: [sh, '{port}'], num_replicas: x, primary_key: ''}}")
    assert main(["check", str(tmp_path / "f.yaml"), "--output", "json"]) == 2
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [(each["setting"], each["value"]) for each in errors] == [("num_replicas", "x"), ("primary_key", None)]
    assert all(each["where"].endswith("f.yaml, line 1: service m") for each in errors)
    assert errors[0]["problem"] == "must be a whole number, at least 0 (replicas)"
