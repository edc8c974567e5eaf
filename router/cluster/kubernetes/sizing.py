"""The router's size in Kubernetes: CPU of its pods, and how many there are. Only the router that leads writes.

    size --  spec.replicas of the own Deployment, the largest CPU limit of its pods (by rollout: the template's)
    CPU  --  where the API server offers `pods/resize`, and lets the router: each pod in place, the template stays
             elsewhere: the template is patched, and pods roll with `maxUnavailable: 0`, if nodes have room for one more
    pods --  the `scale` subresource, if nodes have room for one more

What a node refuses (`Infeasible`, or `Deferred` for too long) is undone. Pods that are new, or came to another size
otherwise, are brought to the size of the rest. Must not live here: which size is right (`scaling`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from router.cluster.kubernetes.client import FIELD_MANAGER, MERGE_PATCH, Api, ApiError, ApiUnreachable, Object
from router.cluster.kubernetes.objects import ROUTER_NAME, SERVICE_LABEL, Name
from router.cluster.kubernetes.recorder import Recorder
from router.cluster.kubernetes.reflector import PAGE_OBJECTS
from router.cluster.kubernetes.sizes import (
    Raw,
    RouterDeployment,
    RouterPod,
    resources_for,
    room_of_node,
    room_of_pod,
    router_container,
    router_deployment,
    router_pods,
    same,
    why_no_room,
)
from router.scaling.self_scaler import Decision, Kind, Policy, Size
from router.scaling.sizer import NoRoomError
from router.telemetry.log import event

_log = logging.getLogger("router.kubernetes")

STRATEGIC_PATCH = "application/strategic-merge-patch+json"
LOOK_SECONDS = 2.0
"""So often the leader lists the router's pods; new ones are brought to size within that time."""
_POLL_SECONDS = 0.25
"""So often while a change is under way."""
_STALE_SECONDS = 15.0
_START_SECONDS = 300.0
"""Pods that are not ready by then are taken to have failed: images are large, and nodes may be slow."""

_REASONS = {
    "no room": "RouterHasNoRoom",
    "failed": "RouterSizingFailed",
    "not done": "RouterAtLimit",
}


def _is_of_an_older_node(error: ApiError) -> bool:
    """Whether the API server refuses to resize a pod because its kubelet cannot."""
    return error.status == 422 and "without support for resize" in error.message


class NotLeadingError(RuntimeError):
    """Another router leads, and may have begun to write."""


