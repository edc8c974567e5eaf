"""Decisions about the life of local replicas: is one ready, may one be started now, which one goes.

Lives here: `Health`, `Backoff` and `plan`, which know neither processes nor sockets and take time as an argument.
Must not live here: anything that acts on a decision (`processes`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from router.services import ReplicaState

FIRST_DELAY = 0.5
"""Seconds until the replacement of a replica that failed to start: long enough for a burst of failures to stay
readable."""

LONGEST_DELAY = 30.0
"""Seconds between starts of what always fails: one start costs up to some CPU seconds, an operator who has mended the
cause waits no longer than this."""

STABLE_SECONDS = 60.0
"""A replica that was ready this long shows that its program works; failures before it no longer count."""


class Health:
    """Readiness from the results of probes: so many in a row turn it, as the probes of Kubernetes do."""

    __slots__ = ("_row", "ready")

    def __init__(self) -> None:
        self.ready = False
        self._row = 0

    def seen(self, ok: bool, *, success_threshold: int, failure_threshold: int) -> bool:
        """Count one result; true when it turned `ready`."""
        if ok == self.ready:
            self._row = 0
            return False
        self._row += 1
        if self._row < (success_threshold if ok else failure_threshold):
            return False
        self.ready = ok
        self._row = 0
        return True


class Backoff:
    """When a version's dead replicas may be replaced.

    A replica that was ready and dies is replaced at once. One that dies again, or that never was ready, is replaced
    after `FIRST_DELAY`, then twice that, up to `LONGEST_DELAY`. Replicas that die within one delay count as one
    failure, since all of them run the same program. A replica started after the last failure and ready for
    `STABLE_SECONDS` ends the count.
    """

    __slots__ = ("_failures", "_last_failure", "_until")

    def __init__(self) -> None:
        self._failures = 0
        self._until = 0.0
        self._last_failure = 0.0

    def died(self, now: float, ready_for: float | None) -> float:
        """Seconds to wait before a replacement; `ready_for` is how long it was ready (None: never)."""
        if ready_for is not None and ready_for >= STABLE_SECONDS:
            return 0.0
        self._last_failure = now
        if now < self._until:
            return self._until - now
        if ready_for is None:
            self._failures = max(1, self._failures)  # only one that was ready is replaced without a delay
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** (min(self._failures, 16) - 1)) if self._failures else 0.0
        self._failures += 1
        self._until = now + delay
        return delay

    def thrives(self, started_at: float, ready_for: float) -> None:
        """Say that a replica is ready, since when it runs and for how long it has been ready."""
        if ready_for >= STABLE_SECONDS and started_at >= self._last_failure:
            self._failures = 0
            self._until = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A running replica as `plan` sees it; `current` is false when its program is not the version's present one."""

    id: str
    state: ReplicaState
    current: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now: how many replicas to start, and which to stop, in this order."""

    start: int
    stop: tuple[str, ...]


def plan(replicas: Sequence[Candidate], wanted: int, *, remove: Collection[str] = (), held_back: int = 0) -> Plan:
    """The next step towards `wanted` replicas that all run the current program.

    `replicas` are in the order of their start. `remove` are those that go first when some must go. `held_back` is how
    many may not be started yet.

    1. A replica of an older program that is not ready serves nobody: it goes at once.
    2. Too few: start what is missing.
    3. As many as wanted, some of an older program, nothing starting: start one more, the only one above `wanted`.
    4. Too many: stop those in `remove`, then of an older program, then not ready, then the youngest. While a replica
       starts that is to replace an older one, it is not one too many: an older one goes only when it can be spared.
    """
    live = [replica for replica in replicas if replica.state is not ReplicaState.DRAINING]
    useless = tuple(replica.id for replica in live if _useless(replica))
    live = [replica for replica in live if not _useless(replica)]
    older = any(not replica.current for replica in live)
    starting = any(replica.state is ReplicaState.STARTING for replica in live)
    surplus = len(live) - wanted
    if surplus < 0:
        return Plan(start=max(0, -surplus - held_back), stop=useless)
    if surplus == 0:
        return Plan(start=1 if older and not starting and not held_back else 0, stop=useless)
    spare = 1 if older and starting and wanted else 0

    def rank(aged: tuple[int, Candidate]) -> tuple[bool, bool, bool, int]:
        age, replica = aged
        return (replica.id not in remove, replica.current, replica.state is not ReplicaState.STARTING, -age)

    victims = [replica.id for _, replica in sorted(enumerate(live), key=rank)]
    return Plan(start=0, stop=(*useless, *victims[: surplus - spare]))


def _useless(replica: Candidate) -> bool:
    return not replica.current and replica.state is ReplicaState.STARTING
