"""Leader election with any number of candidates, one Lease, and messages that are delayed or lost."""

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.cluster.kubernetes.client import WRITE_SECONDS
from router.cluster.kubernetes.election import (
    DEADLINE_SECONDS,
    LEASE_SECONDS,
    RENEW_SECONDS,
    Election,
    LeaseWrite,
    identity_of,
    lease_body,
    pod_of,
)
from router.cluster.kubernetes.objects import Lease
from router.cluster.kubernetes.parsing import parse_lease

OWN, OTHER = identity_of("azureml-fe-1", "0001"), identity_of("azureml-fe-2", "0002")


def lease_of(holder: str, version: int = 1, transitions: int = 0) -> Lease:
    return Lease("ns", "azureml-fe", str(version), holder, LEASE_SECONDS, transitions, f"renewed {version}")


def leader_since(now: float) -> Election:
    election = Election(OWN)
    election.observe(None, now)
    assert election.next_write(now) == LeaseWrite(OWN, 0, "")
    election.write_succeeded(lease_of(OWN), now, now + 0.1)
    return election


def test_nothing_is_written_before_the_lease_is_observed() -> None:
    assert Election(OWN).next_write(5.0) is None


def test_first_candidate_creates_the_lease_and_renews_it_in_time() -> None:
    election = leader_since(100.0)
    assert election.leads(100.0)
    assert election.next_write(100.0 + RENEW_SECONDS - 0.1) is None
    assert election.next_write(100.0 + RENEW_SECONDS) == LeaseWrite(OWN, 0, "1")


def test_leader_that_cannot_renew_stops_before_another_may_start() -> None:
    election = leader_since(100.0)
    for second in range(int(DEADLINE_SECONDS)):
        if election.next_write(100.0 + second) is not None:
            election.write_failed(100.0 + second)
    assert election.leads(100.0 + DEADLINE_SECONDS - 0.01)
    assert not election.leads(100.0 + DEADLINE_SECONDS)
    assert DEADLINE_SECONDS + WRITE_SECONDS < LEASE_SECONDS


def test_lease_of_another_router_is_taken_once_it_was_not_renewed_for_its_duration() -> None:
    election = Election(OWN)
    election.observe(lease_of(OTHER), 100.0)
    assert election.next_write(100.0 + LEASE_SECONDS - 0.1) is None
    election.observe(lease_of(OTHER, 2), 110.0)
    assert election.next_write(110.0 + LEASE_SECONDS - 0.1) is None
    assert election.next_write(110.0 + LEASE_SECONDS) == LeaseWrite(OWN, 1, "2")


def test_unchanged_lease_is_not_a_renewal() -> None:
    election = Election(OWN)
    election.observe(lease_of(OTHER), 100.0)
    election.observe(lease_of(OTHER), 114.0)
    assert election.next_write(100.0 + LEASE_SECONDS) is not None


def test_released_lease_is_taken_at_once() -> None:
    election = Election(OWN)
    election.observe(lease_of("", 7, 3), 100.0)
    assert election.next_write(100.0) == LeaseWrite(OWN, 4, "7")


def test_lease_of_an_ended_pod_is_taken_at_once() -> None:
    election = Election(OWN)
    election.observe(lease_of(OTHER), 100.0)
    election.pod_ended("azureml-fe-3")
    assert election.next_write(101.0) is None
    election.pod_ended("azureml-fe-2")
    assert election.next_write(101.0) is not None


def test_lease_of_an_earlier_process_of_a_pod_is_taken_at_once() -> None:
    election = Election(OWN)
    election.observe(lease_of(OTHER), 100.0)
    election.pod_restarted("azureml-fe-2", "0002")
    assert election.next_write(101.0) is None
    election.pod_restarted("azureml-fe-2", "0003")
    assert election.next_write(101.0) is not None


def test_router_whose_lease_was_taken_does_not_lead() -> None:
    election = leader_since(100.0)
    election.observe(lease_of(OTHER, 2, 1), 101.0)
    assert not election.leads(101.0)
    assert pod_of(election.holder) == "azureml-fe-2"
    assert election.term == 1


def test_resigned_router_never_leads_again() -> None:
    election = leader_since(100.0)
    assert election.resign(101.0) == LeaseWrite("", 0, "1")
    assert not election.leads(101.0)
    assert election.next_write(200.0) is None


def test_router_that_does_not_lead_releases_nothing_when_it_resigns() -> None:
    assert Election(OWN).resign(1.0) is None


def test_failed_write_is_retried_after_a_delay() -> None:
    election = Election(OWN, lambda: 0.0)
    election.observe(lease_of(""), 100.0)
    assert election.next_write(100.0) is not None
    election.write_failed(100.0)
    assert election.next_write(100.4) is None
    assert election.next_write(100.6) is not None


