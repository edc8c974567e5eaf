"""All that one router follows: reflectors of each resource and namespace, as one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from router.cluster.kubernetes.client import Api
from router.cluster.kubernetes.objects import Resource, Thing
from router.cluster.kubernetes.reflector import Reflection, Reflector

T = TypeVar("T", bound=Thing)


class Follower:
    """Keeps reflectors running. `clock` is that of `behind`."""

    def __init__(self, api: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._reflectors: list[Reflector[Any]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def follow(
        self, resource: Resource[T], namespaces: Iterable[str], changed: Callable[[T | None, T | None], None]
    ) -> Callable[[], Iterator[T]]:
        """Follow a resource in these namespaces; `changed(before, after)` hears of each object. Returns what tells all
        objects that are known."""
        reflectors = [Reflector(self._api, Reflection(resource, namespace, changed)) for namespace in namespaces]
        self._reflectors += reflectors

        def known() -> Iterator[T]:
            for reflector in reflectors:
                yield from reflector.reflection.objects.values()

        return known

    async def start(self) -> None:
        """Begin; returns once everything has been listed."""
        for reflector in self._reflectors:
            self._tasks.append(asyncio.ensure_future(reflector.run()))
        for reflector in self._reflectors:
            await reflector.listed.wait()

    async def stop(self) -> None:
        """Follow no more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def behind(self) -> float:
        """For how many seconds what is known may have been out of date, 0 while it is not."""
        since = [each.behind_since for each in self._reflectors if each.behind_since is not None]
        return max(self._clock() - min(since), 0.0) if since else 0.0

    def failures(self) -> dict[str, str]:
        """Why resources cannot be followed at the moment."""
        return {each.reflection.resource.plural: each.failure for each in self._reflectors if each.failure}

    def missing(self) -> list[str]:
        """Resources that have not been listed yet."""
        names = (each.reflection.resource.plural for each in self._reflectors if not each.listed.is_set())
        return sorted(set(names))

    def restarts(self) -> dict[str, int]:
        """How often a watch had to begin anew, by resource."""
        restarts: dict[str, int] = {}
        for each in self._reflectors:
            name = each.reflection.resource.plural
            restarts[name] = restarts.get(name, 0) + each.restarts
        return restarts

    def staleness(self) -> dict[str, float]:
        """For how many seconds what is known of a resource may have been out of date."""
        now = self._clock()
        seconds: dict[str, float] = {}
        for each in self._reflectors:
            name = each.reflection.resource.plural
            since = now if each.behind_since is None else each.behind_since
            seconds[name] = max(seconds.get(name, 0.0), now - since)
        return seconds

    @property
    def unreadable(self) -> int:
        """Objects that could not be read."""
        return sum(each.reflection.unreadable for each in self._reflectors)

    def sizes(self) -> dict[str, int]:
        """How many objects are known, by resource."""
        sizes: dict[str, int] = {}
        for each in self._reflectors:
            name = each.reflection.resource.plural
            sizes[name] = sizes.get(name, 0) + len(each.reflection.objects)
        return sizes
