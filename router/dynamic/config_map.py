"""The dynamic configuration in a ConfigMap, and the last valid one, which the router pods keep in another ConfigMap."""

from __future__ import annotations

from typing import Any

from router.cluster.kubernetes.client import ApiClient, ApiError, ApiUnreachable
from router.cluster.kubernetes.cluster import KubernetesCluster
from router.cluster.kubernetes.config_map_store import read_content
from router.cluster.kubernetes.dynamic_settings import STORED_KEY
from router.cluster.kubernetes.objects import NamespacedName
from router.dynamic.last_valid import LastValid
from router.dynamic.source import Document, SourceUnavailable

DOCUMENT_KEY = "dynamic.yaml"
"""The key of the ConfigMap whose value is the dynamic configuration."""


class ConfigMapSource:
    """A ConfigMap in the router's namespace. Its resource version is the version of the document. It needs the
    permission to get this ConfigMap only."""

    def __init__(self, api: ApiClient, name: NamespacedName) -> None:
        self._api = api
        self._name = name

    @property
    def name(self) -> str:
        """See `Source`."""
        return f"ConfigMap {self._name}"

    def close(self) -> None:
        """See `Source`. The connections are those of the router's client of the API server."""

    async def fetch(self, etag: str) -> Document | None:
        """See `Source`."""
        path = f"/api/v1/namespaces/{self._name.namespace}/configmaps/{self._name.name}"
        try:
            config_map: dict[str, Any] = await self._api.request("GET", path)
        except ApiError as error:
            raise SourceUnavailable(str(error), error.retry_after) from error
        except ApiUnreachable as error:
            raise SourceUnavailable(str(error)) from error
        version = str((config_map.get("metadata") or {}).get("resourceVersion", ""))
        if version == etag:
            return None
        text = (config_map.get("data") or {}).get(DOCUMENT_KEY)
        if not isinstance(text, str):
            raise SourceUnavailable(f"it has no key {DOCUMENT_KEY}")
        return Document(version, text.encode())


class LastValidConfigMap:
    """A `LastValidStore` for all router pods. The leader writes it, as `KubernetesCluster` does with other state."""

    def __init__(self, api: ApiClient, name: NamespacedName) -> None:
        """`name` is that of the ConfigMap with the last valid settings."""
        self._api = api
        self._name = name
        self._cluster: KubernetesCluster | None = None
        self._last: LastValid | None = None

    def attach(self, cluster: KubernetesCluster) -> None:
        """Let the cluster write what is stored from now on."""
        self._cluster = cluster
        if self._last is not None:
            cluster.store_dynamic_config(self._last.encode())

    async def read(self) -> LastValid | None:
        """See `LastValidStore`."""
        try:
            content = await read_content(self._api, self._name)
        except (ApiError, ApiUnreachable):
            return None
        return LastValid.decode((content or {}).get(STORED_KEY))

    async def write(self, last: LastValid) -> None:
        """See `LastValidStore`."""
        self._last = last
        if self._cluster is not None:
            self._cluster.store_dynamic_config(last.encode())
