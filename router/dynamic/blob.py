"""The dynamic configuration in a blob of Azure Storage. Azure's libraries are loaded when the blob is read first."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from router.config.azure_settings import AzureSettings
from router.config.schema import SettingsError
from router.dynamic.source import MAX_DOCUMENT_BYTES, Document, ReadThread, SourceUnavailable
from router.net.azure_login import check_container, failure_of, open_container, read_login

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, ContainerClient

_SETTING = "dynamic_config_blob"
# The emulators of Azure Storage have the account in the path, not in the host name.
_CONTAINER = re.compile(r"http://[^/]+/[^/]+/[^/]+|https://[^/]+/[^/]+|[^/]+")


class BlobSource:
    """A blob. Its ETag is the version of the document."""

    def __init__(self, url: str, settings: AzureSettings) -> None:
        """`url` is the setting `dynamic_config_blob`. Raises `SettingsError` if it cannot be used whatever the storage
        says."""
        match = _CONTAINER.match(url)
        if match is None or not url[match.end() + 1 :]:
            raise SettingsError(_SETTING, url, "must have a container and the name of a blob")
        self._url = url
        self._container, self._blob = match[0], url[match.end() + 1 :]
        self._settings = settings
        self._thread = ReadThread()
        self._container_client: ContainerClient | None = None
        try:
            login = read_login(settings, os.environ)
        except SettingsError:
            return  # a problem of the storage: the file with the credentials may come later
        check_container(_SETTING, self._container, login)

    @property
    def name(self) -> str:
        """See `Source`."""
        return self._url

    async def fetch(self, etag: str) -> Document | None:
        """See `Source`."""
        return await self._thread.call(lambda: self._read(etag))

    def close(self) -> None:
        """See `Source`."""
        client, self._container_client = self._container_client, None
        if client is not None:
            client.close()

    def _read(self, etag: str) -> Document | None:
        from azure.core import MatchConditions
        from azure.core.exceptions import AzureError

        try:
            blob = self._open()
            if_changed: dict[str, Any] = {"etag": etag, "match_condition": MatchConditions.IfModified} if etag else {}
            found = blob.get_blob_properties(**if_changed)
            if found.content_settings.content_encoding:
                # The library would decompress it, and a small blob may become a huge text.
                raise SourceUnavailable("it has a Content-Encoding, which is not supported")
            if not found.size:
                return Document(str(found.etag), b"")  # a range of it cannot be read
            same = MatchConditions.IfNotModified
            length = MAX_DOCUMENT_BYTES + 1
            content = blob.download_blob(offset=0, length=length, etag=found.etag, match_condition=same).readall()
            return Document(str(found.etag), content)
        except AzureError as error:
            failure = failure_of(error)
        except (SettingsError, ValueError) as error:
            # A ValueError is about a connection string, and has parts of it.
            reason = str(error) if isinstance(error, SettingsError) else "the login cannot be used"
            raise SourceUnavailable(reason) from None
        if failure.status == 304:
            return None
        if failure.kind == "denied":
            self.close()  # the next read uses the credentials that the files have then
        raise SourceUnavailable(f"{failure.kind}: {failure.detail}", failure.retry_after)

    def _open(self) -> BlobClient:
        if self._container_client is None:
            self._container_client = open_container(self._container, read_login(self._settings, os.environ))
        return self._container_client.get_blob_client(self._blob)
