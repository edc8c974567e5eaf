"""Objects, the version that counts every write, and the history that watches begin in. No I/O and no rules of kinds.

An object that has been stored is never changed: a write puts another in its place. So the history holds what was, any
state of it can be rebuilt, and encoded bytes can be kept beside an object.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.kubernetes.double.errors import too_large_version
from tests.kubernetes.double.resources import Object

Key = tuple[str, str]  # namespace (empty for those of the whole cluster), name

_FIRST_VERSION = 100  # as of a server that was started again: there have been writes that nobody remembers


@dataclass(frozen=True, slots=True)
class Change:
    """One write: what was there before, and what is there now; None where there is nothing."""

    version: int
    storage: str
    key: Key
    old: Object | None
    new: Object | None


Listener = Callable[[Change], None]


@dataclass(slots=True)
class Store:
    """All objects of the cluster."""

    history_length: int = 100_000
    version: int = _FIRST_VERSION
    _objects: dict[str, dict[Key, Object]] = field(default_factory=dict)
    _history: deque[Change] = field(default_factory=deque)
    _forgotten: int = _FIRST_VERSION  # no state before this version can be rebuilt
    _listeners: set[Listener] = field(default_factory=set)

    def get(self, storage: str, key: Key) -> Object | None:
        """The object of this name."""
        return self._objects.get(storage, {}).get(key)

    def put(self, storage: str, key: Key, thing: Object) -> Object:
        """Write; the object as it is stored, with its version."""
        old = self.get(storage, key)
        self.version += 1
        thing = thing | {"metadata": thing["metadata"] | {"resourceVersion": str(self.version)}}
        self._objects.setdefault(storage, {})[key] = thing
        self._record(Change(self.version, storage, key, old, thing))
        return thing

    def remove(self, storage: str, key: Key) -> Object:
        """Remove; the object as it was last, with the version of its removal."""
        self.version += 1
        old = self._objects[storage].pop(key)
        self._record(Change(self.version, storage, key, old, None))
        return old | {"metadata": old["metadata"] | {"resourceVersion": str(self.version)}}

    def _record(self, change: Change) -> None:
        self._history.append(change)
        while len(self._history) > self.history_length:
            self._forgotten = self._history.popleft().version
        for listener in list(self._listeners):
            listener(change)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Be told of each write; call what is returned to hear no more."""
        self._listeners.add(listener)
        return lambda: self._listeners.discard(listener)

    def remembers(self, version: int) -> bool:
        """Whether the history reaches back to the state of this version."""
        return version >= self._forgotten

    def since(self, version: int, storage: str) -> Iterator[Change]:
        """The writes after a version that is remembered."""
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
        """What is there now, by key."""
        return self._objects.get(storage, {})

    def at(self, version: int, storage: str) -> dict[Key, Object]:
        """What was there at a version that is remembered."""
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
