"""Stores objects, a version that counts all writes, and the history for watches. No I/O, and no rules of kinds.

A stored object is never modified. A write replaces it, so the history keeps old objects and can rebuild old states.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.kube_standin.api_server.errors import too_large_version
from tests.kube_standin.api_server.resources import Object

Key = tuple[str, str]  # namespace (empty for cluster-wide objects), name

_FIRST_VERSION = 100  # like a restarted server: earlier writes are not in the history


@dataclass(frozen=True, slots=True)
class Change:
    """One write: the object before and after it. None if there was or is none."""

    version: int
    storage: str
    key: Key
    old: Object | None
    new: Object | None


Listener = Callable[[Change], None]


@dataclass(slots=True)
class Store:
    """The objects of all resources."""

    history_length: int = 100_000
    version: int = _FIRST_VERSION
    _objects: dict[str, dict[Key, Object]] = field(default_factory=dict)
    _history: deque[Change] = field(default_factory=deque)
    _oldest_version: int = _FIRST_VERSION  # the history goes back to this version
    _listeners: set[Listener] = field(default_factory=set)

    def get(self, storage: str, key: Key) -> Object | None:
        """Return the object with this key, if it exists."""
        return self._objects.get(storage, {}).get(key)

    def put(self, storage: str, key: Key, obj: Object) -> Object:
        """Write an object. Return the stored object with its new version."""
        old = self.get(storage, key)
        self.version += 1
        obj = obj | {"metadata": obj["metadata"] | {"resourceVersion": str(self.version)}}
        self._objects.setdefault(storage, {})[key] = obj
        self._record(Change(self.version, storage, key, old, obj))
        return obj

    def remove(self, storage: str, key: Key) -> Object:
        """Remove an object. Return it with the version of its removal."""
        self.version += 1
        old = self._objects[storage].pop(key)
        self._record(Change(self.version, storage, key, old, None))
        return old | {"metadata": old["metadata"] | {"resourceVersion": str(self.version)}}

    def _record(self, change: Change) -> None:
        self._history.append(change)
        while len(self._history) > self.history_length:
            self._oldest_version = self._history.popleft().version
        for listener in list(self._listeners):
            listener(change)

    def copy(self) -> "Store":
        """Return a store with the same objects and versions, without history and listeners, for a dry run."""
        objects = {storage: dict(by_key) for storage, by_key in self._objects.items()}
        return Store(self.history_length, self.version, objects, _oldest_version=self.version)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each write. Return a function that removes it."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def has_history_since(self, version: int) -> bool:
        """True if the history goes back to this version."""
        return version >= self._oldest_version

    def changes_since(self, version: int, storage: str) -> Iterator[Change]:
        """Return the writes after a version that is in the history."""
        if version > self.version:
            raise too_large_version(version, self.version)
        newer = []
        for change in reversed(self._history):
            if change.version <= version:
                break
            if change.storage == storage:
                newer.append(change)
        return reversed(newer)

    def all(self, storage: str) -> dict[Key, Object]:
        """Return the current objects by key."""
        return self._objects.get(storage, {})

    def objects_at(self, version: int, storage: str) -> dict[Key, Object]:
        """Return the objects at a version that is in the history, by key."""
        if version == self.version:
            return self.all(storage)
        state = dict(self.all(storage))
        for change in reversed(self._history):
            if change.version <= version:
                break
            if change.storage == storage:
                if change.old is None:
                    state.pop(change.key, None)
                else:
                    state[change.key] = change.old
        return state
