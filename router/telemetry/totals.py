"""What all workers of a router have counted together, though workers come and go. No I/O, no clock.

A worker tells totals (`counters.Counted`), of versions only those that have counted something since it last told of
them. They stay packed until somebody asks for the sum, and one recursive addition (`merge`) covers every field, present
and to come.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from router.services import VersionKey
from router.telemetry.counters import (
    LEVELS,
    Counted,
    GatewayCounters,
    GatewaySnapshot,
    VersionSnapshot,
    is_kept,
    unpack,
)


def merge(total: GatewaySnapshot, snapshot: GatewaySnapshot) -> None:
    """Add `snapshot` to `total`, in place; `snapshot` stays as it is.

    Raises ValueError when two histograms of one name have different numbers of buckets.
    """
    _add(cast(dict[str, Any], total), cast(dict[str, Any], snapshot))


class _Worker:
    """What a worker that lives has told so far."""

    __slots__ = ("process", "versions")

    def __init__(self) -> None:
        self.process = GatewayCounters().snapshot()
        self.versions: dict[VersionKey, bytes] = {}

    def snapshot(self) -> GatewaySnapshot:
        versions: dict[str, dict[str, VersionSnapshot]] = {}
        for (service, version), packed in self.versions.items():
            versions.setdefault(service, {})[version] = unpack(packed)
        return {**self.process, "versions": versions}


class Totals:
    """The sum over workers that come and go; it never goes back when one restarts.

    A worker is known by (name, generation), and a later generation of a name has a greater number. Two generations
    may live at once, while the older one drains.
    """

    __slots__ = ("_ended", "_keys", "_live", "_newest", "_services")

    def __init__(self) -> None:
        self._ended = GatewayCounters().snapshot()
        self._live: dict[tuple[str, int], _Worker] = {}
        self._newest: dict[str, int] = {}
        self._keys: frozenset[VersionKey] | None = None  # all
        self._services: set[str] = set()

    def report(self, name: str, generation: int, counted: Counted) -> None:
        """Take what is new of a worker, in place of what was told of the same before.

        A report that arrives after its worker `ended` is already counted and changes nothing, and so is what a worker
        tells of a version that is not kept any more.
        """
        worker = self._live.get((name, generation))
        if worker is None:
            if generation <= self._newest.get(name, generation - 1):
                return
            worker = self._live[name, generation] = _Worker()
            self._newest[name] = max(generation, self._newest.get(name, generation))
        if counted.process is not None:
            worker.process = counted.process.snapshot
        keys, services = self._keys, self._services
        for key, packed in counted.versions.items():
            if keys is None or is_kept(key, keys, services):
                worker.versions[key] = packed

    def ended(self, name: str, generation: int) -> None:
        """Keep what an ended worker counted; what it had open is no more. An unknown worker changes nothing."""
        worker = self._live.pop((name, generation), None)
        if worker is not None:
            merge(self._ended, cast(GatewaySnapshot, {**worker.snapshot(), **dict.fromkeys(LEVELS, 0)}))

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop versions and services that are not among `keys` (the complete set), as each worker does."""
        self._keys = keys = frozenset(keys)
        self._services = services = {service for service, _ in keys}
        self._ended = _retained(self._ended, keys, services)
        for worker in self._live.values():
            worker.process = _retained(worker.process, keys, services)
            worker.versions = {k: packed for k, packed in worker.versions.items() if is_kept(k, keys, services)}

    def total(self) -> GatewaySnapshot:
        """The sum over all workers that live or have lived."""
        total = GatewayCounters().snapshot()
        merge(total, self._ended)
        for worker in self._live.values():
            merge(total, worker.snapshot())
        return total


def _retained(snapshot: GatewaySnapshot, keys: Collection[VersionKey], services: set[str]) -> GatewaySnapshot:
    versions = {
        service: {name: counted for name, counted in by_name.items() if is_kept((service, name), keys, services)}
        for service, by_name in snapshot["versions"].items()
        if service in services
    }
    failures = {service: by_reason for service, by_reason in snapshot["auth_failures"].items() if service in services}
    return {**snapshot, "versions": versions, "auth_failures": failures}


def _add(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        elif name not in total:
            total[name] = value  # a list too: none is written to, the next line makes a new one
        elif isinstance(value, list):
            total[name] = [held + added for held, added in zip(total[name], value, strict=True)]
        else:
            total[name] += value
