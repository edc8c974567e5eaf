"""Logs in to Azure Storage: by connection string, shared access signature (SAS), workload or managed identity.

Needs the extra `azure`. Errors never have credentials, nor texts of Azure's libraries, which may have signed URLs.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.config.azure_settings import CONTAINER_PATTERN_TEXT, AzureSettings
from router.config.regular_file import read_regular_file
from router.config.schema import SettingsError

if TYPE_CHECKING:
    from azure.core.exceptions import AzureError
    from azure.storage.blob import ContainerClient

CONNECT_SECONDS = 5
READ_SECONDS = 20
"""Timeouts of a request: until the connection is open, and between two pieces of a response."""

_MAX_FILE_BYTES = 65_536
_CONNECTION_STRING_VARIABLE = "AZURE_STORAGE_CONNECTION_STRING"
_SAS_VARIABLE = "AZURE_STORAGE_SAS_TOKEN"


@dataclass(frozen=True, slots=True)
class AzureLogin:
    """Credentials; both are empty for an identity."""

    connection_string: str = field(default="", repr=False)
    sas_token: str = field(default="", repr=False)


def read_login(settings: AzureSettings, environ: Mapping[str, str]) -> AzureLogin:
    """Return the current credentials. Raises `SettingsError` if a file cannot be read or both kinds are given."""
    connection_string = _secret("azure_connection_string_file", settings, environ, _CONNECTION_STRING_VARIABLE)
    sas_token = _secret("azure_sas_token_file", settings, environ, _SAS_VARIABLE)
    if settings.azure_connection_string_file and settings.azure_sas_token_file:
        raise SettingsError(
            "azure_sas_token_file", settings.azure_sas_token_file, "excludes azure_connection_string_file"
        )
    if settings.azure_sas_token_file:
        connection_string = ""  # a setting precedes a variable of the other kind
    return AzureLogin(connection_string, "" if connection_string else sas_token.lstrip("?"))


def _secret(name: str, settings: AzureSettings, environ: Mapping[str, str], variable: str) -> str:
    path: str | None = getattr(settings, name)
    if path is None:
        return environ.get(variable, "")
    try:
        text = read_regular_file(Path(path), _MAX_FILE_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII text"
        raise SettingsError(name, path, f"must be a readable file: {reason}") from None
    if not text:
        raise SettingsError(name, path, "must not be empty")
    return text


def check_container(setting: str, container: str, login: AzureLogin) -> None:
    """Raise `SettingsError` if the container of a setting cannot be used with this login, or the extra is missing."""
    if importlib.util.find_spec("azure") is None or importlib.util.find_spec("azure.storage.blob") is None:
        raise SettingsError(setting, container, "needs the extra: in the checkout: pip install '.[azure]'")
    if "://" not in container and not login.connection_string:
        problem = "must be a URL, unless there is a connection string (azure_connection_string_file)"
        raise SettingsError(setting, container, problem)
    try:
        open_container(container, login).close()
    except ValueError:
        if login.connection_string:
            raise SettingsError("azure_connection_string_file", None, "must have a valid connection string") from None
        raise SettingsError(setting, container, f"must be {CONTAINER_PATTERN_TEXT}") from None


def open_container(container: str, login: AzureLogin) -> ContainerClient:
    """Return a client of a container. Its requests are not repeated. Raises `ValueError` for an unusable login."""
    from azure.storage.blob import ContainerClient

    logging.getLogger("azure").setLevel(logging.WARNING)  # it logs each request
    options: dict[str, Any] = {
        "retry_total": 0, "connection_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS,
    }  # fmt: skip
    if login.connection_string:
        name = container.rpartition("/")[2]
        return ContainerClient.from_connection_string(login.connection_string, name, **options)
    credential = login.sas_token or _identity()
    return ContainerClient.from_container_url(container, credential, **options)


def _identity() -> Any:
    from azure.identity import ChainedTokenCredential, ManagedIdentityCredential, WorkloadIdentityCredential

    credentials: list[Any] = []
    try:
        credentials.append(WorkloadIdentityCredential())
    except ValueError:
        pass  # its variables are not set
    return ChainedTokenCredential(*credentials, ManagedIdentityCredential())


@dataclass(frozen=True, slots=True)
class AzureFailure:
    """A failed request. `status` is 0 without a response. `detail` is for logs."""

    kind: str
    status: int
    code: str
    retry_after: float
    detail: str


def failure_of(error: AzureError) -> AzureFailure:
    """Return what an error of Azure's libraries means. `kind` is `unreachable`, `timeout`, `throttled`, `denied`,
    `missing` (the container or blob), `conflict` or `failed`."""
    from azure.core import exceptions
    from azure.identity import CredentialUnavailableError

    if isinstance(error, exceptions.ServiceRequestTimeoutError | exceptions.ServiceResponseTimeoutError):
        return AzureFailure("timeout", 0, "", 0.0, "no response in time")
    if isinstance(error, exceptions.HttpResponseError):
        raw_code = getattr(error, "error_code", None) or ""  # an enumeration's member, or text
        code = re.sub(r"[^A-Za-z0-9]", "", str(getattr(raw_code, "value", raw_code)))[:64]
        status = error.status_code or 0
        headers = getattr(error.response, "headers", {})
        retry_after = _seconds(headers.get("Retry-After", ""))
        return AzureFailure(_kind(status), status, code, retry_after, f"status {status} {code}".strip())
    if isinstance(error, CredentialUnavailableError | exceptions.ClientAuthenticationError):
        return AzureFailure("denied", 0, "", 0.0, "no identity can log in")
    if isinstance(error, exceptions.ServiceResponseError | exceptions.IncompleteReadError):
        return AzureFailure("failed", 0, "", 0.0, "the connection was closed")
    if isinstance(error, exceptions.ServiceRequestError):
        return AzureFailure("unreachable", 0, "", 0.0, "no connection")
    return AzureFailure("failed", 0, "", 0.0, type(error).__name__)


def _kind(status: int) -> str:
    if status in (401, 403):
        return "denied"
    if status in (429, 503):
        return "throttled"
    return {404: "missing", 409: "conflict", 412: "conflict"}.get(status, "failed")


def _seconds(retry_after: str) -> float:
    """Return the seconds of a Retry-After; 0 for a date, which Azure Storage does not send."""
    return min(float(retry_after), 3600.0) if retry_after.isascii() and retry_after.isdigit() else 0.0
