"""The events of one watch, in the order of their versions: changes, bookmarks, errors. No I/O.

An object that starts to match the selector is reported as ADDED, and one that no longer matches as DELETED.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from tests.kube_standin.api_server.api import build_selector, in_resource_form, query_flag, version_of
from tests.kube_standin.api_server.errors import ApiError, expired, invalid
from tests.kube_standin.api_server.rbac import Request
from tests.kube_standin.api_server.resources import Object, Resource
from tests.kube_standin.api_server.store import Change, Store


def encode_event(kind: str, obj: Any) -> bytes:
    """Return an encoded event."""
    return orjson.dumps({"type": kind, "object": obj}) + b"\n"


class Watch:
    """One watch of one client."""

    def __init__(self, store: Store, resource: Resource, request: Request, query: Mapping[str, str]) -> None:
        self._store = store
        self._resource = resource
        self._matches = build_selector(resource, request, query)
        self._start_version = version_of(query)
        self._initial = query_flag(query, "sendInitialEvents") if "sendInitialEvents" in query else None
        self.wants_bookmarks = query_flag(query, "allowWatchBookmarks")
        if self._initial is not None and query.get("resourceVersionMatch") != "NotOlderThan":
            message = "Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            options = Resource("meta.k8s.io", "v1", "listoptions", "ListOptions")
            raise invalid(options, "", "resourceVersionMatch", message, "FieldValueForbidden")

    def initial_events(self) -> Iterator[bytes]:
        """Yield the first events. Raises `ApiError`, which ends the watch, if the history starts later."""
        if self._initial or (self._initial is None and not self._start_version):
            for key in sorted(self._store.all(self._resource.storage)):
                obj = in_resource_form(self._resource, self._store.all(self._resource.storage)[key])
                if self._matches(obj):
                    yield encode_event("ADDED", obj)
            if self._initial and self.wants_bookmarks:
                yield self.bookmark({"k8s.io/initial-events-end": "true"})
        elif self._start_version and self._start_version <= self._store.version:
            if not self._store.has_history_since(self._start_version):
                raise expired(f"too old resource version: {self._start_version} ({self._store.version})")
            for change in self._store.changes_since(self._start_version, self._resource.storage):
                yield from self.event(change)

    def event(self, change: Change) -> Iterator[bytes]:
        """Yield the event of a write, if the watch has one."""
        if change.storage != self._resource.storage or change.version <= self._start_version:
            return
        old = in_resource_form(self._resource, change.old) if change.old is not None else None
        new = in_resource_form(self._resource, change.new) if change.new is not None else None
        before = old is not None and self._matches(old)
        after = new is not None and self._matches(new)
        if after:
            yield encode_event("MODIFIED" if before else "ADDED", new)
        elif before and old is not None:
            yield encode_event(
                "DELETED", old | {"metadata": old["metadata"] | {"resourceVersion": str(change.version)}}
            )

    def bookmark(self, annotations: Object | None = None) -> bytes:
        """Return a bookmark with the latest version."""
        metadata: Object = {"resourceVersion": str(self._store.version), "creationTimestamp": None}
        if annotations:
            metadata["annotations"] = annotations
        obj = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": metadata}
        return encode_event("BOOKMARK", obj)


def encode_error(refusal: ApiError) -> bytes:
    """Return the last event of a watch that ends with an error."""
    return encode_event("ERROR", refusal.status)
