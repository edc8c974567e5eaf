"""State that the leader keeps in a ConfigMap of the router's namespace, for all router pods.

    leader --patch--> ConfigMap --watch--> ConfigMapStore of every pod, including the leader

A pod uses what its watch has delivered, so that all pods use the same. If the ConfigMap is deleted, every pod keeps the
last content, and the leader creates the ConfigMap again.

A write replaces a known version. The API server refuses it if another write came first, and the leader computes it
again from the version that the watch delivers. Does not contain: what is stored.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from router.cluster.kubernetes.client import (
    MERGE_PATCH,
    ApiClient,
    ApiError,
    ApiUnreachable,
    JsonObject,
    api_backoff,
)
from router.cluster.kubernetes.objects import ConfigMap, NamespacedName
from router.cluster.kubernetes.reflector import list_objects
from router.cluster.kubernetes.resources import Resource, config_map_named
from router.config.polling import POLL_SECONDS
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")

Content = Mapping[str, str]
"""The `data` of a ConfigMap. Keys have at most 253 of `[-._a-zA-Z0-9]`; all together at most 1 MiB."""


async def read_content(api: ApiClient, name: NamespacedName) -> Content | None:
    """Return the content of a ConfigMap, None if it does not exist. Raises `ApiError` and `ApiUnreachable`."""
    listed = await list_objects(api, config_map_named(name.name), (name.namespace,))
    return listed[0].data if listed else None


class ConfigMapWrite(NamedTuple):
    """A write of a ConfigMap: a merge patch of the version `replaces`, or a new ConfigMap if that is ""."""

    replaces: str
    body: JsonObject


class ConfigMapState:
    """The last content of one ConfigMap, and the next write. No I/O."""

    def __init__(self, name: NamespacedName) -> None:
        self._name = name
        self._version = ""  # "" if the ConfigMap does not exist
        self._written: str | None = None  # replaced by a write whose result the watch has not delivered yet
        self.content: Content | None = None
        """The last content; None if there was no ConfigMap."""

    def on_changed(self, before: ConfigMap | None, after: ConfigMap | None) -> None:
        """Record a change that the watch has delivered; `after` is None if the ConfigMap was deleted."""
        self._written = None
        self._version = after.resource_version if after is not None else ""
        if after is not None:
            self.content = after.data

    def next_write(self, desired: Content) -> ConfigMapWrite | None:
        """Return the write that makes `desired` the content, None if none is needed now."""
        if self._version == self._written:
            return None
        if not self._version:
            metadata = {"namespace": self._name.namespace, "name": self._name.name}
            body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(desired)}
            return ConfigMapWrite("", body)
        current = self.content or {}
        changes: dict[str, str | None] = {key: text for key, text in desired.items() if current.get(key) != text}
        changes |= dict.fromkeys(current.keys() - desired.keys())
        if not changes:
            return None
        return ConfigMapWrite(self._version, {"metadata": {"resourceVersion": self._version}, "data": changes})

    def on_written(self, write: ConfigMapWrite) -> None:
        """Record that a write has succeeded. The watch may have delivered its result before."""
        if self._version == write.replaces:
            self._written = write.replaces


class ConfigMapStore:
    """Writes one ConfigMap while this router leads. The caller watches `resource`, and passes changes to
    `on_changed`."""

    def __init__(
        self,
        api: ApiClient,
        name: NamespacedName,
        *,
        may_write: Callable[[], bool],
        desired: Callable[[], Content | None],
        on_content: Callable[[Content], None],
    ) -> None:
        """
        desired: the content to write, from `content`, which is current; None if there is nothing to store
        on_content: called when the watch has delivered another content
        """
        self._api = api
        self._name = name
        self._may_write = may_write
        self._desired = desired
        self._on_content = on_content
        self._state = ConfigMapState(name)
        self._wake = asyncio.Event()
        self._backoff = api_backoff()
        self.failure = ""
        """The error of the last write; "" if it succeeded, if another write came first, or if no write is due now."""
        self.resource: Resource[ConfigMap] = config_map_named(name.name)

    @property
    def content(self) -> Content | None:
        """The last content that the watch has delivered, None if there was no ConfigMap."""
        return self._state.content

    def on_changed(self, before: ConfigMap | None, after: ConfigMap | None) -> None:
        """Record a change that the watch has delivered."""
        content = self.content
        self._state.on_changed(before, after)
        if self.content is not None and self.content != content:
            self._on_content(self.content)
        self.wake()

    def wake(self) -> None:
        """Write soon: what `desired` returns may have changed."""
        self._wake.set()

    async def run(self) -> None:
        """Write until cancelled. Start it when all resources that `desired` depends on have been listed."""
        while True:
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._may_write():
                self._set_failure("")  # it is up to the router that leads now
            elif not await self._write():
                await asyncio.sleep(self._backoff.next_delay())

    async def _write(self) -> bool:
        """Write the desired content if it differs. Return False if the write has failed."""
        desired = self._desired()
        write = self._state.next_write(desired) if desired is not None else None
        if write is None:
            self._set_failure("")
            return True
        try:
            await self._send(write)
        except (ApiError, ApiUnreachable) as error:
            another_came_first = isinstance(error, ApiError) and error.status in (404, 409)
            self._set_failure("" if another_came_first else str(error))
            return False
        self._state.on_written(write)
        self._backoff.reset()
        self._set_failure("")
        return True

    async def _send(self, write: ConfigMapWrite) -> None:
        path = self.resource.path(self._name.namespace)
        if write.replaces:
            path += f"/{self._name.name}"
            await self._api.request("PATCH", path, body=write.body, content_type=MERGE_PATCH)
        else:
            await self._api.request("POST", path, body=write.body)

    def _set_failure(self, failure: str) -> None:
        """Log an error once, not with each retry."""
        if failure and failure != self.failure:
            message = "a ConfigMap cannot be written"
            log_event(_log, logging.WARNING, message, config_map=str(self._name), error=failure)
        self.failure = failure
