"""Rollouts of the tests' controllers keep to what Kubernetes promises, from any state."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.kubernetes import rollout
from tests.kubernetes.double.resources import Object

AMOUNTS = st.one_of(st.integers(0, 4), st.sampled_from(["0%", "25%", "50%", "100%"]))


def _pod(ready: bool, **metadata: Any) -> Object:
    its = {"creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1", **metadata}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"metadata": its, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": conditions}}


def _deployment(replicas: int, surge: int | str, unavailable: int | str) -> Object:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}}


def _set(name: str, replicas: int) -> Object:
    return {"metadata": {"name": name}, "spec": {"replicas": replicas}}


@given(st.integers(0, 8), AMOUNTS, AMOUNTS, st.integers(0, 8), st.integers(0, 8), st.data())
def test_rollout_ends_and_keeps_within_its_bounds(
    replicas: int, surge: int | str, unavailable: int | str, has: int, old: int, data: st.DataObject
) -> None:
    deployment = _deployment(replicas, surge, unavailable)
    more, fewer = rollout.bounds(deployment)
    for _ in range(60):
        ready = {name: data.draw(st.integers(0, count)) for name, count in (("fresh", has), ("old", old))}
        if data.draw(st.booleans()):
            ready = {"fresh": has, "old": old}
        pods = {
            name: [_pod(index < ready[name]) for index in range(count)]
            for name, count in (("fresh", has), ("old", old))
        }
        want = rollout.wanted(deployment, _set("fresh", has), [_set("old", old)], pods)
        if want.fresh > has:
            assert want.fresh + old <= replicas + more or old == 0
        lost = ready["old"] - min(ready["old"], want.old["old"])
        if lost:
            assert ready["fresh"] + ready["old"] - lost >= replicas - fewer
        has, old = want.fresh, want.old["old"]
    for _ in range(40):  # all become ready
        pods = {"fresh": [_pod(ready=True)] * has, "old": [_pod(ready=True)] * old}
        want = rollout.wanted(deployment, _set("fresh", has), [_set("old", old)], pods)
        has, old = want.fresh, want.old["old"]
    assert (has, old) == (replicas, 0)


def test_who_goes_first() -> None:
    cheap = {"annotations": {rollout.DELETION_COST: "-5"}}
    unplaced = _pod(ready=False, name="unplaced")
    unplaced["spec"] = {}
    pods = [
        _pod(ready=True, name="old"),
        _pod(ready=True, name="young", creationTimestamp="2026-01-02T00:00:00Z"),
        _pod(ready=True, name="cheap", **cheap),
        _pod(ready=False, name="unready"),
        unplaced,
    ]
    order = [pod["metadata"]["name"] for pod in rollout.victims(pods, 5)]
    assert order == ["unplaced", "unready", "cheap", "young", "old"]


def test_templates_are_told_apart() -> None:
    one = {"spec": {"containers": [{"image": "a"}]}}
    assert rollout.template_hash(one) == rollout.template_hash({"spec": {"containers": [{"image": "a"}]}})
    assert rollout.template_hash(one) != rollout.template_hash({"spec": {"containers": [{"image": "b"}]}})
