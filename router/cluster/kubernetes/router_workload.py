"""Reads the router's own Deployment and pods from the API server, and writes changes of their size.

Does not contain: when and in which order the size changes (`pod_actuator`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from router.cluster.kubernetes.client import MERGE_PATCH, ApiClient, ApiError, JsonObject
from router.cluster.kubernetes.node_capacity import no_room_reason, trim_node, trim_pod
from router.cluster.kubernetes.objects import SERVICE_LABEL, NamespacedName
from router.cluster.kubernetes.parsing import RawObject
from router.cluster.kubernetes.pod_resources import (
    CPU_LIMIT_ANNOTATION,
    RouterDeployment,
    RouterPod,
    format_cpus,
    parse_quantity,
    parse_router_deployment,
    parse_router_pods,
    resources_for,
    router_container,
    same_cpus,
)
from router.cluster.kubernetes.reflector import PAGE_OBJECTS
from router.scaling.self.actuator import NoRoomError
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")

STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_ROLLING_UPDATE = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
"""With this strategy a new pod is ready before an old pod is deleted."""


class NotLeadingError(RuntimeError):
    """Another router leads and may have started to write."""


def is_unsupported_by_node(error: ApiError) -> bool:
    """True if the API server has rejected a resize because the pod's kubelet is too old."""
    return error.status == 422 and "without support for resize" in error.message


class RouterWorkload:
    """The router's own Deployment, and its pods. `deployment` and `pods` are what
    `observe` read last."""

    def __init__(self, api: ApiClient, name: NamespacedName, may_write: Callable[[], bool]) -> None:
        """`name` is that of the Deployment."""
        self._api = api
        self._may_write = may_write
        self.name = name
        self.deployment: RouterDeployment | None = None
        self.pods: Sequence[RouterPod] = ()
        self.observed_at = 0.0
        self._resizes_in_place: bool | None = None  # None until it has been discovered

    @property
    def resizes_in_place(self) -> bool:
        """True if pods can be resized without a restart; False until `observe` has discovered it."""
        return bool(self._resizes_in_place)

    def forget(self) -> None:
        """Forget the Deployment, and whether pods can be resized: another router leads and may change both."""
        self.deployment = self._resizes_in_place = None

    async def observe(self) -> tuple[RouterDeployment, Sequence[RouterPod]]:
        """Read the Deployment and its pods. Raises `ApiError`, `ApiUnreachable`."""
        if self._resizes_in_place is None:
            api = await self._api.request("GET", "/api/v1")
            self._resizes_in_place = any(each.get("name") == "pods/resize" for each in api.get("resources") or ())
        selector = {"labelSelector": f"{SERVICE_LABEL}={self.name.name}"}
        self.pods = parse_router_pods(await self._api.request("GET", self._pods_path, params=selector))
        self.deployment = parse_router_deployment(await self._api.request("GET", self._deployment_path))
        self.observed_at = time.monotonic()
        return self.deployment, self.pods

    def disable_resize(self, error: str) -> None:
        """Treat resizing in place as unavailable from now on."""
        self._resizes_in_place = False
        log_event(_log, logging.WARNING, "pods cannot be resized in place, so they are replaced instead", error=error)

    # All writes raise `NotLeadingError`, `NoRoomError` if a quota is exceeded, `ApiError` and `ApiUnreachable`.

    async def resize_pod(self, pod: RouterPod, cpus: float) -> None:
        """Set the CPUs of one pod in place. Does nothing if the pod was removed."""
        resources = resources_for(cpus, pod.limit, pod.request)
        body: JsonObject = {"spec": {"containers": [{"name": pod.container, "resources": resources}]}}
        try:
            await self._patch(f"{self._pods_path}/{pod.name}/resize", body, STRATEGIC_PATCH)
        except ApiError as error:
            if error.status == 404:
                return
            if error.status == 403:  # the role or a policy of the cluster forbids it
                self.disable_resize(error.message)
            raise

    async def set_template_cpus(self, deployment: RouterDeployment, cpus: float) -> None:
        """Set the CPUs in the pod template, which starts a rollout."""
        container = str(router_container(deployment.pod_spec).get("name", ""))
        resources = resources_for(cpus, deployment.limit, deployment.request)
        template: JsonObject = {"spec": {"containers": [{"name": container, "resources": resources}]}}
        annotation = deployment.limit_annotation
        if annotation:
            # When the previous size is restored, so is the text: another notation would start one more rollout.
            text = annotation if same_cpus(parse_quantity(annotation), cpus) else format_cpus(cpus)
            template["metadata"] = {"annotations": {CPU_LIMIT_ANNOTATION: text}}
        body: JsonObject = {"spec": {"strategy": _ROLLING_UPDATE, "template": template}}
        await self._patch(self._deployment_path, body, STRATEGIC_PATCH)

    async def set_replicas(self, count: int) -> None:
        """Set the number of pods."""
        await self._patch(f"{self._deployment_path}/scale", {"spec": {"replicas": count}}, MERGE_PATCH)

    async def check_room(self, deployment: RouterDeployment, cpus: float) -> None:
        """Raise `NoRoomError` if no node has room for one more pod with these CPUs."""
        nodes = await self._list_trimmed("/api/v1/nodes", trim_node)
        pods = await self._list_trimmed("/api/v1/pods", trim_pod, fieldSelector="spec.nodeName!=")
        reason = no_room_reason(nodes, pods, deployment.pod_spec, cpus)
        if reason is not None:
            raise NoRoomError(reason)

    async def _list_trimmed(self, path: str, trim: Callable[[RawObject], RawObject], **params: str) -> list[RawObject]:
        """List all objects of the cluster. Each page is trimmed at once, as the complete objects may exceed the memory
        of this pod."""
        trimmed: list[RawObject] = []
        continuation: dict[str, str] = {}
        while True:
            page = await self._api.request("GET", path, params={**params, **continuation, "limit": str(PAGE_OBJECTS)})
            trimmed += map(trim, page.get("items") or ())
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return trimmed
            continuation = {"continue": token}

    async def _patch(self, path: str, body: JsonObject, content_type: str) -> None:
        if not self._may_write():
            raise NotLeadingError("another router leads")
        try:
            await self._api.request("PATCH", path, body=body, content_type=content_type)
        except ApiError as error:
            if error.status == 403 and ("quota" in error.message or "per Container" in error.message):
                raise NoRoomError(error.message) from error
            raise

    @property
    def _pods_path(self) -> str:
        return f"/api/v1/namespaces/{self.name.namespace}/pods"

    @property
    def _deployment_path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.name.namespace}/deployments/{self.name.name}"
