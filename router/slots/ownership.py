"""Decides which pod owns the ledgers of a service, and when that pod may grant. No I/O.

The owner of a service is chosen by rendezvous hashing (Thaler and Ravishankar 1998) among the pods that this pod
reaches. So there is no election, and a pod that joins or leaves changes only the owner of its own services.

For a moment after a pod joins or leaves, pods disagree. Four rules keep two pods from granting the same slot:

- A pod grants slots of a service only if it is the owner in its own view, and every live pod has reported all leases
  that its workers hold. A pod sends this report to the pod that it considers the owner, and withdraws the report
  (`OwnershipRevoked`) when it considers another pod the owner. The owner waits for reports for at most
  `OWNER_SYNC_SECONDS`: availability comes first.
- While a pod is stalled, others may take over its services without the pod detecting it. After a stall it grants
  nothing until it has had time to receive their messages (`hold_back`).
- The leases of a pod that became unreachable stay on record until its process has certainly ended, or for
  `PARTITION_GRACE_SECONDS`.
- While an unreachable pod may be running (a network partition, a frozen process), the replicas are divided among all
  pods, reachable or not, again by rendezvous hashing. Each side of the partition grants only slots of the replicas that
  belong to its own pods, so that the sides together never grant more than all slots. If all replicas of a version
  belong to other sides, one of them is used nevertheless: availability comes first. After `PARTITION_GRACE_SECONDS` a
  side takes over the replicas of the unreachable pods.

The caller is `peers.ledger_dispatcher`, which applies the decisions to the ledgers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

OWNER_SYNC_SECONDS = 1.0
"""Maximum time that a new owner waits for the reports of the other pods: as long as a link may be silent. Reports take
milliseconds unless the machine is overloaded. Meanwhile workers use the leases that they hold."""

RECONNECT_SECONDS = 0.25
"""How long others wait, after the link with a pod was lost, before they take over its services. Within this time the
pod may reconnect, or its process may be found to have ended. A reset connection is replaced within milliseconds."""

STALL_SECONDS = 0.75
"""If a process did not run for this long, other pods may have taken over its services: the silence after which they
consider a link dead (`LinkLimits`), less one heartbeat."""

STALL_RECOVERY_SECONDS = 0.3
"""How long a pod that was stalled grants nothing, so that it first reads the messages that arrived meanwhile."""

PARTITION_GRACE_SECONDS = 10.0
"""How long an unreachable pod keeps its leases and its part of the replicas: longer than most partitions and stalls,
shorter than the time after which Kubernetes evicts the pods of an unreachable node."""


def rendezvous(name: str, members: Collection[str]) -> str:
    """Return the member whose hash, computed together with `name`, is highest. Each pod gets the same result."""
    return max(members, key=lambda member: (_weight(name, member), member))


def _weight(name: str, member: str) -> bytes:
    return blake2b(f"{name}\0{member}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class OwnershipChange:
    """The owner of a service has changed in this pod's view. `before` is None for a new service."""

    service: str
    before: str | None
    after: str


