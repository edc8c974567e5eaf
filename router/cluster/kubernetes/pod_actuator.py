"""Changes the router's size in Kubernetes: the CPUs of its pods and their number. Only the leader writes.

    size  the CPU limit of the pods if they are resized in place, else that of the template; `spec.replicas`
    CPUs  if the API server has `pods/resize` and permits it, each pod is resized in place, and the template stays;
          otherwise the template is patched and the pods roll (`maxUnavailable: 0`), if a node has room for one more pod
    pods  `spec.replicas` is patched through the `scale` subresource, if a node has room for one more pod

A change that a node does not carry out (`Infeasible`, or `Deferred` for too long) is undone. Pods with another size
than the others, for example new ones, are resized to the size of the others (`common_cpus`). While a rollout changes
the CPU limit, the pods that it replaces keep their size, and no size is decided.

Does not contain: which size is right (`scaling.self`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from router.cluster.kubernetes.client import ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.event_recorder import EventRecorder, EventType
from router.cluster.kubernetes.objects import NamespacedName
from router.cluster.kubernetes.pod_resources import RouterDeployment, RouterPod, common_cpus, same_cpus
from router.cluster.kubernetes.router_workload import NotLeadingError, RouterWorkload, is_unsupported_by_node
from router.scaling.self.actuator import NoRoomError, Outcome
from router.scaling.self.self_scaler import Size, SizeAction, SizeDecision, SizePolicy
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")

OBSERVE_SECONDS = 2.0
"""How often the leader reads the router's pods. New pods are resized within this time."""
_POLL_SECONDS = 0.25
"""How often the leader reads the router's pods while a change is in progress."""
_STALE_SECONDS = 15.0
"""Age of the last observation above which the size is unknown."""
_START_SECONDS = 300.0
"""Maximum time for pods to become available, then their start has failed. It is long because images are large and nodes
may be slow."""

_WARNING_REASONS = {
    "no room": "RouterHasNoRoom",
    "failed": "RouterSizingFailed",
    "not done": "RouterAtLimit",
}
"""Reasons of Warning Events, by outcome."""


