"""The service router's desk: one ledger per version, and the front-ends that talk with them.

No I/O: `deliver` functions carry messages to front-ends, whether they live in this process or behind a socket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from router.services import VersionKey
from router.slots.ledger import Leak, Outbox, VersionLedger
from router.slots.messages import Holds, ToHolder, ToLedger

Deliver = Callable[[VersionKey, ToHolder], None]


class Coordinator:
    """Routes messages between front-ends and the ledgers of the versions."""

    __slots__ = (
        "_deliver", "_known", "_ledgers", "_recording", "_replicas", "_stale", "_versions", "leaks_repaired",
        "messages",
    )  # fmt: skip

    def __init__(self) -> None:
        self._ledgers: dict[VersionKey, VersionLedger] = {}
        self._versions: dict[str, set[VersionKey]] = {}  # those that have ledgers, by service
        # Slots, cordoned, reserved.
        self._replicas: dict[VersionKey, tuple[Mapping[str, int], frozenset[str], frozenset[str]]] = {}
        self._deliver: dict[str, Deliver] = {}
        self._recording: set[str] = set()  # services whose ledgers do not grant
        self.messages: Counter[str] = Counter()
        """Messages taken in and sent, by their word in lower case."""
        self._known: frozenset[VersionKey] = frozenset()
        self._stale: set[VersionKey] = set()  # unknown versions of which nobody has spoken since the last sweep
        self.leaks_repaired = 0  # leases on which ledgers and front-ends differed; 0 unless this program has a fault

    # Front-ends.

    def attach(self, front_end: str, deliver: Deliver) -> None:
        """Make a front-end known, or known again. `deliver` must not call the coordinator before it returns."""
        self._deliver[front_end] = deliver

    def is_attached(self, front_end: str) -> bool:
        """Whether a front-end is known and its connection up."""
        return front_end in self._deliver

    def disconnect(self, front_end: str) -> None:
        """Say nothing to a front-end whose connection broke; what it holds stays on record, as its process may live.

        It is attached again once it is back, and begins with `Hello`; or detached once its process is known to be gone.
        """
        self._deliver.pop(front_end, None)
        for key, ledger in self._ledgers.items():
            self._send(key, ledger.front_end_lost(front_end))

    def detach(self, front_end: str) -> None:
        """Free everything that a front-end held: its process has ended."""
        self._deliver.pop(front_end, None)
        for key, ledger in self._ledgers.items():
            self._send(key, ledger.front_end_gone(front_end))

    def receive(self, front_end: str, key: VersionKey, messages: Iterable[ToLedger]) -> None:
        """Take in what a front-end says about a version, and answer whoever is concerned."""
        self._stale.discard(key)
        said = tuple(messages)
        self._count(said)
        self._send(key, self._get(key).handle(front_end, *said))

    def reconcile(self, front_end: str, key: VersionKey, holds: Holds) -> list[Leak]:
        """Compare what a front-end holds of a version with the record, and mend that. Returns what differed."""
        self._stale.discard(key)
        leaks, outbox = self._get(key).reconcile(front_end, holds)
        self.leaks_repaired += sum(abs(leak.held - leak.recorded) for leak in leaks)
        self._send(key, outbox)
        return leaks

    # Services.

    def stop_granting(self, service: str) -> None:
        """Let the ledgers of a service only keep record."""
        self._recording.add(service)
        for _, ledger in self._of(service):
            ledger.close()

    def begin_granting(self, service: str) -> None:
        """Let the ledgers of a service grant."""
        self._recording.discard(service)
        for key, ledger in self._of(service):
            self._send(key, ledger.open())

    def start_over(self, service: str) -> None:
        """Forget all that front-ends hold of a service and only keep record: somebody else grants from now on."""
        self._recording.add(service)
        for key, _ in self._of(service):
            self._drop(key)
            self._get(key)

    def has_told_all(self, front_ends: Collection[str], service: str) -> None:
        """Those of `front_ends` that have not said `Hello` since their connection is back hold nothing of a service."""
        for key, ledger in self._of(service):
            for front_end in set(ledger.lost_front_ends()).intersection(front_ends):
                self._send(key, ledger.front_end_gone(front_end))

    def lose(self, front_ends: Collection[str], service: str) -> None:
        """Keep what `front_ends` hold of a service on record, but grant them nothing: they talk with somebody else."""
        for key, ledger in self._of(service):
            for front_end in front_ends:
                self._send(key, ledger.front_end_lost(front_end))

    # Versions and replicas.

    def ledger(self, key: VersionKey) -> VersionLedger | None:
        """The ledger of a version, to look at."""
        return self._ledgers.get(key)

    def set_replicas(
        self,
        key: VersionKey,
        slots: Mapping[str, int],
        cordoned: Iterable[str] = (),
        reserved: Collection[str] = (),
    ) -> None:
        """Make `slots` (replica id -> slots) the complete set of a version's replicas, and cordon those `cordoned`; of
        the `reserved` ones no more is granted."""
        closed, kept = frozenset(cordoned), frozenset(reserved)
        before, self._replicas[key] = self._replicas.get(key), (slots, closed, kept)
        ledger = self._get(key)
        self._send(key, ledger.set_replicas(slots, closed, kept))
        if before is not None and before[1] - closed:
            self._send(key, ledger.uncordon(before[1] - closed))

    def set_versions(self, keys: Collection[VersionKey]) -> None:
        """Make `keys` the versions that are known here, and forget those that were before.

        Front-ends of another pod may speak of one that this pod has not heard of yet: that stays on record.
        """
        former, self._known = self._known, frozenset(keys)
        for key in former - self._known:
            self._drop(key)
        self._recording.intersection_update({service for service, _ in keys})
        self._replicas = {key: known for key, known in self._replicas.items() if key in self._known}

    def sweep(self) -> None:
        """Forget versions that are not known here and of which no front-end has spoken since the last sweep."""
        for key in self._stale:
            if key not in self._known:
                self._drop(key)
        self._stale = self._ledgers.keys() - self._known

    def _of(self, service: str) -> list[tuple[VersionKey, VersionLedger]]:
        return [(key, self._ledgers[key]) for key in self._versions.get(service, ())]

    def _drop(self, key: VersionKey) -> None:
        if self._ledgers.pop(key, None) is not None:
            versions = self._versions[key[0]]
            versions.remove(key)
            if not versions:
                del self._versions[key[0]]

    def _get(self, key: VersionKey) -> VersionLedger:
        ledger = self._ledgers.get(key)
        if ledger is None:
            ledger = self._ledgers[key] = VersionLedger()
            self._versions.setdefault(key[0], set()).add(key)
            if key[0] in self._recording:
                ledger.close()
            if key in self._replicas:
                self._send(key, ledger.set_replicas(*self._replicas[key]))
        return ledger

    def _send(self, key: VersionKey, outbox: Outbox) -> None:
        for front_end, message in outbox:
            deliver = self._deliver.get(front_end)
            if deliver is not None:
                self._count((message,))
                deliver(key, message)

    def _count(self, messages: Iterable[ToHolder | ToLedger]) -> None:
        for message in messages:
            self.messages[type(message).__name__.lower()] += 1