class Ownership:
    """One pod's view of the owners. Times are seconds of this pod's monotonic clock."""

    __slots__ = (
        "_candidates", "_eligible_owners", "_given_up", "_held_back_until", "_in_our_partition", "_leaving", "_live",
        "_owners", "_synced_by", "_syncing_since", "_unreachable", "own_id",
    )  # fmt: skip

    def __init__(self, own_id: str) -> None:
        self.own_id = own_id
        self._live: frozenset[str] = frozenset((own_id,))
        self._leaving: set[str] = set()
        self._unreachable: dict[str, float] = {}  # pod -> since when; moved to `_given_up` after the grace period
        self._given_up: dict[str, float] = {}  # pod that was unreachable for `PARTITION_GRACE_SECONDS` -> since when
        self._eligible_owners: frozenset[str] | None = None
        self._candidates: frozenset[str] | None = None  # the pods among which owners were last chosen
        self._owners: dict[str, str] = {}
        self._synced_by: dict[str, set[str]] = {}  # service -> pods that have reported all their leases to this pod
        self._syncing_since: dict[str, float] = {}  # services that this pod owns but whose slots it may not grant yet
        self._held_back_until = float("-inf")
        self._in_our_partition: dict[str, bool] = {}  # replica id -> cached result

    @property
    def live(self) -> frozenset[str]:
        """The reachable pods, this one included."""
        return self._live

    def owner(self, service: str) -> str:
        """Return the owner of a service, even if this pod has no such service yet."""
        return self._owners.get(service) or rendezvous(service, self._current_candidates())

    def owned_by(self, pod: str) -> list[str]:
        """Return the services that a pod owns."""
        return [service for service, owner in self._owners.items() if owner == pod]

    def set_services(self, services: Iterable[str], now: float) -> list[OwnershipChange]:
        """Replace the services. Return the owners of the new ones."""
        names = set(services)
        for removed in [name for name in self._owners if name not in names]:
            del self._owners[removed]
            self._syncing_since.pop(removed, None)
            self._synced_by.pop(removed, None)
        return [self._assign(name, None, now) for name in sorted(names - self._owners.keys())]

    def set_peers(
        self,
        live: Collection[str],
        unreachable: Mapping[str, float],
        now: float,
        eligible_owners: frozenset[str] | None = None,
    ) -> list[OwnershipChange]:
        """Replace the pods. Return the services whose owner has changed.

        `live` are the reachable pods, with or without this one. `unreachable` are pods that may be running, each with
        the time since which it is unreachable. `eligible_owners` are the only pods that may own services; None means
        all live ones (see `reachability`).
        """
        self._eligible_owners = eligible_owners
        self._live = frozenset((*live, self.own_id))
        absent = {pod: since for pod, since in unreachable.items() if pod not in self._live}
        self._given_up = {pod: since for pod, since in self._given_up.items() if absent.get(pod) == since}
        self._unreachable = {pod: since for pod, since in absent.items() if pod not in self._given_up}
        self._in_our_partition.clear()
        self._leaving &= self._live
        return self._reassign(now)

    def on_leaving(self, pod: str, now: float) -> list[OwnershipChange]:
        """Assign all services of a pod that is about to end to other pods, while its workers finish their requests.

        Return the services whose owner has changed.
        """
        self._leaving.add(pod)
        return self._reassign(now)

    def _current_candidates(self) -> frozenset[str]:
        """Return the pods that may own services: those that are not leaving, or all if all are leaving."""
        staying = self._live - self._leaving
        return (self._eligible_owners and self._eligible_owners & staying) or staying or self._live

    def _reassign(self, now: float) -> list[OwnershipChange]:
        candidates = self._current_candidates()
        if candidates == self._candidates:
            return []
        self._candidates = candidates
        changes = []
        for service, before in list(self._owners.items()):
            if before not in candidates or rendezvous(service, candidates) != before:
                change = self._assign(service, before, now)
                if change.before != change.after:
                    changes.append(change)
        return changes

    def _assign(self, service: str, before: str | None, now: float) -> OwnershipChange:
        after = self._owners[service] = rendezvous(service, self._current_candidates())
        self._syncing_since.pop(service, None)
        self._synced_by.get(service, set()).discard(self.own_id)  # its report was for the previous owner
        if after == self.own_id:
            self._syncing_since[service] = now
        return OwnershipChange(service, before, after)

    # Messages of pods.

    def on_sync_complete(self, pod: str, service: str) -> None:
        """Record that a pod has reported to this pod all leases of a service that its workers hold."""
        self._synced_by.setdefault(service, set()).add(pod)

    def on_ownership_revoked(self, pod: str, service: str, now: float) -> bool:
        """Record that a pod considers another pod the owner of a service, and has withdrawn its report.

        Return True if this pod is the owner in its own view. Then it must not grant until the two views agree.
        """
        self._synced_by.get(service, set()).discard(pod)
        if self._owners.get(service) != self.own_id:
            return False
        self._syncing_since.setdefault(service, now)
        return True

    def on_session_started(self, pod: str, now: float) -> list[str]:
        """Record that a pod has connected, for the first time or again, and will report its leases again.

        Return the services that this pod owns. It must not grant their slots before that report.
        """
        for pods in self._synced_by.values():
            pods.discard(pod)
        return self._sync_owned(now)

    def hold_back(self, now: float, until: float) -> list[str]:
        """Return no service from `take_synced` before `until`, as this pod's view of the live pods may be outdated.

        Return the services that this pod owns. It must stop granting their slots.
        """
        self._held_back_until = until
        return self._sync_owned(now)

    def _sync_owned(self, now: float) -> list[str]:
        owned = self.owned_by(self.own_id)
        for service in owned:
            self._syncing_since.setdefault(service, now)
        return owned

    # Effects.

    def take_synced(self, now: float) -> list[str]:
        """Return the services whose slots this pod may grant from now on. Each is returned once."""
        if now < self._held_back_until:
            return []
        synced = [service for service, since in self._syncing_since.items() if self._is_synced(service, since, now)]
        for service in synced:
            del self._syncing_since[service]
        return synced

    def _is_synced(self, service: str, since: float, now: float) -> bool:
        return self._live <= self._synced_by.get(service, frozenset()) or now - since >= OWNER_SYNC_SECONDS

    def replicas_of_other_sides(self, replica_ids: Collection[str], now: float) -> frozenset[str]:
        """Return those of a version's replicas that belong to other sides of the partition, but never all of them."""
        others = frozenset(replica_id for replica_id in replica_ids if not self.in_our_partition(replica_id, now))
        if others and len(others) == len(replica_ids):
            others -= {rendezvous("\0".join(sorted(self._live)), others)}
        return others

    def in_our_partition(self, replica_id: str, now: float) -> bool:
        """True if a replica belongs to this side of the partition, or if there is no partition."""
        absent = [pod for pod, since in self._unreachable.items() if now - since < PARTITION_GRACE_SECONDS]
        if not absent:
            return True
        ours = self._in_our_partition.get(replica_id)
        if ours is None:
            ours = rendezvous(replica_id, [*self._live, *absent]) in self._live
            self._in_our_partition[replica_id] = ours
        return ours

    def take_expired(self, now: float) -> list[str]:
        """Return the pods that have been unreachable for `PARTITION_GRACE_SECONDS`. Each is returned once."""
        expired = [pod for pod, since in self._unreachable.items() if now - since >= PARTITION_GRACE_SECONDS]
        for pod in expired:
            self._given_up[pod] = self._unreachable.pop(pod)
        if expired:
            self._in_our_partition.clear()
        return expired

    @property
    def is_partitioned(self) -> bool:
        """True if an unreachable pod may be running."""
        return bool(self._unreachable)