class PodActuator:
    """A `SizeActuator` of the router's own Deployment."""

    covers_all_pods = True

    def __init__(
        self,
        api: ApiClient,
        deployment: NamespacedName,
        event_recorder: EventRecorder,
        policy: SizePolicy,
        *,
        patience_seconds: float,
        may_write: Callable[[], bool],
    ) -> None:
        """`patience_seconds`: the maximum time that a node may defer a resize, or that a pod may be unschedulable."""
        self.policy = policy
        self._workload = RouterWorkload(api, deployment, may_write)
        self._event_recorder = event_recorder
        self._patience = patience_seconds
        self._may_write = may_write
        self._is_observed = False  # True once it is known whether there is a Deployment
        self._resized_at: dict[str, float] = {}  # by uid of pods whose nodes have not applied their size yet
        self._skipped_until: dict[str, float] = {}  # by uid of pods whose nodes have no room
        self._changing = asyncio.Lock()
        self._last_warning = ""

    # The current size.

    def size(self) -> Size | None:
        """See `SizeActuator`. None unless this router leads, and while pods roll to a template with other CPUs."""
        deployment = self._workload.deployment
        if deployment is None or not self._is_current():
            return None
        if self._workload.resizes_in_place:
            is_rolling = any(map(deployment.replaces, self._workload.pods))
            cpus = None if is_rolling else common_cpus(deployment, self._workload.pods)
        else:
            cpus = deployment.limit if deployment.is_rolled_out else None
        return Size(cpus, deployment.replicas) if cpus else None

    def _is_current(self) -> bool:
        """True if this router leads and has observed the pods recently."""
        return self._may_write() and time.monotonic() - self._workload.observed_at <= _STALE_SECONDS

    def cpus_of_new_pods(self) -> float | None:
        """See `SizeActuator`. New pods keep the CPUs of their template unless pods are resized in place."""
        workload = self._workload
        if not self._is_observed or not self._may_write():
            return None
        if workload.deployment is None or not workload.resizes_in_place or all(p.limit is None for p in workload.pods):
            return 0.0
        return common_cpus(workload.deployment, workload.pods) if self._is_current() else None

    async def run(self) -> None:
        """Observe the size and resize new pods while this router leads, until cancelled."""
        while True:
            if self._may_write():
                await self._observe_and_align()
            else:
                self._workload.forget()
                self._is_observed = False
            await asyncio.sleep(OBSERVE_SECONDS)

    async def _observe_and_align(self) -> None:
        try:
            async with self._changing:
                deployment, _ = await self._workload.observe()
                self._is_observed = True
                await self._align_pods()
            self._warn_once("" if deployment.limit is not None else "the container has no CPU limit to change")
        except NotLeadingError:
            pass
        except (ApiError, ApiUnreachable) as error:
            self._is_observed = isinstance(error, ApiError) and error.status == 404
            if self._is_observed:
                self._workload.deployment = None  # the router does not run as a Deployment
            else:
                self._warn_once(str(error))
        except Exception as error:  # noqa: BLE001  (such as `NoRoomError`; the next observation may succeed)
            self._warn_once(str(error) or type(error).__name__)

    def _warn_once(self, error: str) -> None:
        """Log `error` unless it is the same as in the last call. "" means no error."""
        before, self._last_warning = self._last_warning, error
        if error and error != before:
            log_event(_log, logging.WARNING, "the router's own size cannot be read or set", error=error)

    async def _align_pods(self) -> None:
        """Resize the pods whose size differs from that of the others."""
        deployment = self._workload.deployment
        if deployment is None or not self._workload.resizes_in_place or not self._is_current():
            return
        cpus = common_cpus(deployment, self._workload.pods)
        if cpus is None:
            return
        now = time.monotonic()
        existing = {pod.uid for pod in self._workload.pods}
        self._resized_at = {uid: at for uid, at in self._resized_at.items() if uid in existing}
        self._skipped_until = {
            uid: until for uid, until in self._skipped_until.items() if uid in existing and now < until
        }
        for pod in self._workload.pods:
            if pod.uid in self._skipped_until or pod.limit is None or deployment.replaces(pod):
                continue
            if not same_cpus(pod.limit, cpus):
                await self._align_pod(pod, cpus, now)
            elif pod.uid in self._resized_at:
                await self._finish_alignment(pod, now)

    async def _align_pod(self, pod: RouterPod, cpus: float, now: float) -> None:
        self._resized_at[pod.uid] = now
        try:
            await self._workload.resize_pod(pod, cpus)
        except NoRoomError as error:
            self._skip(pod, now, str(error))
        except ApiError as error:
            if not is_unsupported_by_node(error):
                raise
            self._skip(pod, now, error.message)

    async def _finish_alignment(self, pod: RouterPod, now: float) -> None:
        """Forget a resize that the node has applied. Undo one that the node does not carry out."""
        if not pod.is_resized and not self._is_refused(pod, now - self._resized_at[pod.uid]):
            return
        del self._resized_at[pod.uid]
        deployment = self._workload.deployment
        if not pod.is_resized and deployment is not None and deployment.limit is not None:
            await self._workload.resize_pod(pod, deployment.limit)
            self._skip(pod, now, f"{pod.resize_refusal}: {pod.refusal_message}")

    def _skip(self, pod: RouterPod, now: float, reason: str) -> None:
        """Do not resize a pod for `no_room_seconds`, as its node has no room."""
        self._skipped_until[pod.uid] = now + self.policy.no_room_seconds
        self._record("RouterHasNoRoom", f"{pod.name} keeps the size of its template: {reason}", "Warning")

    # Changes.

    async def apply(self, target: Size) -> None:
        """See `SizeActuator`."""
        workload = self._workload
        async with self._changing:
            deployment, pods = await workload.observe()
            if workload.resizes_in_place and not all(same_cpus(pod.limit, target.cpus) for pod in pods):
                try:
                    await self._resize_all(pods, target.cpus)
                except ApiError as error:
                    if is_unsupported_by_node(error):
                        workload.disable_resize(error.message)
                    if workload.resizes_in_place:
                        raise
            if not workload.resizes_in_place and not same_cpus(deployment.limit, target.cpus):
                await self._roll(deployment, target.cpus)
            if deployment.replicas != target.pods:
                await self._scale(deployment, target)
            await workload.observe()

    async def _resize_all(self, pods: Sequence[RouterPod], cpus: float) -> None:
        """Resize all pods. If a node does not carry out a resize, undo all of them."""
        limits_before = {pod.uid: pod.limit for pod in pods}
        started_at = time.monotonic()
        try:
            for pod in pods:
                await self._workload.resize_pod(pod, cpus)
            await self._wait_until_resized(limits_before.keys(), cpus, started_at)
        except (NoRoomError, ApiError):
            if self._workload.resizes_in_place:  # otherwise resizing is not permitted, so undoing it would fail too
                await self._undo_resize(limits_before, cpus)
            raise

    async def _wait_until_resized(self, uids: Collection[str], cpus: float, started_at: float) -> None:
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            _, pods = await self._workload.observe()
            seconds = time.monotonic() - started_at
            resized = [pod for pod in pods if pod.uid in uids and same_cpus(pod.limit, cpus)]
            for pod in resized:
                if self._is_refused(pod, seconds):
                    reason = pod.resize_refusal or "no response"
                    message = pod.refusal_message or "from its node"
                    raise NoRoomError(f"{pod.name}: {reason}: {message}")
            if all(pod.is_resized for pod in resized):
                return

    def _is_refused(self, pod: RouterPod, seconds: float) -> bool:
        """True if the node cannot apply a resize (`Infeasible`), or has not applied it within `patience_seconds`."""
        return pod.resize_refusal == "Infeasible" or (not pod.is_resized and seconds >= self._patience)

    async def _undo_resize(self, limits_before: Mapping[str, float | None], cpus: float) -> None:
        for pod in self._workload.pods:
            limit = limits_before.get(pod.uid)
            if limit is not None and not same_cpus(limit, cpus):
                try:
                    await self._workload.resize_pod(pod, limit)
                except (ApiError, ApiUnreachable, NoRoomError) as error:
                    self._warn_once(str(error))
        await self._workload.observe()

    async def _roll(self, deployment: RouterDeployment, cpus: float) -> None:
        """Replace all pods with pods of another size. Restore the previous template if a pod cannot be scheduled."""
        await self._workload.check_room(deployment, cpus)
        await self._workload.set_template_cpus(deployment, cpus)
        try:
            await self._wait_for(lambda now: now.is_rolled_out and now.available >= now.replicas)
        except NoRoomError:
            assert deployment.limit is not None
            await self._workload.set_template_cpus(deployment, deployment.limit)
            raise

    async def _scale(self, deployment: RouterDeployment, target: Size) -> None:
        """Change the number of pods. Restore the previous number if a pod cannot be scheduled or does not start."""
        is_growing = target.pods > deployment.replicas
        if is_growing:
            await self._workload.check_room(deployment, target.cpus)
        await self._workload.set_replicas(target.pods)
        try:
            if is_growing:
                await self._wait_for(lambda now: now.available >= target.pods)
            else:
                await self._wait_for(lambda now: now.existing <= target.pods == now.replicas)
        except (NoRoomError, TimeoutError):
            await self._workload.set_replicas(deployment.replicas)
            raise

    async def _wait_for(self, condition: Callable[[RouterDeployment], bool]) -> None:
        """Wait until the Deployment meets a condition. Raises `NoRoomError` if a pod is unschedulable for too long,
        `TimeoutError` if pods are not available after `_START_SECONDS`."""
        started_at = time.monotonic()
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            deployment, pods = await self._workload.observe()
            await self._align_pods()
            if condition(deployment):
                return
            seconds = time.monotonic() - started_at
            unschedulable = next((pod for pod in pods if pod.unschedulable), None)
            if unschedulable is not None and seconds >= self._patience:
                raise NoRoomError(f"{unschedulable.name}: {unschedulable.unschedulable}")
            if seconds >= _START_SECONDS:
                raise TimeoutError(
                    f"{deployment.available} of {deployment.replicas} pods available after {seconds:.0f} s"
                )

    # Events.

    def on_outcome(self, decision: SizeDecision, outcome: Outcome, detail: str) -> None:
        """See `SizeActuator`. Records an Event of the Deployment."""
        done = "RouterResized" if decision.action in (SizeAction.MORE_CPU, SizeAction.LESS_CPU) else "RouterScaled"
        message = f"{decision.reason}: {outcome}" + (f": {detail}" if detail else "")
        self._record(
            _WARNING_REASONS.get(outcome, done), message, "Warning" if outcome in _WARNING_REASONS else "Normal"
        )

    def _record(self, reason: str, message: str, event_type: EventType) -> None:
        deployment = self._workload.deployment
        if deployment is not None:
            name, uid = self._workload.name, deployment.uid
            self._event_recorder.record(name, uid, reason, message, event_type=event_type, logged=False)
