"""Which pods reach which? Decides, does no I/O.

Two pods may be unable to reach each other although a third one reaches both: a network that is cut between two nodes,
or routers that have each joined the first one and know nothing of one another. Each would then choose owners among
other pods, and what one says to the owner of a service by its view goes to a pod that is not the owner by its own. So
pods tell each other whom they reach, and where that is not everybody, only pods that all reach own services.

A pod that all reach is linked with whoever asks, so everybody knows of the same ones: what the pods that one reaches
say is enough, and nothing need be passed on. Where there is no such pod, all go by what they reach themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.slots.ownership import GATHER_SECONDS, RETURN_SECONDS

SETTLE_SECONDS = GATHER_SECONDS + RETURN_SECONDS
"""How long pods may differ about whom they reach before anything follows from it. Pods that come and go are noticed by
one after the other: within this time, unless they are overloaded."""


class Reach:
    """What one pod knows of it. Times are seconds of one monotonic clock."""

    __slots__ = ("_concluded", "_rows", "_since", "everyone", "own_id", "preferred")

    def __init__(self, own_id: str) -> None:
        self.own_id = own_id
        self._rows: dict[str, frozenset[str]] = {}  # pod -> whom it says it reaches, itself included
        self._since: float | None = None  # when the pods were first seen to differ
        self._concluded = True
        self.everyone: frozenset[str] = frozenset((own_id,))
        """The pods that this one reaches, by itself or through another one."""
        self.preferred: frozenset[str] | None = None
        """The pods that may own services, if not all that this one reaches."""

    def told(self, pod: str, reached: Iterable[str]) -> None:
        """A pod has said whom it reaches."""
        self._rows[pod] = frozenset((*reached, pod))

    def lost(self, pod: str) -> None:
        """A pod is not reached any more: what it said last is nothing to go by."""
        self._rows.pop(pod, None)

    def look(self, live: Iterable[str], now: float) -> None:
        """Draw the conclusions; `live` are the pods that this one reaches."""
        reached = frozenset((*live, self.own_id))
        # Pods of a release that does not say whom they reach are taken on trust.
        rows = {pod: row for pod, row in self._rows.items() if pod in reached} | {self.own_id: reached}
        self.everyone = frozenset().union(*rows.values())
        self.preferred = None
        whole = all(row == self.everyone for row in rows.values())
        self._since = None if whole else now if self._since is None else self._since
        self._concluded = self._since is None or now - self._since >= SETTLE_SECONDS
        if whole or not self._concluded:
            return
        reached_by_all = reached.intersection(*rows.values())
        self.preferred = frozenset(pod for pod in reached_by_all if rows.get(pod) == self.everyone) or None

    def is_due(self, now: float) -> bool:
        """Whether another look would find what the last one was too early for."""
        return not self._concluded and self._since is not None and now - self._since >= SETTLE_SECONDS
