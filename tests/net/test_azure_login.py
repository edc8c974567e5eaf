"""The login to Azure Storage: sources of credentials, and errors without them."""

from pathlib import Path
from typing import Any

import pytest

from router.collection.stores import check_store
from router.config.router import RouterSettings, load_settings
from router.config.schema import SettingsError
from router.net.azure_login import AzureLogin, open_container, read_login

CONNECTION_STRING = (
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=c2VjcmV0LWtleQ==;EndpointSuffix=core.windows.net"
)
CONTAINER = "https://account.blob.core.windows.net/collected"


def settings(tmp_path: Path, **flags: Any) -> RouterSettings:
    return load_settings(environ={"HOME": str(tmp_path)}, flags=flags)


def file(tmp_path: Path, text: str) -> str:
    path = tmp_path / f"secret-{len(list(tmp_path.iterdir()))}"
    path.write_text(text)
    return str(path)


def test_files_precede_the_environment(tmp_path: Path) -> None:
    environ = {"AZURE_STORAGE_CONNECTION_STRING": "of-environment", "AZURE_STORAGE_SAS_TOKEN": "?sv=1"}
    assert read_login(settings(tmp_path), {}) == AzureLogin()
    assert read_login(settings(tmp_path), environ) == AzureLogin("of-environment")
    sas = settings(tmp_path, azure_sas_token_file=file(tmp_path, "?sv=2&sig=x\n"))
    assert read_login(sas, environ) == AzureLogin("", "sv=2&sig=x")
    string = settings(tmp_path, azure_connection_string_file=file(tmp_path, CONNECTION_STRING))
    assert read_login(string, environ) == AzureLogin(CONNECTION_STRING)
    assert "sig" not in repr(read_login(sas, environ))


def test_file_with_credentials_must_be_readable_and_there_is_only_one(tmp_path: Path) -> None:
    for flags, problem in (
        ({"azure_sas_token_file": str(tmp_path / "missing")}, "must be a readable file"),
        ({"azure_sas_token_file": str(tmp_path)}, "must be a readable file"),
        ({"azure_sas_token_file": file(tmp_path, "")}, "must not be empty"),
        (
            {"azure_sas_token_file": file(tmp_path, "a"), "azure_connection_string_file": file(tmp_path, "b")},
            "excludes",
        ),
    ):
        with pytest.raises(SettingsError, match=problem):
            read_login(settings(tmp_path, **flags), {})


@pytest.mark.parametrize(
    "container", ["http://account.blob.core.windows.net/c", "ftp://a/b", "Name", "ab", "https://account/c?sig=x"]
)
def test_container_is_a_name_or_an_encrypted_address_without_a_signature(container: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="collection_container"):
        settings(tmp_path, collection_container=container)


def test_name_alone_needs_a_connection_string(tmp_path: Path) -> None:
    named = settings(tmp_path, collection_container="collected")
    with pytest.raises(SettingsError, match="must be a URL, unless"):
        check_store(named, {})
    check_store(named, {"AZURE_STORAGE_CONNECTION_STRING": CONNECTION_STRING})
    check_store(settings(tmp_path, collection_container=CONTAINER), {})
    check_store(settings(tmp_path), {})


def test_invalid_connection_string_is_an_error_that_does_not_show_it(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        check_store(
            settings(tmp_path, collection_container="collected"),
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountKey=secret"},
        )
    assert "valid connection string" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_clients_name_the_container_whatever_the_login() -> None:
    assert open_container("collected", AzureLogin(CONNECTION_STRING)).url == "https://a.blob.core.windows.net/collected"
    signed = open_container(CONTAINER, AzureLogin("", "sv=1&sig=x"))
    assert signed.container_name == "collected"
    assert open_container(CONTAINER, AzureLogin()).url == CONTAINER


def test_identity_of_the_workload_precedes_that_of_the_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", file(tmp_path, "token"))
    monkeypatch.setenv("AZURE_TENANT_ID", "00000000-0000-0000-0000-000000000000")
    monkeypatch.setenv("AZURE_CLIENT_ID", "00000000-0000-0000-0000-000000000001")
    chain = open_container(CONTAINER, AzureLogin()).credential
    names = [type(each).__name__ for each in chain.credentials]
    assert names == ["WorkloadIdentityCredential", "ManagedIdentityCredential"]
    monkeypatch.delenv("AZURE_FEDERATED_TOKEN_FILE")
    chain = open_container(CONTAINER, AzureLogin()).credential
    assert [type(each).__name__ for each in chain.credentials] == ["ManagedIdentityCredential"]
