"""Collects the metrics of one scrape from the parts of the supervisor, without changing them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from router import __version__
from router.admin.overview import Overview
from router.telemetry.build_info import hot_path
from router.telemetry.catalogue import Sample
from router.telemetry.metrics import MetricsSnapshot
from router.telemetry.standard_error import dropped_lines
from router.workers.cpu import available_cpus, cpu_quota


def metrics_snapshot(overview: Overview) -> MetricsSnapshot:
    """Return all data of one scrape."""
    counters = overview.counters.total()
    return MetricsSnapshot(
        router_version=__version__,
        hot_path=hot_path(),
        counters=counters,
        versions={key: overview.version_metrics(key) for key in overview.serving.versions},
        lag={"supervisor": overview.activity.supervisor_lag.snapshot(), "worker": counters["loop_lag"]},
        exemplars=overview.activity.traces.exemplars,
        samples=(
            *_process_samples(overview),
            *_pod_samples(overview),
            *overview.samples(),
            Sample("worker_cpu_seconds", counters["cpu_seconds"]),
        ),
    )


def _process_samples(overview: Overview) -> Iterator[Sample]:
    workers = overview.workers
    yield Sample("workers", len(workers))
    yield Sample("workers_stuck", len(workers.stuck))
    yield Sample("worker_restarts", workers.unexpected_exits)
    yield Sample("worker_resident_memory_bytes", sum(_resident_bytes(worker.pid) for worker in workers.statuses()))
    yield Sample("cpu_quota_cores", cpu_quota() or float(available_cpus()))  # the quota may change at run time
    yield Sample("replica_connections_idle", overview.reports.connections_idle)
    yield Sample("access_log_lines_dropped", overview.reports.access_log_dropped)
    yield Sample("log_lines_dropped", overview.reports.log_dropped + dropped_lines())
    yield Sample("config_errors", overview.config_error_count)
    yield Sample("config_last_reload_success", overview.config_in_force)


def _pod_samples(overview: Overview) -> Iterator[Sample]:
    ledgers, services = overview.ledger_dispatcher, overview.serving.services
    yield Sample("leader", overview.leadership.leads)
    yield Sample("observing", overview.effective.values.observes)
    for service in services:
        yield Sample("service_owned", ledgers.ownership.owner(service) == ledgers.own_id, (service,))
    yield Sample("slot_leaks_repaired", ledgers.coordinator.mismatches_repaired)
    yield Sample("degraded_services", len(services) if ledgers.is_partitioned else 0)
    for message, count in sorted(ledgers.coordinator.messages.items()):
        yield Sample("slot_messages", count, (message,))
    yield Sample("peer_messages", ledgers.messages_sent, ("sent",))
    yield Sample("peer_messages", ledgers.messages_received, ("received",))
    mesh = overview.mesh
    if mesh is None:
        return
    statuses = list(mesh.expected_statuses().values())
    yield Sample("peers", len(mesh.live()), ("live",))
    yield Sample("peers", len(mesh.unreachable()), ("unreachable",))
    yield Sample("peers", sum(status == "gone" for status in statuses), ("gone",))
    yield Sample("peers_unencrypted", len(mesh.unencrypted()))
    for reason, count in mesh.refusals.items():
        yield Sample("peer_refusals", count, (reason,))


def _resident_bytes(pid: int) -> int:
    """Return the resident memory of a process; 0 if it has ended (proc_pid_statm(5))."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
