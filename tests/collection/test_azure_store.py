"""Azure Blob Storage as a store, with Azurite behind it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from router.collection.azure_store import AzureBlobStore
from router.collection.store import FileLostError, StoreError
from router.config.router import load_settings
from tests.collection.azurite import Azurite, needs_azurite, running_azurite, settings_file

pytestmark = needs_azurite


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    with running_azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


def store(azurite: Azurite, directory: Path, *, sas: str | None = None) -> AzureBlobStore:
    login = (
        {"azure_connection_string_file": settings_file(directory, "connection", azurite.connection_string())}
        if sas is None
        else {"azure_sas_token_file": settings_file(directory, "sas", sas)}
    )
    return AzureBlobStore(azurite.url, load_settings(environ={"HOME": str(directory)}, flags=login))


def test_repeated_append_stores_the_data_once(azurite: Azurite, tmp_path: Path) -> None:
    blobs = store(azurite, tmp_path)
    for offset, data in ((0, b"one\n"), (0, b"one\n"), (4, b"two\n"), (4, b"two\n")):
        blobs.append("a/lines.jsonl", offset, data)
    assert azurite.blobs()["a/lines.jsonl"] == b"one\ntwo\n"


def test_line_with_a_body_of_the_maximum_size_fits(azurite: Azurite, tmp_path: Path) -> None:
    data = b"x" * (4 * 2**20 + 2_000)
    store(azurite, tmp_path).append("large.jsonl", 0, data)
    assert azurite.blobs()["large.jsonl"] == data


def test_missing_beginning_is_detected(azurite: Azurite, tmp_path: Path) -> None:
    with pytest.raises(FileLostError):
        store(azurite, tmp_path).append("missing.jsonl", 4, b"two\n")
    azurite.client.get_blob_client("short.jsonl").create_append_blob()
    with pytest.raises(FileLostError):
        store(azurite, tmp_path).append("short.jsonl", 4, b"two\n")


def test_blob_appears_when_it_is_complete(azurite: Azurite, tmp_path: Path) -> None:
    blobs = store(azurite, tmp_path)
    blobs.stage("a/blob", 0, 0, b"ab")
    blobs.stage("a/blob", 1, 2, b"c")
    assert "a/blob" not in azurite.blobs()
    for _ in range(2):
        blobs.commit("a/blob", 2, "image/png")
    assert azurite.blobs()["a/blob"] == b"abc"
    client = azurite.client.get_blob_client("a/blob")
    assert client.get_blob_properties().content_settings.content_type == "image/png"
    assert blobs.url("a/blob") == f"{azurite.url}/a/blob"


def test_blob_without_its_blocks_is_lost(azurite: Azurite, tmp_path: Path) -> None:
    with pytest.raises(FileLostError):
        store(azurite, tmp_path).commit("never-staged", 1, "")


def test_signature_logs_in_and_is_in_no_address(azurite: Azurite, tmp_path: Path) -> None:
    blobs = store(azurite, tmp_path, sas=azurite.sas_token(read=True, add=True, create=True, write=True))
    blobs.append("sas.jsonl", 0, b"x\n")
    assert azurite.blobs()["sas.jsonl"] == b"x\n"
    assert blobs.url("sas.jsonl") == f"{azurite.url}/sas.jsonl"


def test_refused_login_is_repeated_with_the_credentials_of_then(azurite: Azurite, tmp_path: Path) -> None:
    blobs = store(azurite, tmp_path, sas=azurite.sas_token(read=True))
    with pytest.raises(StoreError) as caught:
        blobs.append("denied.jsonl", 0, b"x\n")
    assert caught.value.reason == "denied"
    assert "sig=" not in str(caught.value)
    settings_file(tmp_path, "sas", azurite.sas_token(add=True, create=True, write=True))
    blobs.append("denied.jsonl", 0, b"x\n")
    assert azurite.blobs()["denied.jsonl"] == b"x\n"


@pytest.mark.parametrize("content", [None, "AccountKey=secret", "not a connection string"])
def test_unusable_login_is_named_and_the_address_of_a_stored_blob_stays_known(
    azurite: Azurite, tmp_path: Path, content: str | None
) -> None:
    blobs = store(azurite, tmp_path)
    blobs.stage("a b/blob", 0, 0, b"x")
    blobs.commit("a b/blob", 1, "")
    # Another operation is refused meanwhile, and the file is replaced at this moment.
    blobs._log_in_again()
    (tmp_path / "connection").unlink()
    if content is not None:
        settings_file(tmp_path, "connection", content)
    with pytest.raises(StoreError) as caught:
        blobs.append("lines.jsonl", 0, b"x\n")
    assert caught.value.reason == "denied"
    assert ("azure_connection_string_file" if content is None else "login cannot be used") in str(caught.value)
    assert "secret" not in str(caught.value)
    assert blobs.url("a b/blob") == azurite.client.get_blob_client("a b/blob").url
