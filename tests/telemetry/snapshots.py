"""A snapshot of the counters of one worker, as the supervisor derives it from the worker's reports."""

from router.telemetry.counters import GatewayCounters, GatewaySnapshot, VersionSnapshot, unpack


def snapshot_of(counters: GatewayCounters) -> GatewaySnapshot:
    """Return all counters, including those of versions; later requests do not change it."""
    versions: dict[str, dict[str, VersionSnapshot]] = {}
    for (service, version), version_counters in counters.versions.items():
        versions.setdefault(service, {})[version] = unpack(version_counters.pack())
    return {**counters.process_snapshot(), "versions": versions}
