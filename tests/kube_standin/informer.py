"""Lists and watches one resource in one namespace, in a thread, and keeps a copy of its objects."""

import contextlib
import http.client
import threading
from collections.abc import Callable

from tests.kube_standin.api_server.resources import Object
from tests.kube_standin.client import Client, path_of

_RETRY_SECONDS = 0.2


class Informer:
    """All objects of a resource, by name. The copy may be slightly out of date. Calls `on_change` after each change."""

    def __init__(self, client: Client, plural: str, namespace: str, on_change: Callable[[], None]) -> None:
        self._client = client
        self._plural = plural
        self._namespace = namespace
        self._on_change = on_change
        self._lock = threading.Lock()
        self._objects: dict[str, Object] = {}
        self._deleted_uids: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """List the objects, then watch them in the thread."""
        self._list()
        self._thread.start()

    def stop(self) -> None:
        """Stop. The thread ends when its watch ends."""
        self._stopping.set()

    def all(self) -> list[Object]:
        """Return all objects."""
        with self._lock:
            return list(self._objects.values())

    def get(self, name: str) -> Object | None:
        """Return the object of this name, if there is one."""
        with self._lock:
            return self._objects.get(name)

    def store(self, obj: Object) -> None:
        """Add or replace an object, such as the response to a write. Ignore versions older than the stored one."""
        name, version = obj["metadata"]["name"], int(obj["metadata"]["resourceVersion"])
        with self._lock:
            current = self._objects.get(name)
            is_newer = current is None or int(current["metadata"]["resourceVersion"]) < version
            if is_newer and obj["metadata"]["uid"] not in self._deleted_uids:
                self._objects[name] = obj

    def remove(self, obj: Object) -> None:
        """Remove a deleted object."""
        with self._lock:
            self._deleted_uids.add(obj["metadata"]["uid"])
            current = self._objects.get(obj["metadata"]["name"])
            if current and current["metadata"]["uid"] == obj["metadata"]["uid"]:
                del self._objects[obj["metadata"]["name"]]

    def _list(self) -> None:
        found = self._client.request("GET", path_of(self._plural, self._namespace)).ok()
        with self._lock:
            self._objects = {obj["metadata"]["name"]: obj for obj in found["items"]}
        self._version = found["metadata"]["resourceVersion"]
        self._on_change()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._watch()
            except (OSError, http.client.HTTPException):
                pass
            except AssertionError:  # refused, for example by an overloaded server: the copy may be out of date
                with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
                    if not self._stopping.wait(_RETRY_SECONDS):
                        self._list()
        self._client.close()

    def _watch(self) -> None:
        query = {"resourceVersion": self._version, "timeoutSeconds": 5}
        for kind, obj in self._client.watch(self._plural, self._namespace, **query):
            if self._stopping.is_set():
                return
            if kind == "ERROR":
                self._list()
                return
            self._version = obj["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self.remove(obj)
            else:
                self.store(obj)
            self._on_change()