def test_lease_body_keeps_the_time_at_which_its_holder_acquired_it() -> None:
    spec = {"holderIdentity": OWN, "acquireTime": "then"}
    body = lease_body(LeaseWrite(OWN, 2, "9"), "ns", "azureml-fe", spec, "now")
    assert body["metadata"] == {"name": "azureml-fe", "namespace": "ns", "resourceVersion": "9"}
    assert body["spec"] == {
        "acquireTime": "then",
        "holderIdentity": OWN,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": "now",
        "leaseTransitions": 2,
    }
    assert lease_body(LeaseWrite(OWN, 2, "9"), "ns", "azureml-fe", None, "now")["spec"]["acquireTime"] == "now"
    assert parse_lease(body).holder == OWN


@dataclass(frozen=True)
class WriteSucceeded:
    lease: Lease
    sent_at: float


@dataclass(frozen=True)
class WriteFailed:
    pass


@dataclass(frozen=True)
class Message:
    """What a candidate receives, and when."""

    at: float
    candidate: int
    content: Lease | WriteSucceeded | WriteFailed


class SimulatedServer:
    """A server with one Lease. The candidates' clocks differ; their requests and watches are delayed."""

    def __init__(self, seed: int, candidates: int) -> None:
        self.random = random.Random(seed)
        self.lease: Lease | None = None
        self.version = 0
        self.now = 1000.0
        self.elections = [Election(f"pod-{n}_0", self.random.random) for n in range(candidates)]
        self.clock_offsets = [self.random.uniform(-500, 500) for _ in self.elections]
        self.disconnected = [False] * candidates
        self.messages: list[Message] = []

    def clock(self, candidate: int) -> float:
        return self.now + self.clock_offsets[candidate]

    def leaders(self) -> list[int]:
        return [n for n, election in enumerate(self.elections) if election.leads(self.clock(n))]

    def advance(self, seconds: float) -> None:
        """Deliver the messages that are due, then send the writes of candidates without a write in progress."""
        self.now += seconds
        due = sorted((message for message in self.messages if message.at <= self.now), key=lambda message: message.at)
        self.messages = [message for message in self.messages if message.at > self.now]
        for message in due:
            self._deliver(message)
        for candidate, election in enumerate(self.elections):
            if not self._is_writing(candidate) and (write := election.next_write(self.clock(candidate))) is not None:
                self._receive(candidate, write)

    def _is_writing(self, candidate: int) -> bool:
        return any(m.candidate == candidate and not isinstance(m.content, Lease) for m in self.messages)

    def _deliver(self, message: Message) -> None:
        election, clock = self.elections[message.candidate], self.clock(message.candidate)
        match message.content:
            case Lease() as lease:
                if int(lease.resource_version) >= int(election._lease.resource_version if election._lease else "0"):
                    election.observe(lease, clock)
            case WriteSucceeded(lease, sent_at):
                election.write_succeeded(lease, sent_at, clock)
            case WriteFailed():
                election.write_failed(clock)

    def _receive(self, candidate: int, write: LeaseWrite) -> None:
        """Apply a write unless its sender is disconnected or another was faster. One response in ten is lost."""
        sent_at = self.clock(candidate)
        version = self.lease.resource_version if self.lease else ""
        if self.disconnected[candidate] or version != write.replaces:
            self._send(candidate, WriteFailed(), WRITE_SECONDS)
            return
        self.version += 1
        self.lease = lease_of(write.holder, self.version, write.transitions)
        for watcher, disconnected in enumerate(self.disconnected):
            if not disconnected:
                self._send(watcher, self.lease, 2.0)
        is_lost = self.random.random() >= 0.9
        self._send(candidate, WriteFailed() if is_lost else WriteSucceeded(self.lease, sent_at), WRITE_SECONDS)

    def _send(self, candidate: int, content: Lease | WriteSucceeded | WriteFailed, max_delay: float) -> None:
        self.messages.append(Message(self.now + self.random.uniform(0, max_delay), candidate, content))


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), candidates=st.integers(1, 4))
def test_at_most_one_router_leads_and_one_does_once_all_are_connected(seed: int, candidates: int) -> None:
    server = SimulatedServer(seed, candidates)
    for candidate, election in enumerate(server.elections):
        election.observe(None, server.clock(candidate))
    for _ in range(300):
        if server.random.random() < 0.02:
            candidate = server.random.randrange(candidates)
            server.disconnected[candidate] = not server.disconnected[candidate]
        server.advance(server.random.uniform(0.05, 1.0))
        assert len(server.leaders()) <= 1
    server.disconnected = [False] * candidates
    for candidate, election in enumerate(server.elections):  # watches resume
        if server.lease is not None:
            election.observe(server.lease, server.clock(candidate))
    has_led = False
    for _ in range(120):
        server.advance(0.5)
        has_led |= bool(server.leaders())
    assert has_led


@pytest.mark.parametrize("identity", [OWN, OTHER])
def test_identity_contains_the_pod(identity: str) -> None:
    assert identity_of(pod_of(identity), identity.rpartition("_")[2]) == identity
