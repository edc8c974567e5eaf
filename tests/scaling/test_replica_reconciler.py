"""Cases of the reconciler: which replicas are cordoned, drained, removed and uncordoned."""

from collections.abc import Mapping, Sequence

import pytest

from router.model.services import ReplicaState
from router.scaling.demand import Demand
from router.scaling.replica_reconciler import (
    ABORT_SECONDS,
    REMOVAL_TIMEOUT_SECONDS,
    Abort,
    Action,
    Cordon,
    ReplicaFacts,
    ReplicaReconciler,
    SetReplicas,
    Uncordon,
)
from tests.scaling.builders import demand_of, draining, ready, starting, version


class Harness:
    """A reconciler whose desired number of replicas a test sets: at target 100 % and window 1 s it equals the load."""

    SETTINGS: Mapping[str, object] = {
        "autoscale_min_replicas": 0,
        "autoscale_max_replicas": 100,
        "autoscale_target_utilization": 100,
        "autoscale_scale_down_seconds": 1.0,
    }

    def __init__(self, *replicas: ReplicaFacts, **settings: object) -> None:
        self.reconciler = ReplicaReconciler(version(**{**self.SETTINGS, **settings}))
        self.now = 0.0
        if replicas:
            self.tick(len(replicas), *replicas)

    def change(self, **settings: object) -> None:
        self.reconciler.update(version(**{**self.SETTINGS, **settings}))

    def tick(self, wanted: int | None, *replicas: ReplicaFacts, after: float = 1.0) -> Sequence[Action]:
        """Tick `after` seconds later with a load that needs `wanted` replicas; None: no interval ends."""
        self.now += after
        demand = None if wanted is None else demand_of(busy=wanted, seconds=after)
        return self.reconciler.tick(self.now, demand, replicas)


def test_first_tick_requests_the_desired_number_even_if_it_is_present() -> None:
    assert Harness().tick(2, ready("a"), ready("b")) == (SetReplicas(2),)


def test_nothing_is_requested_before_the_first_decision() -> None:
    harness = Harness()
    assert harness.tick(None, ready("a")) == ()
    assert harness.reconciler.requested_replicas is None
    assert harness.reconciler.decision is None


def test_fixed_number_of_zero_drains_all_replicas() -> None:
    harness = Harness(ready("a", 1), ready("b"))
    harness.reconciler.update(version(num_replicas=0))
    assert harness.tick(5, ready("a", 1), ready("b")) == (Cordon(("a", "b")),)
    busy, idle = ready("a", 1, cordoned=True), ready("b", cordoned=True)
    assert harness.tick(5, busy, idle) == (SetReplicas(1, ("b",)),)
    assert harness.tick(5, ready("a", cordoned=True)) == (SetReplicas(0, ("a",)),)


def test_request_is_not_repeated_while_the_cluster_lags() -> None:
    harness = Harness(ready("a"))
    assert harness.tick(3, ready("a")) == (SetReplicas(3),)
    assert harness.tick(3, ready("a")) == ()
    assert harness.tick(3, ready("a"), starting("b"), starting("c")) == ()
    assert harness.reconciler.requested_replicas == 3


def test_autoscaler_counts_starting_replicas_but_neither_cordoned_nor_draining_ones() -> None:
    harness = Harness()
    harness.tick(2, ready("a", 2), starting("b"), ready("c", 1, cordoned=True), draining("d", 1))
    assert harness.reconciler.decision is not None
    assert harness.reconciler.decision.utilization == 1.0


