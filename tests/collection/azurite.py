"""Azurite, Microsoft's emulator of Azure Storage, as a process."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient, ContainerSasPermissions, generate_container_sas

from tests.collection.reader import StoredEvent, read_files
from tests.processes import TIMEOUT_SECONDS, wait_until

needs_azurite = [
    pytest.mark.needs("node", "npm"),
    pytest.mark.skipif(
        not (Path(__file__).parents[1] / "servers/azurite/node_modules/azurite").is_dir(),
        reason="run `npm ci --prefix tests/servers/azurite --ignore-scripts`",
    ),
]
PROGRAM = Path(__file__).parents[1] / "servers/azurite/node_modules/azurite/dist/src/blob/main.js"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The account of the emulator. Its key is the same everywhere, and no secret."""


class Azurite:
    """A running emulator with one container."""

    def __init__(self, directory: Path, port: int) -> None:
        self._directory = directory
        self.port = port
        self.container = f"collected-{secrets.token_hex(4)}"
        self.endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        self.url = f"{self.endpoint}/{self.container}"
        self._process: subprocess.Popen[bytes] | None = None

    def connection_string(self, endpoint: str | None = None) -> str:
        """Return the connection string of the account."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};"
            f"BlobEndpoint={endpoint or self.endpoint};"
        )

    def sas_token(self, **rights: bool) -> str:
        """Return a shared access signature of the container."""
        token: str = generate_container_sas(
            ACCOUNT,
            self.container,
            account_key=KEY,
            permission=ContainerSasPermissions(**rights),
            expiry=datetime.now(UTC) + timedelta(hours=1),
        )
        return token

    @property
    def client(self) -> ContainerClient:
        """The container, for the test itself."""
        service = BlobServiceClient.from_connection_string(self.connection_string())
        return service.get_container_client(self.container)

    def start(self) -> None:
        """Start the emulator. What was stored before is still there."""
        arguments = ["--blobPort", str(self.port), "--location", str(self._directory)]
        options = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        with (self._directory / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                ["node", str(PROGRAM), *arguments, *options], stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self._accepts, "Azurite")

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal: SIGSTOP lets requests hang."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """End the emulator, which saves what is stored."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def blobs(self) -> dict[str, bytes]:
        """Return all blobs by name."""
        client = self.client
        return {blob.name: client.download_blob(blob.name).readall() for blob in client.list_blobs()}

    def events(self, rolling: Mapping[str, str] | None = None) -> list[StoredEvent]:
        """Return the events in all blobs of lines. `rolling`: see `read_files`."""
        lines = ((name, content) for name, content in self.blobs().items() if name.endswith(".jsonl"))
        return read_files(lines, rolling)


@contextlib.contextmanager
def running_azurite(directory: Path) -> Iterator[Azurite]:
    """Run an emulator with an empty container."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    azurite = Azurite(directory, port)
    try:
        azurite.start()
        azurite.client.create_container()
        yield azurite
    finally:
        azurite.stop()


def settings_file(directory: Path, name: str, text: str) -> str:
    """Write a secret to a file, and return its path."""
    path = directory / name
    path.touch(mode=0o600)
    path.write_text(text)
    return str(path)
