"""What one watch sends: events in the order of their versions, bookmarks, its errors. No I/O.

A client sees an object that begins to match its selector as ADDED, and one that ceases to as DELETED, whatever happened
to the object itself.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from tests.kubernetes.double.api import flag, selection, shown, version_of
from tests.kubernetes.double.errors import ApiError, expired, invalid
from tests.kubernetes.double.rbac import Request
from tests.kubernetes.double.resources import Object, Resource
from tests.kubernetes.double.store import Change, Store


def line(kind: str, thing: Any) -> bytes:
    """One event as it is sent."""
    return orjson.dumps({"type": kind, "object": thing}) + b"\n"


class Watch:
    """One watch of one client."""

    def __init__(self, store: Store, resource: Resource, request: Request, query: Mapping[str, str]) -> None:
        self._store = store
        self._resource = resource
        self._matches = selection(resource, request, query)
        self._asked = version_of(query)
        self._initial = flag(query, "sendInitialEvents") if "sendInitialEvents" in query else None
        self.wants_bookmarks = flag(query, "allowWatchBookmarks")
        if self._initial is not None and query.get("resourceVersionMatch") != "NotOlderThan":
            message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            options = Resource("meta.k8s.io", "v1", "listoptions", "ListOptions")
            raise invalid(options, "", "resourceVersionMatch", message, "FieldValueForbidden")

    def beginning(self) -> Iterator[bytes]:
        """What is sent at once. Raises ApiError when the history does not reach back; the watch is over then."""
        if self._initial or (self._initial is None and not self._asked):
            for key in sorted(self._store.all(self._resource.storage)):
                thing = shown(self._resource, self._store.all(self._resource.storage)[key])
                if self._matches(thing):
                    yield line("ADDED", thing)
            if self._initial and self.wants_bookmarks:
                yield self.bookmark({"k8s.io/initial-events-end": "true"})
        elif self._asked and self._asked <= self._store.version:
            if not self._store.remembers(self._asked):
                raise expired(f"too old resource version: {self._asked} ({self._store.version})")
            for change in self._store.since(self._asked, self._resource.storage):
                yield from self.event(change)

    def event(self, change: Change) -> Iterator[bytes]:
        """What is sent for a write, if anything."""
        if change.storage != self._resource.storage or change.version <= self._asked:
            return
        old = shown(self._resource, change.old) if change.old is not None else None
        new = shown(self._resource, change.new) if change.new is not None else None
        before = old is not None and self._matches(old)
        after = new is not None and self._matches(new)
        if after:
            yield line("MODIFIED" if before else "ADDED", new)
        elif before and old is not None:
            yield line("DELETED", old | {"metadata": old["metadata"] | {"resourceVersion": str(change.version)}})

    def bookmark(self, annotations: Object | None = None) -> bytes:
        """How far it has come."""
        metadata: Object = {"resourceVersion": str(self._store.version), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        thing = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        return line("BOOKMARK", thing)


def error(refusal: ApiError) -> bytes:
    """The last event of a watch that cannot go on."""
    return line("ERROR", refusal.status)