class TestSurplus:
    def test_surplus_is_cordoned_then_removed_once_drained(self) -> None:
        harness = Harness(ready("a", 1), ready("b", 1))
        assert harness.tick(1, ready("a", 1), ready("b", 2)) == (Cordon(("a",)),)
        assert harness.tick(1, ready("a", 1, cordoned=True), ready("b", 2)) == ()
        assert harness.tick(1, ready("a", cordoned=True), ready("b", 2)) == (SetReplicas(1, ("a",)),)
        assert harness.tick(1, ready("b", 2)) == ()

    @pytest.mark.parametrize(
        ("replicas", "cordoned"),
        [
            ((ready("busy", 2), ready("idle", 0)), "idle"),
            ((ready("idle", 0), starting("starting")), "starting"),
            ((ready("old", 1, started_at=1.0), ready("young", 1, started_at=2.0)), "young"),
            ((starting("old", started_at=1.0), starting("young", started_at=2.0)), "young"),
            ((ready("busy young", 2, started_at=2.0), ready("idle old", 1, started_at=1.0)), "idle old"),
            ((ready("quick", 9), ready("streaming", 1, streaming=1)), "quick"),
            ((ready("two", 2, streaming=2), ready("one", 8, streaming=1)), "one"),
            ((ready("old", 3, started_at=1.0, streaming=1), ready("young", 3, started_at=2.0, streaming=1)), "young"),
            ((starting("starting"), ready("idle")), "starting"),
        ],
    )
    def test_cheapest_replica_is_cordoned_first(self, replicas: tuple[ReplicaFacts, ...], cordoned: str) -> None:
        assert Harness(*replicas).tick(1, *replicas) == (Cordon((cordoned,)),)

    def test_several_drained_replicas_are_removed_in_one_action(self) -> None:
        harness = Harness(ready("a", 5), ready("b"), ready("c"))
        assert harness.tick(1, ready("a", 5), ready("b"), ready("c")) == (Cordon(("b", "c")),)
        assert harness.tick(1, ready("a", 5), ready("b", cordoned=True), ready("c", cordoned=True)) == (
            SetReplicas(1, ("b", "c")),
        )

    def test_replica_drained_between_refreshes_is_removed_at_once(self) -> None:
        harness = Harness(ready("a", 1), ready("b", 1))
        harness.tick(1, ready("a", 1), ready("b", 2))
        assert harness.tick(None, ready("a", cordoned=True), ready("b", 2), after=0.1) == (SetReplicas(1, ("a",)),)

    def test_idle_replica_is_kept_until_its_cordon_is_in_effect(self) -> None:
        harness = Harness(ready("a"), ready("b", 2))
        assert harness.tick(1, ready("a"), ready("b", 2)) == (Cordon(("a",)),)
        assert harness.tick(1, ready("a"), ready("b", 2)) == (Cordon(("a",)),), "repeated until it is in effect"
        assert harness.tick(1, ready("a", cordoned=True), ready("b", 2)) == (SetReplicas(1, ("a",)),)

    def test_lost_cordon_is_repeated(self) -> None:
        harness = Harness(ready("a", 1), ready("b", 2))
        harness.tick(1, ready("a", 1), ready("b", 2))
        harness.tick(1, ready("a", 1, cordoned=True), ready("b", 2))
        assert harness.tick(1, ready("a", 0), ready("b", 2)) == (Cordon(("a",)),)

    def test_requests_are_aborted_at_the_end_of_the_drain_time(self) -> None:
        harness = Harness(ready("a", 1), ready("b", 2), scoring_timeout_ms=10_000, replica_drain_seconds=100)
        facts = ready("a", 1, cordoned=True), ready("b", 2)
        harness.tick(1, ready("a", 1), ready("b", 2), after=1000.0)
        assert harness.tick(1, *facts, after=1000.0) == (), "the time before the cordon is in effect does not count"
        assert harness.tick(1, *facts, after=100 - 0.1) == ()
        assert harness.tick(1, *facts, after=0.1) == (Abort(("a",)),)
        assert harness.tick(None, *facts, after=0.1) == (Abort(("a",)),), "repeated until they have ended"
        assert harness.tick(None, ready("a", cordoned=True), ready("b", 2), after=0.1) == (SetReplicas(1, ("a",)),)

    def test_replica_whose_requests_cannot_be_aborted_is_removed(self) -> None:
        harness = Harness(ready("a", 1), ready("b", 2), scoring_timeout_ms=10_000, replica_drain_seconds=100)
        facts = ready("a", 1, cordoned=True), ready("b", 2)
        harness.tick(1, ready("a", 1), ready("b", 2))
        harness.tick(1, *facts)
        assert harness.tick(1, *facts, after=100 + ABORT_SECONDS - 0.1) == (Abort(("a",)),)
        assert harness.tick(1, *facts, after=0.1) == (SetReplicas(1, ("a",)),)

    def test_load_that_returns_during_the_abort_keeps_the_replica(self) -> None:
        harness = Harness(ready("a", 1), ready("b", 2), scoring_timeout_ms=10_000, replica_drain_seconds=100)
        facts = ready("a", 1, cordoned=True), ready("b", 2)
        harness.tick(1, ready("a", 1), ready("b", 2))
        harness.tick(1, *facts)
        assert harness.tick(1, *facts, after=100) == (Abort(("a",)),)
        assert harness.tick(2, *facts) == (Uncordon(("a",)),)

    def test_scale_to_zero_and_back(self) -> None:
        harness = Harness(ready("a"))
        assert harness.tick(0, ready("a")) == (Cordon(("a",)),)
        assert harness.tick(0, ready("a", cordoned=True)) == (SetReplicas(0, ("a",)),)
        assert harness.tick(1) == (SetReplicas(1),)

    def test_unreported_replicas_are_cancelled_without_a_name(self) -> None:
        harness = Harness(ready("a"))
        assert harness.tick(5, ready("a"), starting("b")) == (SetReplicas(5),)
        assert harness.tick(2, ready("a"), starting("b")) == (SetReplicas(2),)


