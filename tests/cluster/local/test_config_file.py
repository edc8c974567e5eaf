"""The local file: services, launch settings, inheritance between versions, router settings, and errors with lines."""

from pathlib import Path

import pytest

from router.cluster.local.config_file import LocalConfig
from router.cluster.local.launch import LaunchSettings
from router.cluster.local.service_files import ServiceFiles
from router.config.router import load_settings
from router.config.schema import SettingsError
from tests.cluster.local.helpers import launch_settings


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "score.py").touch()
    return tmp_path


def load(directory: Path, text: str) -> LocalConfig:
    (directory / "m.yaml").write_text(text)
    return ServiceFiles([directory / "m.yaml"]).load()


def load_launch(directory: Path, settings: str) -> LaunchSettings:
    """The launch settings of a service with one version and these settings, in YAML's flow style."""
    return load(directory, f"services: {{iris: {{{settings}}}}}").launches["iris", "default"]


def error_text(directory: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(directory, text)
    return str(caught.value).removeprefix(f"{directory}/")


def service_error_text(directory: Path, settings: str) -> str:
    return error_text(directory, f"services:\n  iris: {{{settings}}}")


DOCUMENTED = """
services:
  iris:
    entry_script: score.py
    autoscale_min_replicas: 1
    autoscale_max_replicas: 4
    autoscale_target_utilization: 70
  resnet:
    command: [python, serve.py, --port, "{port}"]
    readiness_path: /ready
    num_replicas: 2
    scoring_timeout_ms: 30000
    primary_key: "..."
  remote:
    addresses: ["127.0.0.1:9001", "[::1]:9002"]
    auth_enabled: false
    replica_max_concurrent_requests: 100
  ab:
    versions:
      blue:  {command: [blue, "{port}"], is_default: true}
      green: {command: [green, "{port}"], traffic_percentile: 10}
router:
  max_payload_bytes: 1024
"""


def test_documented_example_is_read(directory: Path) -> None:
    config = load(directory, DOCUMENTED)
    assert list(config.services) == ["iris", "resnet", "remote", "ab"]
    iris, resnet, remote, ab = config.services.values()
    assert iris.default_version.autoscale_max_replicas == 4
    assert (iris.primary_key, iris.secondary_key) == (None, None)
    assert (resnet.default_version.num_replicas, resnet.default_version.scoring_timeout_ms) == (2, 30_000)
    assert resnet.primary_key == "..."
    assert (remote.auth_enabled, remote.default_version.replica_max_concurrent_requests) == (False, 100)
    assert [(version.name, share) for version, share in ab.traffic_shares()] == [("blue", 90), ("green", 10)]
    assert config.launches == {
        ("iris", "default"): launch_settings(directory, entry_script=directory / "score.py"),
        ("resnet", "default"): launch_settings(
            directory, command=("python", "serve.py", "--port", "{port}"), readiness_path="/ready"
        ),
        ("remote", "default"): launch_settings(directory, addresses=(("127.0.0.1", 9001), ("::1", 9002))),
        ("ab", "blue"): launch_settings(directory, command=("blue", "{port}")),
        ("ab", "green"): launch_settings(directory, command=("green", "{port}")),
    }
    assert load_settings(environ={}, file=config.router).max_payload_bytes == 1024


def test_relative_paths_are_relative_to_the_file(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(directory, "services: {iris: {entry_script: score.py}}\nrouter: {state_dir: state}")
    monkeypatch.chdir(directory.parent)
    config = ServiceFiles([Path(directory.name, "m.yaml")]).load()
    assert config.launches["iris", "default"].entry_script == directory / "score.py"
    assert config.launches["iris", "default"].directory == directory
    assert load_settings(environ={}, file=config.router).state_dir == directory / "state"


def test_linked_file_uses_the_directory_of_the_link(directory: Path) -> None:
    (directory / "real").mkdir()
    (directory / "real" / "m.yaml").write_text("services: {iris: {entry_script: score.py}}")
    (directory / "m.yaml").symlink_to(directory / "real" / "m.yaml")
    assert ServiceFiles([directory / "m.yaml"]).load().launches["iris", "default"].directory == directory


@pytest.mark.parametrize("state", ["/state", "~/state"])
def test_absolute_state_dir_is_kept(directory: Path, state: str) -> None:
    config = load(directory, f"services: {{iris: {{entry_script: score.py}}}}\nrouter: {{state_dir: {state}}}")
    assert config.router == {"state_dir": state}


# --- launch methods


def test_placeholders_are_replaced_and_other_braces_kept(directory: Path) -> None:
    launch = load_launch(directory, """command: [serve, "{host}:{port}", '{"a": 1}', "{name}"]""")
    assert launch.command_for("::1", 81) == ("serve", "::1:81", '{"a": 1}', "{name}")


@pytest.mark.parametrize("command", ["[]", "'serve {port}'", "['', '{port}']", "[serve, [x]]", "[x, ~]", ""])
def test_invalid_command_is_rejected(directory: Path, command: str) -> None:
    message = service_error_text(directory, f"command: {command}")
    assert message == (
        "m.yaml, line 2: service iris: command: "
        "must be a list of an executable and its arguments, with {port} in one of them or in a value of environment"
    )


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("[serve]", "one of its words or a value of environment must contain it"),
        ("[serve, '{host}:80', '{x}']", "one of its words or a value of environment must contain it"),
        ("[serve, --port, '{prt}']", "did you mean {port} instead of {prt}?"),
        ("[serve, '{host}:{PORT}']", "did you mean {port} instead of {PORT}?"),
        ("[serve], environment: {PORT: '{porrt}'}", "did you mean {port} instead of {porrt}?"),
    ],
)
def test_command_without_port_is_rejected(directory: Path, command: str, hint: str) -> None:
    message = service_error_text(directory, f"command: {command}")
    assert message == f"m.yaml, line 2: service iris: command: has no {{port}}; {hint}"


