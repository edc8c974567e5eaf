"""The files of Azure ML's first SDK and CLI."""

import json
from pathlib import Path
from typing import Any

import pytest

from router.azureml.conversion import check_settings, convert_files
from router.azureml.services import Conversion, ProgramKind
from router.config.dialects import SETTING_NAMES
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.model.services import Service

# The arguments of `AksWebservice.deploy_configuration` in azureml-core 1.61.
ARGUMENTS = (
    "autoscale_enabled", "autoscale_min_replicas", "autoscale_max_replicas", "autoscale_refresh_seconds",
    "autoscale_target_utilization", "collect_model_data", "auth_enabled", "cpu_cores", "memory_gb",
    "enable_app_insights", "scoring_timeout_ms", "replica_max_concurrent_requests", "max_request_wait_time",
    "num_replicas", "primary_key", "secondary_key", "tags", "properties", "description", "gpu_cores",
    "period_seconds", "initial_delay_seconds", "timeout_seconds", "success_threshold", "failure_threshold",
    "namespace", "token_auth_enabled", "compute_target_name", "cpu_cores_limit", "memory_gb_limit",
    "blobfuse_enabled",
)  # fmt: skip
MIGRATE = Path(__file__).parents[2] / "docs" / "migrate.md"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "iris").mkdir()
    monkeypatch.chdir(tmp_path / "iris")
    return tmp_path / "iris"


def converted(config: dict[str, Any], inference: dict[str, Any] | None = None, name: str | None = None) -> Conversion:
    """Write the two files into the working directory, and convert them."""
    Path("deploymentconfig.json").write_text(json.dumps({"computeType": "AKS"} | config))
    paths = [Path("deploymentconfig.json")]
    if inference is not None:
        Path("inferenceconfig.json").write_text(json.dumps(inference))
        paths.append(Path("inferenceconfig.json"))
    return convert_files(paths, name)


def service_of(config: dict[str, Any], inference: dict[str, Any] | None = None) -> Service:
    conversion = converted(config, inference)
    assert conversion.losses == ()
    (service,) = check_settings(conversion)
    return service


def test_each_argument_has_a_counterpart_or_a_reason() -> None:
    table = {
        name.strip("` "): row.split(" | ")[-1].strip(" |")
        for row in MIGRATE.read_text().splitlines()
        if row.startswith("| `")
        for name in row.split("|")[1].split(",")
    }
    settings = {setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}
    assert len(ARGUMENTS) == 31
    for argument in ARGUMENTS:
        assert table[argument].startswith("the same") == (argument in settings), argument
        assert table[argument], argument
    assert {row.setting for row in SETTING_NAMES if row.v1} >= set(ARGUMENTS) & settings


def test_all_settings_are_converted(directory: Path) -> None:
    service = service_of(
        {
            "autoScaler": {
                "autoscaleEnabled": True,
                "minReplicas": 2,
                "maxReplicas": 5,
                "refreshPeriodInSeconds": 3,
                "targetUtilization": 60,
            },
            "authEnabled": False,
            "tokenAuthEnabled": True,
            "dataCollection": {"storageEnabled": True},
            "appInsightsEnabled": True,
            "containerResourceRequirements": {"cpu": 0.5, "cpuLimit": 1, "memoryInGB": 2, "memoryInGBLimit": 4},
            "gpuCores": 1,
            "scoringTimeoutMs": 5000,
            "maxConcurrentRequestsPerContainer": 2,
            "maxQueueWaitMs": 700,
            "keys": {"primaryKey": "first", "secondaryKey": "second"},
            "livenessProbeRequirements": {
                "periodSeconds": 11,
                "initialDelaySeconds": 12,
                "timeoutSeconds": 13,
                "successThreshold": 1,
                "failureThreshold": 14,
            },
            "description": "Flowers",
            "tags": {"team": "risk"},
            "properties": {"cost": "7"},
        }
    )
    version = service.default_version
    assert (service.name, service.token_auth_enabled, service.auth_enabled) == ("iris", True, False)
    assert (service.primary_key, service.secondary_key) == ("first", "second")
    assert (version.autoscale_min_replicas, version.autoscale_max_replicas) == (2, 5)
    assert (version.autoscale_refresh_seconds, version.autoscale_target_utilization) == (3.0, 60)
    assert (version.cpu_cores, version.cpu_cores_limit, version.memory_gb, version.memory_gb_limit) == (0.5, 1, 2, 4)
    assert (version.gpu_cores, version.scoring_timeout_ms, version.max_request_wait_time) == (1, 5000, 700)
    assert version.replica_max_concurrent_requests == 2
    assert (version.collect_model_data, version.enable_app_insights) == (True, True)
    assert (version.period_seconds, version.initial_delay_seconds, version.timeout_seconds) == (11, 12, 13)
    assert version.failure_threshold == 14
    assert (version.description, version.tags, version.properties) == ("Flowers", {"team": "risk"}, {"cost": "7"})


