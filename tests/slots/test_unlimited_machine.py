"""Versions without a limit, in any order of events: nobody waits while a replica is usable, and counts are right."""

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.slots.holder import HeldReplica
from tests.slots.holders import Holder, Request

REPLICAS = ("r0", "r1", "r2", "r3")
WHICH = st.integers(0, 11)
Started = list[tuple[Request, HeldReplica[str]]]


class UnlimitedMachine(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 99))
    def begin(self, seed: int) -> None:
        self.holder = Holder(unlimited=True, now=0.0, rng=random.Random(seed))
        self.now = 0.0
        self.set: dict[str, bool] = {}  # replica -> cordoned
        self.current: dict[str, HeldReplica[str]] = {}  # those of the set that have been met
        self.running: list[HeldReplica[str]] = []
        self.waiting: list[Request] = []
        self.busy_seconds = self.queued_seconds = 0.0

    def usable(self) -> set[str]:
        suspended = {replica for replica, lease in self.current.items() if lease.suspended}
        return {replica for replica, cordoned in self.set.items() if not cordoned} - suspended

    def have_started(self, started: Started) -> None:
        for request, lease in started:
            assert request is self.waiting.pop(0)
            self.runs_at(lease)

    def runs_at(self, lease: HeldReplica[str]) -> None:
        assert lease.id in self.usable()
        assert self.current.setdefault(lease.id, lease) is lease
        self.running.append(lease)

    @rule(count=st.integers(1, 5))
    def requests_arrive(self, count: int) -> None:
        for _ in range(count):
            lease = self.holder.acquire(self.now)
            if lease is not None:
                self.runs_at(lease)
            else:
                self.waiting.append(Request())
                self.holder.enqueue(self.waiting[-1], self.now)

    @precondition(lambda self: self.running)
    @rule(which=WHICH, seconds=st.sampled_from([0.0, 0.5]))
    def request_ends(self, which: int, seconds: float) -> None:
        lease = self.running.pop(which % len(self.running))
        waiter = self.holder.release(lease, self.now, seconds)
        self.have_started([] if waiter is None else [(waiter, lease)])

    @precondition(lambda self: self.waiting)
    @rule(which=WHICH)
    def waiter_leaves(self, which: int) -> None:
        self.holder.cancel(self.waiting.pop(which % len(self.waiting)), self.now)

    @rule(replicas=st.dictionaries(st.sampled_from(REPLICAS), st.booleans()))
    def replicas_change(self, replicas: dict[str, bool]) -> None:
        self.current = {replica: lease for replica, lease in self.current.items() if replica in replicas}
        self.set = replicas
        cordoned = [replica for replica, is_cordoned in replicas.items() if is_cordoned]
        self.have_started(self.holder.set_replicas(dict.fromkeys(replicas, "pool"), self.now, cordoned=cordoned))

    @precondition(lambda self: self.running)
    @rule(which=WHICH)
    def replica_refuses_connection(self, which: int) -> None:
        self.holder.suspend(self.running[which % len(self.running)])

    @precondition(lambda self: self.current)
    @rule(which=WHICH)
    def replica_is_tried_again(self, which: int) -> None:
        self.have_started(self.holder.resume(list(self.current.values())[which % len(self.current)], self.now))

    @rule(eighths=st.integers(1, 8))
    def time_passes(self, eighths: int) -> None:
        self.now += eighths / 8
        self.busy_seconds += len(self.running) * eighths / 8
        self.queued_seconds += len(self.waiting) * eighths / 8

    @invariant()
    def nobody_waits_while_a_replica_is_usable(self) -> None:
        assert not self.waiting or not self.usable()

    @invariant()
    def counts_are_right(self) -> None:
        assert self.holder.busy_by_replica() == Counter(lease.id for lease in self.running)
        assert self.holder.busy == len(self.running)
        assert list(self.holder.waiters.values()) == self.waiting
        assert self.holder.flush() == []

    def teardown(self) -> None:
        if hasattr(self, "holder"):
            totals = self.holder.totals(self.now)
            assert (totals.busy_seconds, totals.queued_seconds) == (self.busy_seconds, self.queued_seconds)


TestUnlimitedMachine = UnlimitedMachine.TestCase
TestUnlimitedMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
