"""Ownership: which pod owns a service, when it may grant, and which replicas each side of a partition grants."""

from collections.abc import Collection, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.slots.ownership import OWNER_SYNC_SECONDS, PARTITION_GRACE_SECONDS, Ownership, OwnershipChange, rendezvous

SERVICES = [f"service-{number}" for number in range(300)]
REPLICAS = [f"replica-{number}" for number in range(300)]

names = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=6)
pod_sets = st.integers(2, 6).map(lambda count: {f"pod-{number}" for number in range(count)})


def view_of(own_id: str, others: Collection[str] = (), services: Iterable[str] = SERVICES) -> Ownership:
    view = Ownership(own_id)
    view.set_peers(others, {}, 0.0)
    view.set_services(services, 0.0)
    return view


def service_of(pod: str, among: Collection[str]) -> str:
    return next(service for service in SERVICES if rendezvous(service, among) == pod)


# Rendezvous hashing


@given(names, st.text())
def test_rendezvous_chooses_the_same_member_in_any_order(members: set[str], name: str) -> None:
    chosen = rendezvous(name, sorted(members))
    assert chosen in members
    assert rendezvous(name, sorted(members, reverse=True)) == chosen
    assert rendezvous(name, frozenset(members)) == chosen


@given(names, st.text(min_size=9), st.text())
def test_rendezvous_with_a_new_member_chooses_the_new_member_or_the_same_as_before(
    members: set[str], new: str, name: str
) -> None:
    before, after = rendezvous(name, members), rendezvous(name, members | {new})
    assert after in (before, new)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_rendezvous_spreads_services_evenly(count: int) -> None:
    members = [f"pod-{number}" for number in range(count)]
    owned = [sum(rendezvous(service, members) == member for service in SERVICES) for member in members]
    assert min(owned) > 0.6 * len(SERVICES) / count
    assert max(owned) < 1.4 * len(SERVICES) / count


# Owners


@given(pod_sets)
def test_every_service_has_exactly_one_owner_if_views_agree(pods: set[str]) -> None:
    views = [view_of(pod, pods - {pod}) for pod in pods]
    for service in SERVICES[:50]:
        assert len({view.owner(service) for view in views}) == 1
        assert sum(service in view.owned_by(view.own_id) for view in views) == 1


def test_unknown_service_has_the_owner_that_it_will_have() -> None:
    view = view_of("a", ["b", "c"], [])
    owners = {service: view.owner(service) for service in SERVICES}
    view.set_services(SERVICES, 1.0)
    assert {service: view.owner(service) for service in SERVICES} == owners


def test_pod_that_joins_or_leaves_changes_only_its_own_services() -> None:
    view = view_of("a", ["b"])
    joined = view.set_peers(["b", "c"], {}, 1.0)
    assert {change.service for change in joined} == {s for s in SERVICES if rendezvous(s, ["a", "b", "c"]) == "c"}
    assert all(change.after == "c" and change.before in ("a", "b") for change in joined)
    left = view.set_peers(["b"], {}, 2.0)
    assert {OwnershipChange(change.service, change.after, change.before or "") for change in joined} == set(left)


def test_new_service_has_no_previous_owner_and_removed_one_is_forgotten() -> None:
    view = view_of("a", ["b"], ["iris", "lotus"])
    changes = view.set_services(["iris", "rose"], 1.0)
    assert [(change.service, change.before) for change in changes] == [("rose", None)]
    assert {*view.owned_by("a"), *view.owned_by("b")} == {"iris", "rose"}
    assert "lotus" not in view.take_synced(1.0 + OWNER_SYNC_SECONDS)


# Sync of leases


def test_single_pod_grants_once_its_own_workers_are_synced() -> None:
    view = view_of("a", (), ["iris"])
    assert view.take_synced(0.0) == []
    view.on_sync_complete("a", "iris")
    assert view.take_synced(0.0) == ["iris"]
    assert view.take_synced(0.0) == [], "each service must be returned once"


def test_owner_grants_once_the_last_live_pod_is_synced() -> None:
    service = service_of("a", "abc")
    view = view_of("a", "bc", [service])
    for pod in "ab":
        view.on_sync_complete(pod, service)
        assert view.take_synced(0.0) == []
    view.on_sync_complete("c", service)
    assert view.take_synced(0.0) == [service]