@pytest.mark.parametrize(
    ("config", "lost"),
    [
        ({"sslEnabled": True}, {"sslEnabled"}),
        ({"sslEnabled": "False", "blobfuseEnabled": False, "dataCollection": {"eventHubEnabled": False}}, set()),
        ({"dataCollection": {"eventHubEnabled": True}}, {"dataCollection.eventHubEnabled"}),
        ({"blobfuseEnabled": True}, {"blobfuseEnabled"}),
        ({"computeName": "cluster", "compute_target_name": "cluster"}, set()),
        ({"location": "eastus2", "autoScaler": {"max": 3}}, {"location", "autoScaler.max"}),
    ],
)
def test_losses(directory: Path, config: dict[str, Any], lost: set[str]) -> None:
    assert {loss.key for loss in converted(config).losses} == lost


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("max_queue_wait_ms", "maxQueueWaitMs"),
        ("max_request_wait_time", "maxQueueWaitMs"),
        ("request_timeout_ms", "scoringTimeoutMs"),
        ("min_instances", "autoScaler.minReplicas"),
        ("enableAppInsights", "appInsightsEnabled"),
        ("maxReplica", "autoScaler.maxReplicas"),
    ],
)
def test_names_of_other_dialects_are_suggested(directory: Path, key: str, suggestion: str) -> None:
    (loss,) = converted({key: "1"}).losses
    assert str(loss).endswith(f"{key}: Azure ML has no such key here; did you mean {suggestion}?")


def test_name_of_the_service(directory: Path) -> None:
    assert converted({}).services[0].name == "iris"
    assert converted({"name": "own"}).services[0].name == "own"
    assert converted({"name": "own"}, name="flag").services[0].name == "flag"


def test_invalid_name_is_changed_and_listed(directory: Path) -> None:
    conversion = converted({"name": "My_Service"})
    assert conversion.services[0].name == "my-service"
    (loss,) = conversion.losses
    assert loss.reason == "My_Service is not a valid name here; it becomes my-service, also in addresses"


@pytest.mark.parametrize(
    ("inference", "script", "source"),
    [
        ({"entryScript": "score.py"}, "score.py", None),
        ({"entryScript": "score.py", "sourceDirectory": "src"}, "src/score.py", "src"),
        ({"entryScript": "a/score.py", "sourceDirectory": "../src"}, "../src/a/score.py", "../src"),
    ],
)
def test_paths_are_relative_to_the_file(
    directory: Path, inference: dict[str, Any], script: str, source: str | None
) -> None:
    program = converted({}, inference).services[0].versions[0].program
    assert program.kind is ProgramKind.ENTRY_SCRIPT
    assert program.entry_script == (directory / script).resolve()
    assert program.source_directory == (None if source is None else (directory / source).resolve())


def test_packages_of_the_image_are_no_packages_to_install(directory: Path) -> None:
    python = {"userManagedDependencies": True, "condaDependencies": {"dependencies": []}}
    inference = {"entryScript": "score.py", "environment": {"python": python, "docker": {"baseImage": "a/b:1"}}}
    program = converted({}, inference).services[0].versions[0].program
    assert program.image is not None
    assert (program.image.value, program.packages) == ("a/b:1", None)


def test_deployment_config_alone_has_no_program(directory: Path) -> None:
    assert converted({}).services[0].versions[0].program.kind is ProgramKind.UNKNOWN


def test_environment_that_the_sdk_has_saved_has_no_losses(directory: Path) -> None:
    """`Environment.save_to_directory` of azureml-core writes all parts, used or not."""
    environment: dict[str, Any] = {
        "assetId": None,
        "databricks": {name: [] for name in ("eggLibraries", "jarLibraries", "mavenLibraries", "pypiLibraries")},
        "docker": {
            "arguments": [],
            "baseDockerfile": None,
            "baseImage": "a/b:1",
            "baseImageRegistry": {"address": None, "password": None, "registryIdentity": None, "username": None},
            "buildContext": None,
            "enabled": False,
            "platform": {"architecture": "amd64", "os": "Linux"},
            "sharedVolumes": True,
            "shmSize": None,
        },
        "environmentVariables": {"A": "b"},
        "inferencingStackVersion": None,
        "name": "a",
        "python": {"interpreterPath": "python", "userManagedDependencies": True},
        "r": None,
        "spark": {"packages": [], "precachePackages": True, "repositories": []},
        "version": "1",
    }
    assert converted({}, {"entryScript": "score.py", "environment": environment}).losses == ()


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"spark": {"packages": [{"artifact": "a"}]}}, "environment.spark.packages: the router runs no Spark"),
        ({"r": {"rVersion": "3.6"}}, "environment.r: R and its packages"),
        ({"docker": {"buildContext": {"location": "a"}}}, "environment.docker.buildContext: build the image"),
    ],
)
def test_parts_of_an_environment_that_the_image_needs_are_losses(
    directory: Path, part: dict[str, Any], reason: str
) -> None:
    (loss,) = converted({}, {"entryScript": "score.py", "environment": part}).losses
    assert reason in str(loss)
