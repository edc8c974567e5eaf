"""The service router's desk: one ledger per version, and the front-ends that talk with them.

No I/O: `deliver` functions carry messages to front-ends, whether they live in this process or behind a socket.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

from router.services import VersionKey
from router.slots.ledger import Outbox, VersionLedger
from router.slots.messages import ToHolder, ToLedger

Deliver = Callable[[VersionKey, ToHolder], None]


class Coordinator:
    """Routes messages between front-ends and the ledgers of the versions."""

    __slots__ = ("_deliver", "_ledgers", "_recording", "_replicas", "messages")

    def __init__(self) -> None:
        self._ledgers: dict[VersionKey, VersionLedger] = {}
        self._replicas: dict[VersionKey, tuple[Mapping[str, int], frozenset[str]]] = {}  # slots, cordoned
        self._deliver: dict[str, Deliver] = {}
        self._recording: set[str] = set()  # services whose ledgers do not grant
        self.messages: Counter[str] = Counter()
        """Messages taken in and sent, by their word in lower case."""

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
        said = tuple(messages)
        self._count(said)
        self._send(key, self._get(key).handle(front_end, *said))

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
            del self._ledgers[key]
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

    def set_replicas(self, key: VersionKey, slots: Mapping[str, int], cordoned: Iterable[str] = ()) -> None:
        """Make `slots` (replica id -> slots) the complete set of a version's replicas, and cordon those `cordoned`."""
        closed = frozenset(cordoned)
        before, self._replicas[key] = self._replicas.get(key), (slots, closed)
        ledger = self._get(key)
        self._send(key, ledger.set_replicas(slots, closed))
        if before is not None and before[1] - closed:
            self._send(key, ledger.uncordon(before[1] - closed))

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget versions that are not among `keys`."""
        for key in [key for key in self._ledgers if key not in keys]:
            del self._ledgers[key]
        self._replicas = {key: known for key, known in self._replicas.items() if key in keys}

    def _of(self, service: str) -> Iterator[tuple[VersionKey, VersionLedger]]:
        return iter([(key, ledger) for key, ledger in self._ledgers.items() if key[0] == service])

    def _get(self, key: VersionKey) -> VersionLedger:
        ledger = self._ledgers.get(key)
        if ledger is None:
            ledger = self._ledgers[key] = VersionLedger()
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