class TestReturningLoad:
    def test_cordoned_replicas_are_uncordoned_before_new_ones_are_requested(self) -> None:
        harness = Harness(ready("a", 3), ready("b", 2), ready("c", 1))
        harness.tick(1, ready("a", 3), ready("b", 2), ready("c", 1))
        cordoned = ready("a", 3), ready("b", 2, cordoned=True), ready("c", 1, cordoned=True)
        assert harness.tick(2, *cordoned) == (Uncordon(("b",)),), "the busiest first"
        assert harness.reconciler.requested_replicas == 3, "c still drains"
        cordoned = ready("a", 3), ready("b", 2), ready("c", 1, cordoned=True)
        assert harness.tick(5, *cordoned) == (Uncordon(("c",)), SetReplicas(5))

    def test_last_cordoned_replica_is_uncordoned_first(self) -> None:
        harness = Harness(ready("a", 3), ready("b", 2), ready("c", 1))
        harness.tick(2, ready("a", 3), ready("b", 1), ready("c", 9))
        harness.tick(1, ready("a", 1), ready("b", 5, cordoned=True), ready("c", 9))
        both = ready("a", 1, cordoned=True), ready("b", 5, cordoned=True), ready("c", 9)
        assert harness.tick(2, *both) == (Uncordon(("a",)),)

    def test_ready_replica_is_uncordoned_before_a_starting_one(self) -> None:
        harness = Harness(ready("a", 9), ready("b", 1), starting("c"))
        harness.tick(1, ready("a", 9), ready("b", 1), starting("c"))
        assert Uncordon(("b",)) in harness.tick(2, ready("a", 9), ready("b", 1, cordoned=True), starting("c"))

    def test_uncordon_is_repeated_when_the_cordon_is_reported_late(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1))
        assert harness.tick(2, ready("a", 2), ready("b", 1)) == (Uncordon(("b",)),)
        assert harness.tick(2, ready("a", 2), ready("b", 1, cordoned=True)) == (Uncordon(("b",)),), (
            "the cordon shows only now"
        )
        assert harness.tick(2, ready("a", 2), ready("b", 1)) == ()

    def test_replica_is_not_cordoned_while_its_previous_cordon_is_still_reported(self) -> None:
        """Otherwise a replica that was idle during a previous cordon would count as drained."""
        harness = Harness(ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1))
        stale = ready("a", 2), ready("b", 0, cordoned=True)
        assert harness.tick(2, *stale) == (Uncordon(("b",)),)
        assert harness.tick(1, ready("a", 2), ready("b", 0, cordoned=True)) == (Uncordon(("b",)), Cordon(("a",)))

    def test_replica_that_cannot_be_cordoned_yet_is_still_requested(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1))
        harness.tick(2, ready("a", 2), ready("b", 1, cordoned=True))
        assert harness.tick(0, ready("a", 2), ready("b", 1, cordoned=True)) == (Uncordon(("b",)), Cordon(("a",)))
        assert harness.reconciler.requested_replicas == 2

    def test_replica_named_for_removal_is_never_uncordoned(self) -> None:
        harness = Harness(ready("a", 2), ready("b"))
        harness.tick(1, ready("a", 2), ready("b"))
        old = ready("a", 2), ready("b", cordoned=True)
        assert harness.tick(1, *old) == (SetReplicas(1, ("b",)),)
        for _ in range(5):
            assert harness.tick(1, *old, after=REMOVAL_TIMEOUT_SECONDS) == ()
        assert harness.tick(2, *old) == (SetReplicas(2, ("b",)),)


