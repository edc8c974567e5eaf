"""Where the router's signing keys are kept: what a place must offer. Loads nothing."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Stored(NamedTuple):
    """A text, and a mark that changes whenever it does."""

    text: str
    mark: str


class RingStore(Protocol):
    """One text that several routers, and the command `token`, read and replace."""

    async def read(self) -> Stored | None:
        """What it holds; None if nothing. Raises OSError or `SettingsError` when it cannot be read."""

    async def write(self, text: str, former: Stored | None) -> bool:
        """Replace what was read. False if somebody else has done so since. Raises as `read` does."""
