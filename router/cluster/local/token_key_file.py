"""Stores the router's token signing keys in `token-keys.json` in the state directory, readable only by its owner.

Does not contain: the format of the keys, and their rotation (`auth.issuing`).
"""

from hashlib import sha256
from pathlib import Path

from router.auth.issuing.ring_store import StoredRing
from router.cluster.local.private_file import PrivateFile


class TokenKeyFile:
    """A `RingStore`. It reads the file in the event loop: the file is small, so this takes no longer than a
    response."""

    def __init__(self, state_dir: Path) -> None:
        self._file = PrivateFile(state_dir / "token-keys.json", "token signing keys")

    async def read(self) -> StoredRing | None:
        content = self._file.read()
        if content is None:
            return None
        try:
            return StoredRing(content.decode(), sha256(content).hexdigest())
        except UnicodeDecodeError:
            raise self._file.error("must be text; remove it to have new keys generated") from None

    async def write(self, text: str, previous: StoredRing | None) -> bool:
        with self._file.locked():
            if await self.read() != previous:
                return False
            self._file.write(text)
        return True
