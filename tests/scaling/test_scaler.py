"""Which replicas stay and which go, case by case."""

from collections.abc import Mapping, Sequence

import pytest

from router.scaling.demand import Demand
from router.scaling.scaler import (
    DRAIN_MARGIN_SECONDS,
    TAKEN_INSTEAD_SECONDS,
    Action,
    Cordon,
    ReplicaFacts,
    SetReplicas,
    Uncordon,
    VersionScaler,
)
from router.services import ReplicaState
from tests.scaling.worlds import draining, load, ready, starting, version


class Scene:
    """A scaler that is asked for any number of replicas: at target 100 % and window 1 s, need is count."""

    AT_WILL: Mapping[str, object] = {
        "autoscale_min_replicas": 0,
        "autoscale_max_replicas": 100,
        "autoscale_target_utilization": 100,
        "autoscale_scale_down_seconds": 1.0,
    }

    def __init__(self, *replicas: ReplicaFacts, **settings: object) -> None:
        self.scaler = VersionScaler(version(**{**self.AT_WILL, **settings}))
        self.now = 0.0
        if replicas:
            self.tick(len(replicas), *replicas)

    def change(self, **settings: object) -> None:
        self.scaler.update(version(**{**self.AT_WILL, **settings}))

    def tick(self, wanted: int | None, *replicas: ReplicaFacts, after: float = 1.0) -> Sequence[Action]:
        """`after` seconds later `wanted` replicas are needed; None: no interval ends."""
        self.now += after
        demand = None if wanted is None else load(busy=wanted, seconds=after)
        return self.scaler.tick(self.now, demand, replicas)


def test_first_tick_asks_for_what_is_wanted_even_if_it_is_there() -> None:
    assert Scene().tick(2, ready("a"), ready("b")) == (SetReplicas(2),)


def test_nothing_is_asked_for_before_anything_was_decided() -> None:
    scene = Scene()
    assert scene.tick(None, ready("a")) == ()
    assert scene.scaler.asked is None
    assert scene.scaler.decision is None


def test_nothing_is_said_twice_while_the_cluster_lags() -> None:
    scene = Scene(ready("a"))
    assert scene.tick(3, ready("a")) == (SetReplicas(3),)
    assert scene.tick(3, ready("a")) == ()
    assert scene.tick(3, ready("a"), starting("b"), starting("c")) == ()
    assert scene.scaler.asked == 3


def test_autoscaler_sees_starting_replicas_but_neither_cordoned_nor_draining_ones() -> None:
    scene = Scene()
    scene.tick(2, ready("a", 2), starting("b"), ready("c", 1, cordoned=True), draining("d", 1))
    assert scene.scaler.decision is not None
    assert scene.scaler.decision.utilization == 1.0


