"""Unlimited concurrency in any order of events: no request waits while a replica is open, and counts are correct."""

import random
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.slots.replica_leases import ReplicaLeases
from tests.slots.lease_caches import Cache, Request

REPLICAS = ("r0", "r1", "r2", "r3")
INDEX = st.integers(0, 11)
Started = list[tuple[Request, ReplicaLeases[str]]]


class UnlimitedMachine(RuleBasedStateMachine):
    """A lease cache of a version without a concurrency limit under random events."""

    @initialize(seed=st.integers(0, 99), starts_from_zero=st.booleans())
    def start(self, seed: int, starts_from_zero: bool) -> None:
        self.starts_from_zero = starts_from_zero
        self.cache = Cache(unlimited=True, now=0.0, rng=random.Random(seed))
        self.cache.set_replicas({}, 0.0, starts_from_zero=starts_from_zero)
        self.now = 0.0
        self.replicas: dict[str, bool] = {}  # by id: whether the replica is closed
        self.used: dict[str, ReplicaLeases[str]] = {}  # current replicas that have had a request
        self.in_flight: list[ReplicaLeases[str]] = []
        self.waiting: list[Request] = []
        self.uncounted: list[Request] = []  # those that do not count as queued
        self.busy_seconds = self.queued_seconds = 0.0

    def open_replicas(self) -> set[str]:
        suspended = {replica_id for replica_id, replica in self.used.items() if replica.suspended}
        return {replica_id for replica_id, closed in self.replicas.items() if not closed} - suspended

    def on_waiters_started(self, started: Started) -> None:
        for request, replica in started:
            assert request is self.waiting.pop(0)
            self.on_request_started(replica)

    def on_request_started(self, replica: ReplicaLeases[str]) -> None:
        assert replica.id in self.open_replicas()
        assert self.used.setdefault(replica.id, replica) is replica
        self.in_flight.append(replica)

    @rule(count=st.integers(1, 5))
    def requests_arrive(self, count: int) -> None:
        for _ in range(count):
            replica = self.cache.acquire(self.now)
            if replica is not None:
                self.on_request_started(replica)
            else:
                self.waiting.append(Request())
                self.cache.enqueue(self.waiting[-1], self.now)

    @precondition(lambda self: self.in_flight)
    @rule(index=INDEX, seconds=st.sampled_from([0.0, 0.5]))
    def request_ends(self, index: int, seconds: float) -> None:
        replica = self.in_flight.pop(index % len(self.in_flight))
        waiter = self.cache.release(replica, self.now, seconds)
        self.on_waiters_started([] if waiter is None else [(waiter, replica)])

    @precondition(lambda self: self.in_flight)
    @rule(index=INDEX, seconds=st.sampled_from([0.0, 0.5]), answered=st.booleans())
    def request_is_abandoned(self, index: int, seconds: float, answered: bool) -> None:
        replica = self.in_flight.pop(index % len(self.in_flight))
        self.cache.abandon(replica, self.now, seconds, suspect_seconds=1.0)
        assert replica.suspect
        if answered and replica in self.in_flight:
            self.cache.on_answered(replica)
            assert replica.suspect == (self.in_flight.count(replica) > 1)

    @precondition(lambda self: self.waiting)
    @rule(index=INDEX)
    def waiter_is_cancelled(self, index: int) -> None:
        self.cache.cancel(self.waiting.pop(index % len(self.waiting)), self.now)

    @rule(replicas=st.dictionaries(st.sampled_from(REPLICAS), st.booleans()))
    def replicas_change(self, replicas: dict[str, bool]) -> None:
        self.used = {replica_id: replica for replica_id, replica in self.used.items() if replica_id in replicas}
        self.replicas = replicas
        closed = [replica_id for replica_id, is_closed in replicas.items() if is_closed]
        targets = dict.fromkeys(replicas, "pool")
        started = self.cache.set_replicas(targets, self.now, closed=closed, starts_from_zero=self.starts_from_zero)
        self.on_waiters_started(started)

    @precondition(lambda self: self.in_flight)
    @rule(index=INDEX)
    def replica_is_suspended(self, index: int) -> None:
        self.cache.suspend(self.in_flight[index % len(self.in_flight)], self.now)

    @precondition(lambda self: self.used)
    @rule(index=INDEX)
    def replica_is_resumed(self, index: int) -> None:
        self.on_waiters_started(self.cache.resume(list(self.used.values())[index % len(self.used)], self.now))

    @rule(eighths=st.integers(1, 8))
    def time_passes(self, eighths: int) -> None:
        self.now += eighths / 8
        self.busy_seconds += len(self.in_flight) * eighths / 8
        if not any(request in self.uncounted for request in self.waiting):
            self.queued_seconds += len(self.waiting) * eighths / 8

    @invariant()
    def waiters_count_as_queued_only_if_they_wait_for_a_start_from_zero(self) -> None:
        if not self.starts_from_zero or any(replica.suspended for replica in self.used.values()):
            self.uncounted += self.waiting

    @invariant()
    def no_request_waits_while_a_replica_is_open(self) -> None:
        assert not self.waiting or not self.open_replicas()

    @invariant()
    def counts_are_correct(self) -> None:
        assert self.cache.busy_by_replica() == Counter(replica.id for replica in self.in_flight)
        assert self.cache.busy == len(self.in_flight)
        assert list(self.cache.waiters.values()) == self.waiting
        assert self.cache.flush() == []

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            totals = self.cache.totals(self.now)
            assert (totals.busy_seconds, totals.queued_seconds) == (self.busy_seconds, self.queued_seconds)


TestUnlimitedMachine = UnlimitedMachine.TestCase
TestUnlimitedMachine.settings = settings(max_examples=60, stateful_step_count=30)
