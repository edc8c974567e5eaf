"""Decides which pods may own services if not all pods reach each other. No I/O.

Two pods may be unable to reach each other although a third pod reaches both: in a partial network partition, or if
routers were started with the address of the first router only. Each of the two would then choose owners among different
pods, and send messages for the owner of a service to a pod that does not consider itself the owner. To avoid this, pods
report to each other which pods they reach. If these reports differ, only pods that every pod reaches may own services.

A pod that every pod reaches has a link with each of them, so each receives its report without forwarding. If there is
no such pod, each pod decides by its own links.
"""

from __future__ import annotations

from collections.abc import Iterable

from router.slots.ownership import OWNER_SYNC_SECONDS, RECONNECT_SECONDS

SETTLE_SECONDS = OWNER_SYNC_SECONDS + RECONNECT_SECONDS
"""How long reports must differ before the difference has an effect. When a pod joins or leaves, the other pods detect
it one after another, within this time unless they are overloaded."""


class Reachability:
    """One pod's view. Times are seconds of this pod's monotonic clock."""

    __slots__ = ("_differ_since", "_is_settled", "_reports", "all_pods", "eligible_owners", "own_id")

    def __init__(self, own_id: str) -> None:
        self.own_id = own_id
        self._reports: dict[str, frozenset[str]] = {}  # pod -> the pods that it reaches, itself included
        self._differ_since: float | None = None
        self._is_settled = True
        self.all_pods: frozenset[str] = frozenset((own_id,))
        """The pods that this one reaches, directly or through another one."""
        self.eligible_owners: frozenset[str] | None = None
        """The pods that may own services. None: all that this pod reaches."""

    def on_report(self, pod: str, reached: Iterable[str]) -> None:
        """Record which pods a pod reaches."""
        self._reports[pod] = frozenset((*reached, pod))

    def on_peer_down(self, pod: str) -> None:
        """Discard the report of a pod that this pod no longer reaches."""
        self._reports.pop(pod, None)

    def update(self, live: Iterable[str], now: float) -> None:
        """Compute `all_pods` and `eligible_owners`; `live` are the pods that this one reaches."""
        reached = frozenset((*live, self.own_id))
        # A pod without a report may run an older release; it counts as one that reaches every pod.
        reports = {pod: report for pod, report in self._reports.items() if pod in reached} | {self.own_id: reached}
        self.all_pods = frozenset().union(*reports.values())
        self.eligible_owners = None
        agree = all(report == self.all_pods for report in reports.values())
        self._differ_since = None if agree else now if self._differ_since is None else self._differ_since
        self._is_settled = self._differ_since is None or now - self._differ_since >= SETTLE_SECONDS
        if agree or not self._is_settled:
            return
        reached_by_all = reached.intersection(*reports.values())
        self.eligible_owners = frozenset(pod for pod in reached_by_all if reports.get(pod) == self.all_pods) or None

    def is_due(self, now: float) -> bool:
        """True if the reports have differed for `SETTLE_SECONDS` by now, so that `update` must be called again."""
        return not self._is_settled and self._differ_since is not None and now - self._differ_since >= SETTLE_SECONDS
