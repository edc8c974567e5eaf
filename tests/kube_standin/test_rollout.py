"""Rollouts stay within maxSurge and maxUnavailable from any state, and complete."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.kube_standin import rollout
from tests.kube_standin.api_server.resources import Object

AMOUNTS = st.one_of(st.integers(0, 4), st.sampled_from(["0%", "25%", "50%", "100%"]))


def _pod(ready: bool, **metadata: Any) -> Object:
    all_metadata = {"creationTimestamp": "2026-01-01T00:00:00Z", "resourceVersion": "1", **metadata}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": all_metadata,
        "spec": {"nodeName": "n"},
        "status": {"phase": "Running", "conditions": conditions},
    }


def _deployment(replicas: int, surge: int | str, unavailable: int | str) -> Object:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}}


def _replica_set(name: str, replicas: int) -> Object:
    return {"metadata": {"name": name}, "spec": {"replicas": replicas}}


@given(st.integers(0, 8), AMOUNTS, AMOUNTS, st.integers(0, 8), st.integers(0, 8), st.data())
def test_rollout_completes_within_its_bounds(
    replicas: int, surge: int | str, unavailable: int | str, current: int, old: int, data: st.DataObject
) -> None:
    deployment = _deployment(replicas, surge, unavailable)
    surge_pods, unavailable_pods = rollout.surge_and_unavailable(deployment)
    for _ in range(60):
        ready = {name: data.draw(st.integers(0, count)) for name, count in (("current", current), ("old", old))}
        if data.draw(st.booleans()):
            ready = {"current": current, "old": old}
        pods = {
            name: [_pod(index < ready[name]) for index in range(count)]
            for name, count in (("current", current), ("old", old))
        }
        step = rollout.next_step(deployment, _replica_set("current", current), [_replica_set("old", old)], pods)
        if step.current > current:
            assert step.current + old <= replicas + surge_pods or old == 0
        lost = ready["old"] - min(ready["old"], step.old["old"])
        if lost:
            assert ready["current"] + ready["old"] - lost >= replicas - unavailable_pods
        current, old = step.current, step.old["old"]
    for _ in range(40):  # all become ready
        pods = {"current": [_pod(ready=True)] * current, "old": [_pod(ready=True)] * old}
        step = rollout.next_step(deployment, _replica_set("current", current), [_replica_set("old", old)], pods)
        current, old = step.current, step.old["old"]
    assert (current, old) == (replicas, 0)


def test_order_of_deletion() -> None:
    low_cost = {"annotations": {rollout.DELETION_COST: "-5"}}
    unscheduled = _pod(ready=False, name="unscheduled")
    unscheduled["spec"] = {}
    pods = [
        _pod(ready=True, name="old"),
        _pod(ready=True, name="young", creationTimestamp="2026-01-02T00:00:00Z"),
        _pod(ready=True, name="low-cost", **low_cost),
        _pod(ready=False, name="unready"),
        unscheduled,
    ]
    order = [pod["metadata"]["name"] for pod in rollout.pods_to_delete(pods, 5)]
    assert order == ["unscheduled", "unready", "low-cost", "young", "old"]


def test_template_hash_differs_by_template() -> None:
    one = {"spec": {"containers": [{"image": "a"}]}}
    assert rollout.template_hash(one) == rollout.template_hash({"spec": {"containers": [{"image": "a"}]}})
    assert rollout.template_hash(one) != rollout.template_hash({"spec": {"containers": [{"image": "b"}]}})
