"""Follows one resource in one namespace, in a thread: list, then watch, for ever."""

import contextlib
import http.client
import threading
from collections.abc import Callable

from tests.kubernetes.client import Client, path_of
from tests.kubernetes.double.resources import Object

_PAUSE_SECONDS = 0.2


class Follower:
    """All objects of a resource, by name, as of a moment ago; `changed` is called after each change."""

    def __init__(self, client: Client, plural: str, namespace: str, changed: Callable[[], None]) -> None:
        self._client = client
        self._plural = plural
        self._namespace = namespace
        self._changed = changed
        self._lock = threading.Lock()
        self._things: dict[str, Object] = {}
        self._gone: set[str] = set()  # uids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin; what is there already is known on return."""
        self._list()
        self._thread.start()

    def stop(self) -> None:
        """End; the thread ends with its watch."""
        self._over.set()

    def all(self) -> list[Object]:
        """Those that are known."""
        with self._lock:
            return list(self._things.values())

    def get(self, name: str) -> Object | None:
        """The one of this name."""
        with self._lock:
            return self._things.get(name)

    def note(self, thing: Object) -> None:
        """What a write was answered with: it is known before the watch tells."""
        name, version = thing["metadata"]["name"], int(thing["metadata"]["resourceVersion"])
        with self._lock:
            known = self._things.get(name)
            is_newer = known is None or int(known["metadata"]["resourceVersion"]) < version
            if is_newer and thing["metadata"]["uid"] not in self._gone:
                self._things[name] = thing

    def forget(self, thing: Object) -> None:
        """It has been removed."""
        with self._lock:
            self._gone.add(thing["metadata"]["uid"])
            known = self._things.get(thing["metadata"]["name"])
            if known and known["metadata"]["uid"] == thing["metadata"]["uid"]:
                del self._things[thing["metadata"]["name"]]

    def _list(self) -> None:
        found = self._client.ask("GET", path_of(self._plural, self._namespace)).ok()
        with self._lock:
            self._things = {thing["metadata"]["name"]: thing for thing in found["items"]}
        self._version = found["metadata"]["resourceVersion"]
        self._changed()

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self._follow()
            except (OSError, http.client.HTTPException):
                pass
            except AssertionError:  # refused, as by a server that has too much to do: what is known may be old
                with contextlib.suppress(AssertionError, OSError, http.client.HTTPException):
                    if not self._over.wait(_PAUSE_SECONDS):
                        self._list()
        self._client.close()

    def _follow(self) -> None:
        query = {"resourceVersion": self._version, "timeoutSeconds": 5}
        for kind, thing in self._client.watch(self._plural, self._namespace, **query):
            if self._over.is_set():
                return
            if kind == "ERROR":
                self._list()
                return
            self._version = thing["metadata"]["resourceVersion"]
            if kind == "DELETED":
                self.forget(thing)
            else:
                self.note(thing)
            self._changed()