def test_all_errors_of_launch_settings_are_reported_in_the_order_of_lines(directory: Path) -> None:
    text = """services:
  b:
    readiness_path: healthz
    command: [serve, "{prt}"]
    environment: {A: b}
    liveness_path: livez
    python: python3
  a:
    readiness_path: healthz
    environment: {A: [1]}
  c: {num_replicas: x, addresses: ["a:1"], environment: {A: b}, python: python3}
"""
    with pytest.raises(SettingsError) as raised:
        load(directory, text)
    found = [(each.where.rpartition("line ")[2], each.setting) for each in raised.value.errors]
    assert found[:4] == [
        ("3: service b", "readiness_path"), ("4: service b", "command"), ("6: service b", "liveness_path"),
        ("7: service b", "python"),
    ]  # fmt: skip
    assert found[4:7] == [
        ("8: service a", "launch"),
        ("9: service a", "readiness_path"),
        ("10: service a", "environment"),
    ]
    assert {setting for _, setting in found[7:]} == {"num_replicas", "environment", "python"}


@pytest.mark.parametrize(
    "addresses",
    [
        "[]",
        "''",
        "[a]",
        "['a:0']",
        "['a:65536']",
        "['a:1', 'a:1']",
        "['a:1', 'a:01']",
        "['a b:1']",
        "['::1:80']",
        "[1]",
    ],
)
def test_invalid_addresses_are_rejected(directory: Path, addresses: str) -> None:
    assert service_error_text(directory, f"addresses: {addresses}").startswith(
        "m.yaml, line 2: service iris: addresses = "
    )


@pytest.mark.parametrize("script", ["none.py", "."])
def test_entry_script_must_be_a_file(directory: Path, script: str) -> None:
    message = service_error_text(directory, f"entry_script: {script}")
    problem = f"must be a file; there is none at {directory / script}"
    assert message == f"m.yaml, line 2: service iris: entry_script = '{script}': {problem}"


def test_exactly_one_launch_method_is_required(directory: Path) -> None:
    assert service_error_text(directory, "num_replicas: 1") == (
        "m.yaml, line 2: service iris: launch: exactly one of entry_script, command and addresses must be given"
    )
    assert "entry_script and addresses: exactly one" in service_error_text(
        directory, "addresses: ['a:1'], entry_script: score.py"
    )


@pytest.mark.parametrize("setting", ["num_replicas: 2", "autoscale_enabled: false", "autoscale_max_replicas: 3"])
def test_addresses_are_not_scaled(directory: Path, setting: str) -> None:
    assert "not allowed with addresses" in service_error_text(directory, f"addresses: ['a:1'], {setting}")


def test_addresses_count_as_fixed_replicas(directory: Path) -> None:
    version = load(directory, "services: {iris: {addresses: ['a:1', 'b:1']}}").services["iris"].default_version
    assert (version.autoscale_enabled, version.num_replicas) == (False, 2)