class TestClusterDiffersFromRequest:
    def test_cordoned_replica_that_disappears_is_not_replaced(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1, cordoned=True))
        assert harness.tick(1, ready("a", 2)) == (SetReplicas(1),)

    def test_cordoned_replica_replaces_one_that_disappears(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1))
        assert harness.tick(1, ready("b", 1, cordoned=True)) == (Uncordon(("b",)), SetReplicas(1))

    def test_cluster_replaces_a_replica_that_disappears(self) -> None:
        harness = Harness(ready("a"), ready("b"))
        assert harness.tick(2, ready("a")) == ()
        assert harness.tick(2, ready("a"), starting("c")) == ()

    def test_draining_replicas_are_not_counted(self) -> None:
        harness = Harness(ready("a"), ready("b"))
        assert harness.tick(2, ready("a"), draining("b", 3), starting("c")) == ()

    def test_cordoned_replica_that_the_cluster_drains_itself_is_not_replaced(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1))
        assert harness.tick(1, ready("a", 2), draining("b", 1, cordoned=True)) == (SetReplicas(1),)

    def test_nothing_is_cordoned_while_more_are_reported_than_requested(self) -> None:
        """The surplus is being removed, or a rolling update is in progress: a cordon could affect the wrong replica."""
        harness = Harness(ready("a", 1), ready("b", 1))
        surplus = ready("a", 1), ready("b", 1), starting("c")
        assert harness.tick(1, *surplus) == ()
        assert harness.tick(0, *surplus) == ()
        assert harness.tick(4, *surplus) == (SetReplicas(4),), "scale-up does not wait"

    def test_nothing_is_removed_while_more_are_reported_than_requested(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 1))
        harness.tick(1, ready("a", 2), ready("b", 1))
        assert harness.tick(1, ready("a", 2), ready("b", cordoned=True), starting("c")) == ()
        assert harness.tick(1, ready("a", 2), ready("b", cordoned=True)) == (SetReplicas(1, ("b",)),)

    def test_named_replica_that_the_cluster_kept_is_uncordoned(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 2), ready("c"))
        harness.tick(2, ready("a", 2), ready("b", 2), ready("c"))
        harness.tick(2, ready("a", 2), ready("b", 2), ready("c", cordoned=True))
        left = ready("a", 2), ready("c", cordoned=True)
        assert harness.tick(2, *left, after=REMOVAL_TIMEOUT_SECONDS - 1) == ()
        assert harness.tick(2, *left) == (Uncordon(("c",)),)
        assert harness.reconciler.requested_replicas == 2

    def test_names_for_removal_are_repeated_while_their_replicas_are_reported(self) -> None:
        harness = Harness(ready("a", 2), ready("b", 1), ready("c"))
        harness.tick(1, ready("a", 2), ready("b", 1), ready("c"))
        old = ready("a", 2), ready("b", 1, cordoned=True), ready("c", cordoned=True)
        assert harness.tick(1, *old) == (SetReplicas(2, ("c",)),)
        assert harness.tick(1, ready("a", 2), ready("b", cordoned=True), ready("c", cordoned=True)) == (
            SetReplicas(1, ("c", "b")),
        )

    def test_lost_cordon_of_a_named_replica_is_repeated(self) -> None:
        harness = Harness(ready("a", 2), ready("b"))
        harness.tick(1, ready("a", 2), ready("b"))
        harness.tick(1, ready("a", 2), ready("b", cordoned=True))
        assert harness.tick(1, ready("a", 2), ready("b")) == (Cordon(("b",)),)


