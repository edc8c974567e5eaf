"""Carries out what `counts` decides: marks the pods that are to go, then patches the number of replicas.

Only the `scale` subresource of a Deployment is written, never the Deployment. One write of a Deployment is under way at
a time. Before each, `may_write` is asked: it is false as soon as another router might lead.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from router.cluster.kubernetes.client import FIELD_MANAGER, MERGE_PATCH, Api, ApiError, ApiUnreachable
from router.cluster.kubernetes.counts import Count, Foreign, Patch
from router.cluster.kubernetes.objects import DELETION_COST, Name, Pod
from router.cluster.kubernetes.recorder import Recorder
from router.telemetry.log import event

_log = logging.getLogger("router.kubernetes")
GOES_FIRST = "-2147483647"
"""The lowest cost of deletion but one, which is left to whoever must be first whatever happens."""
_LONGEST_PAUSE_SECONDS = 1.0


class Writer:
    """Writes the number of replicas of all Deployments. `pods` tells those of a Deployment; `foreign` hears of numbers
    that somebody else has written, as far as they are noticed here."""

    def __init__(
        self,
        api: Api,
        recorder: Recorder,
        *,
        may_write: Callable[[], bool],
        pods: Callable[[Name], Iterable[Pod]],
        foreign: Callable[[Name, Foreign], None],
    ) -> None:
        self._api = api
        self._recorder = recorder
        self._may_write = may_write
        self._pods = pods
        self._foreign = foreign
        self._counts: dict[Name, Count] = {}
        self._tasks: dict[Name, asyncio.Task[None]] = {}
        self._marked: dict[Name, dict[str, str | None]] = {}  # uids of pods, and what was said there before
        self.refused = 0

    def count(self, name: Name) -> Count | None:
        """The number of replicas of a Deployment."""
        return self._counts.get(name)

    def follow(self, name: Name, count: Count) -> None:
        """Write this one from now on."""
        self._counts[name] = count

    def forget(self, name: Name) -> None:
        """The Deployment is gone, or not ours to scale."""
        self._counts.pop(name, None)
        self._marked.pop(name, None)

    def want(self, name: Name, uid: str, replicas: int, remove: tuple[str, ...]) -> None:
        """Have so many replicas, without those of `remove` (uids of pods)."""
        count = self._counts.get(name)
        if count is None:
            return
        count.want(replicas, remove)
        if name not in self._tasks:
            task = self._tasks[name] = asyncio.ensure_future(self._work(name, uid))
            task.add_done_callback(lambda _: self._tasks.pop(name, None))

    def forget_wants(self) -> None:
        """Another router leads."""
        for count in self._counts.values():
            count.forget()
        self._marked.clear()  # the next leader marks and unmarks as it sees fit

    async def stop(self) -> None:
        """Wait for what is under way, and begin no more."""
        for count in self._counts.values():
            count.forget()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks)

    async def _work(self, name: Name, uid: str) -> None:
        """Write until the number is as wanted."""
        while (count := self._counts.get(name)) is not None and self._may_write():
            match count.due(time.monotonic()):
                case Patch() as patch:
                    await self._write(name, uid, count, patch)
                case float(pause):
                    await asyncio.sleep(min(pause, _LONGEST_PAUSE_SECONDS))
                case None:
                    break

    async def _write(self, name: Name, uid: str, count: Count, patch: Patch) -> None:
        try:
            await self._mark(name, patch)
            if not self._may_write():
                return
            count.sending(patch)
            await self._patch(name, count, patch)
        except ApiUnreachable as error:
            count.refused(time.monotonic())
            self._tell(name, uid, "the number of replicas cannot be written", str(error))
        except ApiError as error:
            await self._after_refusal(name, uid, count, patch, error)

    async def _patch(self, name: Name, count: Count, patch: Patch) -> None:
        body = {
            "metadata": {"resourceVersion": patch.resource_version},
            "spec": {"replicas": patch.replicas},
        }
        answer = await self._api.request(
            "PATCH", _scale(name), params={"fieldManager": FIELD_MANAGER}, body=body, content_type=MERGE_PATCH
        )
        before = count.replicas
        count.written(int(answer.get("spec", {}).get("replicas", 0)), str(answer["metadata"]["resourceVersion"]))
        namespace, deployment = name
        event(
            _log, logging.INFO, "replicas set", namespace=namespace, deployment=deployment, before=before,
            after=count.replicas,
        )  # fmt: skip

    async def _after_refusal(self, name: Name, uid: str, count: Count, patch: Patch, error: ApiError) -> None:
        self.refused += 1
        count.refused(time.monotonic(), error.retry_after)
        if error.status == 409:
            await self._read(name, count)
        elif error.status != 404:  # 404: it is gone, as the watch will tell
            message = f"{count.replicas} to {patch.replicas} replicas: refused ({error.status} {error.reason}): "
            self._recorder.say(name, uid, "ScalingRefused", message + error.message)
            self._tell(name, uid, "the number of replicas was refused", str(error))

    async def _read(self, name: Name, count: Count) -> None:
        """The Deployment is of another version than was thought: see whether the number is another one, too."""
        try:
            answer = await self._api.request("GET", _scale(name))
        except (ApiError, ApiUnreachable) as error:
            self._tell(name, "", "the number of replicas cannot be read", str(error))
            return
        replicas = int(answer.get("spec", {}).get("replicas", 0))
        foreign = count.read(replicas, str(answer["metadata"]["resourceVersion"]), time.monotonic())
        if foreign is not None:
            self._foreign(name, foreign)

    async def _mark(self, name: Name, patch: Patch) -> None:
        """Have Kubernetes take those pods before others that are to go, and no other one because of an earlier word."""
        if not patch.remove:
            return
        pods = [pod for pod in self._pods(name) if not pod.deleting]
        marked = self._marked.setdefault(name, {})
        for uid in marked.keys() - {pod.uid for pod in pods}:
            del marked[uid]
        for pod in pods:
            if pod.uid in patch.remove:
                if pod.uid not in marked and pod.deletion_cost != GOES_FIRST:
                    await self._set_cost(pod, GOES_FIRST)
                    marked[pod.uid] = pod.deletion_cost
            elif pod.uid in marked or pod.deletion_cost == GOES_FIRST:
                await self._set_cost(pod, marked.pop(pod.uid, None))

    async def _set_cost(self, pod: Pod, cost: str | None) -> None:
        body = {"metadata": {"uid": pod.uid, "annotations": {DELETION_COST: cost}}}
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"
        try:
            await self._api.request(
                "PATCH", path, params={"fieldManager": FIELD_MANAGER}, body=body, content_type=MERGE_PATCH
            )
        except ApiError as error:
            if error.status not in (404, 409, 422):  # gone, or another pod of this name: its uid is not to be changed
                raise

    def _tell(self, name: Name, uid: str, message: str, error: str) -> None:
        event(_log, logging.WARNING, message, namespace=name[0], deployment=name[1], error=error)


def _scale(name: Name) -> str:
    return f"/apis/apps/v1/namespaces/{name[0]}/deployments/{name[1]}/scale"
