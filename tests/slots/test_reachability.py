"""Reachability: which pods may own services if not all pods reach each other."""

from collections.abc import Collection, Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.slots.reachability import SETTLE_SECONDS, Reachability

Pair = frozenset[str]


def views_of(
    pods: Collection[str], broken: Collection[Pair], *, now: float = SETTLE_SECONDS
) -> Mapping[str, Reachability]:
    """The views of all pods at `now`, if the `broken` pairs could not reach each other since 0.0."""
    views = {}
    for pod in pods:
        view = views[pod] = Reachability(pod)
        live = reached_by(pod, pods, broken)
        view.update(live, 0.0)
        for other in live - {pod}:
            view.on_report(other, reached_by(other, pods, broken))
        view.update(live, 0.0)
        view.update(live, now)
    return views


def reached_by(pod: str, pods: Collection[str], broken: Collection[Pair]) -> frozenset[str]:
    return frozenset(other for other in pods if frozenset((pod, other)) not in broken)


def pairs(*names: str) -> set[Pair]:
    return {frozenset(name) for name in names}


def eligible_owners(views: Mapping[str, Reachability]) -> set[frozenset[str] | None]:
    return {view.eligible_owners for view in views.values()}


def test_all_pods_may_own_services_if_all_reach_each_other() -> None:
    assert eligible_owners(views_of("abc", ())) == {None}


def test_only_the_pod_that_all_reach_may_own_services() -> None:
    views = views_of("abc", pairs("ac"))
    assert eligible_owners(views) == {frozenset("b")}
    assert {view.all_pods for view in views.values()} == {frozenset("abc")}


def test_sides_without_a_common_pod_decide_by_themselves() -> None:
    views = views_of("abcd", pairs("ac", "ad", "bc", "bd"))
    assert eligible_owners(views) == {None}
    assert views["a"].all_pods == frozenset("ab")
    assert views["c"].all_pods == frozenset("cd")


def test_pods_decide_by_their_own_links_if_no_pod_is_reached_by_all() -> None:
    assert eligible_owners(views_of("abcd", pairs("ac", "bd"))) == {None}


def test_short_difference_has_no_effect() -> None:
    views = views_of("abc", pairs("ac"), now=SETTLE_SECONDS - 0.01)
    assert eligible_owners(views) == {None}
    view = views["a"]
    assert not view.is_due(SETTLE_SECONDS - 0.01)
    assert view.is_due(SETTLE_SECONDS)
    view.update("abc", SETTLE_SECONDS)  # the link is up again
    view.on_report("c", "abc")
    view.update("abc", SETTLE_SECONDS)
    assert not view.is_due(2 * SETTLE_SECONDS)
    assert view.eligible_owners is None


def test_settle_time_starts_again_after_all_pods_have_agreed() -> None:
    (view, *_) = views_of("abc", pairs("ac")).values()
    view.update("abc", 10.0)
    view.on_report("b", "abc")
    view.update("abc", 10.0)
    assert view.eligible_owners is None
    view.update("ab", 20.0)
    assert view.eligible_owners is None
    view.update("ab", 20.0 + SETTLE_SECONDS)
    assert view.eligible_owners == frozenset("b")


def test_report_of_pod_is_discarded_with_its_link() -> None:
    (view, *_) = views_of("abc", pairs("ac")).values()
    view.on_peer_down("b")
    view.update("a", 10.0)
    assert view.eligible_owners is None
    assert view.all_pods == frozenset("a")


def test_pod_of_a_release_without_reports_counts_as_reaching_all() -> None:
    view = Reachability("a")
    view.update("abc", 0.0)
    view.on_report("b", "abc")
    view.update("abc", 0.0)
    view.update("abc", 10.0)
    assert view.eligible_owners is None


@pytest.mark.parametrize("count", [3, 4, 5])
@given(data=st.data())
def test_all_pods_agree_on_the_owners_if_a_pod_is_reached_by_all(count: int, data: st.DataObject) -> None:
    pods = "abcde"[:count]
    all_pairs = [frozenset(pair) for pair in combinations(pods, 2)]
    broken = data.draw(st.sets(st.sampled_from(all_pairs), min_size=1))
    reached_by_all = frozenset(pod for pod in pods if reached_by(pod, pods, broken) == frozenset(pods))
    if reached_by_all:
        assert eligible_owners(views_of(pods, broken)) == {reached_by_all}