def test_sync_counts_if_it_is_completed_before_the_service_is_added() -> None:
    service = service_of("a", "ab")
    view = view_of("a", "b", [])
    view.on_sync_complete("b", service)
    view.set_services([service], 1.0)
    view.on_sync_complete("a", service)
    assert view.take_synced(1.0) == [service]


def test_sync_of_removed_service_does_not_count_when_it_is_added_again() -> None:
    service = service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.on_sync_complete("b", service)
    view.set_services([], 1.0)
    view.set_services([service], 2.0)
    view.on_sync_complete("a", service)
    assert view.take_synced(2.0) == []
    assert view.take_synced(2.1 + OWNER_SYNC_SECONDS) == [service]


def test_owner_does_not_wait_longer_than_the_sync_timeout() -> None:
    service = service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.on_sync_complete("a", service)
    assert view.take_synced(OWNER_SYNC_SECONDS * 0.99) == []
    assert view.take_synced(OWNER_SYNC_SECONDS) == [service]


def test_pod_that_is_not_the_owner_never_grants() -> None:
    service = service_of("b", "ab")
    view = view_of("a", "b", [service])
    view.on_sync_complete("a", service)
    view.on_sync_complete("b", service)
    assert view.take_synced(OWNER_SYNC_SECONDS) == []


def test_service_that_is_owned_again_must_be_synced_again() -> None:
    service = service_of("b", "ab")
    view = view_of("a", (), [service])
    view.on_sync_complete("a", service)
    assert view.take_synced(0.0) == [service]
    assert view.set_peers("b", {}, 1.0) == [OwnershipChange(service, "a", "b")]
    assert view.set_peers((), {}, 2.0) == [OwnershipChange(service, "b", "a")]
    assert view.take_synced(2.0) == []
    view.on_sync_complete("a", service)
    assert view.take_synced(2.0) == [service]


def test_pod_that_revokes_ownership_must_sync_again() -> None:
    service = service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.on_sync_complete("a", service)
    view.on_sync_complete("b", service)
    assert view.take_synced(0.0) == [service]
    assert view.on_ownership_revoked("b", service, 1.0)
    assert view.take_synced(1.0) == []
    view.on_sync_complete("b", service)
    assert view.take_synced(1.0) == [service]


def test_revoked_ownership_of_another_pods_service_has_no_effect() -> None:
    service = service_of("b", "ab")
    view = view_of("a", "b", [service])
    assert not view.on_ownership_revoked("b", service, 1.0)


def test_pod_that_reconnects_must_sync_again() -> None:
    service = service_of("a", "ab")
    view = view_of("a", "b", [service])
    view.on_sync_complete("a", service)
    view.on_sync_complete("b", service)
    assert view.take_synced(0.0) == [service]
    assert view.on_session_started("b", 1.0) == [service]
    assert view.take_synced(1.0) == []
    view.on_sync_complete("b", service)
    assert view.take_synced(1.0) == [service]


# Partitions


@given(pod_sets, st.data())
def test_during_a_partition_each_replica_belongs_to_exactly_one_side(pods: set[str], data: st.DataObject) -> None:
    side_of = {pod: data.draw(st.integers(0, 2), label=pod) for pod in sorted(pods)}
    sides: dict[int, list[Ownership]] = {}
    for pod, side in side_of.items():
        reachable = [other for other in pods if side_of[other] == side and other != pod]
        unreachable = {other: 1.0 for other in pods if side_of[other] != side}
        view = view_of(pod)
        view.set_peers(reachable, unreachable, 1.0)
        sides.setdefault(side, []).append(view)
    for replica in REPLICAS[:30]:
        owners = [{view.in_our_partition(replica, 2.0) for view in views} for views in sides.values()]
        assert sorted(owners, key=str) == [{False}] * (len(sides) - 1) + [{True}]


def test_side_owns_replicas_in_proportion_to_its_pods() -> None:
    view = view_of("a", "b")
    view.set_peers("b", {"c": 1.0, "d": 1.0}, 1.0)
    assert 0.4 < sum(view.in_our_partition(replica, 1.0) for replica in REPLICAS) / len(REPLICAS) < 0.6


def test_side_grants_at_least_one_replica_of_each_version() -> None:
    view = view_of("a")
    view.set_peers((), {"b": 1.0}, 1.0)
    elsewhere = [replica for replica in REPLICAS if not view.in_our_partition(replica, 1.0)][:3]
    assert len(view.replicas_of_other_sides(elsewhere, 1.0)) == 2
    assert view.replicas_of_other_sides(elsewhere[:1], 1.0) == frozenset()


