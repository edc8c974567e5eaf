"""The objects of Kubernetes that `azureml-fe convert` makes of Azure ML's files."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from router.azureml.conversion import check_settings, convert_files
from router.cluster.kubernetes.directory_config_map import MAX_BYTES, TooLargeError, config_map_files
from router.cluster.kubernetes.manifests import MISSING_IMAGE, Manifests, make_manifests
from router.config.yaml_document import dump_yaml

IMAGE = "example/iris:1"
CODE = {"code": "src", "scoring_script": "parts/score.py"}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "iris"
    (directory / "src" / "parts").mkdir(parents=True)
    (directory / "src" / "parts" / "score.py").write_text("def init(): pass\n")
    monkeypatch.chdir(directory)
    return directory


def made_of(*documents: dict[str, Any], image: str | None = None) -> Manifests:
    """Convert the files, and check the objects against the schemas of Kubernetes."""
    paths = [Path(f"{number}.json") for number in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(json.dumps(document))
    conversion = convert_files(paths)
    manifests = make_manifests(conversion, check_settings(conversion), image)
    for each in manifests.objects:
        kubernetes_validate.validate(each, "1.33", strict=True)
    return manifests


def deployment(image: str | None = None, **fields: Any) -> Manifests:
    return made_of({"name": "blue", "endpoint_name": "iris", **fields}, image=image)


def of_kind(manifests: Manifests, kind: str) -> list[Any]:
    return [each for each in manifests.objects if each["kind"] == kind]


def container(manifests: Manifests) -> Any:
    (found,) = of_kind(manifests, "Deployment")
    return found["spec"]["template"]["spec"]["containers"][0]


def test_names_labels_and_namespace() -> None:
    manifests = made_of({"computeType": "AKS", "namespace": "models", "keys": {"primaryKey": "k"}})
    (found,) = of_kind(manifests, "Deployment")
    (keys,) = of_kind(manifests, "Secret")
    assert (found["metadata"]["name"], found["metadata"]["namespace"]) == ("iris", "models")
    assert found["metadata"]["labels"] == {"isazuremlapp": "true", "azuremlappname": "iris"}
    assert found["spec"]["selector"]["matchLabels"] == {"azuremlappname": "iris"}
    assert "replicas" not in found["spec"]
    assert keys["metadata"] == {
        "name": "azureml-fe-keys-iris",
        "namespace": "models",
        "labels": {"isazuremlapp": "true", "azuremlappname": "iris"},
    }
    assert keys["stringData"] == {"primaryKey": "k"}


def test_annotations_have_the_settings_but_no_keys_and_no_probes() -> None:
    config = {"computeType": "AKS", "maxQueueWaitMs": 700, "keys": {"primaryKey": "k"}, "tags": {"team": "a b"}}
    probe = {"livenessProbeRequirements": {"periodSeconds": 7, "successThreshold": 2}}
    manifests = made_of(config | probe)
    (found,) = of_kind(manifests, "Deployment")
    assert found["metadata"]["annotations"] == {
        "azureml-fe/max-request-wait-time": "700",
        "azureml-fe/tags": '{"team": "a b"}',
    }
    assert container(manifests)["livenessProbe"] == {
        "httpGet": {"path": "/", "port": "http"},
        "initialDelaySeconds": 310,
        "periodSeconds": 7,
        "timeoutSeconds": 2,
        "failureThreshold": 3,
    }
    assert "Kubernetes allows only 1 for a liveness probe" in [loss.reason for loss in manifests.losses]


@pytest.mark.parametrize(
    ("fields", "image", "used", "lost"),
    [
        ({"environment": {"image": IMAGE}, "code_configuration": CODE}, None, IMAGE, set()),
        ({"environment": {"image": IMAGE}, "code_configuration": CODE}, "own:1", "own:1", set()),
        ({"environment": {"image": IMAGE, "conda_file": "c"}, "code_configuration": CODE}, None, IMAGE,
         {"environment.conda_file"}),
        ({"environment": {"image": IMAGE, "conda_file": "c"}, "code_configuration": CODE}, "own:1", "own:1", set()),
        ({"environment": "azureml:env:1", "code_configuration": CODE}, None, MISSING_IMAGE, {"environment"}),
        ({"code_configuration": CODE}, None, MISSING_IMAGE, {"code_configuration.scoring_script"}),
        ({}, None, MISSING_IMAGE, {"version blue"}),
        ({}, "own:1", "own:1", set()),
        (
            {"environment": {"image": IMAGE, "inference_config": {"scoring_route": {"path": "/p", "port": 80}}}},
            "own:1", IMAGE, set(),
        ),
    ],
)  # fmt: skip
def test_image(fields: dict[str, Any], image: str | None, used: str, lost: set[str]) -> None:
    manifests = deployment(image, **fields)
    assert container(manifests)["image"] == used
    assert {loss.key for loss in manifests.losses} == lost


def test_ports_and_probes_of_a_custom_container() -> None:
    routes = {
        "scoring_route": {"path": "/v1:predict", "port": 8501},
        "readiness_route": {"path": "/ready", "port": 8501},
        "liveness_route": {"path": "/live", "port": 8502},
    }
    manifests = deployment(environment={"image": IMAGE, "inference_config": routes})
    (found,) = of_kind(manifests, "Deployment")
    annotations = found["metadata"]["annotations"]
    assert annotations["azureml-fe/port"] == "8501"
    assert annotations["azureml-fe/scoring-path"] == "/v1:predict"
    used = container(manifests)
    assert used["ports"] == [{"name": "http", "containerPort": 8501}]
    assert used["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert used["livenessProbe"]["httpGet"] == {"path": "/live", "port": 8502}
    assert used["readinessProbe"]["failureThreshold"] == 30


def test_code_and_model_are_mounted(directory: Path) -> None:
    (directory / "weights").mkdir()
    (directory / "weights" / "model.bin").write_bytes(b"\xff")
    manifests = deployment(IMAGE, code_configuration=CODE, model={"name": "w", "version": 3, "path": "weights"})
    assert manifests.losses == ()
    code, model = of_kind(manifests, "ConfigMap")
    assert code["data"] == {"0-score.py": "def init(): pass\n"}
    assert model["binaryData"] == {"0-model.bin": "/w=="}
    (found,) = of_kind(manifests, "Deployment")
    volumes = {each["name"]: each["configMap"] for each in found["spec"]["template"]["spec"]["volumes"]}
    assert volumes["code"] == {"name": "iris-blue-code", "items": [{"key": "0-score.py", "path": "parts/score.py"}]}
    assert volumes["model"]["items"] == [{"key": "0-model.bin", "path": "weights/model.bin"}]
    assert {each["name"]: each["value"] for each in container(manifests)["env"]} == {
        "AML_APP_ROOT": "/var/azureml-app/code",
        "AZUREML_ENTRY_SCRIPT": "parts/score.py",
        "AZUREML_MODEL_DIR": "/var/azureml-app/azureml-models/w/3",
    }


def test_model_without_files_is_lost() -> None:
    manifests = deployment(IMAGE, model="azureml:w:3", model_mount_path="/models")
    (loss,) = manifests.losses
    assert loss.reason == "the model is in a workspace; download it, and mount a volume with it at /models"


def test_large_model_is_lost(directory: Path) -> None:
    (directory / "model.bin").write_bytes(b"\xff" * (MAX_BYTES + 1))
    manifests = deployment(IMAGE, model={"path": "model.bin"})
    (loss,) = manifests.losses
    assert loss.key == "model.path"
    assert "do not fit into a ConfigMap; put the files into the image or a volume" in loss.reason
    assert of_kind(manifests, "ConfigMap") == []


def test_environment_variables_that_may_be_secrets_are_in_a_secret() -> None:
    variables = {"GREETING": "hello $(NAME)", "STORAGE_CONNECTION_STRING": "a", "ApiKey": "b", "DB_PASSWORD": "c"}
    manifests = deployment(IMAGE, environment_variables=variables)
    (secret,) = of_kind(manifests, "Secret")
    assert secret["stringData"] == {"STORAGE_CONNECTION_STRING": "a", "ApiKey": "b", "DB_PASSWORD": "c"}
    (plain, *others) = container(manifests)["env"]
    assert plain == {"name": "GREETING", "value": "hello $$(NAME)"}
    assert [each["valueFrom"]["secretKeyRef"]["name"] for each in others] == ["iris-blue-environment"] * 3


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {"requests": {"cpu": "0.1", "memory": "0.5Gi"}}),
        ({"requests": {"cpu": "100m", "memory": "1Gi"}}, {"requests": {"cpu": "100m", "memory": "1Gi"}}),
        (
            {"requests": {"nvidia.com/gpu": "1", "cpu": "1"}, "limits": {"nvidia.com/gpu": "1"}},
            {"requests": {"cpu": "1"}, "limits": {"nvidia.com/gpu": "1"}},
        ),
    ],
)
def test_resources(resources: dict[str, Any], expected: dict[str, Any]) -> None:
    assert container(deployment(IMAGE, resources=resources))["resources"] == expected


def test_grace_period_is_longer_than_the_scoring_timeout() -> None:
    (found,) = of_kind(deployment(IMAGE, request_settings={"request_timeout_ms": 90_000}), "Deployment")
    assert found["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 105


def test_mlflow_model_is_served_by_mlflow(directory: Path) -> None:
    (directory / "m").mkdir()
    (directory / "m" / "MLmodel").write_text("flavors: {}\n")
    manifests = deployment(IMAGE, model={"name": "w", "version": 1, "path": "m"})
    used = container(manifests)
    assert used["command"][:5] == ["mlflow", "models", "serve", "--model-uri", "/var/azureml-app/azureml-models/w/1/m"]
    assert used["readinessProbe"]["httpGet"]["path"] == "/ping"


def test_objects_survive_yaml(directory: Path) -> None:
    """Code with tabs, trailing spaces, long lines and other scripts arrives unchanged."""
    code = "# tab\t é 花 \n" + "x = '" + "y" * 300 + "' \n\n\nprint('\\n')\n"
    (directory / "src" / "parts" / "score.py").write_text(code)
    (config_map,) = of_kind(deployment(IMAGE, code_configuration=CODE), "ConfigMap")
    assert yaml.safe_load(dump_yaml(config_map))["data"]["0-score.py"] == code


def test_hidden_and_special_files_and_byte_code_are_left_out(tmp_path: Path) -> None:
    for name in (".git/config", "__pycache__/a.pyc", ".env", "a b.py", "sub/a.py"):
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_text(name)
    os.mkfifo(tmp_path / "files" / "pipe.py")
    content, items = config_map_files(tmp_path / "files", tmp_path / "files")
    assert [each["path"] for each in items] == ["a b.py", "sub/a.py"]
    assert content == {"data": {"0-a_b.py": "a b.py", "1-a.py": "sub/a.py"}}


def test_binary_and_large_files(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x80")
    content, _ = config_map_files(tmp_path / "a.bin", tmp_path)
    assert base64.b64decode(content["binaryData"]["0-a.bin"]) == b"\x80"
    (tmp_path / "b.bin").write_bytes(b"\x80" * MAX_BYTES)
    with pytest.raises(TooLargeError):
        config_map_files(tmp_path, tmp_path)