def test_environment_is_text_and_never_shown(directory: Path) -> None:
    launch = load_launch(directory, "entry_script: score.py, environment: {THREADS: 01, TOKEN: s3cret}")
    assert launch.environment == {"THREADS": "01", "TOKEN": "s3cret"}
    assert "s3cret" not in repr(launch)
    for bad in ("{A-B: s3cret}", "{A: [s3cret]}", "s3cret", "{TOKEN: s3cret, B: }"):
        message = service_error_text(directory, f"entry_script: score.py, environment: {bad}")
        assert "service iris: environment: must be" in message
        assert "s3cret" not in message
    assert "not allowed with addresses" in service_error_text(directory, "addresses: ['a:1'], environment: {A: b}")


@pytest.mark.parametrize(
    "environment", ["{PORT: '{port}'}", "{BIND: '{host}:{port}', A: b}", "{URL: 'http://0.0.0.0:{port}/'}"]
)
def test_command_needs_no_port_if_the_environment_has_it(directory: Path, environment: str) -> None:
    assert load_launch(directory, f"command: [serve], environment: {environment}").command == ("serve",)
    config = load(
        directory,
        f"services: {{iris: {{environment: {environment}, versions: {{a: {{command: [x], environment: {{B: c}}}}}}}}}}",
    )
    assert config.launches["iris", "a"].command == ("x",)
    assert "has no {port}" in service_error_text(directory, "command: [serve], environment: {PORT: '80'}")


def test_placeholders_in_the_environment_are_replaced(directory: Path) -> None:
    text = """{BIND: "{host}:{port}", JSON: '{"a": {}}', NAME: "{name}", N: "{port}{port}"}"""
    environment = load_launch(directory, f"entry_script: score.py, environment: {text}").environment_for("::1", 81)
    assert environment == {"BIND": "::1:81", "JSON": '{"a": {}}', "NAME": "{name}", "N": "8181"}


def test_python_is_for_entry_scripts_only(directory: Path) -> None:
    assert load_launch(directory, "entry_script: score.py").python is None
    assert load_launch(directory, "entry_script: score.py, python: venv/bin/python").python == "venv/bin/python"
    for other in ("command: [x, '{port}']", "addresses: ['a:1']"):
        assert "iris: python: not allowed with" in service_error_text(directory, f"{other}, python: python3")
    assert "python = ''" in service_error_text(directory, "entry_script: score.py, python: ''")
    config = load(
        directory,
        "services: {iris: {python: py3, versions: {a: {entry_script: score.py}, b: {command: [x, '{port}']}, "
        "c: {entry_script: score.py, python: /py4}}}}",
    )
    assert [config.launches["iris", name].python for name in "abc"] == ["py3", None, "/py4"]


@pytest.mark.parametrize("name", ["readiness_path", "liveness_path"])
@pytest.mark.parametrize("path", ["ready", "'/a b'", "http://x/", "''"])
def test_path_of_a_probe_must_be_a_path(directory: Path, name: str, path: str) -> None:
    assert f"{name} = " in service_error_text(directory, f"entry_script: score.py, {name}: {path}")


# --- versions


def test_versions_inherit_the_launch_settings_of_their_service(directory: Path) -> None:
    config = load(
        directory,
        """
services:
  iris:
    entry_script: score.py
    readiness_path: /up
    environment: {A: service, B: service}
    versions:
      blue: {liveness_path: /live}
      green: {environment: {B: version}, readiness_path: /}
      red: {command: [x, "{port}"]}
      far: {addresses: ["a:1"]}
""",
    )
    blue, green, red, far = (config.launches["iris", name] for name in ("blue", "green", "red", "far"))
    assert (blue.entry_script, blue.readiness_path, blue.liveness_path) == (directory / "score.py", "/up", "/live")
    assert blue.environment == {"A": "service", "B": "service"}
    assert (green.environment, green.readiness_path) == ({"A": "service", "B": "version"}, "/")
    assert (red.entry_script, red.command) == (None, ("x", "{port}"))
    assert (far.entry_script, far.addresses) == (None, (("a", 1),))


def test_version_with_addresses_does_not_inherit_autoscaling(directory: Path) -> None:
    config = load(
        directory,
        """
services:
  iris:
    autoscale_max_replicas: 3
    versions:
      near: {entry_script: score.py}
      far: {addresses: ["a:1"]}
""",
    )
    near, far = config.services["iris"].versions
    assert (near.autoscale_enabled, near.autoscale_max_replicas) == (True, 3)
    assert (far.autoscale_enabled, far.num_replicas) == (False, 1)