class TestTooMany:
    def test_are_cordoned_then_removed_once_drained(self) -> None:
        scene = Scene(ready("a", 1), ready("b", 1))
        assert scene.tick(1, ready("a", 1), ready("b", 2)) == (Cordon(("a",)),)
        assert scene.tick(1, ready("a", 1, cordoned=True), ready("b", 2)) == ()
        assert scene.tick(1, ready("a", cordoned=True), ready("b", 2)) == (SetReplicas(1, ("a",)),)
        assert scene.tick(1, ready("b", 2)) == ()

    @pytest.mark.parametrize(
        ("replicas", "goes"),
        [
            ((ready("busy", 2), ready("idle", 0)), "idle"),
            ((ready("idle", 0), starting("starting")), "starting"),
            ((ready("old", 1, started_at=1.0), ready("young", 1, started_at=2.0)), "young"),
            ((starting("old", started_at=1.0), starting("young", started_at=2.0)), "young"),
            ((ready("busy young", 2, started_at=2.0), ready("idle old", 1, started_at=1.0)), "idle old"),
        ],
    )
    def test_least_missed_goes_first(self, replicas: tuple[ReplicaFacts, ...], goes: str) -> None:
        assert Scene(*replicas).tick(1, *replicas) == (Cordon((goes,)),)

    def test_several_drained_go_in_one_action(self) -> None:
        scene = Scene(ready("a", 5), ready("b"), ready("c"))
        assert scene.tick(1, ready("a", 5), ready("b"), ready("c")) == (Cordon(("b", "c")),)
        assert scene.tick(1, ready("a", 5), ready("b", cordoned=True), ready("c", cordoned=True)) == (
            SetReplicas(1, ("b", "c")),
        )

    def test_drained_between_refreshes_goes_at_once(self) -> None:
        scene = Scene(ready("a", 1), ready("b", 1))
        scene.tick(1, ready("a", 1), ready("b", 2))
        assert scene.tick(None, ready("a", cordoned=True), ready("b", 2), after=0.1) == (SetReplicas(1, ("a",)),)

    def test_idle_is_not_enough_until_the_cordon_is_in_effect(self) -> None:
        scene = Scene(ready("a"), ready("b", 2))
        assert scene.tick(1, ready("a"), ready("b", 2)) == (Cordon(("a",)),)
        assert scene.tick(1, ready("a"), ready("b", 2)) == (Cordon(("a",)),), "said again until it is in effect"
        assert scene.tick(1, ready("a", cordoned=True), ready("b", 2)) == (SetReplicas(1, ("a",)),)

    def test_cordon_that_got_lost_is_made_again(self) -> None:
        scene = Scene(ready("a", 1), ready("b", 2))
        scene.tick(1, ready("a", 1), ready("b", 2))
        scene.tick(1, ready("a", 1, cordoned=True), ready("b", 2))
        assert scene.tick(1, ready("a", 0), ready("b", 2)) == (Cordon(("a",)),)

    def test_busy_beyond_the_drain_bound_goes_all_the_same(self) -> None:
        scene = Scene(ready("a", 1), ready("b", 2), scoring_timeout_ms=10_000)
        facts = ready("a", 1, cordoned=True), ready("b", 2)
        scene.tick(1, ready("a", 1), ready("b", 2), after=100.0)
        assert scene.tick(1, *facts, after=100.0) == (), "the time before the cordon is in effect does not count"
        assert scene.tick(1, *facts, after=10 + DRAIN_MARGIN_SECONDS - 0.1) == ()
        assert scene.tick(1, *facts, after=0.1) == (SetReplicas(1, ("a",)),)

    def test_to_zero(self) -> None:
        scene = Scene(ready("a"))
        assert scene.tick(0, ready("a")) == (Cordon(("a",)),)
        assert scene.tick(0, ready("a", cordoned=True)) == (SetReplicas(0, ("a",)),)
        assert scene.tick(1) == (SetReplicas(1),)

    def test_unreported_ones_are_cancelled_without_a_name(self) -> None:
        scene = Scene(ready("a"))
        assert scene.tick(5, ready("a"), starting("b")) == (SetReplicas(5),)
        assert scene.tick(2, ready("a"), starting("b")) == (SetReplicas(2),)


