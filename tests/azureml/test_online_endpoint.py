"""The files of Azure ML's CLI v2: endpoints and deployments."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from router.azureml.conversion import check_settings, convert_files
from router.azureml.services import Conversion, Program, ProgramKind, Route
from router.config.service import parse_service
from router.config.service_settings import COMPATIBILITY_DEFAULTS
from router.model.services import Service, Version

ENDPOINT = {"name": "iris", "auth_mode": "key"}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def converted(*documents: dict[str, Any], name: str | None = None) -> Conversion:
    """Write the files into the working directory, and convert them."""
    paths = [Path(f"{number}.yml") for number in range(len(documents))]
    for path, document in zip(paths, documents, strict=True):
        path.write_text(yaml.safe_dump(document, sort_keys=False))
    return convert_files(paths, name)


def deployment(name: str = "blue", **fields: Any) -> dict[str, Any]:
    return {"name": name, "endpoint_name": "iris", **fields}


def service_of(*documents: dict[str, Any]) -> Service:
    (service,) = check_settings(converted(*documents))
    return service


def version_of(**fields: Any) -> Version:
    return service_of(deployment(**fields)).default_version


def program_of(**fields: Any) -> Program:
    return converted(deployment(**fields)).services[0].versions[0].program


def lost(*documents: dict[str, Any]) -> set[str]:
    return {loss.key for loss in converted(*documents).losses}


def test_defaults_are_those_of_v2() -> None:
    """A deployment without settings has the settings of a router with the defaults of v2, and one replica."""
    version = version_of()
    expected = parse_service("iris", {"num_replicas": 1}, defaults=COMPATIBILITY_DEFAULTS["v2"]).default_version
    fields = [name for name in Version.__slots__ if name not in ("name", "autoscale_max_replicas")]
    assert {name: getattr(version, name) for name in fields} == {name: getattr(expected, name) for name in fields}
    scaled = version_of(scale_settings={"type": "target_utilization"})
    assert (scaled.autoscale_enabled, scaled.autoscale_min_replicas, scaled.autoscale_max_replicas) == (True, 1, 1)


def test_all_settings_are_converted() -> None:
    version = version_of(
        scale_settings={
            "type": "TargetUtilization",
            "min_instances": 2,
            "max_instances": 5,
            "polling_interval": 3,
            "target_utilization_percentage": 60,
        },
        request_settings={
            "request_timeout_ms": 3000,
            "max_concurrent_requests_per_instance": 4,
            "max_queue_wait_ms": 600,
        },
        liveness_probe={"period": 1, "initial_delay": 2, "timeout": 3, "success_threshold": 1, "failure_threshold": 4},
        readiness_probe={"period": 5, "initial_delay": 6, "timeout": 7, "success_threshold": 8, "failure_threshold": 9},
        resources={
            "requests": {"cpu": "100m", "memory": "512Mi"},
            "limits": {"cpu": "2", "memory": "1Gi", "nvidia.com/gpu": 1},
        },
        app_insights_enabled=True,
        data_collector={"collections": {"request": {"enabled": "True"}}, "sampling_rate": 0.5},
        description="Flowers",
        tags={"team": "risk"},
        properties={"cost": 7},
    )
    assert (version.autoscale_min_replicas, version.autoscale_max_replicas) == (2, 5)
    assert (version.autoscale_refresh_seconds, version.autoscale_target_utilization) == (3.0, 60)
    assert (version.scoring_timeout_ms, version.max_request_wait_time) == (3000, 600)
    assert version.replica_max_concurrent_requests == 4
    assert (version.period_seconds, version.initial_delay_seconds, version.timeout_seconds) == (1, 2, 3)
    assert (version.success_threshold, version.failure_threshold) == (1, 4)
    assert (version.readiness_period_seconds, version.readiness_initial_delay_seconds) == (5, 6)
    assert (version.readiness_timeout_seconds, version.readiness_success_threshold) == (7, 8)
    assert version.readiness_failure_threshold == 9
    assert (version.cpu_cores, version.cpu_cores_limit, version.memory_gb, version.memory_gb_limit) == (0.1, 2, 0.5, 1)
    assert (version.gpu_cores, version.enable_app_insights) == (1, True)
    assert version.data_collector is not None
    assert (version.data_collector.sampling_rate, version.data_collector.collections[0].enabled) == (0.5, True)
    assert (version.description, version.tags, version.properties) == ("Flowers", {"team": "risk"}, {"cost": "7"})


@pytest.mark.parametrize(
    ("mode", "keys", "tokens", "losses"),
    [
        (None, True, False, set()),
        ("key", True, False, set()),
        ("Key", True, False, set()),
        ("aml_token", False, True, set()),
        ("AMLToken", False, True, set()),
        ("aad_token", False, True, {"auth_mode"}),
    ],
)
def test_authentication(mode: str | None, keys: bool, tokens: bool, losses: set[str]) -> None:
    documents = {"name": "iris", "auth_mode": mode}, deployment()
    service = service_of(*documents)
    assert (service.auth_enabled, service.token_auth_enabled) == (keys, tokens)
    assert lost(*documents) == losses


@pytest.mark.parametrize(
    ("traffic", "shares"),
    [
        ({"blue": 90, "green": 10}, {"blue": 90, "green": 10}),
        ({"blue": 10, "green": 90}, {"blue": 10, "green": 90}),
        ({"blue": 0, "green": 100}, {"blue": 0, "green": 100}),
        ({"blue": 100}, {"blue": 100, "green": 0}),
        ({"blue": 50, "green": 50, "old": 0}, {"blue": 50, "green": 50}),
        ({}, {"blue": 100, "green": 0}),
        ({"blue": 0, "green": 0}, {"blue": 100, "green": 0}),
    ],
)
def test_traffic(traffic: dict[str, int], shares: dict[str, int]) -> None:
    service = service_of(ENDPOINT | {"traffic": traffic}, deployment("blue"), deployment("green"))
    assert {version.name: share for version, share in service.traffic_shares()} == shares


def test_tags_of_the_endpoint_are_those_of_deployments_without() -> None:
    service = service_of(ENDPOINT | {"tags": {"a": "1"}}, deployment("blue"), deployment("green", tags={"b": "2"}))
    assert [version.tags for version in service.versions] == [{"a": "1"}, {"b": "2"}]


@pytest.mark.parametrize(
    ("endpoint", "fields", "losses"),
    [
        ({"mirror_traffic": {"blue": 10}}, {}, {"mirror_traffic"}),
        ({"identity": {"type": "system_assigned"}}, {}, {"identity"}),
        ({"public_network_access": "disabled"}, {}, set()),
        ({"public_network_access": "enabled"}, {}, {"public_network_access"}),
        ({"compute": "azureml:cluster", "$schema": "x", "kind": "K8S"}, {}, set()),
        ({}, {"instance_type": "large"}, {"instance_type"}),
        ({}, {"instance_type": "defaultinstancetype"}, set()),
        ({}, {"scale_settings": {"type": "target_utilization"}, "instance_count": 2}, {"instance_count"}),
        ({}, {"scale_settings": {"type": "default", "cooldown_period": 5}}, {"scale_settings.cooldown_period"}),
        ({}, {"liveness_probe": {"path": "/live"}}, {"liveness_probe.path"}),
        (
            {},
            {"data_collector": {"collections": {"in": {"enabled": "True", "client_id": "x", "data": "azureml:a:1"}}}},
            {"data_collector.collections.in.client_id", "data_collector.collections.in.data"},
        ),
    ],
)  # fmt: skip
def test_losses(endpoint: dict[str, Any], fields: dict[str, Any], losses: set[str]) -> None:
    documents = ENDPOINT | endpoint, deployment(**fields)
    assert lost(*documents) == losses
    service_of(*documents)


def test_keys_that_azure_ml_shows_without_a_file_are_no_losses() -> None:
    """`az ml online-endpoint show` and `online-deployment show` print them."""
    shown = {"id": "/subscriptions/a", "provisioning_state": "Succeeded", "location": "a", "resourceGroup": "a"}
    addresses = {"scoring_uri": "http://a/score", "openapi_uri": "http://a/swagger.json"}
    assert lost(ENDPOINT | shown | addresses, deployment(**shown)) == set()


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("maxQueueWaitMs", "request_settings.max_queue_wait_ms"),
        ("max_request_wait_time", "request_settings.max_queue_wait_ms"),
        ("num_replicas", "instance_count"),
        ("entry_script", "code_configuration.scoring_script"),
        ("enviroment_variables", "environment_variables"),
        ("request_setting", "request_settings"),
    ],
)
def test_names_of_other_dialects_are_suggested(key: str, suggestion: str) -> None:
    (loss,) = converted(deployment(**{key: "1"})).losses
    assert loss.reason == f"Azure ML has no such key here; did you mean {suggestion}?"


def test_routes_of_a_custom_container() -> None:
    routes = {
        "scoring_route": {"path": "/v1/models/x:predict", "port": 8501},
        "readiness_route": {"path": "/ready", "port": 8502},
    }
    fields = {"environment": {"image": "a/b:1", "inference_config": routes}}
    program = program_of(**fields)
    assert program.kind is ProgramKind.CONTAINER
    assert program.routes == (Route("/v1/models/x:predict", 8501), Route("/ready", 8502), Route("/", 8501))
    assert version_of(**fields).scoring_path == "/v1/models/x:predict"


@pytest.mark.parametrize(
    ("model", "code", "kind"),
    [
        ({"path": "m", "type": "mlflow_model"}, None, ProgramKind.MLFLOW),
        ({"path": "m", "type": "custom_model"}, None, ProgramKind.UNKNOWN),
        ({"path": "m", "type": "mlflow_model"}, {"code": ".", "scoring_script": "score.py"}, ProgramKind.ENTRY_SCRIPT),
        ("azureml:m:3", None, ProgramKind.UNKNOWN),
    ],
)
def test_kind_of_program(model: Any, code: dict[str, str] | None, kind: ProgramKind) -> None:
    assert program_of(model=model, code_configuration=code).kind is kind


def test_directory_in_the_format_of_mlflow_is_recognized(directory: Path) -> None:
    (directory / "m").mkdir()
    (directory / "m" / "MLmodel").touch()
    fields = {"model": {"path": "m"}}
    assert program_of(**fields).kind is ProgramKind.MLFLOW
    version = version_of(**fields)
    assert (version.scoring_path, version.cancellation) == ("/invocations", "none")


@pytest.mark.parametrize(
    ("model", "path", "of_all"),
    [
        ("azureml:weights:3", None, "weights/3"),
        ("azureml:weights@latest", None, "weights/latest"),
        ({"name": "weights", "version": 3, "path": "m/model.pkl"}, "m/model.pkl", "weights/3"),
        ({"path": "azureml://jobs/x/outputs/model"}, None, "model/1"),
    ],
)
def test_model(directory: Path, model: Any, path: str | None, of_all: str) -> None:
    program = program_of(model=model)
    assert program.model_path == (None if path is None else directory / path)
    assert program.model_directory == of_all


def test_deployments_without_endpoint_name_belong_to_the_only_endpoint() -> None:
    without = {"name": "blue", "instance_count": 1}
    assert converted(ENDPOINT, without).services[0].name == "iris"
    assert converted(without, name="roses").services[0].name == "roses"


def test_several_endpoints() -> None:
    roses = deployment("red") | {"endpoint_name": "roses"}
    conversion = converted(ENDPOINT, ENDPOINT | {"name": "roses"}, deployment(), roses)
    assert [(each.name, [version.name for version in each.versions]) for each in conversion.services] == [
        ("iris", ["blue"]),
        ("roses", ["red"]),
    ]
