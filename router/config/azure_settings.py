"""Settings of the login to Azure Storage. Does not contain: the login (`net.azure_login`)."""

from dataclasses import dataclass

from router.config.declaration import file_setting

CONTAINER_PATTERN = r"[a-z0-9](?:-?[a-z0-9]){2,62}|https://[^\s?#/]+/[^\s?#]+|http://(?:127\.0\.0\.1|\[::1\]|localhost)(?::\d+)?/[^\s?#]+"
CONTAINER_PATTERN_TEXT = "https://ACCOUNT.blob.core.windows.net/CONTAINER, or with a connection string CONTAINER"


@dataclass(frozen=True, kw_only=True)
class AzureSettings:
    """The credentials for Azure Storage. Without one of these the router uses its workload identity, else its managed
    identity. Both are found by the variables that Azure sets."""

    azure_connection_string_file: str | None = file_setting(
        "File with the connection string of a storage account. Read again after a refused login.",
        default_text="the environment variable AZURE_STORAGE_CONNECTION_STRING, if it is set",
    )
    azure_sas_token_file: str | None = file_setting(
        "File with a shared access signature (SAS). Read again after a refused login.",
        default_text="the environment variable AZURE_STORAGE_SAS_TOKEN, if it is set",
    )
