"""The ledger: which front-end holds how many leases of which replica of one version. Decides, does no I/O.

Theory of operation. A replica has a number of slots. A lease is the right of one front-end to have one request in
flight at one replica; leases of one replica are alike, so the ledger counts them. A front-end that lacks a lease says
so (`Wants`), and wants queue in the order in which they reach the ledger, whoever they come from. `settle` runs after
every change: it grants free slots to the oldest wants, least loaded replica first, and where wants are left over it
recalls: every other front-end learns how many requests wait elsewhere and how far its own waiters are ahead of them,
so that a lease which becomes idle goes to whoever has waited longest. Front-ends that nobody waits for are never
disturbed, so that steady traffic costs no message at all.

Invariant: granted leases of a replica never exceed its slots. A replica whose slots were lowered, or that was taken
over from another ledger with more leases out than it should have, grants nothing until enough came back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping

from router.slots.messages import Grant, Hello, Recall, Return, Revoke, ToHolder, ToLedger, Wants

# A run of one front-end's wants at the head of the queue is looked at this far. A longer run costs that front-end
# a message now and then; without the bound each change of a long queue would cost its length.
_LOOK_AHEAD = 64

Outbox = list[tuple[str, ToHolder]]


class _Replica:
    __slots__ = ("cordoned", "holders", "id", "out", "slots")

    def __init__(self, replica_id: str, slots: int) -> None:
        self.id = replica_id
        self.slots = slots
        self.out = 0
        self.holders: dict[str, int] = {}
        self.cordoned = False


class _FrontEnd:
    __slots__ = ("held", "recalled", "served_upto", "wanted_upto", "wants")

    def __init__(self) -> None:
        self.held = 0
        self.wants: OrderedDict[int, int] = OrderedDict()  # number of the waiter -> order of arrival at the ledger
        self.wanted_upto = 0
        self.served_upto = 0
        self.recalled = Recall(0, 0)  # what it was told last, less what it gave back since


class _Shelf:
    """Replicas that have a free slot, by how many leases of them are out: the first of the lowest level is next."""

    __slots__ = ("_levels", "_lowest")

    def __init__(self) -> None:
        self._levels: list[OrderedDict[str, _Replica]] = [OrderedDict()]
        self._lowest = 0

    def put(self, replica: _Replica) -> None:
        while len(self._levels) <= replica.out:
            self._levels.append(OrderedDict())
        self._levels[replica.out][replica.id] = replica
        self._lowest = min(self._lowest, replica.out)

    def take_off(self, replica: _Replica) -> None:
        if replica.out < len(self._levels):
            self._levels[replica.out].pop(replica.id, None)

    def least_loaded(self) -> _Replica | None:
        levels = self._levels
        while self._lowest < len(levels):
            if levels[self._lowest]:
                return next(iter(levels[self._lowest].values()))
            self._lowest += 1
        self._lowest = 0
        return None


class VersionLedger:
    """The slots of one version. Every method that changes something returns the messages that follow from it."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}
        self._fronts: dict[str, _FrontEnd] = {}
        self._order = 0
        self._waiting: set[str] = set()  # front-ends that have a want
        self._recalled: set[str] = set()  # front-ends under a recall
        self._shelf = _Shelf()

    # What is: read by the control loop, by metrics and by tests.

    @property
    def slots(self) -> int:
        """Slots of all replicas that are not cordoned."""
        return sum(replica.slots for replica in self._replicas.values() if not replica.cordoned)

    @property
    def waiting(self) -> int:
        """Wants that no grant has answered yet."""
        return sum(len(self._fronts[name].wants) for name in self._waiting)

    def out(self, replica_id: str) -> int:
        """Leases of a replica that are out; 0 for one that is unknown."""
        replica = self._replicas.get(replica_id)
        return 0 if replica is None else replica.out

    def held_by(self, front_end: str) -> dict[str, int]:
        """The leases that the ledger has on record for a front-end, by replica."""
        return {r.id: r.holders[front_end] for r in self._replicas.values() if front_end in r.holders}

    def is_cordoned(self, replica_id: str) -> bool:
        """Whether a replica gets no new leases."""
        replica = self._replicas.get(replica_id)
        return replica is not None and replica.cordoned

    # Replicas come, change and go.

    def set_replicas(self, slots: Mapping[str, int]) -> Outbox:
        """Make `slots` (replica id -> number of slots) the complete set of replicas.

        A replica that is gone is forgotten together with its leases: whoever still has a request there finishes it
        against an address nobody else is sent to.
        """
        outbox: Outbox = []
        for replica_id in [known for known in self._replicas if known not in slots]:
            replica = self._replicas.pop(replica_id)
            self._shelf.take_off(replica)
            for front_end, count in replica.holders.items():
                self._fronts[front_end].held -= count
                outbox.append((front_end, Revoke(replica_id)))
        for replica_id, count in slots.items():
            known = self._replicas.get(replica_id)
            if known is None:
                self._replicas[replica_id] = known = _Replica(replica_id, count)
            known.slots = count
            self._reshelve(known)
        return outbox + self._settle()

    def cordon(self, replica_ids: Iterable[str]) -> Outbox:
        """Grant no more leases of these replicas, and call those that are out back. Unknown ids are ignored."""
        outbox: Outbox = []
        for replica in self._known(replica_ids):
            if not replica.cordoned:
                replica.cordoned = True
                self._shelf.take_off(replica)
                outbox += [(front_end, Revoke(replica.id)) for front_end in replica.holders]
        return outbox

    def uncordon(self, replica_ids: Iterable[str]) -> Outbox:
        """Take replicas back into service. Unknown ids are ignored."""
        for replica in self._known(replica_ids):
            replica.cordoned = False
            self._reshelve(replica)
        return self._settle()

    # Front-ends come, speak and go.

    def handle(self, front_end: str, message: ToLedger) -> Outbox:
        """Take in what a front-end says. One that is heard for the first time is known from then on."""
        front = self._fronts.get(front_end)
        if front is None:
            front = self._fronts[front_end] = _FrontEnd()
        match message:
            case Wants():
                self._note_wants(front_end, front, message)
            case Return():
                self._take_back(front_end, front, message)
            case Hello():
                self._forget(front_end)
                front = self._fronts[front_end] = _FrontEnd()
                for replica_id, count in message.held.items():
                    replica = self._replicas.get(replica_id)
                    if replica is not None:
                        self._move(front_end, front, replica, count)
                front.served_upto = message.served_upto
                self._note_wants(front_end, front, Wants(message.wanted_upto, message.served_upto))
                stale = [(front_end, Revoke(r)) for r in message.held if r not in self._replicas or self.is_cordoned(r)]
                return [*stale, *self._settle()]
        return self._settle()

    def front_end_gone(self, front_end: str) -> Outbox:
        """Forget a front-end whose process has ended: its connections are closed, so its slots are free."""
        self._forget(front_end)
        return self._settle()

    # Inside.

    def _known(self, replica_ids: Iterable[str]) -> Iterator[_Replica]:
        return (self._replicas[r] for r in replica_ids if r in self._replicas)

    def _reshelve(self, replica: _Replica) -> None:
        """Put a replica where its count of leases says; call before and after nothing but `_move` changes `out`."""
        self._shelf.take_off(replica)
        if not replica.cordoned and replica.out < replica.slots:
            self._shelf.put(replica)

    def _move(self, front_end: str, front: _FrontEnd, replica: _Replica, count: int) -> None:
        """Hand `count` leases to a front-end, or take them back where `count` is negative."""
        self._shelf.take_off(replica)
        replica.out += count
        front.held += count
        left = replica.holders.get(front_end, 0) + count
        if left:
            replica.holders[front_end] = left
        else:
            replica.holders.pop(front_end, None)
        self._reshelve(replica)

    def _forget(self, front_end: str) -> None:
        front = self._fronts.pop(front_end, None)
        if front is None:
            return
        for replica in [r for r in self._replicas.values() if front_end in r.holders]:
            self._move(front_end, front, replica, -replica.holders[front_end])
        self._waiting.discard(front_end)
        self._recalled.discard(front_end)

    def _note_wants(self, front_end: str, front: _FrontEnd, message: Wants) -> None:
        wants = front.wants
        for number in range(max(front.wanted_upto, message.served_upto) + 1, message.wanted_upto + 1):
            self._order += 1
            wants[number] = self._order
        front.wanted_upto = max(front.wanted_upto, message.wanted_upto)
        front.served_upto = max(front.served_upto, message.served_upto)
        while wants and next(iter(wants)) <= front.served_upto:
            wants.popitem(last=False)
        for number in message.cancelled:
            wants.pop(number, None)
        if wants:
            self._waiting.add(front_end)
        else:
            self._waiting.discard(front_end)

    def _take_back(self, front_end: str, front: _FrontEnd, message: Return) -> None:
        replica = self._replicas.get(message.replica)
        if replica is not None:
            count = min(message.count, replica.holders.get(front_end, 0))
            if count:
                self._move(front_end, front, replica, -count)
        told = front.recalled  # the holder counts every lease it gives back, so this side does too
        front.recalled = Recall(max(0, told.count - message.count), told.after)

    def _settle(self) -> Outbox:
        """Grant what can be granted, oldest want first; then recall for those that are left."""
        outbox: Outbox = []
        while self._waiting:
            replica = self._shelf.least_loaded()
            if replica is None:
                break
            front_end = self._oldest_waiting()
            front = self._fronts[front_end]
            number, _ = front.wants.popitem(last=False)
            if not front.wants:
                self._waiting.discard(front_end)
            self._move(front_end, front, replica, 1)
            outbox.append((front_end, Grant(replica.id, number)))
        if self._waiting or self._recalled:
            self._recall(outbox)
        return outbox

    def _oldest_waiting(self) -> str:
        return min(self._waiting, key=lambda name: next(iter(self._fronts[name].wants.values())))

    def _recall(self, outbox: Outbox) -> None:
        """Tell each holder how many wait elsewhere, where what it was told no longer serves."""
        waiting = self.waiting
        for name, front in self._fronts.items():
            elsewhere = min(waiting - len(front.wants), front.held)
            recall = Recall(elsewhere, self._ahead_of_others(name, front)) if elsewhere > 0 else Recall(0, 0)
            told = front.recalled
            # Told of more than there are is harmless: it gives back a lease too many, once. Told of fewer is not.
            if recall.count > told.count or recall.after != told.after or (told.count and not recall.count):
                outbox.append((name, recall))
                front.recalled = recall
            if front.recalled.count:
                self._recalled.add(name)
            else:
                self._recalled.discard(name)

    def _ahead_of_others(self, name: str, front: _FrontEnd) -> int:
        """The last of a front-end's waiters that is older than everyone else's oldest; 0 if there is none."""
        oldest_elsewhere = min(
            (next(iter(self._fronts[other].wants.values())) for other in self._waiting if other != name), default=0
        )
        after = 0
        for looked_at, (number, order) in enumerate(front.wants.items()):
            if order > oldest_elsewhere or looked_at == _LOOK_AHEAD:
                break
            after = number
        return after
