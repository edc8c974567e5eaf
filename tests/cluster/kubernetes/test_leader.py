"""Who writes to the cluster. Any number of candidates, one Lease, and messages that take their time."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cluster.kubernetes.client import WRITE_SECONDS
from router.cluster.kubernetes.leader import (
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    RENEW_SECONDS,
    Election,
    Write,
    body_of,
    identity_of,
    pod_of,
)
from router.cluster.kubernetes.objects import Lease, lease

ME, OTHER = identity_of("azureml-fe-1", "0001"), identity_of("azureml-fe-2", "0002")


def held(by: str, version: int = 1, transitions: int = 0) -> Lease:
    return Lease("ns", "azureml-fe", str(version), by, LEASE_SECONDS, transitions, f"renewed {version}")


def elected(now: float = 100.0) -> Election:
    """One that leads since `now`."""
    election = Election(ME)
    election.seen(None, now)
    assert election.step(now) == Write(ME, 0, "")
    election.written(held(ME), now, now + 0.1)
    return election


def test_nothing_is_written_before_the_lease_was_looked_for() -> None:
    assert Election(ME).step(5.0) is None


def test_the_first_makes_the_lease_and_renews_it_in_time() -> None:
    election = elected(100.0)
    assert election.leads(100.0)
    assert election.step(100.0 + RENEW_SECONDS - 0.1) is None
    assert election.step(100.0 + RENEW_SECONDS) == Write(ME, 0, "1")


def test_a_holder_that_cannot_renew_stops_before_another_one_may_begin() -> None:
    election = elected(100.0)
    for second in range(int(DEADLINE_SECONDS)):
        if election.step(100.0 + second) is not None:
            election.refused(100.0 + second)
    assert election.leads(100.0 + DEADLINE_SECONDS - 0.01)
    assert not election.leads(100.0 + DEADLINE_SECONDS)
    assert DEADLINE_SECONDS + WRITE_SECONDS < LEASE_SECONDS


def test_another_ones_lease_is_left_alone_until_it_was_not_renewed_for_as_long_as_it_lasts() -> None:
    election = Election(ME)
    election.seen(held(OTHER), 100.0)
    assert election.step(100.0 + LEASE_SECONDS - 0.1) is None
    election.seen(held(OTHER, 2), 110.0)
    assert election.step(110.0 + LEASE_SECONDS - 0.1) is None
    assert election.step(110.0 + LEASE_SECONDS) == Write(ME, 1, "2")


def test_a_repeated_look_is_no_renewal() -> None:
    election = Election(ME)
    election.seen(held(OTHER), 100.0)
    election.seen(held(OTHER), 114.0)
    assert election.step(100.0 + LEASE_SECONDS) is not None


def test_a_lease_that_was_given_up_is_taken_at_once() -> None:
    election = Election(ME)
    election.seen(held("", 7, 3), 100.0)
    assert election.step(100.0) == Write(ME, 4, "7")


def test_a_holder_that_has_ended_is_not_waited_for() -> None:
    election = Election(ME)
    election.seen(held(OTHER), 100.0)
    election.ended("azureml-fe-3")
    assert election.step(101.0) is None
    election.ended("azureml-fe-2")
    assert election.step(101.0) is not None


def test_another_process_of_the_holders_pod_means_that_it_has_ended() -> None:
    election = Election(ME)
    election.seen(held(OTHER), 100.0)
    election.replaced("azureml-fe-2", "0002")
    assert election.step(101.0) is None
    election.replaced("azureml-fe-2", "0003")
    assert election.step(101.0) is not None


def test_who_loses_the_lease_leads_no_more() -> None:
    election = elected(100.0)
    election.seen(held(OTHER, 2, 1), 101.0)
    assert not election.leads(101.0)
    assert pod_of(election.holder) == "azureml-fe-2"
    assert election.term == 1


def test_giving_up_takes_effect_at_once_and_for_good() -> None:
    election = elected(100.0)
    assert election.give_up(101.0) == Write("", 0, "1")
    assert not election.leads(101.0)
    assert election.step(200.0) is None
    assert Election(ME).give_up(1.0) is None


def test_a_refused_write_is_tried_again_after_a_pause() -> None:
    election = Election(ME, lambda: 0.0)
    election.seen(held(""), 100.0)
    assert election.step(100.0) is not None
    election.refused(100.0)
    assert election.step(100.4) is None
    assert election.step(100.6) is not None


def test_what_is_written_is_a_lease_as_kubernetes_has_it() -> None:
    body = body_of(Write(ME, 2, "9"), "ns", "azureml-fe", {"acquireTime": "then", "holderIdentity": ME}, "now")
    assert body["metadata"] == {"name": "azureml-fe", "namespace": "ns", "resourceVersion": "9"}
    assert body["spec"] == {
        "acquireTime": "then",
        "holderIdentity": ME,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": "now",
        "leaseTransitions": 2,
    }
    assert body_of(Write(ME, 2, "9"), "ns", "azureml-fe", None, "now")["spec"]["acquireTime"] == "now"
    assert lease(body | {"metadata": body["metadata"] | {"resourceVersion": "9"}}).holder == ME


class World:
    """A server with one Lease, and candidates whose clocks differ and whose requests and watches are late."""

    def __init__(self, seed: int, candidates: int) -> None:
        self.chance = random.Random(seed)
        self.lease: Lease | None = None
        self.version = 0
        self.now = 1000.0
        self.elections = [Election(f"pod-{n}_0", self.chance.random) for n in range(candidates)]
        self.offsets = [self.chance.uniform(-500, 500) for _ in self.elections]
        self.cut = [False] * candidates
        self.inbox: list[tuple[float, int, Any]] = []  # when, whose, what

    def clock(self, number: int) -> float:
        return self.now + self.offsets[number]

    def later(self, number: int, what: Any, longest: float) -> None:
        self.inbox.append((self.now + self.chance.uniform(0, longest), number, what))

    def write(self, number: int, write: Write) -> None:
        """Reaches the server or not, in time; the answer may be lost."""
        sent_at = self.clock(number)
        if self.cut[number] or (self.lease.resource_version if self.lease else "") != write.replaces:
            self.later(number, None, WRITE_SECONDS)
            return
        self.version += 1
        self.lease = held(write.holder, self.version, write.transitions)
        for other in range(len(self.elections)):
            if not self.cut[other]:
                self.later(other, self.lease, 2.0)
        self.later(number, (self.lease, sent_at) if self.chance.random() < 0.9 else None, WRITE_SECONDS)

    def step(self, seconds: float) -> None:
        self.now += seconds
        due, self.inbox = [m for m in self.inbox if m[0] <= self.now], [m for m in self.inbox if m[0] > self.now]
        for _, number, what in sorted(due, key=lambda message: message[0]):
            election, clock = self.elections[number], self.clock(number)
            if isinstance(what, Lease):
                if int(what.resource_version) >= int(election._lease.resource_version if election._lease else "0"):
                    election.seen(what, clock)
            elif what is None:
                election.refused(clock)
            else:
                election.written(what[0], what[1], clock)
        for number, election in enumerate(self.elections):
            if not any(who == number and not isinstance(what, Lease) for _, who, what in self.inbox):
                write = election.step(self.clock(number))
                if write is not None:
                    self.write(number, write)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), candidates=st.integers(1, 4))
def test_never_two_at_a_time_and_soon_one(seed: int, candidates: int) -> None:
    world = World(seed, candidates)
    for election, offset in zip(world.elections, world.offsets, strict=True):
        election.seen(None, world.now + offset)
    for _ in range(300):
        if world.chance.random() < 0.02:
            number = world.chance.randrange(candidates)
            world.cut[number] = not world.cut[number]
        world.step(world.chance.uniform(0.05, 1.0))
        leading = [n for n, election in enumerate(world.elections) if election.leads(world.clock(n))]
        assert len(leading) <= 1
    world.cut = [False] * candidates
    for number, election in enumerate(world.elections):  # watches resume
        if world.lease is not None:
            election.seen(world.lease, world.clock(number))
    led = False
    for _ in range(120):
        world.step(0.5)
        led |= any(election.leads(world.clock(n)) for n, election in enumerate(world.elections))
    assert led


@pytest.mark.parametrize("identity", [ME, OTHER])
def test_identities_tell_the_pod(identity: str) -> None:
    assert identity_of(pod_of(identity), identity.rpartition("_")[2]) == identity
