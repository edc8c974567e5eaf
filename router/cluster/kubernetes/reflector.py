"""Follows one resource of the API server: lists it page by page, then watches what changes.

`Reflection` decides and does no I/O; `Reflector` carries out.

    LISTING --last page--> WATCHING --the server ends the watch--> WATCHING (from the last version seen)
       ^                      |
       +---- 410 Gone --------+        any other failure: the same again after a pause

What is known stays known while the server is away. A list that follows 410 replaces it: objects that it no longer has
are reported as removed once its last page is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from router.cluster.kubernetes.client import Api, ApiError, ApiUnreachable
from router.cluster.kubernetes.objects import Name, Resource, Thing
from router.telemetry.log import event

_log = logging.getLogger("router.kubernetes")

PAGE_OBJECTS = 250
"""A page of pods is then one or two megabytes, which takes some ten milliseconds to read."""
WATCH_SECONDS = (240.0, 480.0)
"""The server is asked to end a watch after a time between these, so that they do not all end at once."""
_SLACK_SECONDS = 15.0  # for the server to end a watch as asked
PAUSES = (0.2, 10.0)
"""Seconds: the first pause after a failure, which doubles up to the second. Each is cut by up to a half, by chance."""
_TOO_NEW = "Too large resource version"  # than the server's: its store was put back to an earlier state
_LIVED_SECONDS = 5.0  # a watch that lived so long was none of a row of failures

T = TypeVar("T", bound=Thing)


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask the server next. A watch is asked to end after `seconds`."""

    path: str
    params: Mapping[str, str]
    is_watch: bool
    seconds: float = 0.0


class Gone(Exception):
    """The server no longer knows the version to watch from."""


class Backoff:
    """Pauses that grow with each failure in a row."""

    __slots__ = ("_chance", "_failures")

    def __init__(self, chance: Callable[[], float] = random.random) -> None:
        self._chance = chance
        self._failures = 0

    def failed(self, least: float = 0.0) -> float:
        """Seconds to wait after one more failure, `least` if the server has asked for that."""
        first, longest = PAUSES
        pause = min(first * 2.0 ** min(self._failures, 30), longest)
        self._failures += 1
        return max(pause * (1 - self._chance() / 2), least)

    def ended(self, up_seconds: float, is_failure: bool, least: float = 0.0) -> float:
        """Seconds to wait after a watch that was up for so long. One that lived is none of a row of failures, however
        it has ended; one that ended soon is, as the next one might, too."""
        if up_seconds >= _LIVED_SECONDS:
            self.reset()
            if not is_failure:
                return least
        return self.failed(least)

    def reset(self) -> None:
        """The row of failures is over."""
        self._failures = 0


