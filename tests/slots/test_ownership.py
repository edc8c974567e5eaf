"""Who owns a service, when its owner may grant, and who grants what while the pods are cut into sides."""

from collections.abc import Collection, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.slots.ownership import GATHER_SECONDS, GRACE_SECONDS, Move, Ownership, rendezvous

SERVICES = [f"service-{number}" for number in range(300)]
REPLICAS = [f"replica-{number}" for number in range(300)]

names = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=6)
pods = st.integers(2, 6).map(lambda count: {f"pod-{number}" for number in range(count)})


def view_of(own_id: str, others: Collection[str] = (), services: Iterable[str] = SERVICES) -> Ownership:
    view = Ownership(own_id)
    view.set_peers(others, {}, 0.0)
    view.set_services(services, 0.0)
    return view


def a_service_of(pod: str, among: Collection[str]) -> str:
    return next(service for service in SERVICES if rendezvous(service, among) == pod)


# Rendezvous.


@given(names, st.text())
def test_all_who_know_the_same_pods_choose_the_same_one(members: set[str], name: str) -> None:
    chosen = rendezvous(name, sorted(members))
    assert chosen in members
    assert rendezvous(name, sorted(members, reverse=True)) == chosen
    assert rendezvous(name, frozenset(members)) == chosen


@given(names, st.text(min_size=9), st.text())
def test_who_comes_takes_only_what_is_its_own_and_who_goes_leaves_the_rest_alone(
    members: set[str], newcomer: str, name: str
) -> None:
    before, after = rendezvous(name, members), rendezvous(name, members | {newcomer})
    assert after in (before, newcomer)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_services_are_spread_evenly(count: int) -> None:
    members = [f"pod-{number}" for number in range(count)]
    owned = [sum(rendezvous(service, members) == member for service in SERVICES) for member in members]
    assert min(owned) > 0.6 * len(SERVICES) / count
    assert max(owned) < 1.4 * len(SERVICES) / count


# Owners.


@given(pods)
def test_every_service_has_exactly_one_owner_once_views_agree(all_pods: set[str]) -> None:
    views = [view_of(pod, all_pods - {pod}) for pod in all_pods]
    for service in SERVICES[:50]:
        assert len({view.owner(service) for view in views}) == 1
        assert sum(service in view.owned_by(view.own_id) for view in views) == 1


def test_a_service_that_is_not_known_yet_has_the_owner_that_it_will_have() -> None:
    view = view_of("a", ["b", "c"], [])
    foreseen = {service: view.owner(service) for service in SERVICES}
    view.set_services(SERVICES, 1.0)
    assert {service: view.owner(service) for service in SERVICES} == foreseen


def test_only_the_share_of_a_pod_that_comes_or_goes_moves() -> None:
    view = view_of("a", ["b"])
    came = view.set_peers(["b", "c"], {}, 1.0)
    assert {move.service for move in came} == {s for s in SERVICES if rendezvous(s, ["a", "b", "c"]) == "c"}
    assert all(move.after == "c" and move.before in ("a", "b") for move in came)
    went = view.set_peers(["b"], {}, 2.0)
    assert {Move(move.service, move.after, move.before or "") for move in came} == set(went)


def test_services_that_are_new_move_from_nobody_and_those_gone_are_forgotten() -> None:
    view = view_of("a", ["b"], ["iris", "lotus"])
    assert [(move.service, move.before) for move in view.set_services(["iris", "rose"], 1.0)] == [("rose", None)]
    assert {*view.owned_by("a"), *view.owned_by("b")} == {"iris", "rose"}
    assert not view.may_grant("lotus")


# Gathering.


def test_a_pod_on_its_own_grants_once_its_own_front_ends_have_told() -> None:
    view = view_of("a", (), ["iris"])
    assert view.newly_granting(0.0) == []
    view.told("a", "iris")
    assert not view.may_grant("iris")
    assert view.newly_granting(0.0) == ["iris"]
    assert view.may_grant("iris")
    assert view.newly_granting(0.0) == [], "each is named once"


def test_an_owner_grants_when_the_last_live_pod_has_told() -> None:
    service = a_service_of("a", "abc")
    view = view_of("a", "bc", [service])
    for pod in "ab":
        view.told(pod, service)
        assert view.newly_granting(0.0) == []
    view.told("c", service)
    assert view.newly_granting(0.0) == [service]


