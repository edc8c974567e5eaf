"""The number of replicas of one Deployment: what it is, what is wanted, and who else writes it. No I/O, no clock.

Whoever else writes the number is a *rival*: a hand, an autoscaler, a deployment tool. Once is no matter: the number is
brought back into its limits. A rival that answers each of the router's writes with its own would make the number swing
for ever, so after some rounds the router stands back for a while.

A number that the server reports may be older than what was written, so versions are compared: they are decimal numbers
that grow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from router.cluster.kubernetes.client import FIELD_MANAGER
from router.cluster.kubernetes.objects import Deployment
from router.cluster.kubernetes.reflector import Backoff

ROUNDS = 3
ROUNDS_SECONDS = 600.0
"""A rival that has undone so many writes within this time keeps doing it."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody else has set the number of replicas. `rounds`: how many of the router's writes were undone lately."""

    by: str
    before: int
    after: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Patch:
    """Have so many replicas, if the Deployment still is of this version. Those of `remove` are to be marked before."""

    replicas: int
    resource_version: str
    remove: tuple[str, ...]


class Count:
    """The number of replicas of one Deployment. Times are seconds of one monotonic clock."""

    def __init__(self, deployment: Deployment, chance: Callable[[], float] = lambda: 0.0) -> None:
        self.replicas = deployment.replicas
        self.wanted: int | None = None
        self.stands_back_until = 0.0
        self.uid = deployment.uid
        self._resource_version = deployment.resource_version
        self._remove: tuple[str, ...] = ()
        self._sent: int | None = None
        self._wrote = False  # the present number is this router's
        self._undone: deque[float] = deque(maxlen=ROUNDS)
        self._backoff = Backoff(chance)
        self._not_before = 0.0

    # What is heard.

    def seen(self, deployment: Deployment, now: float) -> Foreign | None:
        """The Deployment as the server has it. Whoever else has changed the number, if so."""
        if _is_older(deployment.resource_version, self._resource_version):
            return None
        return self._changed(deployment.replicas, deployment.resource_version, deployment.replicas_by, now)

    def read(self, replicas: int, resource_version: str, now: float) -> Foreign | None:
        """The number as the server has it, read after a conflict. That somebody else has changed it, if so."""
        return self._changed(replicas, resource_version, "", now)

    def _changed(self, replicas: int, resource_version: str, by: str, now: float) -> Foreign | None:
        before, self.replicas, self._resource_version = self.replicas, replicas, resource_version
        if before == replicas or by == FIELD_MANAGER or replicas == self._sent:
            return None
        if self._wrote:
            self._undone.append(now)
        self._wrote = False
        rounds = sum(now - at < ROUNDS_SECONDS for at in self._undone)
        return Foreign(by or "somebody unknown", before, replicas, rounds)

    def stand_back(self, until: float) -> None:
        """Write nothing until then."""
        self.stands_back_until = until
        self._undone.clear()
        self.forget()

    # What is wanted.

    def want(self, replicas: int, remove: tuple[str, ...]) -> None:
        """Have so many, without those of `remove`."""
        if (replicas, remove) != (self.wanted, self._remove):
            self._not_before = 0.0  # what was refused may be taken now
        self.wanted, self._remove = replicas, remove

    def forget(self) -> None:
        """Want nothing."""
        self.wanted, self._remove = None, ()

    def due(self, now: float) -> Patch | float | None:
        """What to write now; or in how many seconds there may be something; None when all is as wanted."""
        if self.wanted is None or self.wanted == self.replicas or now < self.stands_back_until:
            return None
        if now < self._not_before:
            return self._not_before - now
        remove = self._remove if self.wanted < self.replicas else ()
        return Patch(self.wanted, self._resource_version, remove)

    def sending(self, patch: Patch) -> None:
        """The patch is on its way."""
        self._sent = patch.replicas

    def written(self, replicas: int, resource_version: str) -> None:
        """The server has taken it."""
        self.replicas, self._resource_version, self._sent, self._wrote = replicas, resource_version, None, True
        self._backoff.reset()

    def refused(self, now: float, least: float = 0.0) -> None:
        """The server has not taken it; `least` is the pause that it asks for."""
        self._sent = None
        self._not_before = now + self._backoff.failed(least)


def _is_older(one: str, other: str) -> bool:
    if one.isdigit() and other.isdigit():
        return int(one) < int(other)
    return False