class Reflection(Generic[T]):
    """What is known of a resource, and what to ask next. `changed(before, after)` hears of each object."""

    def __init__(
        self,
        resource: Resource[T],
        namespace: str,
        changed: Callable[[T | None, T | None], None],
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.objects: dict[Name, T] = {}
        self.listed = False
        """Whether all objects have been listed once."""
        self.unreadable = 0
        self._changed = changed
        self._chance = chance
        self._version = ""  # to watch from; "" while listing
        self._continue = ""
        self._listing: set[Name] = set()

    def request(self) -> Request:
        """What to ask."""
        params: dict[str, str] = {}
        if self.resource.label_selector:
            params["labelSelector"] = self.resource.label_selector
        if self.resource.field_selector:
            params["fieldSelector"] = self.resource.field_selector
        path = self.resource.path(self.namespace)
        if not self._version:
            params["limit"] = str(PAGE_OBJECTS)
            if self._continue:
                params["continue"] = self._continue
            return Request(path, params, is_watch=False)
        least, most = WATCH_SECONDS
        seconds = least + self._chance() * (most - least)
        params |= {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(seconds)),
        }
        return Request(path, params, is_watch=True, seconds=seconds)

    def page(self, body: Mapping[str, Any]) -> None:
        """A page of the list has come."""
        metadata = body.get("metadata") or {}
        for raw in body.get("items") or ():
            thing = self._read(raw)
            if thing is not None:
                self._listing.add((thing.namespace, thing.name))
                self._put(thing)
        self._continue = metadata.get("continue") or ""
        if self._continue:
            return
        for name in [name for name in self.objects if name not in self._listing]:
            self._remove(name)
        self._listing.clear()
        self._version = str(metadata.get("resourceVersion") or "0")
        self.listed = True

    def line(self, line: bytes) -> None:
        """A line of the watch has come. Raises `Gone`, `ApiError` and, for what is none, `ApiUnreachable`."""
        try:
            said = orjson.loads(line)
            kind, raw = said["type"], said["object"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ApiUnreachable("the watch sent what is no event") from None
        if kind == "ERROR":
            code = raw.get("code", 0)
            if code == 410:
                raise Gone
            raise ApiError(code, str(raw.get("reason", "")), str(raw.get("message", "")))
        version = (raw.get("metadata") or {}).get("resourceVersion")
        if kind in ("ADDED", "MODIFIED"):
            thing = self._read(raw)
            if thing is not None:
                self._put(thing)
        elif kind == "DELETED":
            metadata = raw.get("metadata") or {}
            self._remove((metadata.get("namespace", ""), metadata.get("name", "")))
        if version:
            self._version = version

    def gone(self) -> None:
        """The version or the page is no longer known to the server: list anew."""
        self._version = self._continue = ""
        self._listing.clear()

    def _read(self, raw: Mapping[str, Any]) -> T | None:
        try:
            return self.resource.read(raw)
        except (TypeError, ValueError, AttributeError) as error:
            # One object of an odd form must not hide all others. What it holds may be secret.
            self.unreadable += 1
            message = "object cannot be read"
            event(_log, logging.ERROR, message, resource=self.resource.plural, error=type(error).__name__)
            return None

    def _put(self, thing: T) -> None:
        name = (thing.namespace, thing.name)
        before = self.objects.get(name)
        if before != thing:
            self.objects[name] = thing
            self._changed(before, thing)

    def _remove(self, name: Name) -> None:
        before = self.objects.pop(name, None)
        if before is not None:
            self._changed(before, None)


class Reflector(Generic[T]):
    """Keeps a `Reflection` up to date until it is cancelled."""

    def __init__(self, api: Api, reflection: Reflection[T], clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self.reflection = reflection
        self._clock = clock
        self._backoff = Backoff()
        self.listed = asyncio.Event()
        self.behind_since: float | None = clock()
        """Since when what is known may be out of date (seconds of the clock); None while the watch is up."""
        self.failure = ""
        """Why it is not up, if it has failed."""
        self.restarts = 0
        self._up_since: float | None = None

    async def run(self) -> None:
        """Follow, for ever."""
        while True:
            self._up_since = None
            least = 0.0
            try:
                await self._turn()
            except Gone:
                self._start_over()
            except ApiError as error:
                if error.status == 410 or _TOO_NEW in error.message:
                    self._start_over()
                else:
                    self._failed(str(error))
                least = error.retry_after
            except ApiUnreachable as error:
                self._failed(str(error))
            up_seconds = self._clock() - self._up_since if self._up_since is not None else 0.0
            await asyncio.sleep(self._backoff.ended(up_seconds, bool(self.failure), least))

    def _start_over(self) -> None:
        self.reflection.gone()
        self.restarts += 1

    async def _turn(self) -> None:
        """List until all is known, then watch until the server ends it."""
        while not (request := self.reflection.request()).is_watch:
            self.reflection.page(await self._api.request("GET", request.path, params=request.params))
        self.listed.set()
        lines = self._api.watch(request.path, request.params, request.seconds + _SLACK_SECONDS)
        async with contextlib.aclosing(lines):
            async for line in lines:
                if line:
                    self.reflection.line(line)
                if self._up_since is None:
                    self._up_since = self._clock()
                    self.behind_since, self.failure = None, ""

    def _failed(self, why: str) -> None:
        if self.behind_since is None:
            self.behind_since = self._clock()
        if not self.failure:
            resource = self.reflection.resource.plural
            event(_log, logging.WARNING, "watch failed, what is known stays in force", resource=resource, error=why)
        self.failure = why
