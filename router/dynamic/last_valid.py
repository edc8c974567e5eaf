"""The last valid dynamic configuration, which is used while its source cannot be read, also after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Protocol

from router.cluster.local.private_file import PrivateFile
from router.config.schema import SettingsError


class LastValid(NamedTuple):
    """A valid dynamic configuration: the name of its source, its version there, its text, and when it took effect, in
    seconds since the epoch."""

    source: str
    etag: str
    text: str
    applied_at: float

    def encode(self) -> str:
        """Return the stored form."""
        return json.dumps(self._asdict())

    @classmethod
    def decode(cls, stored: str | bytes | None) -> LastValid | None:
        """Return what is stored; None if it is malformed or there is nothing."""
        try:
            fields = json.loads(stored or "null")
            return cls(str(fields["source"]), str(fields["etag"]), str(fields["text"]), float(fields["applied_at"]))
        except (ValueError, KeyError, TypeError):
            return None


class LastValidStore(Protocol):
    """Keeps the last valid dynamic configuration."""

    async def read(self) -> LastValid | None:
        """Return what is stored. None if there is nothing that can be used, or if the store cannot be read."""

    async def write(self, last: LastValid) -> None:
        """Store a dynamic configuration that has taken effect. Raises OSError and `SettingsError`."""


class LastValidFile:
    """A `LastValidStore` in the state directory. Each source has a file, as routers may share the directory."""

    def __init__(self, state_dir: Path, source: str) -> None:
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        self._file = PrivateFile(state_dir / f"dynamic-config-{digest}.json", "last valid dynamic configuration")

    async def read(self) -> LastValid | None:
        """See `LastValidStore`."""
        try:
            return LastValid.decode(await asyncio.to_thread(self._file.read))
        except (OSError, SettingsError):
            return None

    async def write(self, last: LastValid) -> None:
        """See `LastValidStore`."""
        await asyncio.to_thread(self._write, last.encode())

    def _write(self, text: str) -> None:
        with self._file.locked():
            self._file.write(text)
