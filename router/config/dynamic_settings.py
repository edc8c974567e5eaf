"""Settings about the dynamic configuration: where it is, and what it may set."""

from dataclasses import dataclass

from router.config.azure_settings import CONTAINER_PATTERN, AzureSettings
from router.config.collection_settings import CollectionSettings
from router.config.connection_settings import ConnectionSettings, ShutdownSettings
from router.config.declaration import declared_settings, file_setting, setting
from router.config.kubernetes_settings import KubernetesSettings
from router.config.listener_settings import ClientListenerSettings, InternalListenerSettings, PeerTlsSettings
from router.config.self_scaling_settings import SelfScalingSettings
from router.config.service_settings import (
    POD_TEMPLATE_SETTINGS,
    SECRET_SETTINGS,
    SERVICE_SETTINGS,
    VERSION_SETTINGS,
)
from router.config.telemetry_settings import TelemetrySettings
from router.config.token_settings import TokenIssuingSettings

NEVER_DYNAMIC = frozenset(
    (
        *SECRET_SETTINGS, *POD_TEMPLATE_SETTINGS, "workers", "state_dir", "router_name", "pod_name", "pod_namespace",
        "pod_ip", "peer_secret_file", "kubeconfig", "dynamic_config_file", "dynamic_config_map", "dynamic_config_allow",
        "dynamic_config_blob", "dynamic_config_poll_seconds", "azure_connection_string_file", "azure_sas_token_file",
    )
)  # fmt: skip
"""Settings that the dynamic configuration can never have: keys and credentials, which must not be in storage that many
can read; what starts processes; and what the router needs to read the dynamic configuration, or is different in each
pod."""

_GROUPS = (
    ClientListenerSettings, PeerTlsSettings, InternalListenerSettings, TelemetrySettings, CollectionSettings,
    AzureSettings, ConnectionSettings, ShutdownSettings, TokenIssuingSettings, SelfScalingSettings, KubernetesSettings,
)  # fmt: skip
POSSIBLE = tuple(
    declared.name
    for declared in (
        *(declared for group in _GROUPS for declared in declared_settings(group)),
        *SERVICE_SETTINGS,
        *VERSION_SETTINGS,
    )
    if declared.name not in NEVER_DYNAMIC
)
"""Names of the settings that the dynamic configuration can have, with permission or without."""


@dataclass(frozen=True, kw_only=True)
class DynamicConfigSettings:
    """The source of the dynamic configuration. At most one source is set; without one there is no dynamic
    configuration."""

    dynamic_config_file: str | None = file_setting(
        "File with the dynamic configuration: settings of the router and of services that take effect within seconds, "
        "without a restart.",
        default_text="none",
    )
    dynamic_config_map: str | None = setting(
        "ConfigMap in the router's namespace whose key `dynamic.yaml` is the dynamic configuration, in Kubernetes.",
        default_text="none",
        pattern=r"[a-z0-9](?:[-.a-z0-9]{0,251}[a-z0-9])?",
        pattern_text="the name of a ConfigMap",
    )
    dynamic_config_blob: str | None = setting(
        "Blob of Azure Storage with the dynamic configuration. Needs the extra `azure`. The login is that of "
        "azure_connection_string_file or azure_sas_token_file, else a workload identity or managed identity.",
        default_text="none",
        pattern=rf"(?:{CONTAINER_PATTERN})/[^\s?#]+",
        pattern_text="https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB, or with a connection string CONTAINER/BLOB",
    )
    dynamic_config_allow: tuple[str, ...] = setting(
        "Settings that the dynamic configuration may have in addition to those that the column Dynamic marks with yes. "
        "Its writers can then change them.",
        default=(),
        default_text="none",
        pattern="|".join(POSSIBLE),
        pattern_text="names of settings that the dynamic configuration can have",
    )
    dynamic_config_poll_seconds: float = setting(
        "Time between two reads of the dynamic configuration. A read costs little while it is unchanged.",
        unit="s",
        default=5.0,
        minimum=0.5,
        maximum=3600,
    )