def test_replicas_of_unreachable_pod_are_taken_over_after_the_grace_period() -> None:
    view = view_of("a")
    view.set_peers((), {"b": 5.0}, 5.0)
    assert view.is_partitioned
    before_the_end = 5.0 + PARTITION_GRACE_SECONDS * 0.99
    assert not all(view.in_our_partition(replica, before_the_end) for replica in REPLICAS)
    assert view.take_expired(before_the_end) == []
    assert view.take_expired(5.0 + PARTITION_GRACE_SECONDS) == ["b"]
    assert not view.is_partitioned
    assert all(view.in_our_partition(replica, 5.0 + PARTITION_GRACE_SECONDS) for replica in REPLICAS)
    assert view.take_expired(6.0 + PARTITION_GRACE_SECONDS) == [], "each pod must be returned once"


def test_each_unreachable_pod_has_its_own_grace_period() -> None:
    view = view_of("a")
    view.set_peers((), {"b": 0.0, "c": 6.0}, 6.0)
    assert view.take_expired(PARTITION_GRACE_SECONDS) == ["b"]
    assert view.is_partitioned
    ours = {replica: view.in_our_partition(replica, PARTITION_GRACE_SECONDS) for replica in REPLICAS}
    assert ours == {replica: rendezvous(replica, "ac") == "a" for replica in REPLICAS}


def test_expired_pod_is_not_returned_again_when_other_peers_change() -> None:
    view = view_of("a")
    view.set_peers((), {"b": 0.0}, 0.0)
    assert view.take_expired(PARTITION_GRACE_SECONDS) == ["b"]
    view.set_peers("c", {"b": 0.0}, PARTITION_GRACE_SECONDS + 1)
    assert not view.is_partitioned
    assert view.take_expired(PARTITION_GRACE_SECONDS + 1) == []


@pytest.mark.parametrize("live", [(), ("b",)])
def test_partition_ends_when_the_pod_is_reachable_again_or_has_ended(live: tuple[str, ...]) -> None:
    view = view_of("a")
    view.set_peers((), {"b": 0.0}, 0.0)
    view.set_peers(live, {}, 1.0)
    assert not view.is_partitioned
    assert all(view.in_our_partition(replica, 1.0) for replica in REPLICAS)


# Pods that are about to end


def test_new_owner_waits_for_the_sync_of_a_leaving_pod() -> None:
    pods = {"pod-1", "pod-2", "pod-3"}
    views = {pod: view_of(pod, pods - {pod}) for pod in pods}
    changes = {pod: views[pod].on_leaving("pod-1", 1.0) for pod in pods}
    assert changes["pod-1"] == changes["pod-2"] == changes["pod-3"]
    for change in changes["pod-2"]:
        assert change.before == "pod-1"
        assert change.after == rendezvous(change.service, pods - {"pod-1"})
    service = next(change.service for change in changes["pod-2"] if change.after == "pod-2")
    new_owner = views["pod-2"]
    for pod in ("pod-2", "pod-3"):
        new_owner.on_sync_complete(pod, service)
    assert service not in new_owner.take_synced(1.0)  # the leaving pod's workers still hold leases
    new_owner.on_sync_complete("pod-1", service)
    assert service in new_owner.take_synced(1.0)
    assert new_owner.set_peers({"pod-3"}, {}, 2.0) == []  # its end changes no owner


def test_pod_that_left_and_joins_again_owns_its_services_again() -> None:
    view = view_of("pod-2", {"pod-1"})
    view.on_leaving("pod-1", 1.0)
    view.set_peers((), {}, 2.0)
    changes = view.set_peers({"pod-1"}, {}, 3.0)
    assert {change.service for change in changes} == {
        s for s in SERVICES if rendezvous(s, ("pod-1", "pod-2")) == "pod-1"
    }


def test_services_keep_their_owners_if_all_pods_are_leaving() -> None:
    view = view_of("pod-1", {"pod-2"})
    before = {service: view.owner(service) for service in SERVICES}
    view.on_leaving("pod-1", 1.0)
    view.on_leaving("pod-2", 1.0)
    assert {service: view.owner(service) for service in SERVICES} == before
