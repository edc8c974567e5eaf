"""The dynamic configuration in a blob: Azurite, and servers that fail in the ways of Azure Storage."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.server
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, ContentSettings

from router.config.router import RouterSettings, load_settings
from router.config.schema import SettingsError
from router.dynamic.blob import BlobSource
from router.dynamic.source import MAX_DOCUMENT_BYTES, Document, SourceUnavailable
from tests.collection.azurite import Azurite, needs_azurite, running_azurite, settings_file

pytestmark = needs_azurite

BLOB = "settings/dynamic.yaml"


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


OpenSource = Callable[[str, RouterSettings], BlobSource]


@contextlib.asynccontextmanager
async def opening_sources() -> AsyncIterator[OpenSource]:
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(gc.collect)  # responses of the library are in cycles, and keep their connections open

        def open_source(url: str, settings: RouterSettings) -> BlobSource:
            source = BlobSource(url, settings)
            cleanup.callback(source.close)
            return source

        yield open_source


@pytest.fixture
def open_source() -> contextlib.AbstractAsyncContextManager[OpenSource]:
    """Opens sources, which are closed at the end of the test."""
    return opening_sources()


@pytest.fixture
def settings(azurite: Azurite, tmp_path: Path) -> RouterSettings:
    return login(azurite.connection_string(), tmp_path)


def login(connection_string: str, directory: Path) -> RouterSettings:
    file = settings_file(directory, "connection-string", connection_string)
    return load_settings(environ={}, flags={"azure_connection_string_file": file})


def upload(azurite: Azurite, content: bytes, **options: Any) -> None:
    with ContainerClient.from_connection_string(azurite.connection_string(), azurite.container) as container:
        container.upload_blob(BLOB, content, overwrite=True, **options)


async def read(source: BlobSource, etag: str = "") -> Document:
    document = await source.fetch(etag)
    assert document is not None
    return document


async def failure(source: BlobSource) -> SourceUnavailable:
    with pytest.raises(SourceUnavailable) as caught:
        await source.fetch("")
    return caught.value


async def test_blob_is_read_when_its_etag_changes(
    open_source: OpenSource, azurite: Azurite, settings: RouterSettings
) -> None:
    upload(azurite, b"router: {}")
    source = open_source(f"{azurite.container}/{BLOB}", settings)
    document = await read(source)
    assert document.content == b"router: {}"
    assert await source.fetch(document.etag) is None
    upload(azurite, b"{}")
    changed = await read(source, document.etag)
    assert (changed.content, changed.etag != document.etag) == (b"{}", True)


async def test_url_names_the_blob_and_a_sas_token_permits_to_read_it(
    open_source: OpenSource, azurite: Azurite, tmp_path: Path
) -> None:
    upload(azurite, b"{}")
    file = settings_file(tmp_path, "sas", azurite.sas_token(read=True))
    settings = load_settings(environ={}, flags={"azure_sas_token_file": file})
    source = open_source(f"{azurite.url}/{BLOB}", settings)
    assert source.name == f"{azurite.url}/{BLOB}"
    assert (await read(source)).content == b"{}"
    Path(file).write_text(azurite.sas_token(list=True))
    denied = open_source(f"{azurite.url}/{BLOB}", settings)
    error = str(await failure(denied))
    assert error.startswith("denied: status 403")
    assert "sig=" not in error
    Path(file).write_text(azurite.sas_token(read=True))
    assert (await read(denied)).content == b"{}"  # the file is read again


@pytest.mark.parametrize("size", [0, MAX_DOCUMENT_BYTES, 100_000_000])
async def test_only_the_beginning_of_a_large_blob_is_read(
    open_source: OpenSource, azurite: Azurite, settings: RouterSettings, size: int
) -> None:
    upload(azurite, b"#" * size)
    document = await read(open_source(f"{azurite.container}/{BLOB}", settings))
    assert len(document.content) == min(size, MAX_DOCUMENT_BYTES + 1)


async def test_compressed_blob_is_refused_without_decompressing_it(
    open_source: OpenSource, azurite: Azurite, settings: RouterSettings
) -> None:
    upload(azurite, b"x", content_settings=ContentSettings(content_encoding="gzip"))
    assert "Content-Encoding" in str(await failure(open_source(f"{azurite.container}/{BLOB}", settings)))


async def test_missing_blob_and_missing_container(
    open_source: OpenSource, azurite: Azurite, settings: RouterSettings
) -> None:
    assert str(await failure(open_source(f"{azurite.container}/none", settings))) == "missing: status 404 BlobNotFound"
    error = str(await failure(open_source(f"no-such-container/{BLOB}", settings)))
    assert error == "missing: status 404 ContainerNotFound"


async def test_wrong_key_is_denied_and_appears_nowhere(
    open_source: OpenSource, azurite: Azurite, tmp_path: Path
) -> None:
    settings = login(azurite.connection_string().replace("Eby8", "AAAA"), tmp_path)
    error = str(await failure(open_source(f"{azurite.container}/{BLOB}", settings)))
    assert error.startswith("denied: status 403")
    assert "AAAA" not in error


async def test_hanging_storage_delays_nothing_else_and_its_answer_is_used_later(
    open_source: OpenSource, azurite: Azurite, settings: RouterSettings
) -> None:
    upload(azurite, b"{}")
    source = open_source(f"{azurite.container}/{BLOB}", settings)
    azurite.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await source.fetch("")
        assert "has not returned" in str(await failure(source))
    finally:
        azurite.send_signal(signal.SIGCONT)
    while True:
        with contextlib.suppress(SourceUnavailable):
            assert (await read(source)).content == b"{}"
            break
        await asyncio.sleep(0.01)


class FailingHandler(http.server.BaseHTTPRequestHandler):
    """Responds as throttling storage does."""

    def do_HEAD(self) -> None:
        self.send_response(429)
        self.send_header("Retry-After", "17")
        self.send_header("x-ms-error-code", "ServerBusy")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


async def test_throttling_storage_says_when_to_come_back(
    open_source: OpenSource, azurite: Azurite, tmp_path: Path
) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FailingHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}/devstoreaccount1"
        source = open_source(f"any-container/{BLOB}", login(azurite.connection_string(endpoint), tmp_path))
        error = await failure(source)
        server.shutdown()
    assert (str(error), error.retry_after) == ("throttled: status 429 ServerBusy", 17)


async def test_unreachable_storage(open_source: OpenSource, azurite: Azurite, tmp_path: Path) -> None:
    settings = login(azurite.connection_string("http://127.0.0.1:1/devstoreaccount1"), tmp_path)
    assert str(await failure(open_source(f"any-container/{BLOB}", settings))) == "unreachable: no connection"


async def test_missing_credentials_are_a_failure_until_they_come(
    open_source: OpenSource, azurite: Azurite, tmp_path: Path
) -> None:
    upload(azurite, b"{}")
    file = tmp_path / "connection-string"
    settings = load_settings(environ={}, flags={"azure_connection_string_file": str(file)})
    source = open_source(f"{azurite.container}/{BLOB}", settings)
    assert "No such file" in str(await failure(source))
    file.write_text(azurite.connection_string())
    assert (await read(source)).content == b"{}"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://account.blob.core.windows.net/container/", "must have a container and the name of a blob"),
        ("container/blob", "must be a URL, unless there is a connection string"),
    ],
)
def test_unusable_url_is_an_error_of_the_setting(url: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        BlobSource(url, load_settings(environ={}))
