"""Why connections between peers end, and who hears of those that were refused.

Lives here: the reasons, their counts, and the rule that keeps a log readable under attack. No I/O, no clock.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from enum import StrEnum

_LOGGED_EVERY_SECONDS = 60.0
_SOURCES = 1024  # remembered at most; whoever attacks from more addresses is logged more often


class Ending(StrEnum):
    """Why a connection ended."""

    # Refused, or broken off by this side for what came.
    GARBAGE = "garbage"
    """Bytes that no router sends."""
    OVERSIZED = "oversized"
    """A frame over the limit."""
    SECRET = "secret"  # noqa: S105  (a word, not one)
    """No proof of the shared secret: another secret, a replayed or an altered hand-shake."""
    FORGED = "forged"
    """A frame that the peer did not send, or not at this place; a certificate that it did not name."""
    VERSION = "version"
    """The two releases have no protocol version in common."""
    STALE = "stale"
    """A process of this id that began later is known."""
    SAME_ID = "same-id"
    """Another process goes by this router's own id."""
    TIMEOUT = "timeout"
    """The hand-shake took too long."""
    CROWDED = "crowded"
    """Too many hand-shakes at once, and this was the oldest."""
    TLS = "tls"
    """TLS failed."""
    UNENCRYPTED = "unencrypted"
    """One of both requires TLS, and the other one does not speak it."""
    REFUSED = "refused"
    """The other side refused, for a reason that this release does not know."""

    # In order.
    SELF = "self"
    """This router connected to itself."""
    DUPLICATE = "duplicate"
    """There is a link with this peer."""
    REPLACED = "replaced"
    """A later connection took its place."""
    GOODBYE = "goodbye"
    """The peer said that it ends."""
    STOPPED = "stopped"
    """This side ended it."""

    # Lost.
    CLOSED = "closed"
    """The other side or the network closed it."""
    SILENT = "silent"
    """Nothing was heard for too long."""
    UNREAD = "unread"
    """The peer did not read what was sent."""


REFUSALS = frozenset(
    (
        Ending.GARBAGE, Ending.OVERSIZED, Ending.SECRET, Ending.FORGED, Ending.VERSION, Ending.STALE, Ending.SAME_ID,
        Ending.TIMEOUT, Ending.CROWDED, Ending.TLS, Ending.UNENCRYPTED, Ending.REFUSED,
    )
)  # fmt: skip
"""What is counted and logged as a refusal."""


class Refusals:
    """Counts refusals, and says which of them to log: one per source and minute."""

    __slots__ = ("_counts", "_logged")

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._logged: OrderedDict[str, float] = OrderedDict()  # source -> when, oldest first

    @property
    def counts(self) -> Mapping[str, int]:
        """Refusals by reason, since the start."""
        return self._counts

    def note(self, source: str, ending: Ending, now: float) -> bool:
        """Count a refusal of `source` (an address without its port); True if it is to be logged."""
        self._counts[ending.value] += 1
        last = self._logged.get(source)
        if last is not None and now - last < _LOGGED_EVERY_SECONDS:
            return False
        self._logged[source] = now
        self._logged.move_to_end(source)
        if len(self._logged) > _SOURCES:
            self._logged.popitem(last=False)
        return True
