"""The status of a router in a cluster, for `azureml-fe top`. It is read through the API server (`pods/proxy`), with the
permissions of the user who runs the command.

For commands only: each read blocks and runs an event loop of its own until the response has arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from router.cluster.kubernetes.client import ApiClient, ApiError
from router.cluster.kubernetes.credentials import load_credentials
from router.cluster.kubernetes.objects import NamespacedName
from router.cluster.kubernetes.reflector import list_objects
from router.cluster.kubernetes.resources import router_pods
from router.net.host_check import COMMAND_HEADER


@contextmanager
def open_cluster_status(
    namespace: str | None, kubeconfig: Path | None, router_name: str, admin_port: int
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Yield a function that returns the status of the router `router_name` in `namespace`. The default is the namespace
    of the pod or kubeconfig. The function raises OSError if an API request fails or no router pod responds."""
    with asyncio.Runner() as runner:
        credentials = runner.run(load_credentials(kubeconfig))
        api = ApiClient(credentials)
        remote = _RemoteStatus(api, NamespacedName(namespace or credentials.namespace, router_name), admin_port)
        try:
            yield lambda: runner.run(remote.read())
        finally:
            runner.run(api.close())


class _RemoteStatus:
    def __init__(self, api: ApiClient, router: NamespacedName, admin_port: int) -> None:
        self._api = api
        self._router = router
        self._port = admin_port
        self._leader: str | None = None  # the pod that led at the last read

    async def read(self) -> dict[str, Any]:
        """Return the status of the leader, which covers all pods; of any other pod if no leader responds."""
        if self._leader is not None:
            status = await self._status_of(self._leader)
            if status is not None and status["router"]["leads"]:
                return status
            self._leader = None
        latest: dict[str, Any] | None = None
        for pod in await self._pod_names():
            status = await self._status_of(pod)
            if status is not None:
                latest = status
                if status["router"]["leads"]:
                    self._leader = pod
                    break
        if latest is None:
            raise OSError(
                f"no pod of the router {self._router.name} in namespace {self._router.namespace} responds at port "
                f"{self._port}"
            )
        return latest

    async def _pod_names(self) -> list[str]:
        try:
            pods = await list_objects(self._api, router_pods(self._router.name), (self._router.namespace,))
        except ApiError as error:
            raise OSError(f"API request failed: {error}") from error
        return sorted(pod.name for pod in pods)

    async def _status_of(self, pod: str) -> dict[str, Any] | None:
        path = f"/api/v1/namespaces/{self._router.namespace}/pods/{pod}:{self._port}/proxy/status.json"
        try:
            status: dict[str, Any] = await self._api.request("GET", path, headers={COMMAND_HEADER: "top"})
        except ApiError as error:
            if error.status == 403:
                raise OSError(f"API request failed: {error}; needed: get pods/proxy") from error
            return None  # the pod is starting or stopping
        return status if isinstance(status.get("router"), dict) and "services" in status else None
