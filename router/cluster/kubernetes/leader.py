"""Who of the routers writes to the cluster: the holder of one Lease. Decides; no I/O, no clock.

    followed --its time is up, given up, or its holder has ended--> asked for --written--> held
       ^                                                               |                    |
       +----------------- somebody else was first (409) --------------+    not renewed, given up

- Clocks are not compared. A Lease has expired when this router has seen no renewal for as long as it lasts, by its own
  clock. Each write names the version that it replaces, so of two that find it expired one is first.
- The holder counts from the moment at which it *sent* its last successful write, and stops writing `WRITE_SECONDS` and
  a margin before the Lease has lasted out: what it has sent by then has failed or been carried out before anybody
  else may begin.
- A holder that is known to have ended need not be waited for: whoever is linked with the routers is told so
  (`ended`, `replaced`).
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
"""After a write was sent, its sender may send others for so long. The margin is for clocks of different speed."""
RETRY_SECONDS = 1.0
_SEPARATOR = "_"  # neither in names of pods nor in incarnations


def identity_of(pod: str, incarnation: str) -> str:
    """What the Lease says of a process: the pod's name and what tells its processes apart."""
    return f"{pod}{_SEPARATOR}{incarnation}"


def pod_of(identity: str) -> str:
    """The pod of an identity."""
    return identity.rpartition(_SEPARATOR)[0]


@dataclass(frozen=True, slots=True)
class Write:
    """Make the Lease so. `replaces` is the version that it must have, "" if there must be none."""

    holder: str
    transitions: int
    replaces: str


class Election:
    """One router's view of the Lease. Times are seconds of one monotonic clock."""

    def __init__(self, identity: str, chance: Callable[[], float] = lambda: 0.5) -> None:
        self.identity = identity
        self._chance = chance
        self._lease: Lease | None = None
        self._known = False  # whether there is one
        self._seen_at = 0.0  # when it last was another one
        self._ended = ""  # an identity
        self._held_since: float | None = None  # when the write was sent that it is held by
        self._write_at = 0.0
        self._gives_up = False

    # What is so.

    def leads(self, now: float) -> bool:
        """Whether this router may write."""
        return self._held_since is not None and not self._gives_up and now - self._held_since < DEADLINE_SECONDS

    @property
    def holder(self) -> str:
        """Whose it is, as far as was seen; "" if nobody's."""
        return self._lease.holder if self._lease is not None else ""

    @property
    def term(self) -> int:
        """Grows with each change of the holder."""
        return self._lease.transitions if self._lease is not None else 0

    # What is heard.

    def seen(self, lease: Lease | None, now: float) -> None:
        """The Lease as the server has it; None: there is none."""
        if self._known and lease == self._lease:
            return
        self._known = True
        self._lease = lease
        self._seen_at = now
        if lease is None or lease.holder != self.identity:
            self._held_since = None

    def ended(self, pod: str) -> None:
        """The process of a pod has ended."""
        if pod and pod == pod_of(self.holder) and self.holder != self.identity:
            self._ended = self.holder

    def replaced(self, pod: str, incarnation: str) -> None:
        """This is the process of a pod now; what the Lease may say of an earlier one is over."""
        if self.holder != identity_of(pod, incarnation):
            self.ended(pod)

    # What to do.

    def step(self, now: float) -> Write | None:
        """What to write now, if anything. `written` or `refused` must follow before the next call."""
        if not self._known or self._gives_up or now < self._write_at:
            return None
        lease = self._lease
        if lease is None:
            return Write(self.identity, 0, "")
        if lease.holder == self.identity:
            return Write(self.identity, lease.transitions, lease.resource_version)
        if not lease.holder or lease.holder == self._ended or now - self._seen_at >= lease.duration_seconds:
            return Write(self.identity, lease.transitions + 1, lease.resource_version)
        return None

    def written(self, lease: Lease, sent_at: float, now: float) -> None:
        """A write that was sent at `sent_at` has succeeded."""
        self._known, self._lease, self._seen_at = True, lease, now
        self._held_since = sent_at
        self._write_at = sent_at + RENEW_SECONDS

    def refused(self, now: float) -> None:
        """A write has failed. Somebody else's is heard of by `seen`."""
        self._write_at = now + RETRY_SECONDS * (0.5 + self._chance())

    def give_up(self, now: float) -> Write | None:
        """Lead no more, from now on. What to write so that another one may begin at once."""
        led, lease = self.leads(now), self._lease
        self._gives_up = True
        return Write("", lease.transitions, lease.resource_version) if led and lease is not None else None


def body_of(write: Write, namespace: str, name: str, before: dict[str, Any] | None, time_text: str) -> dict[str, Any]:
    """The Lease to send. `before`: its `spec` so far."""
    spec = dict(before or {})
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
