"""Keeps a local cache of one resource up to date: lists it page by page, then watches it, like client-go's reflector.

`ListWatchState` decides what to request and holds the cache, without I/O. `Reflector` sends the requests.

    LISTING --last page--> WATCHING --the server ends the watch--> WATCHING (from the last resource version)
       ^                      |
       +---- 410 Gone --------+        after any other failure: the same request again, after a delay

A watch without changes gets a bookmark about once a minute. If a server has sent one, and then nothing for
`SILENCE_SECONDS`, the watch has failed: the server hangs, although its kernel still acknowledges keep-alives, or the
connection is dead.

The cache stays in use while the API server is unreachable. A list after 410 replaces it. After the last page, objects
that are no longer listed are reported as removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from router.cluster.kubernetes.client import ApiClient, ApiError, ApiUnreachable, api_backoff
from router.cluster.kubernetes.objects import ApiObject, NamespacedName, name_of
from router.cluster.kubernetes.resources import Resource
from router.telemetry.log import event as log_event

_log = logging.getLogger("router.cluster")

PAGE_OBJECTS = 250
"""Number of objects in a page. A page of pods has one or two megabytes, and parsing it takes tens of milliseconds."""
WATCH_SECONDS = (240.0, 480.0)
"""Range of the random timeout that each watch asks the API server for, so that not all watches end together."""
_TIMEOUT_SLACK_SECONDS = 15.0  # time for the API server to end a watch after its timeout
_TOO_LARGE_VERSION = "Too large resource version"  # the store of the API server was restored to an earlier state
SILENCE_SECONDS = 75.0
"""Maximum time between two events or bookmarks. Kubernetes sends a bookmark every 60 s."""
_ACCEPT_SECONDS = 30.0  # time for the API server to accept a watch
_ESTABLISHED_SECONDS = 5.0  # duration of a watch that resets the backoff

T = TypeVar("T", bound=ApiObject)


@dataclass(frozen=True, slots=True)
class ListWatchRequest:
    """A list or watch request. `seconds` is the timeout that a watch asks the API server for."""

    path: str
    params: Mapping[str, str]
    is_watch: bool
    seconds: float = 0.0


class VersionExpiredError(Exception):
    """The server no longer has the resource version to watch from (410 Gone)."""


class ListWatchState(Generic[T]):
    """The cache of one resource in one namespace (`""`: all namespaces), and the next request."""

    def __init__(
        self,
        resource: Resource[T],
        namespace: str,
        on_change: Callable[[T | None, T | None], None],
        random: Callable[[], float] = random.random,
    ) -> None:
        """`on_change(before, after)` is called for each object that was added (`before` is None), changed or removed
        (`after` is None). `random` returns a number from 0 to 1."""
        self.resource = resource
        self.namespace = namespace
        self.objects: dict[NamespacedName, T] = {}
        self._on_change = on_change
        self._random = random
        self._version = ""  # to watch from; "" while listing
        self._continue = ""
        self._names_listed: set[NamespacedName] = set()
        self.gets_bookmarks = False
        """True once a watch has sent a bookmark, which Kubernetes does not guarantee."""

    def next_request(self) -> ListWatchRequest:
        """Return the request to send next."""
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
            return ListWatchRequest(path, params, is_watch=False)
        shortest, longest = WATCH_SECONDS
        seconds = shortest + self._random() * (longest - shortest)
        params |= {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(int(seconds)),
        }
        return ListWatchRequest(path, params, is_watch=True, seconds=seconds)

    def apply_page(self, body: Mapping[str, Any]) -> None:
        """Apply a page of the list."""
        metadata = body.get("metadata") or {}
        for raw in body.get("items") or ():
            parsed = self._parse(raw)
            if parsed is not None:
                self._names_listed.add(name_of(parsed))
                self._put(parsed)
        self._continue = metadata.get("continue") or ""
        if self._continue:
            return
        for name in [name for name in self.objects if name not in self._names_listed]:
            self._remove(name)
        self._names_listed.clear()
        self._version = str(metadata.get("resourceVersion") or "0")

    def apply_watch_line(self, line: bytes) -> None:
        """Apply a line of the watch.

        Raises `VersionExpiredError` and `ApiError` for an event of type ERROR, and `ApiUnreachable` if the line is no
        watch event.
        """
        try:
            watch_event = orjson.loads(line)
            kind, raw = watch_event["type"], watch_event["object"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            raise ApiUnreachable("the watch sent a line that is no event") from None
        if kind == "ERROR":
            code = raw.get("code", 0)
            if code == 410:
                raise VersionExpiredError
            raise ApiError(code, str(raw.get("reason", "")), str(raw.get("message", "")))
        metadata = raw.get("metadata") or {}
        if kind == "BOOKMARK":
            self.gets_bookmarks = True
        if kind in ("ADDED", "MODIFIED"):
            parsed = self._parse(raw)
            if parsed is not None:
                self._put(parsed)
        elif kind == "DELETED":
            self._remove(NamespacedName(metadata.get("namespace", ""), metadata.get("name", "")))
        if version := metadata.get("resourceVersion"):
            self._version = version

    def restart_list(self) -> None:
        """Start again with the first page: the API server no longer has the resource version or the next page."""
        self._version = self._continue = ""
        self._names_listed.clear()

    def _parse(self, raw: Mapping[str, Any]) -> T | None:
        try:
            return self.resource.parse(raw)
        except (TypeError, ValueError, AttributeError) as error:
            # One malformed object must not hide all others. Its content may be secret, so it is not logged.
            message = "object cannot be read"
            log_event(_log, logging.ERROR, message, resource=self.resource.plural, error=type(error).__name__)
            return None

    def _put(self, after: T) -> None:
        name = name_of(after)
        before = self.objects.get(name)
        if before != after:
            self.objects[name] = after
            self._report(before, after)

    def _remove(self, name: NamespacedName) -> None:
        before = self.objects.pop(name, None)
        if before is not None:
            self._report(before, None)

    def _report(self, before: T | None, after: T | None) -> None:
        try:
            self._on_change(before, after)
        except Exception as error:  # noqa: BLE001  (one change must not end the watch)
            message = "change of an object cannot be applied"
            log_event(_log, logging.ERROR, message, resource=self.resource.plural, exception=error)


async def _list_pages(api: ApiClient, state: ListWatchState[T], label_selector: str = "") -> None:
    while not (request := state.next_request()).is_watch:
        params = dict(request.params)
        if label_selector:
            params["labelSelector"] = ",".join(filter(None, (params.get("labelSelector"), label_selector)))
        state.apply_page(await api.request("GET", request.path, params=params))


async def list_objects(
    api: ApiClient, resource: Resource[T], namespaces: Iterable[str], label_selector: str = ""
) -> list[T]:
    """List a resource in these namespaces once. `label_selector` restricts the selector of the resource further.

    Raises `ApiError` and `ApiUnreachable`.
    """
    listed: list[T] = []
    for namespace in namespaces:
        state: ListWatchState[T] = ListWatchState(resource, namespace, lambda _, __: None)
        await _list_pages(api, state, label_selector)
        listed += state.objects.values()
    return listed


class WatchBackoff:
    """Delays between the end of a watch and the next list or watch."""

    def __init__(self, random: Callable[[], float] = random.random) -> None:
        self._backoff = api_backoff(random)

    def next_delay(self, established_seconds: float, has_failed: bool, retry_after: float = 0.0) -> float:
        """Return the seconds until the next request, at least `retry_after`.

        A watch that was established for `_ESTABLISHED_SECONDS` resets the backoff, even if it failed then. A shorter
        watch counts as a failure even if it succeeded, because the next one may end at once, too.
        """
        if established_seconds >= _ESTABLISHED_SECONDS:
            self._backoff.reset()
            if not has_failed:
                return retry_after
        return self._backoff.next_delay(retry_after)


class Reflector(Generic[T]):
    """Keeps a `ListWatchState` up to date until it is cancelled."""

    def __init__(
        self,
        api: ApiClient,
        state: ListWatchState[T],
        clock: Callable[[], float] = time.monotonic,
        *,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._api = api
        self._silence_seconds = silence_seconds
        self._last_line_at = 0.0
        self.state = state
        self._clock = clock
        self._backoff = WatchBackoff()
        self.listed = asyncio.Event()
        self.stale_since: float | None = clock()
        """The time of the clock from which the cache may be out of date; None while the watch is established."""
        self.failure = ""
        """The error of the last list or watch; "" while the watch is established."""
        self.restarts = 0
        self._established_at: float | None = None

    @property
    def resource_name(self) -> str:
        """The plural of the resource, for example `pods`."""
        return self.state.resource.plural

    async def run(self) -> None:
        """List and watch until cancelled."""
        while True:
            self._established_at = None
            retry_after = 0.0
            try:
                await self._list_and_watch()
            except VersionExpiredError:
                self._restart_list()
            except ApiError as error:
                if error.status == 410 or _TOO_LARGE_VERSION in error.message:
                    self._restart_list()
                else:
                    self._failed(str(error))
                retry_after = error.retry_after
            except ApiUnreachable as error:
                self._failed(str(error))
            seconds = self._clock() - self._established_at if self._established_at is not None else 0.0
            await asyncio.sleep(self._backoff.next_delay(seconds, bool(self.failure), retry_after))

    def _restart_list(self) -> None:
        self.state.restart_list()
        self.restarts += 1

    async def _list_and_watch(self) -> None:
        """List all pages, then watch until the server ends the watch."""
        await _list_pages(self._api, self.state)
        request = self.state.next_request()
        self.listed.set()
        lines = self._api.watch(request.path, request.params, request.seconds + _TIMEOUT_SLACK_SECONDS)
        async with contextlib.aclosing(lines):
            while (line := await self._next_line(lines)) is not None:
                if line:
                    self.state.apply_watch_line(line)
                self._last_line_at = self._clock()
                if self._established_at is None:
                    self._established_at = self._last_line_at
                    self.stale_since, self.failure = None, ""

    async def _next_line(self, lines: AsyncGenerator[bytes]) -> bytes | None:
        """Return the next line of a watch, None at its end. Raises `ApiUnreachable` if the API server hangs."""
        seconds: float | None = _ACCEPT_SECONDS
        if self._established_at is not None:
            seconds = self._silence_seconds if self.state.gets_bookmarks else None
        try:
            async with asyncio.timeout(seconds):
                return await anext(lines, None)
        except TimeoutError:
            raise ApiUnreachable(f"no event and no bookmark for {seconds:.0f} s") from None

    def _failed(self, error: str) -> None:
        if self.stale_since is None:  # the watch was established, and its last line is the last proof of currency
            self.stale_since = self._last_line_at if self.state.gets_bookmarks else self._clock()
        if not self.failure:
            message = "list or watch failed, the cache stays in use"
            log_event(_log, logging.WARNING, message, resource=self.resource_name, error=error)
        self.failure = error
