"""The sum of the counters of all workers, including workers that have ended. No I/O, no clock.

A worker reports totals (`counters.CounterReport`), but only of versions whose counters changed since their last report.
Reports stay packed until the sum is needed. One recursive function (`merge`) adds all fields.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, cast

from router.model.services import VersionKey
from router.telemetry.counters import (
    GAUGES,
    CounterReport,
    GatewayCounters,
    GatewaySnapshot,
    VersionSnapshot,
    is_retained,
    unpack,
)


def merge(total: GatewaySnapshot, snapshot: GatewaySnapshot) -> None:
    """Add `snapshot` to `total` in place; `snapshot` is not changed.

    Raises ValueError if two histograms of the same name have different numbers of buckets.
    """
    _add(cast(dict[str, Any], total), cast(dict[str, Any], snapshot))


class _Worker:
    """The latest reports of a live worker."""

    __slots__ = ("process", "versions")

    def __init__(self) -> None:
        self.process = GatewayCounters().process_snapshot()
        self.versions: dict[VersionKey, bytes] = {}

    def snapshot(self) -> GatewaySnapshot:
        versions: dict[str, dict[str, VersionSnapshot]] = {}
        for (service, version), packed in self.versions.items():
            versions.setdefault(service, {})[version] = unpack(packed)
        return {**self.process, "versions": versions}


class CounterTotals:
    """The sum over live and ended workers; it never decreases when a worker restarts.

    A worker is identified by (name, generation); a later generation of a name has a greater number. Two generations can
    be live at once, while the older one drains.
    """

    __slots__ = ("_changed", "_ended", "_keys", "_live", "_newest", "_services")

    def __init__(self) -> None:
        self._ended = GatewayCounters().process_snapshot()
        self._live: dict[tuple[str, int], _Worker] = {}
        self._newest: dict[str, int] = {}  # generation, by name
        self._keys: frozenset[VersionKey] | None = None  # None: all
        self._services: set[str] = set()
        self._changed: set[VersionKey] = set()

    def update(self, name: str, generation: int, report: CounterReport) -> None:
        """Replace a worker's earlier totals with those in its report.

        A report that arrives after `worker_ended` is ignored, since its counts are already included. So are versions
        that were removed (`retain`).
        """
        worker = self._live.get((name, generation))
        if worker is None:
            if generation <= self._newest.get(name, generation - 1):
                return
            worker = self._live[name, generation] = _Worker()
            self._newest[name] = max(generation, self._newest.get(name, generation))
        if report.process is not None:
            worker.process = report.process.snapshot
        keys, services = self._keys, self._services
        for key, packed in report.versions.items():
            if keys is None or is_retained(key, keys, services):
                worker.versions[key] = packed
                self._changed.add(key)

    def worker_ended(self, name: str, generation: int) -> None:
        """Keep the counts of a worker that has ended, without its gauges. Unknown workers are ignored."""
        worker = self._live.pop((name, generation), None)
        if worker is not None:
            merge(self._ended, cast(GatewaySnapshot, {**worker.snapshot(), **dict.fromkeys(GAUGES, 0)}))

    def retain(self, keys: Collection[VersionKey]) -> None:
        """Drop versions and services that are not among `keys`, the complete set, as each worker does."""
        self._keys = keys = frozenset(keys)
        self._services = services = {service for service, _ in keys}
        self._ended = _retained(self._ended, keys, services)
        for worker in self._live.values():
            worker.process = _retained(worker.process, keys, services)
            worker.versions = {k: packed for k, packed in worker.versions.items() if is_retained(k, keys, services)}

    def take_changed(self) -> set[VersionKey]:
        """Return the versions whose counters may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def snapshots_of(self, key: VersionKey) -> Iterator[VersionSnapshot]:
        """Yield the counters of one version: of all ended workers, and of each live worker."""
        ended = self._ended["versions"].get(key[0], {}).get(key[1])
        if ended is not None:
            yield ended
        for worker in self._live.values():
            if key in worker.versions:
                yield unpack(worker.versions[key])

    def total(self) -> GatewaySnapshot:
        """Return the sum over all live and ended workers."""
        total = GatewayCounters().process_snapshot()
        merge(total, self._ended)
        for worker in self._live.values():
            merge(total, worker.snapshot())
        return total


def _retained(snapshot: GatewaySnapshot, keys: Collection[VersionKey], services: set[str]) -> GatewaySnapshot:
    versions = {
        service: {name: counters for name, counters in by_name.items() if is_retained((service, name), keys, services)}
        for service, by_name in snapshot["versions"].items()
        if service in services
    }
    failures = {service: by_reason for service, by_reason in snapshot["auth_failures"].items() if service in services}
    return {**snapshot, "versions": versions, "auth_failures": failures}


def _add(total: dict[str, Any], addend: dict[str, Any]) -> None:
    for name, value in addend.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        elif name not in total:
            total[name] = value  # shared if it is a list: lists are replaced below, never changed in place
        elif isinstance(value, list):
            total[name] = [present + added for present, added in zip(total[name], value, strict=True)]
        else:
            total[name] += value
