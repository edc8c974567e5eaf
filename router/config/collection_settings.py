"""Settings of collected data: where requests and responses are stored, and how much waits for storage."""

from dataclasses import dataclass

from router.config.azure_settings import CONTAINER_PATTERN, CONTAINER_PATTERN_TEXT
from router.config.declaration import file_setting, setting


@dataclass(frozen=True, kw_only=True)
class CollectionSettings:
    """Where collected data is stored. Services ask for it by `collect_model_data` or `data_collector`."""

    collection_container: str | None = setting(
        "Container of Azure Blob Storage for collected data: its URL, or its name if there is a connection string "
        "(azure_connection_string_file). It must exist. Needs the extra `azure`.",
        default_text="none: data is stored in collection_folder",
        pattern=CONTAINER_PATTERN,
        pattern_text=CONTAINER_PATTERN_TEXT,
    )
    collection_folder: str | None = file_setting(
        "Folder for collected data. With collection_container it gets only what storage has not taken when the router "
        "stops.",
        default_text="`collected` in state_dir; none with collection_container",
    )
    collection_folder_max_bytes: int = setting(
        "Maximum size of collection_folder. Further data is dropped and counted, until files are removed.",
        unit="bytes",
        default=10 * 2**30,
        minimum=2**20,
        maximum=2**40,
    )
    collection_log_port: int | None = setting(
        "Port on which entry scripts log their own collections, with azureml-ai-monitoring. Pods are recognized by "
        "their addresses.",
        default_text="none in a pod, else any free port of the loopback address",
        minimum=1,
        maximum=65535,
    )
    collection_workspace: str = setting(
        "The Azure ML workspace in the attribute source of events.",
        default="",
        default_text="none",
        pattern=r"(/subscriptions/[A-Za-z0-9._()/-]{1,500})?",
        pattern_text="/subscriptions/ID/resourceGroups/NAME/providers/Microsoft.MachineLearningServices/workspaces/NAME",
    )
    collection_flush_seconds: float = setting(
        "Maximum time for which collected data waits for more data before it is stored.",
        unit="s",
        default=5.0,
        above=0,
        maximum=600,
    )
    collection_buffer_bytes: int = setting(
        "Maximum memory of the collector process for data that is not stored yet. A worker may have a quarter of this "
        "for data that the collector has not taken yet. Of bodies beyond it only metadata is stored. Pods need this "
        "memory while services collect data.",
        unit="bytes",
        default=67_108_864,
        minimum=2**20,
        maximum=2**40,
    )