class TestLoadIsBack:
    def test_cordoned_replicas_are_taken_back_before_new_ones_are_asked_for(self) -> None:
        scene = Scene(ready("a", 3), ready("b", 2), ready("c", 1))
        scene.tick(1, ready("a", 3), ready("b", 2), ready("c", 1))
        cordoned = ready("a", 3), ready("b", 2, cordoned=True), ready("c", 1, cordoned=True)
        assert scene.tick(2, *cordoned) == (Uncordon(("b",)),), "the busiest first"
        assert scene.scaler.asked == 3, "c drains still"
        cordoned = ready("a", 3), ready("b", 2), ready("c", 1, cordoned=True)
        assert scene.tick(5, *cordoned) == (Uncordon(("c",)), SetReplicas(5))

    def test_latest_cordoned_is_taken_back_first(self) -> None:
        scene = Scene(ready("a", 3), ready("b", 2), ready("c", 1))
        scene.tick(2, ready("a", 3), ready("b", 1), ready("c", 9))
        scene.tick(1, ready("a", 1), ready("b", 5, cordoned=True), ready("c", 9))
        both = ready("a", 1, cordoned=True), ready("b", 5, cordoned=True), ready("c", 9)
        assert scene.tick(2, *both) == (Uncordon(("a",)),)

    def test_ready_is_taken_back_before_starting(self) -> None:
        scene = Scene(ready("a", 9), ready("b", 1), starting("c"))
        scene.tick(1, ready("a", 9), ready("b", 1), starting("c"))
        assert Uncordon(("b",)) in scene.tick(2, ready("a", 9), ready("b", 1, cordoned=True), starting("c"))

    def test_taken_back_before_its_cordon_was_seen(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1))
        assert scene.tick(2, ready("a", 2), ready("b", 1)) == (Uncordon(("b",)),)
        assert scene.tick(2, ready("a", 2), ready("b", 1, cordoned=True)) == (Uncordon(("b",)),), "seen only now"
        assert scene.tick(2, ready("a", 2), ready("b", 1)) == ()

    def test_is_not_cordoned_anew_while_its_former_cordon_is_still_seen(self) -> None:
        """Else its idleness under a cordon that has already ended would count as drained."""
        scene = Scene(ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1))
        stale = ready("a", 2), ready("b", 0, cordoned=True)
        assert scene.tick(2, *stale) == (Uncordon(("b",)),)
        assert scene.tick(1, ready("a", 2), ready("b", 0, cordoned=True)) == (Uncordon(("b",)), Cordon(("a",)))

    def test_whoever_cannot_be_cordoned_yet_is_still_asked_for(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1))
        scene.tick(2, ready("a", 2), ready("b", 1, cordoned=True))
        assert scene.tick(0, ready("a", 2), ready("b", 1, cordoned=True)) == (Uncordon(("b",)), Cordon(("a",)))
        assert scene.scaler.asked == 2

    def test_named_for_removal_is_not_taken_back_however_long_it_is_reported(self) -> None:
        scene = Scene(ready("a", 2), ready("b"))
        scene.tick(1, ready("a", 2), ready("b"))
        old = ready("a", 2), ready("b", cordoned=True)
        assert scene.tick(1, *old) == (SetReplicas(1, ("b",)),)
        for _ in range(5):
            assert scene.tick(1, *old, after=TAKEN_INSTEAD_SECONDS) == ()
        assert scene.tick(2, *old) == (SetReplicas(2, ("b",)),)


