"""Files that cannot be converted: unreadable, unknown and contradictory ones. All faults are reported at once."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.azureml.conversion import check_settings, convert_files
from router.cluster.kubernetes.manifests import make_manifests
from router.config.schema import SettingsError

ENDPOINT = {"name": "iris", "auth_mode": "key"}
BLUE = {"name": "blue", "endpoint_name": "iris", "environment": {"image": "example/iris:1"}}


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors_of(files: dict[str, Any], name: str | None = None) -> list[str]:
    """Write the files into the working directory, and return the lines of the error of their conversion."""
    for file, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        Path(file).write_text(text if file.endswith(".json") or isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(SettingsError) as caught:
        convert_to_kubernetes([Path(file) for file in files], name)
    return str(caught.value).splitlines()


def convert_to_kubernetes(paths: list[Path], name: str | None) -> None:
    conversion = convert_files(paths, name)
    make_manifests(conversion, check_settings(conversion))


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("a.json", '{"computeType": "AKS",}', "a.json, line 1: file: is not JSON: "),
        ("a.json", '{\n"computeType": "AKS"\n "numReplicas": 1}', "a.json, line 3: file: is not JSON: "),
        ("a.json", "[" * 30 + "]" * 30, "a.json, line 1: file: must not be nested deeper than 20"),
        ("a.json", "[" * 200_000, "a.json: file: must not be nested deeper than 20"),
        ("a.json", '{"a": 1, "a": 2}', "a.json, line 1: file: has a twice"),
        ("a.yml", "name: [", "a.yml, line 1: file: is not YAML: "),
        ("a.yml", "name: {{ENDPOINT}}\nauth_mode: key\n", "a.yml, line 1: file: must have text for every name"),
        ("a.yml", "name: !!python/object:os.system x", "a.yml, line 1: file: must not use the tag"),
        ("a.yml", "", "a.yml: file: must be a file of Azure ML: "),
        ("a.yml", "just text", "a.yml: file: must be a file of Azure ML: "),
        ("a.yml", "services: {}", "a.yml: file: must be a file of Azure ML: "),
        ("a.yml", "kind: Deployment\nmetadata: {}", "a.yml: file: must be a file of Azure ML: "),
        ("a.json", {"computeType": "ACI"}, "a.json, line 1: computeType = 'ACI': must be AKS: "),
        ("a.json", {"computeType": "AKS", "autoScaler": 5}, "a.json, line 1: autoScaler: must be a mapping of keys"),
        ("a.json", {"computeType": "AKS", "numReplicas": [1]}, "a.json, line 1: numReplicas: must be a single value"),
        ("a.json", {"computeType": "AKS", "tags": ["a"]}, "a.json, line 1: tags: must be a mapping of keys"),
        (
            "a.yml",
            BLUE | {"code_configuration": {"code": "/subscriptions/a/codes/b", "scoring_script": "score.py"}},
            "a.yml, line 2: code_configuration.code = '/subscriptions/a/codes/b': is in the workspace; download the",
        ),
        (
            "a.yml",
            'name: a\nendpoint_name: b\nenvironment_variables:\n  A: "a"\n  "B C": secret\n',
            "a.yml, line 5: environment_variables.B C: must have a name of letters, digits, '_', '-' and '.', and no",
        ),
        (
            "a.yml",
            'name: a\nendpoint_name: b\nenvironment_variables: {A: "secret\\0"}\n',
            "a.yml, line 3: environment_variables.A: must not contain the character NUL",
        ),
        ("a.json", {"computeType": "AKS", "tags": {"a": {}}}, "a.json, line 1: tags.a: must be a single value"),
        ("a.yml", {"auth_mode": "key"}, "a.yml: name: is missing"),
        ("a.yml", BLUE | {"endpoint_name": None}, "a.yml: endpoint_name: is missing; --name gives the endpoint"),
    ],
)
def test_unusable_file(directory: Path, file: str, content: Any, error: str) -> None:
    lines = errors_of({file: content})
    assert len([line for line in lines if line.startswith(error)]) == 1, lines


def test_missing_and_special_files_are_rejected(directory: Path) -> None:
    os.mkfifo("pipe.yml")
    Path("directory.yml").mkdir()
    with pytest.raises(SettingsError) as caught:
        convert_files([Path("none.yml"), Path("pipe.yml"), Path("directory.yml")])
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "none.yml",
        "pipe.yml",
        "directory.yml",
    ]


def test_values_are_checked_although_the_files_have_other_faults(directory: Path) -> None:
    config = {"computeType": "AKS", "autoScaler": 5, "authEnabled": "maybe", "scoringTimeoutMs": 999999}
    keys = [line.split(": ")[1] for line in errors_of({"a.json": config}, "a")]
    assert sorted(keys) == ["authEnabled", "autoScaler", "scoringTimeoutMs"]


def test_deployment_that_may_be_in_an_unreadable_file_is_not_missing(directory: Path) -> None:
    endpoint = ENDPOINT | {"traffic": {"blue": 90, "green": 10}}
    (line,) = errors_of({"e.yml": endpoint, "b.yml": BLUE, "green.yml": "name: ["})
    assert line.startswith("green.yml, line 1: file: is not YAML")


def test_fault_of_the_traffic_is_reported_once(directory: Path) -> None:
    versions = {name: BLUE | {"name": name} for name in ("blue", "green", "red")}
    files = {f"{name}.yml": version for name, version in versions.items()}
    endpoint = ENDPOINT | {"traffic": dict.fromkeys(versions, 90)}
    (line,) = errors_of(files | {"e.yml": endpoint})
    assert "traffic = 270: the shares must add up to 100, or to 0" in line


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"authEnabled": True, "tokenAuthEnabled": True}, "tokenAuthEnabled: service a: token_auth_enabled = True"),
        ({"tokenAuthEnabled": True, "aadAuthEnabled": False}, "aadAuthEnabled: contradicts tokenAuthEnabled"),
        ({"numReplicas": 2, "autoScaler": {"autoscaleEnabled": True}}, "autoScaler.autoscaleEnabled: service a"),
        ({"autoScaler": {"autoscaleEnabled": False}}, "autoScaler.autoscaleEnabled: service a"),
        ({"autoScaler": {"minReplicas": 5, "maxReplicas": 2}}, "autoScaler.minReplicas: service a"),
        ({"gpuCores": 1, "containerResourceRequirements": {"gpu": 2}}, "gpu: contradicts gpuCores"),
        ({"containerResourceRequirements": {"cpu": 2, "cpuLimit": 1}}, "cpuLimit: service a"),
    ],
)
def test_contradictory_deployment_config(directory: Path, config: dict[str, Any], error: str) -> None:
    (line,) = errors_of({"a.json": {"computeType": "AKS"} | config}, "a")
    assert line.startswith("a.json, line 1: ")
    assert error in line


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"e.yml": ENDPOINT}, "e.yml, line 2: name = 'iris': no file has a deployment of this endpoint"),
        (
            {"e.yml": ENDPOINT, "b.yml": BLUE | {"endpoint_name": "iri"}},
            "b.yml, line 1: endpoint_name = 'iri': no file has this endpoint; given: iris",
        ),
        (
            {"e.yml": ENDPOINT, "f.yml": ENDPOINT, "b.yml": BLUE},
            "f.yml, line 2: name = 'iris': another file has an endpoint of this name",
        ),
        (
            {"b.yml": BLUE, "c.yml": BLUE},
            "c.yml, line 4: name = 'blue': another file has a deployment of this name",
        ),
        (
            {"e.yml": ENDPOINT | {"traffic": {"blue": 90, "green": 10}}, "b.yml": BLUE},
            "e.yml, line 5: traffic.green = '10': no file has this deployment; given: blue",
        ),
        (
            {"e.yml": ENDPOINT | {"traffic": {"blue": 90}}, "b.yml": BLUE},
            "e.yml, line 4: traffic = 90: the shares must add up to 100, or to 0",
        ),
        (
            {"e.yml": ENDPOINT | {"traffic": {"blue": "all"}}, "b.yml": BLUE},
            "e.yml, line 4: traffic.blue = 'all': must be a whole number from 0 to 100",
        ),
        (
            {"e.yml": ENDPOINT | {"auth_mode": "password"}, "b.yml": BLUE},
            "e.yml, line 1: auth_mode = 'password': must be key, aml_token or aad_token",
        ),
        (
            {"b.yml": BLUE | {"scale_settings": {"type": "default", "min_instances": 2}}},
            "b.yml, line 6: scale_settings.min_instances = '2': needs scale_settings.type: target_utilization",
        ),
        (
            {"b.yml": BLUE | {"scale_settings": {"type": "cpu"}}},
            "b.yml, line 6: scale_settings.type = 'cpu': must be default or target_utilization",
        ),
        (
            {"b.yml": BLUE | {"resources": {"requests": {"cpu": "two", "memory": "1 GB"}}}},
            "b.yml, line 7: resources.requests.cpu = 'two': must be a quantity of Kubernetes",
        ),
        (
            {"b.yml": BLUE | {"environment": {"inference_config": {"scoring_route": {"path": "/score"}}}}},
            "environment.inference_config.scoring_route: must have a path, and a port from 1 to 65535",
        ),
        (
            {"b.yml": BLUE | {"data_collector": {"collections": {}}}},
            "b.yml, line 1: data_collector: service iris, version blue: data_collector: collections must be a mapping",
        ),
        (
            {"b.yml": BLUE | {"code_configuration": {"code": "src", "scoring_script": "none.py"}}},
            "b.yml, line 3: code_configuration.scoring_script = 'none.py': must be readable: No such file or directory",
        ),
        (
            {"a.json": {"computeType": "AKS"}, "b.json": {"computeType": "AKS"}},
            "b.json: file: contradicts a.json, which is of the same kind; convert the services one by one",
        ),
    ],
)
def test_contradictory_files(directory: Path, files: dict[str, Any], error: str) -> None:
    lines = errors_of(files)
    assert len([line for line in lines if error in line]) == 1, lines


def test_name_of_several_services_is_rejected(directory: Path) -> None:
    files = {"a.yml": BLUE, "b.yml": BLUE | {"endpoint_name": "roses"}}
    assert errors_of(files, "both") == [
        "--name = 'both': allowed for one service only; the files declare iris, roses",
    ]


def test_all_faults_of_all_files_are_reported(directory: Path) -> None:
    lines = errors_of(
        {
            "a.json": {"computeType": "ACI", "numReplicas": {}},
            "b.json": "{",
            "c.yml": "unknown: file",
            "d.yml": ENDPOINT | {"auth_mode": "password", "traffic": {"blue": 300}},
            "e.yml": BLUE | {"scale_settings": {"type": "cpu"}, "resources": {"limits": {"memory": "much"}}},
        }
    )
    expected = ("b.json", "c.yml", "a.json", "a.json", "d.yml", "d.yml", "e.yml", "e.yml")
    assert sorted(line.partition(",")[0].partition(":")[0] for line in lines) == sorted(expected), lines


def test_errors_and_losses_show_no_secrets(directory: Path) -> None:
    config = {"computeType": "AKS", "keys": {"primaryKey": "a secret with spaces", "primary": "another-secret"}}
    (line,) = errors_of({"a.json": config}, "a")
    assert "keys.primaryKey: service a: primary_key: must be 1 to 256 visible ASCII characters" in line
    assert "secret" not in line.replace("must be", "")
    config["keys"] = {"primary": "another-secret"}
    Path("a.json").write_text(json.dumps(config))
    (loss,) = convert_files([Path("a.json")], "a").losses
    assert str(loss) == "a.json, line 1: keys.primary: Azure ML has no such key here; did you mean keys.primaryKey?"
