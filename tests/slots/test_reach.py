"""Who may own services where not all pods reach each other."""

from collections.abc import Collection, Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.slots.reach import SETTLE_SECONDS, Reach

Pair = frozenset[str]


def views(pods: Collection[str], cut: Collection[Pair], *, at: float = SETTLE_SECONDS) -> Mapping[str, Reach]:
    """Of all pods, some of which cannot reach each other, a while after they have told each other."""
    found = {}
    for pod in pods:
        view = found[pod] = Reach(pod)
        live = reached(pod, pods, cut)
        view.look(live, 0.0)
        for other in live - {pod}:
            view.told(other, reached(other, pods, cut))
        view.look(live, 0.0)
        view.look(live, at)
    return found


def reached(pod: str, pods: Collection[str], cut: Collection[Pair]) -> frozenset[str]:
    return frozenset(other for other in pods if frozenset((pod, other)) not in cut)


def pairs(*names: str) -> set[Pair]:
    return {frozenset(name) for name in names}


def preferred(found: Mapping[str, Reach]) -> set[frozenset[str] | None]:
    return {view.preferred for view in found.values()}


def test_pods_that_all_reach_each_other_all_own() -> None:
    assert preferred(views("abc", ())) == {None}


def test_one_that_all_reach_owns_for_two_that_do_not_reach_each_other() -> None:
    found = views("abc", pairs("ac"))
    assert preferred(found) == {frozenset("b")}
    assert {view.everyone for view in found.values()} == {frozenset("abc")}


def test_sides_that_do_not_know_of_each_other_go_by_themselves() -> None:
    found = views("abcd", pairs("ac", "ad", "bc", "bd"))
    assert preferred(found) == {None}
    assert found["a"].everyone == frozenset("ab")
    assert found["c"].everyone == frozenset("cd")


def test_where_no_pod_is_reached_by_all_they_go_by_what_they_reach_themselves() -> None:
    assert preferred(views("abcd", pairs("ac", "bd"))) == {None}


def test_nothing_follows_from_what_is_over_soon() -> None:
    found = views("abc", pairs("ac"), at=SETTLE_SECONDS - 0.01)
    assert preferred(found) == {None}
    view = found["a"]
    assert not view.is_due(SETTLE_SECONDS - 0.01)
    assert view.is_due(SETTLE_SECONDS)
    view.look("abc", SETTLE_SECONDS)  # the link is back
    view.told("c", "abc")
    view.look("abc", SETTLE_SECONDS)
    assert not view.is_due(2 * SETTLE_SECONDS)
    assert view.preferred is None


def test_it_counts_from_the_last_time_that_all_was_well() -> None:
    (view, *_) = views("abc", pairs("ac")).values()
    view.look("abc", 10.0)
    view.told("b", "abc")
    view.look("abc", 10.0)
    assert view.preferred is None
    view.look("ab", 20.0)
    assert view.preferred is None
    view.look("ab", 20.0 + SETTLE_SECONDS)
    assert view.preferred == frozenset("b")


def test_what_a_pod_said_is_forgotten_with_its_link() -> None:
    (view, *_) = views("abc", pairs("ac")).values()
    view.lost("b")
    view.look("a", 10.0)
    assert view.preferred is None
    assert view.everyone == frozenset("a")


def test_a_release_that_does_not_say_whom_it_reaches_is_taken_on_trust() -> None:
    view = Reach("a")
    view.look("abc", 0.0)
    view.told("b", "abc")
    view.look("abc", 0.0)
    view.look("abc", 10.0)
    assert view.preferred is None


@pytest.mark.parametrize("count", [3, 4, 5])
@given(data=st.data())
def test_all_prefer_the_same_or_nobody_is_reached_by_all(count: int, data: st.DataObject) -> None:
    pods = "abcde"[:count]
    every_pair = [frozenset(pair) for pair in combinations(pods, 2)]
    cut = data.draw(st.sets(st.sampled_from(every_pair), min_size=1))
    by_all = frozenset(pod for pod in pods if reached(pod, pods, cut) == frozenset(pods))
    if by_all:
        assert preferred(views(pods, cut)) == {by_all}
