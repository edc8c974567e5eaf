"""Published files of Azure ML: each converts to both targets, and no key of them is forgotten."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from router.azureml.conversion import check_settings, convert_files
from router.cluster.kubernetes.manifests import make_manifests
from router.cluster.kubernetes.parsing import parse_deployment
from router.cluster.kubernetes.service_registry import ServiceRegistry
from router.cluster.local.config_file import parse_local_config
from router.cluster.local.declared_services import local_document
from router.config.schema import SettingsError
from router.config.yaml_document import dump_yaml
from tests.azureml.published import CASES, document_of, files_of, leaves

# Keys without any effect: they say where a file belongs, and how Azure stores it.
WITHOUT_EFFECT = {
    "$schema",
    "type",
    "compute",
    "compute_target_name",
    "runtime",
    "environment.name",
    "environment.version",
    "environment.docker.enabled",
    "environment.docker.sharedVolumes",
}
# An entry script loads its model, whatever the format.
WITHOUT_EFFECT_IN = {"v2-mlflow-script": {"model.type"}}

Outcome = tuple[Any, ...]


def outcome(paths: list[Path]) -> Outcome:
    """Return the results for both targets, with the losses but without their lines. Errors are a result, too."""
    try:
        conversion = convert_files(paths)
        local = local_document(conversion, "services.yaml")
        manifests = make_manifests(conversion, check_settings(conversion))
    except SettingsError as error:
        return (str(error),)
    losses = {(loss.key, loss.reason) for loss in (*local.losses, *manifests.losses)}
    dump_yaml([local.values, manifests.objects]).encode()
    return json.dumps(local.values), json.dumps(manifests.objects), losses


def changed(document: Any, path: tuple[str, ...]) -> Iterator[Any]:
    """Yield the document without the value at a path, and with other values there."""
    for value in (None, "true", "7"):
        result = copy.deepcopy(document)
        parent = result
        for part in path[:-1]:
            parent = parent[part]
        if value is None:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
        yield result


def test_corpus_has_at_least_twenty_files(tmp_path: Path) -> None:
    assert sum(len(files_of(case, tmp_path / case)) for case in CASES) >= 20


@pytest.mark.parametrize("case", CASES)
def test_every_key_has_an_effect_or_is_listed(case: str, tmp_path: Path) -> None:
    paths = files_of(case, tmp_path)
    name = None if case != "v2-foundation-model" else "demo"
    if name is not None:
        paths[0].write_text(paths[0].read_text() + "endpoint_name: demo\n")
    before = outcome(paths)
    assert len(before) == 3, before
    listed = {key for key, _ in before[2]}
    forgotten = []
    for path in paths:
        text, document = path.read_text(), document_of(path)
        for leaf in leaves(document):
            key = ".".join(leaf)
            if key in WITHOUT_EFFECT | WITHOUT_EFFECT_IN.get(case, set()) or any(
                key == each or key.startswith(f"{each}.") for each in listed
            ):
                continue
            for other in changed(document, leaf):
                path.write_text(json.dumps(other) if path.suffix == ".json" else yaml.safe_dump(other))
                if outcome(paths) != before:
                    break
            else:
                forgotten.append(f"{path.name}: {key}")
        path.write_text(text)
    assert forgotten == []


STRANGE: tuple[Any, ...] = (
    None,
    [],
    ["a", {"b": []}],
    {"a": {"b": "c"}},
    "",
    "-1",
    "9" * 300,
    "1e999",
    "\u0663",
    "a\nb: c",
    "/../..",
)


@pytest.mark.parametrize("case", CASES)
def test_strange_values_cause_only_errors_of_settings(case: str, tmp_path: Path) -> None:
    for path in files_of(case, tmp_path):
        text, document = path.read_text(), document_of(path)
        places = {leaf[:depth] for leaf in leaves(document) for depth in range(1, len(leaf) + 1)}
        for place in sorted(places):
            for value in STRANGE:
                other = copy.deepcopy(document)
                parent = other
                for part in place[:-1]:
                    parent = parent[part]
                parent[place[-1]] = value
                path.write_text(json.dumps(other) if path.suffix == ".json" else yaml.safe_dump(other))
                outcome([path])
        path.write_text(text)


@pytest.mark.parametrize("case", CASES)
def test_results_are_valid(case: str, tmp_path: Path) -> None:
    """The local file has no error, the objects have the forms of Kubernetes, and the router reads the same settings."""
    conversion = convert_files(files_of(case, tmp_path), name="demo" if case == "v2-foundation-model" else None)
    config = parse_local_config(local_document(conversion, "services.yaml"), conversion.directory)
    services = check_settings(conversion)
    registry = ServiceRegistry()
    for number, each in enumerate(make_manifests(conversion, services, "example/model:1").objects):
        kubernetes_validate.validate(each, "1.33", strict=True)
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            each["metadata"] |= {"namespace": "models", "uid": f"{number}"}
            deployment = parse_deployment(each)
            assert deployment.selects(tuple(template["metadata"]["labels"].items()))
            registry.on_deployment_changed(None, deployment)
    registry.refresh()
    assert registry.problems() == []
    assert registry.services.keys() == config.services.keys()
    for service in services:
        watched = registry.services[service.name]
        assert [each.name for each in watched.versions] == [each.name for each in service.versions]
        for version, other in zip(watched.versions, service.versions, strict=True):
            for setting in ("num_replicas", "autoscale_max_replicas", "scoring_timeout_ms", "max_request_wait_time",
                            "tags", "scoring_path", "traffic_percentile", "is_default"):  # fmt: skip
                assert getattr(version, setting) == getattr(other, setting), setting


@pytest.mark.parametrize(
    ("case", "expected"), [("v1-diabetes", True), ("v1-pipelines", False), ("v2-kubernetes", True)]
)
def test_application_insights_stays_on(case: str, expected: bool, tmp_path: Path) -> None:
    (service,) = check_settings(convert_files(files_of(case, tmp_path)))
    assert any(version.enable_app_insights for version in service.versions) == expected
