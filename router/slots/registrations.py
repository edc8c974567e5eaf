"""Records which lease caches of this pod have yet to register with the owner of their service. No I/O.

A pod has reported all leases of a service to its owner once each of its workers has registered for each version.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from router.model.services import VersionKey


class PendingRegistrations:
    """The pending registrations of one pod's workers.

    Each method that changes something returns the services whose last pending registration it removed.
    """

    __slots__ = ("_pending", "_versions", "_workers")

    def __init__(self) -> None:
        self._workers: set[str] = set()
        self._versions: dict[str, list[VersionKey]] = {}  # by service
        self._pending: dict[str, set[tuple[str, VersionKey]]] = {}  # service -> (worker, version)

    @property
    def workers(self) -> Collection[str]:
        """Names of the pod's workers."""
        return self._workers

    @property
    def services(self) -> Collection[str]:
        """The services that have versions."""
        return self._versions.keys()

    def is_pending(self, service: str) -> bool:
        """True if a worker has yet to register for a version of a service."""
        return service in self._pending

    def set_versions(self, versions: Collection[VersionKey]) -> list[str]:
        """Replace the versions of all services."""
        self._versions = {}
        for key in versions:
            self._versions.setdefault(key[0], []).append(key)
        for service in self._pending:
            self._pending[service] &= self._all_of(service)
        return self._take_complete(tuple(self._pending))

    def add_worker(self, worker: str) -> None:
        """Add a new worker. It is not pending, as it has no leases yet."""
        self._workers.add(worker)

    def remove_worker(self, worker: str) -> list[str]:
        """Remove a worker whose process has ended."""
        self._workers.discard(worker)
        for service, pending in self._pending.items():
            self._pending[service] = {(name, key) for name, key in pending if name != worker}
        return self._take_complete(tuple(self._pending))

    def restart(self, services: Collection[str]) -> list[str]:
        """Expect registrations of all workers for all versions of these services."""
        for service in services:
            self._pending[service] = self._all_of(service)
        return self._take_complete(services)

    def on_registered(self, worker: str, key: VersionKey) -> list[str]:
        """Record that a worker has registered for a version."""
        self._pending.get(key[0], set()).discard((worker, key))
        return self._take_complete((key[0],))

    def _all_of(self, service: str) -> set[tuple[str, VersionKey]]:
        return {(worker, key) for worker in self._workers for key in self._versions.get(service, ())}

    def _take_complete(self, services: Iterable[str]) -> list[str]:
        complete = [service for service in services if service in self._pending and not self._pending[service]]
        for service in complete:
            del self._pending[service]
        return complete