def test_who_told_before_this_pod_knew_of_the_service_has_told() -> None:
    service = a_service_of("a", "ab")
    view = view_of("a", "b", [])
    view.told("b", service)
    view.set_services([service], 1.0)
    view.told("a", service)
    assert view.newly_granting(1.0) == [service]


def test_what_was_told_of_a_service_that_went_does_not_count_when_it_comes_back() -> None:
    service = a_service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.told("b", service)
    view.set_services([], 1.0)
    view.set_services([service], 2.0)
    view.told("a", service)
    assert view.newly_granting(2.0) == []
    assert view.newly_granting(2.1 + GATHER_SECONDS) == [service]


def test_who_does_not_tell_in_time_is_not_waited_for() -> None:
    service = a_service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.told("a", service)
    assert view.newly_granting(GATHER_SECONDS * 0.99) == []
    assert view.newly_granting(GATHER_SECONDS) == [service]


def test_the_owner_of_another_pods_service_never_grants() -> None:
    service = a_service_of("b", "ab")
    view = view_of("a", "b", [service])
    view.told("a", service)
    view.told("b", service)
    assert view.newly_granting(GATHER_SECONDS) == []
    assert not view.may_grant(service)


def test_a_gained_service_is_gathered_for_anew_and_a_lost_one_is_not_granted() -> None:
    service = a_service_of("b", "ab")
    view = view_of("a", (), [service])
    view.told("a", service)
    assert view.newly_granting(0.0) == [service]
    assert view.set_peers("b", {}, 1.0) == [Move(service, "a", "b")]
    assert not view.may_grant(service)
    assert view.set_peers((), {}, 2.0) == [Move(service, "b", "a")]
    assert not view.may_grant(service)


def test_a_pod_that_takes_back_what_it_told_stops_the_owner_until_it_tells_again() -> None:
    service = a_service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.told("a", service)
    view.told("b", service)
    assert view.newly_granting(0.0) == [service]
    assert view.forget("b", service, 1.0)
    assert not view.may_grant(service)
    assert view.newly_granting(1.0) == []
    view.told("b", service)
    assert view.newly_granting(1.0) == [service]


def test_taking_back_means_nothing_to_a_pod_that_does_not_own_the_service() -> None:
    service = a_service_of("b", "ab")
    view = view_of("a", "b", [service])
    assert not view.forget("b", service, 1.0)


def test_a_pod_that_connects_again_must_tell_anew() -> None:
    service = a_service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.told("a", service)
    view.told("b", service)
    assert view.newly_granting(0.0) == [service]
    assert view.session_began("b", 1.0) == [service]
    assert not view.may_grant(service)
    view.told("b", service)
    assert view.newly_granting(1.0) == [service]


# Cuts.


@given(pods, st.data())
def test_during_a_cut_each_replica_belongs_to_exactly_one_side(all_pods: set[str], data: st.DataObject) -> None:
    side_of = {pod: data.draw(st.integers(0, 2), label=pod) for pod in sorted(all_pods)}
    sides: dict[int, list[Ownership]] = {}
    for pod, side in side_of.items():
        near = [other for other in all_pods if side_of[other] == side and other != pod]
        far = {other: 1.0 for other in all_pods if side_of[other] != side}
        view = view_of(pod)
        view.set_peers(near, far, 1.0)
        sides.setdefault(side, []).append(view)
    for replica in REPLICAS[:30]:
        claims = [{view.is_ours(replica, 2.0) for view in views} for views in sides.values()]
        assert sorted(claims, key=str) == [{False}] * (len(sides) - 1) + [{True}]


def test_the_share_of_a_side_is_in_proportion_to_its_pods() -> None:
    view = view_of("a", "b")
    view.set_peers("b", {"c": 1.0, "d": 1.0}, 1.0)
    assert 0.4 < sum(view.is_ours(replica, 1.0) for replica in REPLICAS) / len(REPLICAS) < 0.6


