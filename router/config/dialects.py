"""The names that Azure ML has for the settings of services, in its two formats of files.

v1 is `deploymentconfig.json` with `inferenceconfig.json`, and v2 the YAML of endpoints and deployments. The converter
of such files (`azureml`) and the suggestions for unknown settings (`unknown`) use the same table.
"""

from typing import NamedTuple

KeyPath = tuple[str, ...]
"""The path of a key in a file: `("autoScaler", "minReplicas")`."""


class DialectNames(NamedTuple):
    """A setting, and the paths of its keys in files of v1 and v2. There may be none, or several spellings."""

    setting: str
    v1: tuple[KeyPath, ...] = ()
    v2: tuple[KeyPath, ...] = ()


def _row(setting: str, v1: str = "", v2: str = "") -> DialectNames:
    """Return a row. Spaces separate spellings, and slashes the parts of a path."""
    paths = [tuple(tuple(path.split("/")) for path in text.split()) for text in (v1, v2)]
    return DialectNames(setting, *paths)


SETTING_NAMES = (
    _row("autoscale_enabled", "autoScaler/autoscaleEnabled"),
    _row("autoscale_min_replicas", "autoScaler/minReplicas", "scale_settings/min_instances"),
    _row("autoscale_max_replicas", "autoScaler/maxReplicas", "scale_settings/max_instances"),
    _row("autoscale_refresh_seconds", "autoScaler/refreshPeriodInSeconds", "scale_settings/polling_interval"),
    _row(
        "autoscale_target_utilization", "autoScaler/targetUtilization", "scale_settings/target_utilization_percentage"
    ),
    _row("num_replicas", "numReplicas", "instance_count"),
    _row(
        "replica_max_concurrent_requests",
        "maxConcurrentRequestsPerContainer",
        "request_settings/max_concurrent_requests_per_instance",
    ),
    _row("max_request_wait_time", "maxQueueWaitMs", "request_settings/max_queue_wait_ms"),
    _row("scoring_timeout_ms", "scoringTimeoutMs", "request_settings/request_timeout_ms"),
    _row("enable_app_insights", "appInsightsEnabled", "app_insights_enabled"),
    _row("auth_enabled", "authEnabled", "auth_mode"),
    _row("token_auth_enabled", "tokenAuthEnabled aadAuthEnabled"),
    _row("primary_key", "keys/primaryKey"),
    _row("secondary_key", "keys/secondaryKey"),
    _row("cpu_cores", "containerResourceRequirements/cpu", "resources/requests/cpu"),
    _row("cpu_cores_limit", "containerResourceRequirements/cpuLimit", "resources/limits/cpu"),
    _row("memory_gb", "containerResourceRequirements/memoryInGB", "resources/requests/memory"),
    _row("memory_gb_limit", "containerResourceRequirements/memoryInGBLimit", "resources/limits/memory"),
    _row(
        "gpu_cores",
        "gpuCores containerResourceRequirements/gpu",
        "resources/limits/nvidia.com/gpu resources/requests/nvidia.com/gpu resources/limits/gpu resources/requests/gpu",
    ),
    _row("period_seconds", "livenessProbeRequirements/periodSeconds", "liveness_probe/period"),
    _row("initial_delay_seconds", "livenessProbeRequirements/initialDelaySeconds", "liveness_probe/initial_delay"),
    _row("timeout_seconds", "livenessProbeRequirements/timeoutSeconds", "liveness_probe/timeout"),
    _row("success_threshold", "livenessProbeRequirements/successThreshold", "liveness_probe/success_threshold"),
    _row("failure_threshold", "livenessProbeRequirements/failureThreshold", "liveness_probe/failure_threshold"),
    _row("readiness_period_seconds", "", "readiness_probe/period"),
    _row("readiness_initial_delay_seconds", "", "readiness_probe/initial_delay"),
    _row("readiness_timeout_seconds", "", "readiness_probe/timeout"),
    _row("readiness_success_threshold", "", "readiness_probe/success_threshold"),
    _row("readiness_failure_threshold", "", "readiness_probe/failure_threshold"),
    _row("scoring_path", "", "environment/inference_config/scoring_route/path"),
    _row("readiness_path", "", "environment/inference_config/readiness_route/path"),
    _row("liveness_path", "", "environment/inference_config/liveness_route/path"),
    _row("entry_script", "entryScript", "code_configuration/scoring_script"),
    _row("environment", "environment/environmentVariables", "environment_variables"),
    _row("traffic_percentile", "trafficPercentile", "traffic"),
    _row("is_default", "isDefault"),
    _row("collect_model_data", "dataCollection/storageEnabled"),
    _row("data_collector", "", "data_collector"),
    _row("description", "description", "description"),
    _row("tags", "tags kvTags", "tags"),
    _row("properties", "properties", "properties"),
)
"""The settings of services and versions that Azure ML has, too."""


def leaf_names() -> dict[str, str]:
    """Return the setting of each key that is not the name of a setting, by the last part of its path. If several
    settings have the same last part, the first one."""
    names: dict[str, str] = {}
    settings = {row.setting for row in SETTING_NAMES}
    for row in SETTING_NAMES:
        for path in (*row.v1, *row.v2):
            if path[-1] not in settings:
                names.setdefault(path[-1], row.setting)
    return names
