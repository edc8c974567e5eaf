"""Decides which replica count of a Deployment to write, and detects external writes. No I/O, no clock.

`ReplicaCountState` tracks the current count (`observe_...`, `patch_...`) and the desired one (`set_desired`).
`next_patch` returns the write that is due. `scale_writer` sends it.

Users, autoscalers and deployment tools may write `spec.replicas` too. A single external write does no harm: the router
writes its desired count again. A competing controller, which undoes each of the router's writes, would make the count
oscillate forever, so the router backs off for a while after `CONTESTED_WRITES` undone writes.

A watch may report an older count than the one that was written last. Resource versions are decimal numbers that grow,
so they show which report is older.

A write is this router's own only if this process has sent it. Its field manager proves nothing, as another program may
use the same name. So the writes of another pod, which led before, are external, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from router.cluster.kubernetes.client import api_backoff
from router.cluster.kubernetes.objects import Deployment

CONTESTED_WRITES = 3
CONTEST_SECONDS = 600.0
"""A controller that undid `CONTESTED_WRITES` of the router's writes within this time competes with it."""


@dataclass(frozen=True, slots=True)
class ExternalWrite:
    """A write of the replica count by another program or a user."""

    manager: str
    """The field manager of the write."""
    before: int
    after: int
    undone_writes: int
    """How many of the router's writes were undone within `CONTEST_SECONDS`, including this one."""


@dataclass(frozen=True, slots=True)
class ScalePatch:
    """A write of the replica count, for a Deployment that still has this resource version. `remove` has the uids of the
    pods whose deletion cost is lowered before."""

    replicas: int
    resource_version: str
    remove: tuple[str, ...]


class ReplicaCountState:
    """Current and desired replica count of one Deployment. Times are seconds of one monotonic clock."""

    def __init__(self, deployment: Deployment, random: Callable[[], float] = lambda: 0.0) -> None:
        """`random` returns a number from 0 to 1, which spreads the retries."""
        self.current = deployment.replicas
        self.desired: int | None = None
        self.backs_off_until = 0.0
        self.uid = deployment.uid
        self._resource_version = deployment.resource_version
        self._remove: tuple[str, ...] = ()
        self._sent: int | None = None
        self._is_own_write = False  # this router wrote the current count
        self._undone_at: deque[float] = deque(maxlen=CONTESTED_WRITES)
        self._backoff = api_backoff(random)
        self._retry_at = 0.0

    # Observations.

    def observe_deployment(self, deployment: Deployment, now: float) -> ExternalWrite | None:
        """Record the Deployment that the watch reports. Return the external write that changed the count, if any."""
        if _is_older(deployment.resource_version, self._resource_version):
            return None
        return self._observe(deployment.replicas, deployment.resource_version, deployment.replicas_manager, now)

    def observe_read(self, replicas: int, resource_version: str, now: float) -> ExternalWrite | None:
        """Record a count that was read after a conflict. Return the external write that changed it, if any."""
        return self._observe(replicas, resource_version, "", now)

    def _observe(self, replicas: int, resource_version: str, manager: str, now: float) -> ExternalWrite | None:
        before, self.current, self._resource_version = self.current, replicas, resource_version
        if before == replicas:
            return None
        if replicas == self._sent:
            self._is_own_write = True
            return None
        if self._is_own_write:
            self._undone_at.append(now)
        self._is_own_write = False
        undone = sum(now - at < CONTEST_SECONDS for at in self._undone_at)
        return ExternalWrite(manager or "an unknown field manager", before, replicas, undone)

    def back_off(self, until: float) -> None:
        """Return no patch from `next_patch` until this time."""
        self.backs_off_until = until
        self._undone_at.clear()
        self.clear_desired()

    # Writes.

    def set_desired(self, replicas: int, remove: tuple[str, ...]) -> None:
        """Set the desired count. `remove` has the uids of the pods that Kubernetes deletes first if the count
        decreases."""
        if (replicas, remove) != (self.desired, self._remove):
            self._retry_at = 0.0  # the API server may accept the new count although it rejected the previous one
        self.desired, self._remove = replicas, remove

    def clear_desired(self) -> None:
        """Forget the desired count, as this router does not scale the Deployment now. `next_patch` returns None until
        `set_desired` is called again. A change of the current count undoes no write of this router any more."""
        self.desired, self._remove = None, ()
        self._is_own_write = False

    def next_patch(self, now: float) -> ScalePatch | float | None:
        """Return the patch to send now, or the seconds until the next retry, or None if there is nothing to write."""
        if self.desired is None or self.desired == self.current or now < self.backs_off_until:
            return None
        if now < self._retry_at:
            return self._retry_at - now
        remove = self._remove if self.desired < self.current else ()
        return ScalePatch(self.desired, self._resource_version, remove)

    def patch_sent(self, patch: ScalePatch) -> None:
        """Record that a patch is being sent. A watch event with the count of this patch is not an external write."""
        self._sent = patch.replicas

    def patch_succeeded(self, replicas: int, resource_version: str) -> None:
        """Record the count and the resource version in the API server's response to a patch."""
        self.current, self._resource_version, self._sent = replicas, resource_version, None
        self._is_own_write = True
        self._backoff.reset()

    def patch_failed(self, now: float, retry_after: float = 0.0) -> None:
        """Record that a patch has failed. `retry_after` is the delay in seconds that the API server asks for. The patch
        may have been applied nevertheless, if there was no response."""
        self._retry_at = now + self._backoff.next_delay(retry_after)


def _is_older(version: str, other: str) -> bool:
    if version.isdigit() and other.isdigit():
        return int(version) < int(other)
    return False
