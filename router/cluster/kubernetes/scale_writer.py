"""Writes the replica counts that `replica_count_state` decides on.

When a count decreases, `ScaleWriter` first gives the drained pods a low deletion cost, so that Kubernetes deletes these
pods. Then it patches the count.

It patches only the `scale` subresource of a Deployment, never the Deployment. At most one write per Deployment is in
progress. Before each write `ScaleWriter` calls `may_write`, which is false as soon as another router might lead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from router.cluster.kubernetes.client import MERGE_PATCH, ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.event_recorder import EventRecorder
from router.cluster.kubernetes.objects import DELETION_COST_ANNOTATION, NamespacedName, Pod
from router.cluster.kubernetes.replica_count_state import ExternalWrite, ReplicaCountState, ScalePatch
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")
DRAINED_DELETION_COST = "-2147483647"
"""The `pod-deletion-cost` of drained pods. It is one above the lowest possible cost, which users can set for pods that
must be deleted before all others."""
_MAX_SLEEP_SECONDS = 1.0  # before a retry; leadership is checked again after it


class ScaleWriter:
    """Writes the replica counts of all Deployments."""

    def __init__(
        self,
        api: ApiClient,
        event_recorder: EventRecorder,
        *,
        may_write: Callable[[], bool],
        pods_of: Callable[[NamespacedName], Iterable[Pod]],
        on_external_write: Callable[[NamespacedName, ExternalWrite], None],
    ) -> None:
        """`pods_of` returns the pods of a Deployment. `on_external_write` is called for an external write that a
        conflict (409) has revealed."""
        self._api = api
        self._event_recorder = event_recorder
        self._may_write = may_write
        self._pods_of = pods_of
        self._on_external_write = on_external_write
        self._states: dict[NamespacedName, ReplicaCountState] = {}
        self._tasks: dict[NamespacedName, asyncio.Task[None]] = {}
        self._original_costs: dict[NamespacedName, dict[str, str | None]] = {}  # of marked pods, by uid

    def state_of(self, name: NamespacedName) -> ReplicaCountState | None:
        """Return the replica count state of a Deployment, None if the Deployment was not added."""
        return self._states.get(name)

    def backing_off(self, now: float) -> frozenset[NamespacedName]:
        """Return the Deployments that are not written for a while, because a competing controller undoes the writes."""
        return frozenset(name for name, state in self._states.items() if now < state.backs_off_until)

    def add(self, name: NamespacedName, state: ReplicaCountState) -> None:
        """Add a Deployment. `set_desired` has no effect before that."""
        self._states[name] = state

    def remove(self, name: NamespacedName) -> None:
        """Forget a Deployment that was removed or that the router does not scale."""
        self._states.pop(name, None)
        self._original_costs.pop(name, None)

    def set_desired(self, name: NamespacedName, uid: str, replicas: int, remove: tuple[str, ...]) -> None:
        """Set the desired replica count of a Deployment with this `uid`, and start to write it. `remove` has the uids
        of the pods that Kubernetes deletes first if the count decreases."""
        state = self._states.get(name)
        if state is None:
            return
        state.set_desired(replicas, remove)
        if name not in self._tasks:
            task = self._tasks[name] = asyncio.ensure_future(self._write_until_done(name, uid))
            task.add_done_callback(lambda _: self._tasks.pop(name, None))

    def clear_all_desired(self) -> None:
        """Start no other write, since another router leads."""
        for state in self._states.values():
            state.clear_desired()
        self._original_costs.clear()  # the next leader marks and unmarks pods itself

    async def stop(self) -> None:
        """Start no other write, and wait for those in progress."""
        for state in self._states.values():
            state.clear_desired()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks)

    async def _write_until_done(self, name: NamespacedName, uid: str) -> None:
        while (state := self._states.get(name)) is not None and self._may_write():
            match state.next_patch(time.monotonic()):
                case ScalePatch() as patch:
                    await self._write(name, uid, state, patch)
                case float(delay):
                    await asyncio.sleep(min(delay, _MAX_SLEEP_SECONDS))
                case None:
                    break

    async def _write(self, name: NamespacedName, uid: str, state: ReplicaCountState, patch: ScalePatch) -> None:
        try:
            await self._set_deletion_costs(name, patch)
            if not self._may_write():
                return
            state.patch_sent(patch)
            await self._patch_scale(name, state, patch)
        except ApiUnreachable as error:
            state.patch_failed(time.monotonic())
            self._warn(name, "the number of replicas cannot be written", error)
        except ApiError as error:
            await self._handle_error(name, uid, state, patch, error)

    async def _patch_scale(self, name: NamespacedName, state: ReplicaCountState, patch: ScalePatch) -> None:
        body = {
            "metadata": {"resourceVersion": patch.resource_version},
            "spec": {"replicas": patch.replicas},
        }
        scale = await self._api.request("PATCH", _scale_path(name), body=body, content_type=MERGE_PATCH)
        before = state.current
        state.patch_succeeded(*_count_and_version(scale))
        log_event(
            _log, logging.INFO, "replicas set", namespace=name.namespace, deployment=name.name, before=before,
            after=state.current,
        )  # fmt: skip

    async def _handle_error(
        self, name: NamespacedName, uid: str, state: ReplicaCountState, patch: ScalePatch, error: ApiError
    ) -> None:
        state.patch_failed(time.monotonic(), error.retry_after)
        if error.status == 409:
            await self._read_after_conflict(name, state)
        elif error.status != 404:  # 404: the Deployment was removed, as the watch will report
            message = f"cannot change {state.current} to {patch.replicas} replicas: {error}"
            self._event_recorder.record(name, uid, "ScalingRefused", message)
            self._warn(name, "the number of replicas cannot be written", error)

    async def _read_after_conflict(self, name: NamespacedName, state: ReplicaCountState) -> None:
        """Read the count after a conflict: the Deployment has another resource version than the patch expects."""
        try:
            scale = await self._api.request("GET", _scale_path(name))
        except (ApiError, ApiUnreachable) as error:
            self._warn(name, "the number of replicas cannot be read", error)
            return
        external_write = state.observe_read(*_count_and_version(scale), time.monotonic())
        if external_write is not None:
            self._on_external_write(name, external_write)

    async def _set_deletion_costs(self, name: NamespacedName, patch: ScalePatch) -> None:
        """Set the deletion cost of the pods in `patch.remove` to `DRAINED_DELETION_COST`. Restore the original cost of
        other pods that had been marked."""
        if not patch.remove:
            return
        pods = [pod for pod in self._pods_of(name) if not pod.deleting]
        original_costs = self._original_costs.setdefault(name, {})
        for uid in original_costs.keys() - {pod.uid for pod in pods}:
            del original_costs[uid]
        for pod in pods:
            if pod.uid in patch.remove:
                if pod.uid not in original_costs and pod.deletion_cost != DRAINED_DELETION_COST:
                    await self._set_cost(pod, DRAINED_DELETION_COST)
                    original_costs[pod.uid] = pod.deletion_cost
            elif pod.uid in original_costs or pod.deletion_cost == DRAINED_DELETION_COST:
                await self._set_cost(pod, original_costs.pop(pod.uid, None))

    async def _set_cost(self, pod: Pod, cost: str | None) -> None:
        """Set the deletion cost of a pod; None removes the annotation. Does nothing if the pod was removed."""
        body = {"metadata": {"uid": pod.uid, "annotations": {DELETION_COST_ANNOTATION: cost}}}
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        try:
            await self._api.request("PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as error:
            # The pod was removed. If another pod has the same name now, the uid in the patch does not match, and the
            # API server rejects the patch.
            if error.status not in (404, 409, 422):
                raise

    def _warn(self, name: NamespacedName, message: str, error: Exception) -> None:
        log_event(_log, logging.WARNING, message, namespace=name.namespace, deployment=name.name, error=str(error))


def _scale_path(name: NamespacedName) -> str:
    return f"/apis/apps/v1/namespaces/{name.namespace}/deployments/{name.name}/scale"


def _count_and_version(scale: dict[str, Any]) -> tuple[int, str]:
    """Return the replica count and the resource version of a `Scale` object."""
    return int(scale.get("spec", {}).get("replicas", 0)), str(scale["metadata"]["resourceVersion"])
