"""The ledger: which front-end holds how many leases of which replica of one version. Decides, does no I/O.

Theory of operation. A replica has a number of slots. A lease is the right of one front-end to have one request in
flight at one replica; leases of one replica are alike, so the ledger counts them. A front-end that lacks a lease says
so (`Wants`), and each want gets a place in one queue, in the order in which they reach the ledger, whoever they come
from. After every change free slots are granted to the oldest wants, least loaded replica first, and where wants are
left over they are recalled: every other front-end learns how many requests wait elsewhere and how far its own waiters
are ahead of them, so that a lease which becomes idle goes to whoever has waited longest. Front-ends that nobody waits
for are never disturbed, so that steady traffic costs no message at all.

Invariant: leases out of a replica never rise above its slots. Where slots were lowered below them, or a ledger that
takes over finds more out, nothing is granted until enough came back, and they are called back. A replica that is taken
out of the set stays on record until its leases are back, so that it starts full if it returns. A front-end that cannot
be reached keeps its leases, as its requests may be running; its wants rest until it says `Hello` again.

Once a second a front-end says what it holds (`Holds`). Messages travel in order, so all that can be under way then are
grants, and the report says how many it comes after: what it holds and those on their way must be what is on record. A
difference is a fault of this program. Then the front-end is right, as it is there that requests run (`reconcile`).

A ledger that takes over from another stays closed, which is to say that it grants nothing, until every front-end has
said `Hello` to it. Before it is told of replicas it takes none for gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from router.slots.messages import (
    Grant,
    Hello,
    Holds,
    Recall,
    Return,
    Revoke,
    SayHello,
    ToHolder,
    ToLedger,
    Wants,
    Welcome,
)
from router.slots.records import FrontEndRecord, ReplicaRecord, Shelf

# A run of one front-end's wants at the head of the queue is looked at this far. A longer run costs that front-end
# a message now and then; without the bound each change of a long queue would cost its length.
_LOOK_AHEAD = 64

Outbox = list[tuple[str, ToHolder]]


class Leak(NamedTuple):
    """Leases of a replica on which a front-end and the ledger differed."""

    replica: str
    recorded: int
    held: int


class VersionLedger:
    """The slots of one version. Every method that changes something returns the messages that follow from it."""

    def __init__(self) -> None:
        self._replicas: dict[str, ReplicaRecord] = {}
        self._has_replicas = False  # whether it was told of any
        self._closed = False
        self._fronts: dict[str, FrontEndRecord] = {}
        self._place = 0
        self._waiting: set[str] = set()  # front-ends that have a want and can be reached
        self._recalled: set[str] = set()  # front-ends under a recall
        self._shelf = Shelf()

    # What is: read by the control loop, by metrics and by tests.

    @property
    def slots(self) -> int:
        """Slots of all replicas that are not cordoned."""
        return sum(replica.slots for replica in self._replicas.values() if not replica.cordoned)

    @property
    def waiting(self) -> int:
        """Wants that no grant has answered yet, of front-ends that can be reached."""
        return sum(len(self._fronts[name].wants) for name in self._waiting)

    def out(self, replica_id: str) -> int:
        """Leases of a replica that are out; 0 for one that is unknown."""
        replica = self._replicas.get(replica_id)
        return 0 if replica is None else replica.out

    def held_by(self, front_end: str) -> dict[str, int]:
        """The leases that the ledger has on record for a front-end, by replica."""
        return {r.id: r.holders[front_end] for r in self._replicas.values() if front_end in r.holders}

    def wants_of(self, front_end: str) -> tuple[int, ...]:
        """The numbers of a front-end's wants that no grant has answered yet, oldest first."""
        front = self._fronts.get(front_end)
        return () if front is None else tuple(front.wants)

    def lost_front_ends(self) -> frozenset[str]:
        """The front-ends that were lost and have not said `Hello` since."""
        return frozenset(name for name, front in self._fronts.items() if front.lost)

    def is_cordoned(self, replica_id: str) -> bool:
        """Whether a replica gets no new leases."""
        replica = self._replicas.get(replica_id)
        return replica is not None and replica.cordoned

    # Replicas come, change and go.

    def set_replicas(
        self, slots: Mapping[str, int], cordoned: Iterable[str] = (), reserved: Collection[str] = ()
    ) -> Outbox:
        """Make `slots` (replica id -> number of slots) the complete set of replicas; cordon those that are `cordoned`.

        One that is cordoned already stays so. Of the `reserved` ones no more is granted, but what is out may stay out.
        """
        self._has_replicas = True
        outbox: Outbox = []
        for replica in [known for known in self._replicas.values() if known.id not in slots]:
            replica.listed = replica.cordoned = False
            self._resize(replica, 0)
            outbox += _revokes(replica)
            self._drop_if_done(replica)
        for replica_id, count in slots.items():
            replica = self._replicas.get(replica_id) or self._record(replica_id)
            replica.listed = True
            if replica.slots != count or replica.reserved is not (replica_id in reserved):
                replica.reserved = replica_id in reserved
                self._resize(replica, count)
            if replica.out > count:
                outbox += _revokes(replica)
        return outbox + self.cordon(cordoned) + self._settle()

    def cordon(self, replica_ids: Iterable[str]) -> Outbox:
        """Grant no more leases of these replicas, and call those that are out back. Unknown ids are ignored."""
        outbox: Outbox = []
        for replica in self._listed(replica_ids):
            if not replica.cordoned:
                replica.cordoned = True
                self._shelf.take_off(replica)
                outbox += _revokes(replica)
        return outbox

    def uncordon(self, replica_ids: Iterable[str]) -> Outbox:
        """Take replicas back into service. Unknown ids are ignored."""
        for replica in self._listed(replica_ids):
            if replica.cordoned:
                replica.cordoned = False
                self._shelve(replica)
        return self._settle()

    # Ledgers take over.

    def close(self) -> None:
        """Grant nothing, as somebody may hold leases that are not on record."""
        self._closed = True

    def open(self) -> Outbox:
        """Grant, as all leases are on record."""
        self._closed = False
        return self._settle()

    # Front-ends come, speak and go.

    def handle(self, front_end: str, *messages: ToLedger) -> Outbox:
        """Take in what a front-end says; what it says at once counts as one change. It must say `Hello` first."""
        outbox: Outbox = []
        for message in messages:
            front = self._fronts.get(front_end)
            if isinstance(message, Hello):
                outbox += self._take_in(front_end, message)
            elif front is None or front.lost:
                outbox.append((front_end, SayHello()))
            elif isinstance(message, Wants):
                self._note_wants(front_end, front, message)
            elif isinstance(message, Return):
                self._take_back(front_end, front, message)
            else:
                front.avoided = message.replicas
        return outbox + self._settle()

    def reconcile(self, front_end: str, holds: Holds) -> tuple[list[Leak], Outbox]:
        """Compare the record of a front-end with what it holds, and mend the record. Returns what differed."""
        front = self._fronts.get(front_end)
        if front is None or front.lost:
            return [], [(front_end, SayHello())]
        if (front.holder, front.session) != (holds.holder, holds.session):
            return [], []
        under_way = front.grants_after(holds.heard)
        if under_way is None:
            return [], []
        recorded = self.held_by(front_end)
        if not under_way and holds.held == recorded:
            return [], []
        held = Counter(under_way)
        held.update(holds.held)
        if held == recorded:
            return [], []
        outbox: Outbox = []
        either = (Leak(replica_id, recorded.get(replica_id, 0), held[replica_id]) for replica_id in {*held, *recorded})
        leaks = sorted(leak for leak in either if leak.recorded != leak.held)
        for leak in leaks:
            self._mend(front_end, front, leak, outbox)
        return leaks, outbox + self._settle()

    def front_end_lost(self, front_end: str) -> Outbox:
        """Grant and ask a front-end nothing until it says `Hello`: the connection broke, but its process may live."""
        front = self._fronts.get(front_end)
        if front is not None:
            front.lost = True
            front.recalled = Recall(0, 0)
            self._waiting.discard(front_end)
            self._recalled.discard(front_end)
        return self._settle()

    def front_end_gone(self, front_end: str) -> Outbox:
        """Forget a front-end whose process has ended: its connections are closed, so its slots are free."""
        self._forget(front_end)
        return self._settle()

    # Records.

    def _listed(self, replica_ids: Iterable[str]) -> Iterator[ReplicaRecord]:
        return (self._replicas[r] for r in replica_ids if r in self._replicas and self._replicas[r].listed)

    def _record(self, replica_id: str) -> ReplicaRecord:
        replica = self._replicas[replica_id] = ReplicaRecord(replica_id)
        return replica

    def _drop_if_done(self, replica: ReplicaRecord) -> None:
        if not replica.listed and not replica.out:
            del self._replicas[replica.id]

    def _shelve(self, replica: ReplicaRecord) -> None:
        if not replica.cordoned and not replica.reserved and replica.out < replica.slots:
            self._shelf.put(replica)

    def _resize(self, replica: ReplicaRecord, slots: int) -> None:
        self._shelf.take_off(replica)
        replica.slots = slots
        self._shelve(replica)

    def _move(self, front_end: str, front: FrontEndRecord, replica: ReplicaRecord, count: int) -> None:
        """Hand `count` leases to a front-end, or take them back where `count` is negative."""
        self._shelf.take_off(replica)
        replica.out += count
        front.held += count
        left = replica.holders.get(front_end, 0) + count
        if left:
            replica.holders[front_end] = left
        else:
            replica.holders.pop(front_end, None)
        self._shelve(replica)

    def _forget(self, front_end: str) -> None:
        front = self._fronts.pop(front_end, None)
        if front is None:
            return
        for replica in [r for r in self._replicas.values() if front_end in r.holders]:
            self._move(front_end, front, replica, -replica.holders[front_end])
            self._drop_if_done(replica)
        self._waiting.discard(front_end)
        self._recalled.discard(front_end)

    # What front-ends say.

    def _take_in(self, front_end: str, hello: Hello) -> Outbox:
        """Start a front-end's record anew from what it says it has. Its waiters keep the places they had."""
        before = self._fronts.get(front_end)
        self._forget(front_end)
        front = self._fronts[front_end] = FrontEndRecord(hello.holder, hello.session)
        front.avoided = hello.avoided
        outbox: Outbox = [(front_end, Welcome(hello.holder, hello.session))]
        for replica_id, count in hello.held.items():
            replica = self._replicas.get(replica_id) or self._record(replica_id)
            self._move(front_end, front, replica, count)
            if self._has_replicas and replica.is_overdue:
                outbox += _revokes(replica)
        gone = {*hello.cancelled}
        for number in range(hello.served_upto + 1, hello.wanted_upto + 1):
            if number not in gone:
                front.wants[number] = self._place_of(number, before, hello)
        front.wanted_upto = hello.wanted_upto
        if front.wants:
            self._waiting.add(front_end)
        return outbox

    def _place_of(self, number: int, before: FrontEndRecord | None, hello: Hello) -> int:
        """The place that a waiter had; of one whose grant came to nothing, that of the latest grant; else a new one."""
        if before is not None and before.holder == hello.holder:
            if number in before.wants:
                return before.wants[number]
            if number <= before.granted_upto:
                return before.granted_place
        self._place += 1
        return self._place

    def _note_wants(self, front_end: str, front: FrontEndRecord, message: Wants) -> None:
        wants = front.wants
        for number in range(max(front.wanted_upto, message.served_upto) + 1, message.wanted_upto + 1):
            self._place += 1
            wants[number] = self._place
        front.wanted_upto = max(front.wanted_upto, message.wanted_upto)
        while wants and next(iter(wants)) <= message.served_upto:
            wants.popitem(last=False)
        for number in message.cancelled:
            wants.pop(number, None)
        if wants:
            self._waiting.add(front_end)
        else:
            self._waiting.discard(front_end)

    def _take_back(self, front_end: str, front: FrontEndRecord, message: Return) -> None:
        replica = self._replicas.get(message.replica)
        if replica is not None:
            count = min(message.count, replica.holders.get(front_end, 0))
            if count:
                self._move(front_end, front, replica, -count)
                self._drop_if_done(replica)
        told = front.recalled  # the holder counts every lease it gives back, so this side does too
        if told.count:
            front.recalled = Recall(max(0, told.count - message.count), told.after)

    def _mend(self, front_end: str, front: FrontEndRecord, leak: Leak, outbox: Outbox) -> None:
        replica = self._replicas.get(leak.replica) or self._record(leak.replica)
        self._move(front_end, front, replica, leak.held - leak.recorded)
        if self._has_replicas and replica.is_overdue:
            outbox += _revokes(replica)
        self._drop_if_done(replica)

    # What follows.

    def _settle(self) -> Outbox:
        """Grant what can be granted, oldest want first; then recall for those that are left."""
        outbox: Outbox = []
        if self._closed:
            return outbox
        passed_over: set[str] = set()  # front-ends that avoid all that is free
        while len(self._waiting) > len(passed_over) and self._shelf.least_loaded() is not None:
            front_end = min(self._waiting - passed_over, key=self._oldest_place)
            front = self._fronts[front_end]
            replica = self._shelf.least_loaded(front.avoided)
            if replica is None:
                passed_over.add(front_end)
                continue
            front.granted_upto, front.granted_place = front.wants.popitem(last=False)
            if not front.wants:
                self._waiting.discard(front_end)
            self._move(front_end, front, replica, 1)
            front.granted += 1
            front.unconfirmed.append(replica.id)
            outbox.append((front_end, Grant(replica.id, front.granted_upto)))
        if self._waiting or self._recalled:
            self._recall(outbox)
        return outbox

    def _oldest_place(self, front_end: str) -> int:
        return next(iter(self._fronts[front_end].wants.values()))

    def _recall(self, outbox: Outbox) -> None:
        """Tell each holder how many wait elsewhere, where what it was told no longer serves.

        That a recall is lowered is not worth a message: it costs a lease that goes back and forth, once. Whether those
        who wait can use what is recalled is not looked at either: replicas are avoided for seconds, if at all.
        """
        waiting = self.waiting
        first, second = self._two_oldest()
        for name, front in self._fronts.items():
            if front.lost:
                continue
            own = len(front.wants)
            elsewhere = min(waiting - own, front.held)
            told = front.recalled
            after = self._ahead_of(second, front) if name == first and elsewhere else 0
            told_after = told.after if own and told.after >= next(iter(front.wants)) else 0
            if elsewhere > told.count or (elsewhere and after != told_after) or (told.count and not elsewhere):
                front.recalled = Recall(elsewhere, after)
                outbox.append((name, front.recalled))
            if front.recalled.count:
                self._recalled.add(name)
            else:
                self._recalled.discard(name)

    def _two_oldest(self) -> tuple[str, int]:
        """The front-end whose want is the oldest, and the place of the oldest want of all the others."""
        first, oldest, second = "", self._place + 1, self._place + 1
        for name in self._waiting:
            place = self._oldest_place(name)
            if place < oldest:
                first, oldest, second = name, place, oldest
            elif place < second:
                second = place
        return first, second

    def _ahead_of(self, place: int, front: FrontEndRecord) -> int:
        """The last of a front-end's waiters that is ahead of a place, as far as is looked; 0 if there is none."""
        after = halfway = 0
        for looked_at, (number, own_place) in enumerate(front.wants.items()):
            if own_place > place:
                break
            if looked_at == _LOOK_AHEAD:
                # What it was told holds for a while yet.
                return front.recalled.after if front.recalled.after >= halfway else after
            after = number
            if looked_at == _LOOK_AHEAD // 2:
                halfway = number
        return after


def _revokes(replica: ReplicaRecord) -> Outbox:
    """The messages that call all leases of a replica back."""
    return [(front_end, Revoke(replica.id)) for front_end in replica.holders]
