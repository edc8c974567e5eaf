"""deploy/examples/: objects that Kubernetes accepts and the router reads as their comments say, a model that scores."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from router.cluster.kubernetes import objects
from router.cluster.kubernetes.models import Models
from router.services import Service
from tests.deploy.chart import ROOT
from tests.routers import Start

EXAMPLES = ROOT / "deploy" / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))


def things(name: str, kind: str) -> list[Any]:
    """Objects of an example as the API server would have them."""
    documents = yaml.safe_load_all((EXAMPLES / f"{name}.yaml").read_text())
    found = [document for document in documents if document["kind"] == kind]
    for number, each in enumerate(found):
        each["metadata"] |= {"namespace": "models", "uid": f"{name}-{number}"}
    return found


def known(name: str) -> tuple[Models, Service]:
    """What the router makes of the Deployments of an example, and their one service."""
    models = Models()
    for raw in things(name, "Deployment"):
        assert raw["metadata"]["labels"]["isazuremlapp"] == "true"
        models.deployment_changed(None, objects.deployment(raw))
    models.refresh()
    (service,) = models.services.values()
    return models, service


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_objects_fit_the_schemas_of_kubernetes(path: Path) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, "1.33", strict=True)


@pytest.mark.parametrize("name", ["iris", "traffic-split"])
def test_settings_are_right_and_pods_are_replicas(name: str) -> None:
    models, service = known(name)
    assert models.problems() == []
    for raw in things(name, "Deployment"):
        deployment = objects.deployment(raw)
        template = raw["spec"]["template"]
        assert deployment.selects(tuple(template["metadata"]["labels"].items()))
        assert template["metadata"]["labels"]["isazuremlapp"] == "true"
        (container,) = template["spec"]["containers"]
        assert {port["containerPort"] for port in container["ports"]} == {5001}
        assert "replicas" not in raw["spec"]
    for version in service.versions:
        grace = min(
            raw["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] for raw in things(name, "Deployment")
        )
        assert grace > version.scoring_timeout_ms / 1000


def test_iris_says_what_it_sets() -> None:
    _, service = known("iris")
    (version,) = service.versions
    assert service.name == "iris"
    assert service.auth_enabled
    assert (version.autoscale_min_replicas, version.autoscale_max_replicas) == (1, 4)
    assert (version.max_request_wait_time, version.scoring_timeout_ms) == (1000, 30_000)


def test_traffic_is_split_as_the_comment_says() -> None:
    _, service = known("traffic-split")
    assert {version.name: share for version, share in service.shares()} == {"blue": 90, "green": 10}


def test_keys_that_nobody_filled_in_are_none_and_filled_in_are_those_of_iris() -> None:
    (raw,) = things("keys", "Secret")
    assert raw["metadata"]["labels"]["isazuremlapp"] == "true"
    models, _ = known("iris")
    assert models.found["iris"].keys == ("models", raw["metadata"]["name"])
    empty = objects.secret({**raw, "data": dict.fromkeys(raw["stringData"], "")})
    assert (empty.primary_key, empty.secondary_key) == (None, None)
    filled = objects.secret({**raw, "data": {"primaryKey": "Zmlyc3Q=", "secondaryKey": "c2Vjb25k"}})
    assert (filled.primary_key, filled.secondary_key) == ("first", "second")


def test_the_model_scores(start: Start, tmp_path: Path) -> None:
    """The container's own command and environment, behind a router."""
    (config,) = things("iris", "ConfigMap")
    (deployment,) = things("iris", "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    (mount,) = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "script"]
    for name, text in config["data"].items():
        (tmp_path / name).write_text(text)
    words = [*container["command"], *container["args"]]
    words = [word.replace(mount, str(tmp_path)).replace("5001", "{port}") for word in words]
    environment = {each["name"]: each["value"].replace(mount, str(tmp_path)) for each in container["env"]}
    environment |= {"HOME": str(tmp_path), "AZUREML_MODEL_DIR": str(tmp_path)}
    command = ["sh", "-c", f"exec {shlex.join(words)}"]  # what a test of routers adds to the words is then the shell's
    service = {"command": command, "environment": environment, "auth_enabled": False, "num_replicas": 1}
    router = start({"iris": service})
    answer = router.score("iris", b'{"data": [[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]]}')
    assert (answer.status, json.loads(answer.body)) == (200, {"predictions": ["setosa", "virginica"]})
    assert router.score("iris", b'{"data": []}').status == 400
    assert router.score("iris", b"{").status == 400
