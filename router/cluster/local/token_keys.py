"""The router's token signing keys in the state folder: `token-keys.json`, which only its user can read.

Lives here: the place. Must not live here: what the text means, and when it is replaced (`tokens`).
"""

from hashlib import sha256
from pathlib import Path

from router.cluster.local.private import PrivateFile
from router.tokens.store import Stored


class TokenKeyFile:
    """A `RingStore`. The file is small, and reading it takes no longer than the answer to one request."""

    def __init__(self, state_dir: Path) -> None:
        self._file = PrivateFile(state_dir / "token-keys.json", "token signing keys")

    async def read(self) -> Stored | None:
        content = self._file.read()
        if content is None:
            return None
        try:
            return Stored(content.decode(), sha256(content).hexdigest())
        except UnicodeDecodeError:
            raise self._file.fault("must be text; remove it to have new ones made") from None

    async def write(self, text: str, former: Stored | None) -> bool:
        with self._file.locked():
            if await self.read() != former:
                return False
            self._file.write(text)
        return True
