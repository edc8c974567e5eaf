"""Leader election with one Lease: decides when to write the Lease, and whether this router leads. No I/O, no clock.

    following --expired, released, or its holder has ended--> acquiring --written--> leading
       ^                                                          |                     |
       +------------ another router was faster (409) -------------+---- not renewed, resigned

- Clocks of different routers are not compared. For this router, a Lease has expired when it has observed no renewal for
  the duration of the Lease. Each write has the resource version that it replaces. So if two routers write an expired
  Lease, only one succeeds.
- The leader measures the age of its Lease from the time at which it *sent* its last successful write. It stops writing
  to the cluster `WRITE_SECONDS` and a margin before the Lease expires. So each of its requests has failed or has been
  carried out before another router may start to write.
- After a leader has ended, another router leads before the Lease expires: the links between routers report the end
  (`pod_ended`, `pod_restarted`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from router.cluster.kubernetes.client import WRITE_SECONDS
from router.cluster.kubernetes.objects import Lease

LEASE_SECONDS = 15
RENEW_SECONDS = 5.0
DEADLINE_SECONDS = LEASE_SECONDS - WRITE_SECONDS - 1.0
"""Maximum age of the last successful write of the Lease at which the leader may write to the cluster. The margin of 1 s
is for clocks that run at different speeds."""
RETRY_SECONDS = 1.0
"""Mean delay before a failed write of the Lease is retried."""
_SEPARATOR = "_"  # neither in names of pods nor in incarnations


def identity_of(pod: str, incarnation: str) -> str:
    """Return the identity of a router process in the Lease. `incarnation` distinguishes the processes of one pod."""
    return f"{pod}{_SEPARATOR}{incarnation}"


def pod_of(identity: str) -> str:
    """Return the pod of an identity."""
    return identity.rpartition(_SEPARATOR)[0]


@dataclass(frozen=True, slots=True)
class LeaseWrite:
    """A write of the Lease. `replaces` is the resource version that the Lease must have; "" creates the Lease."""

    holder: str
    transitions: int
    replaces: str


class Election:
    """The election as one router sees it. Times are seconds of one monotonic clock."""

    def __init__(self, identity: str, random: Callable[[], float] = lambda: 0.5) -> None:
        """`random` returns a number from 0 to 1, which spreads the retries."""
        self.identity = identity
        self._random = random
        self._lease: Lease | None = None
        self._is_observed = False
        self._changed_at = 0.0  # time of the last observed change of the Lease
        self._ended_identity = ""
        self._held_since: float | None = None  # time at which the last successful write was sent
        self._next_write_at = 0.0
        self._has_resigned = False

    # State.

    def leads(self, now: float) -> bool:
        """True if this router may write to the cluster."""
        return self._held_since is not None and not self._has_resigned and now - self._held_since < DEADLINE_SECONDS

    @property
    def holder(self) -> str:
        """The identity that held the Lease when it was last observed; "" if none did."""
        return self._lease.holder if self._lease is not None else ""

    @property
    def term(self) -> int:
        """The leadership term. It increases with each change of the holder."""
        return self._lease.transitions if self._lease is not None else 0

    # Observations.

    def observe(self, lease: Lease | None, now: float) -> None:
        """Record the current Lease; None if it does not exist."""
        if self._is_observed and lease == self._lease:
            return
        self._is_observed = True
        self._lease = lease
        self._changed_at = now
        if lease is None or lease.holder != self.identity:
            self._held_since = None

    def pod_ended(self, pod: str) -> None:
        """Record that the router process of a pod has ended."""
        if pod and pod == pod_of(self.holder) and self.holder != self.identity:
            self._ended_identity = self.holder

    def pod_restarted(self, pod: str, incarnation: str) -> None:
        """Record the current process of a pod. If an earlier process of the pod holds the Lease, it has ended."""
        if self.holder != identity_of(pod, incarnation):
            self.pod_ended(pod)

    # Decisions.

    def next_write(self, now: float) -> LeaseWrite | None:
        """Return the write that is due now, or None. Call `write_succeeded` or `write_failed` before the next call."""
        if not self._is_observed or self._has_resigned or now < self._next_write_at:
            return None
        lease = self._lease
        if lease is None:
            return LeaseWrite(self.identity, 0, "")
        if lease.holder == self.identity:
            return LeaseWrite(self.identity, lease.transitions, lease.resource_version)
        has_expired = now - self._changed_at >= lease.duration_seconds
        if not lease.holder or lease.holder == self._ended_identity or has_expired:
            return LeaseWrite(self.identity, lease.transitions + 1, lease.resource_version)
        return None

    def write_succeeded(self, lease: Lease, sent_at: float, now: float) -> None:
        """Record that the write sent at `sent_at` has succeeded."""
        self._is_observed, self._lease, self._changed_at = True, lease, now
        self._held_since = sent_at
        self._next_write_at = sent_at + RENEW_SECONDS

    def write_failed(self, now: float) -> None:
        """Record that a write has failed. If another router was faster, `observe` must be called with its Lease."""
        self._next_write_at = now + RETRY_SECONDS * (0.5 + self._random())

    def resign(self, now: float) -> LeaseWrite | None:
        """Never lead again. Return the write that releases the Lease, None if this router does not lead."""
        led, lease = self.leads(now), self._lease
        self._has_resigned = True
        return LeaseWrite("", lease.transitions, lease.resource_version) if led and lease is not None else None


def lease_body(
    write: LeaseWrite, namespace: str, name: str, spec_before: dict[str, Any] | None, time_text: str
) -> dict[str, Any]:
    """Return the Lease object to send. `spec_before` is the current `spec`, `time_text` the current time (RFC 3339)."""
    spec = dict(spec_before or {})
    if spec.get("holderIdentity") != write.holder:
        spec["acquireTime"] = time_text
    spec |= {
        "holderIdentity": write.holder,
        "leaseDurationSeconds": LEASE_SECONDS if write.holder else 1,
        "renewTime": time_text,
        "leaseTransitions": write.transitions,
    }
    metadata = {"name": name, "namespace": namespace}
    if write.replaces:
        metadata["resourceVersion"] = write.replaces
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
