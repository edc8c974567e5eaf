"""All reflectors of one router: one for each resource and namespace. Starts them, and reports their state together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from router.cluster.kubernetes.client import ApiClient
from router.cluster.kubernetes.objects import ApiObject
from router.cluster.kubernetes.reflector import ListWatchState, Reflector
from router.cluster.kubernetes.resources import Resource

T = TypeVar("T", bound=ApiObject)


class InformerSet:
    """Runs reflectors. Staleness is in seconds of `clock`."""

    def __init__(self, api: ApiClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._reflectors: list[Reflector[Any]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def add(
        self, resource: Resource[T], namespaces: Iterable[str], on_change: Callable[[T | None, T | None], None]
    ) -> Callable[[], Iterator[T]]:
        """Add a resource in these namespaces. `start` begins to watch it.

        `on_change(before, after)` is called for each object that was added (`before` is None), changed or removed
        (`after` is None). Return a function that yields all objects in the cache.
        """
        reflectors = [Reflector(self._api, ListWatchState(resource, namespace, on_change)) for namespace in namespaces]
        self._reflectors += reflectors

        def cached() -> Iterator[T]:
            for reflector in reflectors:
                yield from reflector.state.objects.values()

        return cached

    async def start(self) -> None:
        """Start all reflectors and wait until each has listed its resource."""
        for reflector in self._reflectors:
            self._tasks.append(asyncio.ensure_future(reflector.run()))
        for reflector in self._reflectors:
            await reflector.listed.wait()

    async def stop(self) -> None:
        """Stop all reflectors."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def failures(self) -> dict[str, str]:
        """Return the error of each resource whose last list or watch failed."""
        return {each.resource_name: each.failure for each in self._reflectors if each.failure}

    def unlisted(self) -> list[str]:
        """Return the resources that have not been listed yet."""
        return sorted({each.resource_name for each in self._reflectors if not each.listed.is_set()})

    def restarts(self) -> dict[str, int]:
        """Return how often each resource was listed again because the API server no longer had its resource version."""
        restarts: dict[str, int] = {}
        for each in self._reflectors:
            restarts[each.resource_name] = restarts.get(each.resource_name, 0) + each.restarts
        return restarts

    def staleness_seconds(self) -> dict[str, float]:
        """Return how many seconds the cache of each resource may have been out of date; 0 while its watch is
        established."""
        now = self._clock()
        seconds: dict[str, float] = {}
        for each in self._reflectors:
            since = now if each.stale_since is None else each.stale_since
            seconds[each.resource_name] = max(seconds.get(each.resource_name, 0.0), now - since)
        return seconds

    def max_staleness_seconds(self) -> float:
        """Return the largest value of `staleness_seconds`."""
        return max(self.staleness_seconds().values(), default=0.0)