class TestTakeover:
    """A new reconciler finds cordons of a previous one."""

    def test_cordons_end_when_all_replicas_are_desired(self) -> None:
        assert Harness().tick(2, ready("a"), ready("b", cordoned=True)) == (Uncordon(("b",)), SetReplicas(2))

    def test_cordoned_surplus_is_removed(self) -> None:
        assert Harness().tick(1, ready("a", 1), ready("b", cordoned=True)) == (SetReplicas(1, ("b",)),)


def test_fixed_number_follows_the_settings() -> None:
    reconciler = ReplicaReconciler(version(num_replicas=2))
    assert reconciler.tick(1.0, Demand(1.0), ()) == (SetReplicas(2),)
    reconciler.update(version(num_replicas=3))
    assert reconciler.tick(2.0, Demand(1.0), (ready("a"), ready("b"))) == (SetReplicas(3),)
    reconciler.update(version(num_replicas=1))
    assert reconciler.tick(3.0, Demand(1.0), (ready("a", 1), ready("b"), ready("c"))) == (Cordon(("b", "c")),)


def test_changed_drain_time_applies_to_replicas_that_drain() -> None:
    harness = Harness(ready("a", 1), ready("b", 2))
    harness.tick(1, ready("a", 1), ready("b", 2))
    harness.tick(1, ready("a", 1, cordoned=True), ready("b", 2))
    assert harness.tick(1, ready("a", 1, cordoned=True), ready("b", 2), after=599.0) == (), "600 s by default"
    harness.change(scoring_timeout_ms=1000, replica_drain_seconds=500)
    assert harness.tick(1, ready("a", 1, cordoned=True), ready("b", 2)) == (SetReplicas(1, ("a",)),)


def test_most_responses_in_progress_are_uncordoned_first() -> None:
    harness = Harness(ready("a", 3), ready("b", 2), ready("c", 5, streaming=5))
    harness.tick(1, ready("a", 3), ready("b", 2), ready("c", 5, streaming=5))
    cordoned = ready("a", 3, cordoned=True), ready("b", 2, cordoned=True, streaming=1), ready("c", 5, streaming=5)
    assert harness.tick(2, *cordoned) == (Uncordon(("b",)),)


def test_no_replica_is_removed_while_a_busy_replica_fails_its_probes() -> None:
    busy = ReplicaFacts("busy", ReplicaState.STARTING, 1, False, 0.0)
    harness = Harness(ready("idle"), ready("busy", 1), ready("other", 1))
    harness.tick(2, ready("idle"), ready("busy", 1), ready("other", 1))
    assert harness.tick(2, ready("idle", cordoned=True), busy, ready("other", 1)) == ()
    assert harness.tick(2, ready("idle", cordoned=True), ready("busy", 1), ready("other", 1)) == (
        SetReplicas(2, ("idle",)),
    )
