"""Which release serves the models of a namespace, in simulated time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cluster.kubernetes.objects import ReleaseClaim
from router.cluster.kubernetes.parsing import parse_release_claim
from router.cluster.kubernetes.release_claims import (
    RENEWAL_SECONDS,
    RETRY_SECONDS,
    WAITING_SECONDS,
    ClaimWrite,
    ReleaseClaims,
    ReleaseConflict,
    claim_body,
)

A, B, C = "team-a/azureml-fe", "team-b/azureml-fe", "team-c/other"


class ClaimStore:
    """The Lease of the namespace `models` at the API server, and the releases that watch it."""

    def __init__(self, *releases: ReleaseClaims) -> None:
        self.releases = list(releases)
        self.lease: dict[str, Any] | None = None
        self._version = 0

    @property
    def claim(self) -> ReleaseClaim | None:
        return None if self.lease is None else parse_release_claim(self.lease)

    def add(self, release: ReleaseClaims, now: float) -> ReleaseClaims:
        """Add a release, which lists the claim."""
        self.releases.append(release)
        if self.claim is not None:
            release.on_claim_changed(None, self.claim, now)
        return release

    def apply(self, write: ClaimWrite, now: float) -> bool:
        """Apply a write as the API server does; return False for a conflict."""
        current = "" if self.lease is None else self.lease["metadata"]["resourceVersion"]
        if write.replaces != current:
            return False
        body = claim_body(write, f"{now}")
        before = self.lease or {"metadata": {}, "spec": {}}
        annotations = {**before["metadata"].get("annotations", {}), **body["metadata"].get("annotations", {})}
        self._version += 1
        metadata = {
            **body["metadata"],
            "annotations": {name: text for name, text in annotations.items() if text is not None},
            "resourceVersion": str(self._version),
        }
        self._notify({"metadata": metadata, "spec": {**before["spec"], **body["spec"]}}, now)
        return True

    def delete(self, now: float) -> None:
        """Delete the Lease, as an operator does."""
        self._notify(None, now)

    def _notify(self, lease: dict[str, Any] | None, now: float) -> None:
        before, self.lease = self.claim, lease
        for release in self.releases:
            release.on_claim_changed(before, self.claim, now)

    def tick(self, now: float, leaders: Iterable[ReleaseClaims] | None = None) -> int:
        """Have the leaders of all releases write what is due. Return the number of writes."""
        writes = 0
        for release in self.releases if leaders is None else leaders:
            write = release.next_write("models", now, f"{now}")
            if write is not None:
                writes += 1
                self.apply(write, now)
        return writes

    def run(self, start: float, seconds: float) -> int:
        return sum(self.tick(start + second) for second in range(int(seconds)))


def test_first_release_holds_the_claim_and_writes_nothing_more() -> None:
    first = ReleaseClaims(A)
    store = ClaimStore(first)
    assert store.run(0.0, 1000) == 1
    assert store.claim is not None
    assert store.claim.holder == A
    assert first.other_holders() == {}
    assert list(first.conflicts(1000.0)) == []


@pytest.mark.parametrize(("older", "younger"), [(A, B), (B, A)])
def test_older_release_keeps_the_claim_and_both_report_the_other(older: str, younger: str) -> None:
    first, second = ReleaseClaims(older), ReleaseClaims(younger)
    store = ClaimStore(first)
    store.tick(0.0)
    store.add(second, 5.0)
    store.run(6.0, 600)
    assert first.other_holders() == {}
    assert second.other_holders() == {"models": older}
    conflict = ReleaseConflict("models", older, younger)
    assert list(first.conflicts(606.0)) == list(second.conflicts(606.0)) == [conflict]
    assert f"{older} is older and serves and scales them, {younger} does neither" in str(conflict)


def test_waiting_release_renews_its_entry_once_in_an_interval() -> None:
    store = ClaimStore(ReleaseClaims(A))
    store.tick(0.0)
    store.add(ReleaseClaims(B), 0.0)
    assert store.run(1.0, 10 * RENEWAL_SECONDS) == 10


def test_restarted_holder_still_holds_the_claim() -> None:
    store = ClaimStore(ReleaseClaims(A))
    store.tick(0.0)
    second = store.add(ReleaseClaims(B), 1.0)
    store.tick(1.0)
    store.releases.pop(0)  # all pods of A have ended
    store.run(2.0, 100_000)
    assert second.other_holders() == {"models": A}
    again = store.add(ReleaseClaims(A), 100_002.0)
    store.tick(100_002.0)
    assert again.other_holders() == {}


def test_holder_forgets_a_waiting_release_that_has_gone() -> None:
    first = ReleaseClaims(A)
    store = ClaimStore(first)
    store.tick(0.0)
    store.add(ReleaseClaims(B), 0.0)
    store.tick(1.0)
    assert len(list(first.conflicts(1.0))) == 1
    store.releases.pop()
    assert len(list(first.conflicts(WAITING_SECONDS))) == 1
    assert list(first.conflicts(1.0 + WAITING_SECONDS)) == []
    store.tick(1.0 + WAITING_SECONDS)
    assert store.claim is not None
    assert store.claim.waiting == ()


def test_claim_goes_to_the_waiting_release_when_its_holder_observes() -> None:
    first = ReleaseClaims(A)
    store = ClaimStore(first)
    store.tick(0.0)
    second = store.add(ReleaseClaims(B), 0.0)
    store.tick(1.0)
    store.releases.pop(0)
    observer = store.add(ReleaseClaims(A, observes=True), 2.0)
    store.tick(2.0, [observer])
    assert second.other_holders() == {}
    store.run(3.0, RETRY_SECONDS)
    assert store.claim is not None
    assert (store.claim.holder, store.claim.waiting) == (B, ())
    assert observer.other_holders() == {"models": B}
    assert list(observer.conflicts(20.0)) == list(second.conflicts(20.0)) == []


def test_waiting_release_that_observes_removes_its_entry() -> None:
    store = ClaimStore(ReleaseClaims(A))
    store.tick(0.0)
    store.add(ReleaseClaims(B), 0.0)
    store.tick(1.0)
    store.releases.pop()
    store.add(ReleaseClaims(B, observes=True), 2.0)
    store.tick(2.0)
    assert store.claim is not None
    assert (store.claim.holder, store.claim.waiting) == (A, ())
    assert store.run(3.0, 100) == 0


def test_observing_release_writes_nothing_without_a_claim() -> None:
    store = ClaimStore(ReleaseClaims(A, observes=True))
    assert store.run(0.0, 100) == 0


def test_observing_release_claims_the_namespaces_that_it_wants() -> None:
    observer, other = ReleaseClaims(A, observes=True), ReleaseClaims(B)
    store = ClaimStore(observer)
    observer.set_wanted({"models"})
    store.tick(0.0)
    assert store.claim is not None
    assert store.claim.holder == A
    store.add(other, 1.0)
    store.tick(1.0)
    assert other.other_holders() == {"models": A}
    assert [conflict.waiting for conflict in observer.conflicts(1.0)] == [B]
    observer.set_wanted(())
    store.run(1.0, RETRY_SECONDS + 1)
    assert store.claim.holder == B


def test_deleted_claim_goes_to_the_first_release_that_writes_it() -> None:
    first, second = ReleaseClaims(A), ReleaseClaims(B)
    store = ClaimStore(first, second)
    store.tick(0.0)
    store.delete(20.0)
    assert second.other_holders() == {}
    store.tick(20.0, [second])
    assert first.other_holders() == {"models": B}


def test_failed_write_is_repeated_after_a_delay() -> None:
    claims = ReleaseClaims(A)
    assert claims.next_write("models", 0.0, "0") is not None
    assert claims.next_write("models", RETRY_SECONDS - 0.1, "0") is None
    assert claims.next_write("other", RETRY_SECONDS - 0.1, "0") is not None
    assert claims.next_write("models", RETRY_SECONDS, "0") is not None


def test_number_of_entries_is_bounded() -> None:
    store = ClaimStore(ReleaseClaims(A))
    store.tick(0.0)
    for number in range(20):
        store.add(ReleaseClaims(f"team-{number:02}/azureml-fe"), 1.0)
    store.run(1.0, 100)
    assert store.claim is not None
    assert len(store.claim.waiting) == 8


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40), st.sampled_from(["tick", "delete"])), max_size=60))
def test_one_release_at_most_considers_itself_the_holder_of_a_claim(steps: list[tuple[int, int, str]]) -> None:
    releases = [ReleaseClaims(name) for name in (A, B, C)]
    store = ClaimStore(*releases)
    now = 0.0
    for number, seconds, action in steps:
        now += seconds
        if action == "tick":
            holder = store.claim.holder if store.claim is not None else None
            store.tick(now, [releases[number]])
            assert store.claim is not None
            assert holder in (None, store.claim.holder)  # no release takes the claim of another one
        else:
            store.delete(now)
        if store.claim is not None:
            serving = [release for release in releases if "models" not in release.other_holders()]
            assert [release.release for release in serving] == [store.claim.holder]


@pytest.mark.parametrize("annotation", ["", "{", "[1]", '"text"', "null"])
def test_malformed_annotation_of_a_claim_is_ignored(annotation: str) -> None:
    metadata = {"namespace": "models", "name": "x", "annotations": {"azureml-fe/waiting-releases": annotation}}
    assert parse_release_claim({"metadata": metadata}).waiting == ()
    assert parse_release_claim({"metadata": metadata}).holder == ""