@pytest.mark.parametrize(
    ("service", "version"),
    [("num_replicas: 2", "{}"), ("gpu_cores: 0", "{num_replicas: 2}")],
    ids=["service", "version"],
)
def test_inherited_addresses_are_not_scaled(directory: Path, service: str, version: str) -> None:
    message = error_text(
        directory, f"services:\n  iris:\n    addresses: ['a:1']\n    {service}\n    versions: {{a: {version}}}"
    )
    assert "num_replicas = '2': not allowed with addresses" in message


# --- errors and their lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "m.yaml: services: must be a mapping of at least one service name"),
        ("[]", "m.yaml: services: must be a mapping"),
        ("services:\n", "m.yaml, line 1: services: must be a mapping"),
        ("services: {}\n", "m.yaml, line 1: services: must be a mapping"),
        ("service: {}\n", "m.yaml, line 1: service: no such setting; did you mean services?"),
        ("services:\n  iris:\n", "m.yaml, line 2: service iris: service: must be a mapping"),
        ("services:\n  Iris: {}\n", "m.yaml, line 2: service name = 'Iris': must be"),
        (
            "services:\n  iris:\n    entry_script: score.py\n    cpu_cores: 1_0\n",
            "m.yaml, line 4: service iris: cpu_cores = '1_0': must be a number above 0 (cores)",
        ),
        (
            "services:\n  iris:\n    entry_scrpt: score.py\n",
            "m.yaml, line 3: service iris: entry_scrpt: no such setting; did you mean entry_script?",
        ),
        (
            "services:\n  iris:\n    versions:\n      a: {entry_script: score.py}\n      b:\n        gpu_cores: no\n",
            "m.yaml, line 6: service iris, version b: gpu_cores = 'no': must be a whole number, at least 0 (GPUs)",
        ),
        (
            "services:\n  iris:\n    versions:\n      a: {entry_script: score.py}\n      b: {}\n",
            "m.yaml, line 5: service iris, version b: launch: exactly one of",
        ),
        ("services:\n  iris:\n    versions: x\n", "m.yaml, line 3: service iris: versions: must be a mapping"),
        ("services:\n  iris:\n    versions: {a: }\n", "m.yaml, line 3: service iris, version a: version: must be"),
        (
            "services: {a: {entry_script: score.py}}\nrouter:\n  port: x\n",
            "m.yaml, line 3: router: port = 'x': must be",
        ),
        ("services: {a: {entry_script: score.py}}\nrouter:\n  prot: 1\n", "m.yaml, line 3: router: prot: no such"),
        ("services: {a: {entry_script: score.py}}\nrouter: 1\n", "m.yaml, line 2: router: must be a mapping"),
        ("services:\n  iris: {}\n  iris: {}\n", "m.yaml, line 3: file: has iris twice, also on line 2"),
    ],
)
def test_errors_have_line_setting_and_rule(directory: Path, text: str, message: str) -> None:
    lines = error_text(directory, text).replace(f"{directory}/", "").splitlines()
    assert any(line.startswith(message) for line in lines)


def test_empty_router_section_is_allowed(directory: Path) -> None:
    assert load(directory, "services: {a: {entry_script: score.py}}\nrouter:\n").router == {}


def test_compatibility_v2_changes_the_defaults_of_services(directory: Path) -> None:
    text = "services: {iris: {entry_script: score.py}}\nrouter: {compatibility: v2}"
    version = load(directory, text).services["iris"].default_version
    assert (version.autoscale_max_replicas, version.scoring_timeout_ms) == (1, 5_000)
    config = ServiceFiles([directory / "m.yaml"]).load(environ={"AZUREML_FE_COMPATIBILITY": "v1"})
    assert config.services["iris"].default_version.autoscale_max_replicas == 10


@pytest.mark.parametrize(
    ("settings", "cancellation"),
    [
        ("entry_script: score.py", "none"),
        ("entry_script: score.py, cancellation: on_close", "on_close"),
        ("command: [x, '{port}']", "unknown"),
        ("addresses: ['127.0.0.1:9001']", "unknown"),
        ("entry_script: score.py, versions: {a: {}}", "none"),
        ("entry_script: score.py, cancellation: unknown, versions: {a: {}}", "unknown"),
        ("entry_script: score.py, versions: {a: {command: [x, '{port}']}}", "unknown"),
        ("command: [x, '{port}'], versions: {a: {entry_script: score.py}}", "none"),
    ],
)
def test_entry_scripts_are_known_to_go_on_with_abandoned_requests(
    directory: Path, settings: str, cancellation: str
) -> None:
    service = load(directory, f"services: {{iris: {{{settings}}}}}").services["iris"]
    assert service.default_version.cancellation == cancellation
