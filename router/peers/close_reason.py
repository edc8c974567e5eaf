"""The reasons why connections between peers end, and which refused connections are logged. No I/O, no clock.

The values must not change: they are labels of metrics and fields of logs. Some are sent to the other side in the
handshake (`handshake`).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from enum import StrEnum

_LOG_INTERVAL_SECONDS = 60.0  # between two log lines about refusals of the same source
_MAX_SOURCES = 1024  # sources that are remembered; an attack from more addresses is logged more often


class CloseReason(StrEnum):
    """Why a connection ended."""

    # Refused: the other side violated the protocol or a rule of this router.
    GARBAGE = "garbage"
    """Bytes that are no frame, handshake or message of a router."""
    OVERSIZED = "oversized"
    """A frame over the size limit."""
    SECRET = "secret"  # noqa: S105  (the name of a reason, not a secret)
    """No valid proof of the shared secret: a different secret, or a replayed or altered handshake."""
    FORGED = "forged"
    """A frame with a wrong MAC, or a certificate other than the announced one."""
    VERSION = "version"
    """The two releases have no protocol version in common."""
    STALE = "stale"
    """A later process with the same id is already connected."""
    SAME_ID = "same-id"
    """Another process uses this router's own id."""
    TIMEOUT = "timeout"
    """The handshake took too long."""
    CROWDED = "crowded"
    """Too many concurrent handshakes, and this was the oldest one."""
    TLS = "tls"
    """The TLS handshake or a TLS record failed."""
    UNENCRYPTED = "unencrypted"
    """One side requires TLS, and the other one does not support it."""
    REFUSED = "refused"
    """The other side refused, for a reason that this release does not recognize."""

    # Closed as intended.
    SELF = "self"
    """This router connected to itself."""
    DUPLICATE = "duplicate"
    """There already is a link with this peer."""
    REPLACED = "replaced"
    """A later connection with the same peer replaced this one."""
    GOODBYE = "goodbye"
    """The peer announced that its process ends."""
    STOPPED = "stopped"
    """This side closed it."""

    # Lost.
    CLOSED = "closed"
    """The other side or the network closed it."""
    SILENT = "silent"
    """Nothing was received for too long."""
    UNREAD = "unread"
    """The peer did not read what was sent to it."""


REFUSALS = frozenset(
    (
        CloseReason.GARBAGE, CloseReason.OVERSIZED, CloseReason.SECRET, CloseReason.FORGED, CloseReason.VERSION,
        CloseReason.STALE, CloseReason.SAME_ID, CloseReason.TIMEOUT, CloseReason.CROWDED, CloseReason.TLS,
        CloseReason.UNENCRYPTED, CloseReason.REFUSED,
    )
)  # fmt: skip
"""Reasons that are counted and logged as a refusal."""


class Refusals:
    """Counts refused connections and limits their log to one line per source and minute.

    This keeps the log readable during an attack.
    """

    __slots__ = ("_counts", "_logged_at")

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._logged_at: OrderedDict[str, float] = OrderedDict()  # by source, oldest first

    @property
    def counts(self) -> Mapping[str, int]:
        """Refusals by reason, since the start."""
        return self._counts

    def record(self, source: str, reason: CloseReason, now: float) -> bool:
        """Count a refusal of `source` (an address without its port). Return True if it should be logged."""
        self._counts[reason.value] += 1
        last = self._logged_at.get(source)
        if last is not None and now - last < _LOG_INTERVAL_SECONDS:
            return False
        self._logged_at[source] = now
        self._logged_at.move_to_end(source)
        if len(self._logged_at) > _MAX_SOURCES:
            self._logged_at.popitem(last=False)
        return True