class PodsSizer:
    """A `Sizer` of the Deployment `azureml-fe` in the router's own namespace."""

    of_all_pods = True

    def __init__(
        self,
        api: Api,
        namespace: str,
        recorder: Recorder,
        policy: Policy,
        *,
        patience_seconds: float,
        may_write: Callable[[], bool],
    ) -> None:
        """`patience_seconds`: how long a node may defer, or a pod find no node."""
        self.policy = policy
        self._api = api
        self._name: Name = (namespace, ROUTER_NAME)
        self._recorder = recorder
        self._patience = patience_seconds
        self._may_write = may_write
        self._deployment: RouterDeployment | None = None
        self._pods: Sequence[RouterPod] = ()
        self._looked_at = 0.0
        self._in_place: bool | None = None
        self._knows = False  # what there is, a size or none
        self._asked: dict[str, float] = {}  # pods that were brought to size, by uid -> since when
        self._spared: dict[str, float] = {}  # pods whose node has no room, by uid -> until when
        self._busy = asyncio.Lock()
        self._complained = ""

    # What is so.

    def size(self) -> Size | None:
        """See `Sizer`. None unless this router leads, and while pods roll to another template."""
        deployment = self._deployment
        if deployment is None or not self._may_write() or time.monotonic() - self._looked_at > _STALE_SECONDS:
            return None
        if self._in_place:
            limits = [pod.limit for pod in self._pods if pod.limit is not None]
            return Size(max(limits), deployment.replicas) if limits else None
        return Size(deployment.limit, deployment.replicas) if deployment.limit and deployment.settled else None

    def cpus_of_new_pods(self) -> float | None:
        """See `Sizer`. Pods keep what their template gives them unless they are resized in place."""
        if not self._knows or not self._may_write():
            return None
        if not self._in_place or self._deployment is None or all(pod.limit is None for pod in self._pods):
            return 0.0
        size = self.size()
        return size.cpus if size is not None else None

    async def run(self) -> None:
        """Follow the size while this router leads, for ever."""
        while True:
            if self._may_write():
                try:
                    async with self._busy:
                        await self._look()
                        self._knows = True
                        await self._align()
                    self._complain("" if self._has_limits() else "the container has no CPU limit that could be changed")
                except NotLeadingError:
                    pass
                except (ApiError, ApiUnreachable) as error:
                    self._knows = isinstance(error, ApiError) and error.status == 404
                    if self._knows:
                        self._deployment = None  # this router runs by other means, which have its size
                    else:
                        self._complain(str(error))
            else:
                self._deployment = self._in_place = None
                self._knows = False
            await asyncio.sleep(LOOK_SECONDS)

    def _has_limits(self) -> bool:
        return self._deployment is not None and self._deployment.limit is not None

    def _complain(self, error: str) -> None:
        """Say what is wrong, once; "" for nothing."""
        before, self._complained = self._complained, error
        if error and error != before:
            event(_log, logging.WARNING, "the router's own size cannot be read or set", error=error)

    async def _look(self) -> tuple[RouterDeployment, Sequence[RouterPod]]:
        if self._in_place is None:
            listed = await self._api.request("GET", "/api/v1")
            self._in_place = any(each.get("name") == "pods/resize" for each in listed.get("resources") or ())
        selector = {"labelSelector": f"{SERVICE_LABEL}={ROUTER_NAME}"}
        self._pods = router_pods(await self._api.request("GET", self._path("/api/v1", "pods"), params=selector))
        self._deployment = router_deployment(await self._api.request("GET", self._deployment_path()))
        self._looked_at = time.monotonic()
        return self._deployment, self._pods

    async def _align(self) -> None:
        """Bring pods that have another size to that of the rest."""
        size = self.size()
        if size is None or not self._in_place:
            return
        now = time.monotonic()
        known = {pod.uid for pod in self._pods}
        self._asked = {uid: since for uid, since in self._asked.items() if uid in known}
        self._spared = {uid: until for uid, until in self._spared.items() if uid in known and now < until}
        for pod in self._pods:
            if pod.uid in self._spared or pod.limit is None:
                continue
            if not same(pod.limit, size.cpus):
                self._asked[pod.uid] = now
                try:
                    await self._resize(pod, size.cpus)
                except NoRoomError as error:
                    self._spare(pod, now, str(error))
                except ApiError as error:
                    if not _is_of_an_older_node(error):
                        raise
                    self._spare(pod, now, error.message)
            elif pod.uid in self._asked and (pod.has_its_cpu or self._is_refused(pod, now - self._asked[pod.uid])):
                del self._asked[pod.uid]
                if not pod.has_its_cpu and self._deployment is not None and self._deployment.limit is not None:
                    await self._resize(pod, self._deployment.limit)
                    self._spare(pod, now, f"{pod.refusal}: {pod.why}")

    def _spare(self, pod: RouterPod, now: float, why: str) -> None:
        """Leave a pod whose node has no room as it is, for a while."""
        self._spared[pod.uid] = now + self.policy.no_room_seconds
        self._say("RouterHasNoRoom", f"{pod.name} stays at its template's size: {why}", "Warning")

    # Changes.

    async def bring_about(self, target: Size) -> None:
        """See `Sizer`."""
        async with self._busy:
            deployment, pods = await self._look()
            if self._in_place and not all(same(pod.limit, target.cpus) for pod in pods):
                try:
                    await self._resize_all(pods, target.cpus)
                except ApiError as error:
                    if _is_of_an_older_node(error):
                        self._pods_roll(error.message)
                    if self._in_place:
                        raise
            if not self._in_place and not same(deployment.limit, target.cpus):
                await self._roll(deployment, target.cpus)
            if deployment.replicas != target.pods:
                await self._scale(deployment, target)
            await self._look()

    async def _resize_all(self, pods: Sequence[RouterPod], cpus: float) -> None:
        """All pods at once. What one node refuses none gets."""
        before = {pod.uid: pod.limit for pod in pods}
        began = time.monotonic()
        try:
            for pod in pods:
                await self._resize(pod, cpus)
            while True:
                await asyncio.sleep(_POLL_SECONDS)
                _, pods = await self._look()
                waited = time.monotonic() - began
                changed = [pod for pod in pods if pod.uid in before and same(pod.limit, cpus)]
                refused = next((pod for pod in changed if self._is_refused(pod, waited)), None)
                if refused is not None:
                    raise NoRoomError(
                        f"{refused.name}: {refused.refusal or 'no answer'}: {refused.why or 'of its node'}"
                    )
                if all(pod.has_its_cpu for pod in changed):
                    return
        except (NoRoomError, ApiError):
            if self._in_place:  # else it may not undo either
                await self._undo(before, cpus)
            raise

    def _is_refused(self, pod: RouterPod, seconds: float) -> bool:
        """Whether a node has said no, or nothing for too long."""
        return pod.refusal == "Infeasible" or (not pod.has_its_cpu and seconds >= self._patience)

    async def _undo(self, before: dict[str, float | None], cpus: float) -> None:
        for pod in self._pods:
            former = before.get(pod.uid)
            if former is not None and not same(former, cpus):
                try:
                    await self._resize(pod, former)
                except (ApiError, ApiUnreachable, NoRoomError) as error:
                    self._complain(str(error))
        await self._look()

    async def _resize(self, pod: RouterPod, cpus: float) -> None:
        resources = resources_for(cpus, pod.limit, pod.request)
        body: Object = {"spec": {"containers": [{"name": pod.container, "resources": resources}]}}
        try:
            await self._patch(f"{self._path('/api/v1', 'pods')}/{pod.name}/resize", body, STRATEGIC_PATCH)
        except ApiError as error:
            if error.status == 404:  # it is gone
                return
            if error.status == 403:  # by its role, or a policy of the cluster: as if it were not offered
                self._pods_roll(error.message)
            raise

    def _pods_roll(self, why: str) -> None:
        """From now on, as if resizing in place were not offered."""
        self._in_place = False
        event(_log, logging.WARNING, "pods may not be resized in place, so they roll instead", error=why)

    async def _roll(self, deployment: RouterDeployment, cpus: float) -> None:
        """By another template. `maxUnavailable: 0` sees to it that a new pod is ready before an old one ends."""
        await self._check_room(deployment, cpus)
        container = str(router_container(deployment.pod_spec).get("name", ""))
        resources = resources_for(cpus, deployment.limit, deployment.request)
        body: Object = {
            "spec": {
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"spec": {"containers": [{"name": container, "resources": resources}]}},
            }
        }
        await self._patch(self._deployment_path(), body, STRATEGIC_PATCH)
        try:
            await self._until(lambda now: now.settled and now.available >= now.replicas)
        except NoRoomError:
            assert deployment.limit is not None
            resources = resources_for(deployment.limit, deployment.limit, deployment.request)
            body["spec"]["template"]["spec"]["containers"][0]["resources"] = resources
            await self._patch(self._deployment_path(), body, STRATEGIC_PATCH)
            raise

    async def _scale(self, deployment: RouterDeployment, target: Size) -> None:
        grows = target.pods > deployment.replicas
        if grows:
            await self._check_room(deployment, target.cpus)
        await self._set_replicas(target.pods)
        try:
            await self._until(
                lambda now: now.available >= target.pods if grows else now.present <= target.pods == now.replicas
            )
        except (NoRoomError, TimeoutError):
            await self._set_replicas(deployment.replicas)
            raise

    async def _set_replicas(self, count: int) -> None:
        await self._patch(f"{self._deployment_path()}/scale", {"spec": {"replicas": count}}, MERGE_PATCH)

    async def _until(self, holds: Callable[[RouterDeployment], bool]) -> None:
        """Wait for the Deployment. Raises `NoRoomError` for pods that find no node, `TimeoutError` for such that do not
        get ready."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            deployment, pods = await self._look()
            await self._align()
            if holds(deployment):
                return
            waited = time.monotonic() - began
            homeless = next((pod for pod in pods if pod.unschedulable), None)
            if homeless is not None and waited >= self._patience:
                raise NoRoomError(f"{homeless.name}: {homeless.unschedulable}")
            if waited >= _START_SECONDS:
                raise TimeoutError(
                    f"{deployment.available} of {deployment.replicas} pods available after {waited:.0f} s"
                )

    async def _check_room(self, deployment: RouterDeployment, cpus: float) -> None:
        nodes = {"items": await self._list("/api/v1/nodes", room_of_node)}
        pods = {"items": await self._list("/api/v1/pods", room_of_pod, fieldSelector="spec.nodeName!=")}
        why = why_no_room(nodes, pods, deployment.pod_spec, cpus)
        if why is not None:
            raise NoRoomError(why)

    async def _list(self, path: str, kept: Callable[[Raw], Raw], **params: str) -> list[Raw]:
        """What is kept of all objects of the cluster, page by page: whole, they might be more than fits the pod."""
        found: list[Raw] = []
        more: dict[str, str] = {}
        while True:
            page = await self._api.request("GET", path, params={**params, **more, "limit": str(PAGE_OBJECTS)})
            found += map(kept, page.get("items") or ())
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return found
            more = {"continue": token}

    async def _patch(self, path: str, body: Object, kind: str) -> None:
        if not self._may_write():
            raise NotLeadingError("another router leads")
        try:
            await self._api.request("PATCH", path, params={"fieldManager": FIELD_MANAGER}, body=body, content_type=kind)
        except ApiError as error:
            if error.status == 403 and ("quota" in error.message or "per Container" in error.message):
                raise NoRoomError(error.message) from error
            raise

    # Words.

    def decided(self, decision: Decision, outcome: str, why: str) -> None:
        """See `Sizer`. Posts an Event of the Deployment."""
        done = "RouterResized" if decision.kind in (Kind.MORE_CPU, Kind.LESS_CPU) else "RouterScaled"
        message = f"{decision.reason}: {outcome}" + (f": {why}" if why else "")
        self._say(_REASONS.get(outcome, done), message, "Warning" if outcome in _REASONS else "Normal")

    def _say(self, reason: str, message: str, kind: str) -> None:
        if self._deployment is not None:
            self._recorder.say(self._name, self._deployment.uid, reason, message, kind=kind, logged=False)

    def _path(self, group: str, plural: str) -> str:
        return f"{group}/namespaces/{self._name[0]}/{plural}"

    def _deployment_path(self) -> str:
        return f"{self._path('/apis/apps/v1', 'deployments')}/{self._name[1]}"
