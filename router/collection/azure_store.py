"""Azure Blob Storage as a store: append blobs of lines, block blobs of bodies.

An append is conditional on the size of the blob (`appendpos`), so that a repeated one has no second effect.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from router.collection.store import FileLostError, StoreError
from router.config.router import RouterSettings
from router.config.schema import SettingsError
from router.net.azure_login import AzureFailure, failure_of, open_container, read_login

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, ContainerClient


class AzureBlobStore:
    """A container. It must exist: its credentials need not be allowed to create one."""

    def __init__(self, container: str, settings: RouterSettings) -> None:
        """Connects, and reads the credentials, when something is stored."""
        self._name = container
        self._settings = settings
        self._lock = threading.Lock()
        self._container: ContainerClient | None = None
        self._address = ""  # of the container, without credentials

    def _client(self) -> ContainerClient:
        with self._lock:
            if self._container is None:
                self._container = open_container(self._name, read_login(self._settings, os.environ))
                self._address = self._container.url.partition("?")[0]
            return self._container

    def _log_in_again(self) -> None:
        """Read the credentials again: they may have been replaced."""
        with self._lock:
            self._container = None

    def append(self, name: str, offset: int, data: bytes) -> None:
        """See `Store.append`."""
        self._carry_out(name, lambda blob: _append(blob, offset, data))

    def stage(self, name: str, index: int, offset: int, data: bytes) -> None:
        """See `Store.stage`."""
        self._carry_out(name, lambda blob: blob.stage_block(_block_id(index), data, length=len(data)))

    def commit(self, name: str, count: int, content_type: str) -> None:
        """See `Store.commit`."""
        from azure.storage.blob import BlobBlock, ContentSettings

        blocks = [BlobBlock(_block_id(index)) for index in range(count)]
        settings = ContentSettings(content_type=content_type or "application/octet-stream")
        self._carry_out(name, lambda blob: blob.commit_block_list(blocks, content_settings=settings))

    def discard(self, name: str) -> None:
        """See `Store.discard`. The storage itself removes blocks that are not committed within a week."""

    def url(self, name: str) -> str:
        """See `Store.url`. Called in the event loop, so it does not log in: the blob has been stored before."""
        return f"{self._address}/{quote(name, safe='/~')}"

    def close(self) -> None:
        """See `Store.close`."""
        if self._container is not None:
            self._container.close()

    def _carry_out(self, name: str, operation: Callable[[BlobClient], object]) -> None:
        from azure.core.exceptions import AzureError

        try:
            operation(self._client().get_blob_client(name))
        except AzureError as error:
            failure = failure_of(error)
        except SettingsError as error:  # a file with credentials that cannot be read now
            raise StoreError("denied", str(error)) from None
        except ValueError:  # about a connection string, of which it has parts
            raise StoreError("denied", "the login cannot be used") from None
        else:
            return
        if failure.kind == "denied":
            self._log_in_again()
        if _is_lost(failure):
            raise FileLostError(name)
        reason = "failed" if failure.kind == "conflict" else failure.kind
        raise StoreError(reason, failure.detail, failure.retry_after)


_LOST = frozenset(
    ("BlobNotFound", "InvalidBlockList", "BlockCountExceedsLimit", "InvalidBlobType", "AppendPositionConditionNotMet")
)


def _is_lost(failure: AzureFailure) -> bool:
    """True if the blob does not exist any more, or cannot be continued."""
    return failure.code in _LOST


def _append(blob: BlobClient, offset: int, data: bytes) -> None:
    from azure.core.exceptions import HttpResponseError, ResourceExistsError

    if offset == 0:
        try:
            blob.create_append_blob(headers={"If-None-Match": "*"})
        except ResourceExistsError as error:
            if failure_of(error).code != "BlobAlreadyExists":
                raise
    try:
        blob.append_block(data, length=len(data), appendpos_condition=offset)
    except HttpResponseError as error:
        if failure_of(error).code != "AppendPositionConditionNotMet" or not _has(blob, offset + len(data)):
            raise


def _has(blob: BlobClient, size: int) -> bool:
    """True if an append of which the result was unknown has taken effect."""
    return bool(blob.get_blob_properties().size == size)


def _block_id(index: int) -> str:
    return f"{index:08d}"
