"""The service router's desk: one ledger per version, and the front-ends that talk with them.

No I/O: `deliver` functions carry messages to front-ends, whether they live in this process or behind a socket.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

from router.services import VersionKey
from router.slots.ledger import Outbox, VersionLedger
from router.slots.messages import ToHolder, ToLedger

Deliver = Callable[[VersionKey, ToHolder], None]


class Coordinator:
    """Routes messages between front-ends and the ledgers of the versions."""

    __slots__ = ("_deliver", "_ledgers")

    def __init__(self) -> None:
        self._ledgers: dict[VersionKey, VersionLedger] = {}
        self._deliver: dict[str, Deliver] = {}

    def attach(self, front_end: str, deliver: Deliver) -> None:
        """Make a front-end known, or known again. `deliver` must not call the coordinator before it returns."""
        self._deliver[front_end] = deliver

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

    def ledger(self, key: VersionKey) -> VersionLedger | None:
        """The ledger of a version, to look at."""
        return self._ledgers.get(key)

    def set_replicas(self, key: VersionKey, slots: Mapping[str, int], cordoned: Iterable[str] = ()) -> None:
        """Make `slots` (replica id -> slots) the complete set of a version's replicas, and cordon those `cordoned`."""
        self._send(key, self._get(key).set_replicas(slots, cordoned))

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Forget versions that are not among `keys`."""
        for key in [key for key in self._ledgers if key not in keys]:
            del self._ledgers[key]

    def cordon(self, key: VersionKey, replica_ids: Iterable[str]) -> None:
        """Let replicas finish what they have and give them nothing new."""
        self._send(key, self._get(key).cordon(replica_ids))

    def uncordon(self, key: VersionKey, replica_ids: Iterable[str]) -> None:
        """Take cordoned replicas back into service."""
        self._send(key, self._get(key).uncordon(replica_ids))

    def receive(self, front_end: str, key: VersionKey, messages: Iterable[ToLedger]) -> None:
        """Take in what a front-end says about a version, and answer whoever is concerned."""
        self._send(key, self._get(key).handle(front_end, *messages))

    def _get(self, key: VersionKey) -> VersionLedger:
        ledger = self._ledgers.get(key)
        if ledger is None:
            ledger = self._ledgers[key] = VersionLedger()
        return ledger

    def _send(self, key: VersionKey, outbox: Outbox) -> None:
        for front_end, message in outbox:
            deliver = self._deliver.get(front_end)
            if deliver is not None:
                deliver(key, message)
