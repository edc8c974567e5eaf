"""The objects in deploy/examples/ are valid, have the settings that their comments describe, and the model scores."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from router.cluster.kubernetes.parsing import parse_deployment, parse_secret
from router.cluster.kubernetes.service_registry import ServiceRegistry
from router.model.services import Service
from tests.deploy.chart import ROOT
from tests.routers import StartRouter

EXAMPLES = ROOT / "deploy" / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def objects(name: str, kind: str) -> list[Any]:
    """Return the objects of an example with metadata as from the API server."""
    documents = yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text())
    selected = [document for document in documents if document["kind"] == kind]
    for number, each in enumerate(selected):
        each["metadata"] |= {"namespace": "models", "uid": f"{name}-{number}"}
    return selected


def parsed(name: str) -> tuple[ServiceRegistry, Service]:
    """Return the router's registry with the Deployments of an example, and their only service."""
    registry = ServiceRegistry()
    for raw in objects(name, "Deployment"):
        assert raw["metadata"]["labels"]["isazuremlapp"] == "true"
        registry.on_deployment_changed(None, parse_deployment(raw))
    registry.refresh()
    (service,) = registry.services.values()
    return registry, service


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_objects_fit_the_schemas_of_kubernetes(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("name", ["iris", "traffic-split"])
def test_examples_have_valid_settings_and_pods(name: str) -> None:
    registry, service = parsed(name)
    assert registry.problems() == []
    for raw in objects(name, "Deployment"):
        deployment = parse_deployment(raw)
        template = raw["spec"]["template"]
        assert deployment.selects(tuple(template["metadata"]["labels"].items()))
        assert template["metadata"]["labels"]["isazuremlapp"] == "true"
        (container,) = template["spec"]["containers"]
        assert {port["containerPort"] for port in container["ports"]} == {5001}
        assert "replicas" not in raw["spec"]
    for version in service.versions:
        grace = min(
            raw["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] for raw in objects(name, "Deployment")
        )
        assert grace > version.scoring_timeout_ms / 1000


def test_iris_settings() -> None:
    _, service = parsed("iris")
    (version,) = service.versions
    assert service.name == "iris"
    assert service.auth_enabled
    assert (version.autoscale_min_replicas, version.autoscale_max_replicas) == (1, 4)
    assert (version.max_request_wait_time, version.scoring_timeout_ms) == (1000, 30_000)


def test_traffic_split_shares() -> None:
    _, service = parsed("traffic-split")
    assert {version.name: share for version, share in service.traffic_shares()} == {"blue": 90, "green": 10}


def test_keys_example() -> None:
    (raw,) = objects("keys", "Secret")
    assert raw["metadata"]["labels"]["isazuremlapp"] == "true"
    registry, _ = parsed("iris")
    assert registry.resolved["iris"].secret == ("models", raw["metadata"]["name"])
    empty = parse_secret({**raw, "data": dict.fromkeys(raw["stringData"], "")})
    assert (empty.primary_key, empty.secondary_key) == (None, None)
    filled = parse_secret({**raw, "data": {"primaryKey": "Zmlyc3Q=", "secondaryKey": "c2Vjb25k"}})
    assert (filled.primary_key, filled.secondary_key) == ("first", "second")


def test_example_model_scores(start: StartRouter, tmp_path: Path) -> None:
    """Runs the container's command with its environment, behind a router."""
    (config,) = objects("iris", "ConfigMap")
    (deployment,) = objects("iris", "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (mount,) = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "script"]
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    arguments = [*container["command"], *container["args"]]
    arguments = [argument.replace(mount, str(tmp_path)).replace("5001", "{port}") for argument in arguments]
    environment = {each["name"]: each["value"].replace(mount, str(tmp_path)) for each in container["env"]}
    environment |= {"HOME": str(tmp_path), "AZUREML_MODEL_DIR": str(tmp_path)}
    command = [
        "sh",
        "-c",
        f"exec {shlex.join(arguments)}",
    ]  # the test router appends an argument, which the shell ignores
    service = {"command": command, "environment": environment, "auth_enabled": False, "num_replicas": 1}
    router = start({"iris": service})
    response = router.score("iris", b'{"data": [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]]}')
    assert (response.status, json.loads(response.body)) == (200, {"predictions": ["setosa", "virginica"]})
    assert router.score("iris", b'{"data": []}').status == 400
    assert router.score("iris", b"{").status == 400
