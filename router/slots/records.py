"""What a ledger records about replicas and workers, and the replicas with a free slot in order of load."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection, Sequence

from router.slots.messages import Recall, SlotDemand

MAX_RUN = 64
"""Maximum number of one worker's waiters at the head of the queue that are examined. A longer run costs that worker a
message from time to time. Without the limit, each change of a long queue would take time in proportion to its
length."""

_RECALL_TICKS = 2
"""Ticks after which a recall that asks for a reply counts as replied to: older releases do not reply, and a worker may
be stalled."""

_MAX_UNCONFIRMED = 1024
"""Maximum number of grants of one worker that are remembered until it confirms them. Only the busiest workers get more
in the second between two snapshots. Their leases are compared with a later snapshot."""


class ReplicaRecord:
    """One replica: its slots, and how many leases of it each worker holds. Times are seconds of a monotonic clock."""

    __slots__ = ("cordoned", "id", "leased", "leases_by_worker", "notified", "on_other_side", "slots", "suspects")

    def __init__(self, replica_id: str) -> None:
        self.id = replica_id
        self.slots = 0  # 0: the replica was removed; the record is kept until all leases are returned
        self.leased = 0
        self.leases_by_worker: dict[str, int] = {}
        self.cordoned = False  # cordoned or draining: leases are recalled
        self.on_other_side = False  # of a partition: a ledger there grants the free slots; existing leases stay
        self.suspects: list[float] = []  # until when a slot is suspect, one time for each, in the order of marking
        self.notified: set[str] = set()  # workers that have been notified that there are suspect slots

    @property
    def load(self) -> int:
        """Leases and suspect slots, for the choice of the least loaded replica."""
        return self.leased + len(self.suspects)

    @property
    def has_free_slot(self) -> bool:
        """True if a slot is free, trusted or suspect, and a lease of it may be granted."""
        return self.leased < self.slots and not self.cordoned and not self.on_other_side

    @property
    def is_grantable(self) -> bool:
        """True if a trusted slot is free, and a lease of it may be granted."""
        return self.load < self.slots and not self.cordoned and not self.on_other_side

    @property
    def is_over_leased(self) -> bool:
        """True if leases must be returned."""
        return self.leased > (0 if self.cordoned else self.slots)


class WorkerRecord:
    """One worker: the leases that it holds, its waiters, and the messages that were sent to it."""

    __slots__ = (
        "cache_id", "connected", "excluded", "granted", "granted_place", "granted_up_to", "held", "recall_done",
        "recall_ticks", "recalled", "session", "unconfirmed", "waiters", "wanted_up_to",
    )  # fmt: skip

    def __init__(self, cache_id: int, session: int) -> None:
        self.cache_id = cache_id
        self.session = session
        self.connected = True
        self.held = 0  # leases
        self.granted = 0  # leases granted in this session
        self.unconfirmed: deque[str] = deque(maxlen=_MAX_UNCONFIRMED)  # replicas of the latest grants
        self.waiters: OrderedDict[int, int] = OrderedDict()  # number -> place in the ledger's queue, both ascending
        self.wanted_up_to = 0
        self.granted_up_to = 0  # the last waiter that got a grant
        self.granted_place = 0  # its place in the queue
        self.excluded: frozenset[str] = frozenset()
        self.recalled = Recall(0, 0)  # the last recall sent, less what was returned since
        self.recall_done = False  # the worker has returned what was idle when it received the last recall
        self.recall_ticks = 0  # since the last recall was sent

    def tick(self) -> None:
        """Count a tick of the recall in force. To be called about ten times a second."""
        self.recall_ticks += 1
        if self.recall_ticks >= _RECALL_TICKS:
            self.recall_done = True

    def update_waiters(self, demand: SlotDemand, last_place: int) -> int:
        """Add and remove waiters. `last_place` is the last place in the ledger's queue; return the new last one."""
        waiters = self.waiters
        for number in range(max(self.wanted_up_to, demand.served_up_to) + 1, demand.wanted_up_to + 1):
            last_place += 1
            waiters[number] = last_place
        self.wanted_up_to = max(self.wanted_up_to, demand.wanted_up_to)
        while waiters and next(iter(waiters)) <= demand.served_up_to:
            waiters.popitem(last=False)
        for number in demand.cancelled:
            waiters.pop(number, None)
        return last_place

    def last_ahead_of(self, place: int) -> int:
        """Return the last of the waiters before `place` among the first `MAX_RUN`, or 0 if there is none."""
        after = halfway = 0
        for examined, (number, own_place) in enumerate(self.waiters.items()):
            if own_place > place:
                break
            if examined == MAX_RUN:
                # The number sent last remains valid until half of the run is served.
                return self.recalled.after_waiter if self.recalled.after_waiter >= halfway else after
            after = number
            if examined == MAX_RUN // 2:
                halfway = number
        return after

    def grants_after(self, acked: int) -> Sequence[str] | None:
        """Return the replicas of all grants of this session after the first `acked`, and forget the acked ones.

        Return None if the record of some of these grants was dropped (`_MAX_UNCONFIRMED`).
        """
        count = self.granted - acked
        if not 0 <= count <= len(self.unconfirmed):
            return None
        while len(self.unconfirmed) > count:
            self.unconfirmed.popleft()
        return self.unconfirmed


class LoadBuckets:
    """Replicas that have a free trusted slot, in one bucket per load. Within a bucket the order is first in, first
    out."""

    __slots__ = ("_buckets", "_lowest")

    def __init__(self) -> None:
        self._buckets: list[OrderedDict[str, ReplicaRecord]] = [OrderedDict()]
        self._lowest = 0  # all buckets below are empty

    def add(self, replica: ReplicaRecord) -> None:
        """Add a replica. It must be removed before its `load` changes."""
        load = replica.load
        while len(self._buckets) <= load:
            self._buckets.append(OrderedDict())
        self._buckets[load][replica.id] = replica
        self._lowest = min(self._lowest, load)

    def discard(self, replica: ReplicaRecord) -> None:
        """Remove a replica if it is present."""
        load = replica.load
        if load < len(self._buckets):
            self._buckets[load].pop(replica.id, None)

    def least_loaded(self, excluded: Collection[str] = ()) -> ReplicaRecord | None:
        """Return the replica with the lowest load that is not `excluded`, or None; of several the first added."""
        buckets = self._buckets
        while self._lowest < len(buckets) and not buckets[self._lowest]:
            self._lowest += 1
        for level in range(self._lowest, len(buckets)):
            for replica in buckets[level].values():
                if replica.id not in excluded:
                    return replica
        return None
