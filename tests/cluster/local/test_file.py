"""The local file: services, launches, inheritance among versions, router settings, and the line of each fault."""

from pathlib import Path

import pytest

from router.cluster.local.file import Launch, LocalConfig, load_local
from router.settings import load_settings
from router.values import SettingsError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "score.py").touch()
    return tmp_path


def load(folder: Path, text: str) -> LocalConfig:
    (folder / "m.yaml").write_text(text)
    return load_local(folder / "m.yaml")


def load_one(folder: Path, settings: str) -> Launch:
    """The launch of a service with one version that has these settings, in YAML's flow style."""
    return load(folder, f"services: {{iris: {{{settings}}}}}").launches["iris", "default"]


def fault(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(folder, text)
    return str(caught.value).removeprefix(f"{folder}/")


def fault_of_one(folder: Path, settings: str) -> str:
    return fault(folder, f"services:\n  iris: {{{settings}}}")


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


def test_documented_example(folder: Path) -> None:
    config = load(folder, DOCUMENTED)
    assert list(config.services) == ["iris", "resnet", "remote", "ab"]
    iris, resnet, remote, ab = config.services.values()
    assert iris.default_version.autoscale_max_replicas == 4
    assert (iris.primary_key, iris.secondary_key) == (None, None)
    assert (resnet.default_version.num_replicas, resnet.default_version.scoring_timeout_ms) == (2, 30_000)
    assert resnet.primary_key == "..."
    assert (remote.auth_enabled, remote.default_version.replica_max_concurrent_requests) == (False, 100)
    assert [(version.name, share) for version, share in ab.shares()] == [("blue", 90), ("green", 10)]
    assert config.launches == {
        ("iris", "default"): Launch(
            entry_script=folder / "score.py", readiness_path="/", folder=folder, environment={}
        ),
        ("resnet", "default"): Launch(
            command=("python", "serve.py", "--port", "{port}"), readiness_path="/ready", folder=folder, environment={}
        ),
        ("remote", "default"): Launch(
            addresses=(("127.0.0.1", 9001), ("::1", 9002)), readiness_path="/", folder=folder, environment={}
        ),
        ("ab", "blue"): Launch(command=("blue", "{port}"), readiness_path="/", folder=folder, environment={}),
        ("ab", "green"): Launch(command=("green", "{port}"), readiness_path="/", folder=folder, environment={}),
    }
    assert load_settings(environ={}, file=config.router).max_payload_bytes == 1024


def test_relative_paths_start_at_the_files_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(folder, "services: {iris: {entry_script: score.py}}\nrouter: {state_dir: state}")
    monkeypatch.chdir(folder.parent)
    config = load_local(Path(folder.name, "m.yaml"))
    assert config.launches["iris", "default"].entry_script == folder / "score.py"
    assert config.launches["iris", "default"].folder == folder
    assert load_settings(environ={}, file=config.router).state_dir == folder / "state"


def test_linked_file_has_the_folder_of_the_link(folder: Path) -> None:
    (folder / "real").mkdir()
    (folder / "real" / "m.yaml").write_text("services: {iris: {entry_script: score.py}}")
    (folder / "m.yaml").symlink_to(folder / "real" / "m.yaml")
    assert load_local(folder / "m.yaml").launches["iris", "default"].folder == folder


@pytest.mark.parametrize("state", ["/state", "~/state"])
def test_absolute_state_folder_stays(folder: Path, state: str) -> None:
    config = load(folder, f"services: {{iris: {{entry_script: score.py}}}}\nrouter: {{state_dir: {state}}}")
    assert config.router == {"state_dir": state}


# --- the ways to launch


def test_placeholders_are_filled_and_other_braces_stay(folder: Path) -> None:
    launch = load_one(folder, """command: [serve, "{host}:{port}", '{"a": 1}', "{name}"]""")
    assert launch.filled_command("::1", 81) == ("serve", "::1:81", '{"a": 1}', "{name}")


@pytest.mark.parametrize("command", ["[]", "[serve]", "'serve {port}'", "['', '{port}']", "[serve, [x]]", "[x, ~]", ""])
def test_what_is_no_command(folder: Path, command: str) -> None:
    message = fault_of_one(folder, f"command: {command}")
    assert message == (
        "m.yaml, line 2: service iris: command: "
        "must be a list of a program and its arguments, one of which holds {port}"
    )


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
def test_what_is_no_list_of_addresses(folder: Path, addresses: str) -> None:
    assert fault_of_one(folder, f"addresses: {addresses}").startswith("m.yaml, line 2: service iris: addresses = ")


@pytest.mark.parametrize("script", ["none.py", "."])
def test_entry_script_must_be_a_file(folder: Path, script: str) -> None:
    message = fault_of_one(folder, f"entry_script: {script}")
    assert message == (
        f"m.yaml, line 2: service iris: entry_script = '{script}': must be a file, there is none at {folder / script}"
    )


def test_exactly_one_way_to_launch(folder: Path) -> None:
    assert fault_of_one(folder, "num_replicas: 1") == (
        "m.yaml, line 2: service iris: launch: exactly one of entry_script, command and addresses must be given"
    )
    assert "entry_script and addresses: exactly one" in fault_of_one(
        folder, "addresses: ['a:1'], entry_script: score.py"
    )


@pytest.mark.parametrize("setting", ["num_replicas: 2", "autoscale_enabled: false", "autoscale_max_replicas: 3"])
def test_addresses_are_not_scaled(folder: Path, setting: str) -> None:
    assert "not allowed with addresses" in fault_of_one(folder, f"addresses: ['a:1'], {setting}")


def test_addresses_count_as_fixed_replicas(folder: Path) -> None:
    version = load(folder, "services: {iris: {addresses: ['a:1', 'b:1']}}").services["iris"].default_version
    assert (version.autoscale_enabled, version.num_replicas) == (False, 2)


def test_environment_is_text_and_stays_out_of_sight(folder: Path) -> None:
    launch = load_one(folder, "entry_script: score.py, environment: {THREADS: 01, TOKEN: s3cret}")
    assert launch.environment == {"THREADS": "01", "TOKEN": "s3cret"}
    assert "s3cret" not in repr(launch)
    for bad in ("{A-B: s3cret}", "{A: [s3cret]}", "s3cret", "{TOKEN: s3cret, B: }"):
        message = fault_of_one(folder, f"entry_script: score.py, environment: {bad}")
        assert "service iris: environment: must be" in message
        assert "s3cret" not in message
    assert "not allowed with addresses" in fault_of_one(folder, "addresses: ['a:1'], environment: {A: b}")


@pytest.mark.parametrize("path", ["ready", "'/a b'", "http://x/", "''"])
def test_readiness_path_must_be_a_path(folder: Path, path: str) -> None:
    assert "readiness_path = " in fault_of_one(folder, f"entry_script: score.py, readiness_path: {path}")


# --- versions


def test_versions_inherit_how_they_are_launched(folder: Path) -> None:
    config = load(
        folder,
        """
services:
  iris:
    entry_script: score.py
    readiness_path: /up
    environment: {A: service, B: service}
    versions:
      blue: {}
      green: {environment: {B: version}, readiness_path: /}
      red: {command: [x, "{port}"]}
      far: {addresses: ["a:1"]}
""",
    )
    blue, green, red, far = (config.launches["iris", name] for name in ("blue", "green", "red", "far"))
    assert (blue.entry_script, blue.readiness_path) == (folder / "score.py", "/up")
    assert blue.environment == {"A": "service", "B": "service"}
    assert (green.environment, green.readiness_path) == ({"A": "service", "B": "version"}, "/")
    assert (red.entry_script, red.command) == (None, ("x", "{port}"))
    assert (far.entry_script, far.addresses) == (None, (("a", 1),))


def test_version_with_addresses_drops_the_scaling_of_its_service(folder: Path) -> None:
    config = load(
        folder,
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
    ("above", "own"), [("num_replicas: 2", "{}"), ("gpu_cores: 0", "{num_replicas: 2}")], ids=["service", "version"]
)
def test_inherited_addresses_are_not_scaled_either(folder: Path, above: str, own: str) -> None:
    message = fault(folder, f"services:\n  iris:\n    addresses: ['a:1']\n    {above}\n    versions: {{a: {own}}}")
    assert "num_replicas = '2': not allowed with addresses" in message


# --- faults and their lines


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
def test_faults_say_where_and_what(folder: Path, text: str, message: str) -> None:
    assert fault(folder, text).startswith(message)


def test_empty_router_section_is_none(folder: Path) -> None:
    assert load(folder, "services: {a: {entry_script: score.py}}\nrouter:\n").router == {}


def test_compatibility_with_the_second_sdk_changes_defaults(folder: Path) -> None:
    text = "services: {iris: {entry_script: score.py}}\nrouter: {compatibility: v2}"
    version = load(folder, text).services["iris"].default_version
    assert (version.autoscale_max_replicas, version.scoring_timeout_ms) == (1, 5_000)
    config = load_local(folder / "m.yaml", environ={"AZUREML_FE_COMPATIBILITY": "v1"})
    assert config.services["iris"].default_version.autoscale_max_replicas == 10
