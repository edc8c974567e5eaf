"""The status of a cluster's router, through the API server, with the rights of whoever looks (`pods/proxy`).

Only for commands, which wait for each answer: an event loop of its own runs while one is awaited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from router.cluster.kubernetes.client import Api, ApiError
from router.cluster.kubernetes.credentials import credentials
from router.cluster.kubernetes.objects import Pod, router_pods
from router.cluster.kubernetes.reflector import Reflection


@contextmanager
def status_of_cluster(
    namespace: str | None, kubeconfig: Path | None, admin_port: int
) -> Iterator[Callable[[], dict[str, Any]]]:
    """What tells the status of the router in `namespace`; None: that of the pod or kubeconfig. It raises OSError."""
    with asyncio.Runner() as runner:
        account = runner.run(credentials(kubeconfig))
        api = Api(account)
        looking = _Looking(api, namespace or account.namespace, admin_port)
        try:
            yield lambda: runner.run(looking.status())
        finally:
            runner.run(api.close())


class _Looking:
    def __init__(self, api: Api, namespace: str, admin_port: int) -> None:
        self._api = api
        self._namespace = namespace
        self._port = admin_port
        self._leader: str | None = None  # the pod that was it when last asked

    async def status(self) -> dict[str, Any]:
        """The leader's, as it knows of all; any other pod's where no leader answers."""
        if self._leader is not None:
            status = await self._of(self._leader)
            if status is not None and status["router"]["leads"]:
                return status
            self._leader = None
        found: dict[str, Any] | None = None
        for pod in await self._pods():
            status = await self._of(pod)
            if status is not None:
                found = status
                if status["router"]["leads"]:
                    self._leader = pod
                    break
        if found is None:
            raise OSError(f"no router answers in namespace {self._namespace}, at port {self._port} of its pods")
        return found

    async def _pods(self) -> list[str]:
        reflection: Reflection[Pod] = Reflection(router_pods(), self._namespace, lambda _, __: None)
        try:
            while not (request := reflection.request()).is_watch:
                reflection.page(await self._api.request("GET", request.path, params=request.params))
        except ApiError as error:
            raise OSError(f"the API server refused: {error}") from error
        return sorted(name for _, name in reflection.objects)

    async def _of(self, pod: str) -> dict[str, Any] | None:
        path = f"/api/v1/namespaces/{self._namespace}/pods/{pod}:{self._port}/proxy/status.json"
        try:
            status: dict[str, Any] = await self._api.request("GET", path)
        except ApiError as error:
            if error.status == 403:
                raise OSError(f"the API server refused: {error}; needed: get pods/proxy") from error
            return None  # it is on its way up or down
        return status if isinstance(status.get("router"), dict) and "services" in status else None