def test_the_share_of_an_unreachable_pod_is_taken_after_the_time_of_grace() -> None:
    view = view_of("a")
    view.set_peers((), {"b": 5.0}, 5.0)
    assert view.is_cut
    before_the_end = 5.0 + GRACE_SECONDS * 0.99
    assert not all(view.is_ours(replica, before_the_end) for replica in REPLICAS)
    assert view.expired(before_the_end) == []
    assert view.expired(5.0 + GRACE_SECONDS) == ["b"]
    assert not view.is_cut
    assert all(view.is_ours(replica, 5.0 + GRACE_SECONDS) for replica in REPLICAS)
    assert view.expired(6.0 + GRACE_SECONDS) == [], "each is named once"


def test_grace_is_counted_for_each_unreachable_pod_by_itself() -> None:
    view = view_of("a")
    view.set_peers((), {"b": 0.0, "c": 6.0}, 6.0)
    assert view.expired(GRACE_SECONDS) == ["b"]
    assert view.is_cut
    shares = {replica: view.is_ours(replica, GRACE_SECONDS) for replica in REPLICAS}
    assert shares == {replica: rendezvous(replica, "ac") == "a" for replica in REPLICAS}


def test_a_pod_whose_grace_is_over_stays_out_when_the_view_is_looked_at_again() -> None:
    view = view_of("a")
    view.set_peers((), {"b": 0.0}, 0.0)
    assert view.expired(GRACE_SECONDS) == ["b"]
    view.set_peers("c", {"b": 0.0}, GRACE_SECONDS + 1)
    assert not view.is_cut
    assert view.expired(GRACE_SECONDS + 1) == []


def test_the_cut_ends_when_the_pod_is_back_or_certainly_gone() -> None:
    for live in ((), ("b",)):
        view = view_of("a")
        view.set_peers((), {"b": 0.0}, 0.0)
        view.set_peers(live, {}, 1.0)
        assert not view.is_cut
        assert all(view.is_ours(replica, 1.0) for replica in REPLICAS)


# A pod that is about to end.


def test_a_pod_that_leaves_owns_nothing_and_is_still_heard() -> None:
    everyone = {"pod-1", "pod-2", "pod-3"}
    views = {pod: view_of(pod, everyone - {pod}) for pod in everyone}
    moves = {pod: views[pod].leaves("pod-1", 1.0) for pod in everyone}
    assert moves["pod-1"] == moves["pod-2"] == moves["pod-3"]
    for move in moves["pod-2"]:
        assert move.before == "pod-1"
        assert move.after == rendezvous(move.service, everyone - {"pod-1"})
    service = next(move.service for move in moves["pod-2"] if move.after == "pod-2")
    heir = views["pod-2"]
    for pod in ("pod-2", "pod-3"):
        heir.told(pod, service)
    assert service not in heir.newly_granting(1.0)  # the leaving pod's front-ends still hold something
    heir.told("pod-1", service)
    assert service in heir.newly_granting(1.0)
    assert heir.set_peers({"pod-3"}, {}, 2.0) == []  # nothing changes any more once it is gone
    assert heir.may_grant(service)


def test_a_pod_that_left_and_comes_back_owns_its_share_again() -> None:
    view = view_of("pod-2", {"pod-1"})
    view.leaves("pod-1", 1.0)
    view.set_peers((), {}, 2.0)
    moves = view.set_peers({"pod-1"}, {}, 3.0)
    assert {move.service for move in moves} == {s for s in SERVICES if rendezvous(s, ("pod-1", "pod-2")) == "pod-1"}


def test_where_all_pods_leave_services_have_owners_all_the_same() -> None:
    view = view_of("pod-1", {"pod-2"})
    before = {service: view.owner(service) for service in SERVICES}
    view.leaves("pod-1", 1.0)
    view.leaves("pod-2", 1.0)
    assert {service: view.owner(service) for service in SERVICES} == before


def test_who_owns_a_service_again_tells_itself_again() -> None:
    """What its front-ends hold has changed since it was the owner before."""
    view = Ownership("a")
    view.set_services(["s"], 0.0)
    view.told("a", "s")
    assert view.newly_granting(0.0) == ["s"]
    other = next(f"b{n}" for n in range(100) if rendezvous("s", ["a", f"b{n}"]) != "a")
    view.set_peers([other], {}, 0.0)
    view.set_peers([], {}, 0.0)
    assert view.owner("s") == "a"
    assert view.newly_granting(0.0) == []
    view.told("a", "s")
    assert view.newly_granting(0.0) == ["s"]
