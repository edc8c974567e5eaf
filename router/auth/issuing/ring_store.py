"""The protocol of a store for the router's signing keys.

Implemented by `TokenKeyFile` (local cluster) and `TokenKeySecret` (Kubernetes).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class StoredRing(NamedTuple):
    """The stored text of a key ring, and a revision that changes whenever the text does."""

    text: str
    revision: str


class RingStore(Protocol):
    """Stores one text, which several routers and the command `token` read and replace."""

    async def read(self) -> StoredRing | None:
        """Return the stored text, or None if nothing is stored. Raises OSError or `SettingsError` if reading fails."""

    async def write(self, text: str, previous: StoredRing | None) -> bool:
        """Replace `previous`, as returned by `read`. Return False if the stored text has changed since then.

        Raises the errors of `read`.
        """