class TestClusterDoesOtherwise:
    def test_cordoned_replica_that_vanishes_is_not_replaced(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1, cordoned=True))
        assert scene.tick(1, ready("a", 2)) == (SetReplicas(1),)

    def test_replica_that_vanishes_is_made_up_for_by_a_cordoned_one(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1))
        assert scene.tick(1, ready("b", 1, cordoned=True)) == (Uncordon(("b",)), SetReplicas(1))

    def test_replica_that_vanishes_is_left_to_the_cluster_to_replace(self) -> None:
        scene = Scene(ready("a"), ready("b"))
        assert scene.tick(2, ready("a")) == ()
        assert scene.tick(2, ready("a"), starting("c")) == ()

    def test_draining_replicas_do_not_count(self) -> None:
        scene = Scene(ready("a"), ready("b"))
        assert scene.tick(2, ready("a"), draining("b", 3), starting("c")) == ()

    def test_cordoned_replica_that_the_cluster_drains_itself_is_not_replaced(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1))
        assert scene.tick(1, ready("a", 2), draining("b", 1, cordoned=True)) == (SetReplicas(1),)

    def test_more_than_asked_for_makes_everybody_wait(self) -> None:
        """A surplus on its way out, or a rolling update's second set: whoever is cordoned now may be the wrong one."""
        scene = Scene(ready("a", 1), ready("b", 1))
        surplus = ready("a", 1), ready("b", 1), starting("c")
        assert scene.tick(1, *surplus) == ()
        assert scene.tick(0, *surplus) == ()
        assert scene.tick(4, *surplus) == (SetReplicas(4),), "up does not wait"

    def test_drained_ones_wait_too(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 1))
        scene.tick(1, ready("a", 2), ready("b", 1))
        assert scene.tick(1, ready("a", 2), ready("b", cordoned=True), starting("c")) == ()
        assert scene.tick(1, ready("a", 2), ready("b", cordoned=True)) == (SetReplicas(1, ("b",)),)

    def test_another_one_was_taken_in_its_place(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 2), ready("c"))
        scene.tick(2, ready("a", 2), ready("b", 2), ready("c"))
        scene.tick(2, ready("a", 2), ready("b", 2), ready("c", cordoned=True))
        left = ready("a", 2), ready("c", cordoned=True)
        assert scene.tick(2, *left, after=TAKEN_INSTEAD_SECONDS - 1) == ()
        assert scene.tick(2, *left) == (Uncordon(("c",)),)
        assert scene.scaler.asked == 2

    def test_names_are_repeated_while_reported_so_that_the_last_action_says_it_all(self) -> None:
        scene = Scene(ready("a", 2), ready("b", 1), ready("c"))
        scene.tick(1, ready("a", 2), ready("b", 1), ready("c"))
        old = ready("a", 2), ready("b", 1, cordoned=True), ready("c", cordoned=True)
        assert scene.tick(1, *old) == (SetReplicas(2, ("c",)),)
        assert scene.tick(1, ready("a", 2), ready("b", cordoned=True), ready("c", cordoned=True)) == (
            SetReplicas(1, ("c", "b")),
        )

    def test_named_replica_whose_cordon_got_lost_is_cordoned_again(self) -> None:
        scene = Scene(ready("a", 2), ready("b"))
        scene.tick(1, ready("a", 2), ready("b"))
        scene.tick(1, ready("a", 2), ready("b", cordoned=True))
        assert scene.tick(1, ready("a", 2), ready("b")) == (Cordon(("b",)),)


class TestStartAmidThings:
    """A new scaler meets what a former one left."""

    def test_cordons_are_ended_when_everybody_is_wanted(self) -> None:
        assert Scene().tick(2, ready("a"), ready("b", cordoned=True)) == (Uncordon(("b",)), SetReplicas(2))

    def test_cordons_are_carried_through_when_not(self) -> None:
        assert Scene().tick(1, ready("a", 1), ready("b", cordoned=True)) == (SetReplicas(1, ("b",)),)


def test_fixed_number_is_kept_and_follows_the_settings() -> None:
    scaler = VersionScaler(version(num_replicas=2))
    assert scaler.tick(1.0, Demand(1.0), ()) == (SetReplicas(2),)
    scaler.update(version(num_replicas=3))
    assert scaler.tick(2.0, Demand(1.0), (ready("a"), ready("b"))) == (SetReplicas(3),)
    scaler.update(version(num_replicas=1))
    assert scaler.tick(3.0, Demand(1.0), (ready("a", 1), ready("b"), ready("c"))) == (Cordon(("b", "c")),)


def test_changed_scoring_timeout_is_the_new_drain_bound() -> None:
    scene = Scene(ready("a", 1), ready("b", 2), scoring_timeout_ms=10_000)
    scene.tick(1, ready("a", 1), ready("b", 2))
    scene.tick(1, ready("a", 1, cordoned=True), ready("b", 2))
    scene.change(scoring_timeout_ms=1000)
    assert scene.tick(1, ready("a", 1, cordoned=True), ready("b", 2), after=1 + DRAIN_MARGIN_SECONDS) == (
        SetReplicas(1, ("a",)),
    )


def test_none_is_removed_while_one_that_stays_computes_and_answers_no_probe() -> None:
    busy = ReplicaFacts("busy", ReplicaState.STARTING, 1, False, 0.0)
    scene = Scene(ready("idle"), ready("busy", 1), ready("other", 1))
    scene.tick(2, ready("idle"), ready("busy", 1), ready("other", 1))
    assert scene.tick(2, ready("idle", cordoned=True), busy, ready("other", 1)) == ()
    assert scene.tick(2, ready("idle", cordoned=True), ready("busy", 1), ready("other", 1)) == (
        SetReplicas(2, ("idle",)),
    )
