"""The status document for `/status`, `/status.json` and `azureml-fe top`, as JSON-serializable data.

Does not contain: how the document is sent (`routes`, `status_feed`) or displayed (`page`, `cli.top`). Fields are
added, but never removed or changed, so that programs that read the document keep working.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypedDict

import orjson

from router import __version__
from router.admin.capacity import VersionCapacity, service_capacity
from router.admin.overview import Overview
from router.admin.problems import group_problems
from router.admin.timeline import FIELDS, RANGES
from router.model.replica_health import ProbeReport, ReplicaHealthReport
from router.model.services import ReplicaState, Service, Version, VersionKey
from router.net.address import host_port
from router.telemetry.journal import Entry
from router.workers.pool import WorkerStatus

_MAX_REPLICAS = 256
"""Maximum number of listed replicas of each version, to keep the document readable. The counts by state are
complete."""

_MAX_PROBLEMS = 200
"""Maximum number of listed problems. The groups have all of them."""


class VersionStatus(TypedDict):
    """The status of one version. `in_flight`, `abandoned` and `queued` include the pods that report to this one. All
    pods report to the leader. `abandoned` is the number of requests that hold slots but are not in flight.
    `suspect_slots` are those of this pod's ledger."""

    name: str
    traffic_percent: int
    in_flight: int
    queued: int
    slots: int | None
    leases_idle: int
    abandoned: int
    suspect_slots: int
    requests_per_second: float
    refused_per_second: float
    mean_service_seconds: float | None
    utilization: float | None
    target: float
    desired: int
    minimum: int
    maximum: int
    slots_per_replica: int | None
    autoscaled: bool
    reason: str | None
    states: dict[str, int]
    description: str
    tags: Mapping[str, str]
    properties: Mapping[str, str]
    replicas: list[dict[str, Any]]


class ServiceStatus(TypedDict):
    """The status of one service. `standby`: this router follows it but does not serve it."""

    name: str
    authentication: str
    key_header: str
    owner: str
    standby: bool
    versions: list[VersionStatus]


class StatusDocument(TypedDict):
    """The whole document. Times are seconds since the epoch."""

    time: float
    router: dict[str, Any]
    totals: dict[str, float]
    services: list[ServiceStatus]
    decisions: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    peers: list[dict[str, Any]]
    config_errors: list[dict[str, Any]]
    config_changes: list[dict[str, Any]]
    """Settings that have changed while the router ran, the latest first."""
    settings: list[dict[str, Any]]
    """The settings of the router that are no defaults, with their sources. `/config` has all."""
    dynamic_config: dict[str, Any] | None
    """The dynamic configuration and its source; None without one."""
    problems: list[str]
    """Current problems, at most `_MAX_PROBLEMS`. Each is one line, which lines of details may follow, separated by line
    breaks."""
    problem_groups: list[dict[str, Any]]
    """All of them in groups of the same cause; see `admin.problems`."""


def status_document(overview: Overview) -> StatusDocument:
    """Return the current status."""
    now = time.monotonic()
    services = [_service_status(overview, service, now) for service in overview.serving.services.values()]
    problems = list(overview.problems())
    return {
        "time": round(time.time(), 3),
        "router": _router_status(overview, now),
        "totals": _totals(services),
        "services": services,
        "decisions": [decision._asdict() for decision in reversed(overview.activity.decisions)],
        "workers": list(_worker_statuses(overview)),
        "peers": _peer_statuses(overview),
        "config_errors": [error._asdict() for error in reversed(overview.activity.config_errors)],
        "config_changes": [change._asdict() for change in reversed(overview.activity.config_changes)],
        "settings": overview.effective.document(only_given=True),
        "dynamic_config": overview.dynamic.document() if overview.dynamic is not None else None,
        "problems": [problem.text for problem in problems[:_MAX_PROBLEMS]],
        "problem_groups": [group._asdict() for group in group_problems(problems)],
    }


def capacity_document(overview: Overview, name: str) -> dict[str, object]:
    """Return how much more load a service can take. Raises KeyError if the service is unknown."""
    service = overview.serving.services[name]
    now = time.monotonic()
    by_version = {
        version.name: _capacity(version, _version_status(overview, (name, version.name), version, share, now), share)
        for version, share in service.traffic_shares()
    }
    versions = {
        version: service_capacity([capacity._replace(share=1.0)]) | {"traffic_percent": round(capacity.share * 100)}
        for version, capacity in by_version.items()
    }
    return {"service": name, **service_capacity(list(by_version.values())), "versions": versions}


async def timeline_document(overview: Overview, range_: str, names: Iterable[str]) -> dict[str, object]:
    """Return the points of all services together, and of each of `names` that is a service, already encoded as JSON.

    A service takes up to a millisecond, so the event loop does other work between two of them.
    """
    timeline = overview.timeline
    services: dict[str, orjson.Fragment] = {}
    for name in names:
        if name in overview.serving.services:
            services[name] = orjson.Fragment(orjson.dumps(timeline.points(name, range_)))
            await asyncio.sleep(0)
    return {
        "time": round(time.time(), 3),
        "seconds": RANGES[range_].seconds,
        "fields": FIELDS,
        "total": timeline.points(None, range_),
        "services": services,
    }


def requests_document(failed: Iterable[Entry], slow: Iterable[Entry]) -> dict[str, object]:
    """Return failed and slow requests of this pod. `/explain/<id>` has all that is known of one."""
    return {"failed": [_request(entry) for entry in failed], "slow": [_request(entry) for entry in slow]}


def _request(entry: Entry) -> dict[str, object]:
    return {
        "id": entry.request_id.decode(),
        "time": round(time.time() - time.monotonic() + entry.ended_at, 3),
        "status": entry.status,
        "error": entry.error_code or None,
        "seconds": round(entry.ended_at - entry.started_at, 6),
        "queued_seconds": round(entry.queued_seconds, 6),
        "version": entry.version or None,
        "replica": entry.replica or None,
    }


def _capacity(version: Version, status: VersionStatus, share: int) -> VersionCapacity:
    per_replica = version.replica_max_concurrent_requests
    return VersionCapacity(
        share=share / 100,
        slots=status["slots"],
        in_flight=status["in_flight"] + status["abandoned"],
        queued=status["queued"],
        mean_service_seconds=status["mean_service_seconds"],
        max_slots=per_replica * status["maximum"] if per_replica else None,
        target=status["target"],
    )


def _router_status(overview: Overview, now: float) -> dict[str, Any]:
    return {
        "version": __version__,
        "pod": overview.ledger_dispatcher.own_id,
        "leads": overview.leadership.leads,
        "mode": overview.effective.values.mode,
        "uptime_seconds": round(now - overview.started_at, 1),
        "scoring_url": overview.scoring_url(),
        "config_in_force": overview.config_in_force,
        "log_level": overview.log_level(),
    }


def _service_status(overview: Overview, service: Service, now: float) -> ServiceStatus:
    return {
        "name": service.name,
        "authentication": "tokens" if service.token_auth_enabled else "keys" if service.auth_enabled else "none",
        "key_header": service.key_headers[0],
        "owner": overview.ledger_dispatcher.ownership.owner(service.name),
        "standby": service.standby,
        "versions": [
            _version_status(overview, (service.name, version.name), version, share, now)
            for version, share in service.traffic_shares()
        ],
    }


def _version_status(overview: Overview, key: VersionKey, version: Version, share: int, now: float) -> VersionStatus:
    metrics = overview.version_metrics(key)
    rates = overview.activity.rates.of(key, now)
    in_flight, abandoned = _in_flight(overview, key), _abandoned(overview, key)
    decision = overview.loop.decision(key)
    fixed = version.num_replicas or 0
    return {
        "name": version.name,
        "traffic_percent": share,
        "in_flight": sum(in_flight.values()),
        "queued": metrics.queued + overview.peer_reports.waiting(key),
        "slots": metrics.slots,
        "leases_idle": metrics.leases_idle,
        "abandoned": sum(abandoned.values()),
        "suspect_slots": metrics.suspect_slots,
        "requests_per_second": round(rates.arrivals, 2),
        "refused_per_second": round(rates.refused, 2),
        "mean_service_seconds": None if rates.mean_service_seconds is None else round(rates.mean_service_seconds, 6),
        "utilization": None if metrics.utilization is None else round(metrics.utilization, 4),
        "target": metrics.target,
        "desired": metrics.desired,
        "minimum": version.autoscale_min_replicas if version.autoscale_enabled else fixed,
        "maximum": version.autoscale_max_replicas if version.autoscale_enabled else fixed,
        "slots_per_replica": version.replica_max_concurrent_requests or None,
        "autoscaled": version.autoscale_enabled,
        "reason": None if decision is None else decision.reason,
        "states": dict(metrics.replicas_by_state),
        "description": version.description,
        "tags": version.tags,
        "properties": version.properties,
        "replicas": list(_replicas(overview, key, version, in_flight, abandoned)),
    }


def _in_flight(overview: Overview, key: VersionKey) -> Counter[str]:
    """Return the number of requests in flight of this pod and of the pods that report to it, by replica. It includes
    replicas that were removed."""
    in_flight: Counter[str] = Counter()
    for report in overview.reports.of_version(key):
        in_flight.update(report.in_flight)
    for replica in overview.serving.replicas(key).replicas:
        others = overview.peer_reports.in_flight(replica.id, cordoned=False)
        if others:
            in_flight[replica.id] += others
    return in_flight


def _abandoned(overview: Overview, key: VersionKey) -> Counter[str]:
    """Return the abandoned requests of all pods that report here and that hold a slot, by replica."""
    abandoned: Counter[str] = Counter()
    for report in overview.reports.of_version(key):
        abandoned.update(report.abandoned)
    for replica in overview.serving.replicas(key).replicas:
        others = overview.peer_reports.abandoned(replica.id)
        if others:
            abandoned[replica.id] += others
    return abandoned


def _replicas(
    overview: Overview, key: VersionKey, version: Version, in_flight: Counter[str], abandoned: Counter[str]
) -> Iterator[dict[str, Any]]:
    replicas = overview.serving.replicas(key)
    ledger = overview.ledger_dispatcher.coordinator.ledger(key)
    probes = overview.probes(key)
    to_wall_clock = time.time() - time.monotonic()
    for replica in replicas.replicas[:_MAX_REPLICAS]:
        health = overview.activity.replica_health.of_replica(key, replica.id)
        probe = probes.get(replica.id)
        yield {
            "id": replica.id,
            "address": host_port(replica.host, replica.port)
            if probe or replica.state is not ReplicaState.STARTING
            else None,
            "state": "draining" if replica.id in replicas.cordoned else replica.state.value,
            "in_flight": in_flight[replica.id],
            "slots": version.replica_max_concurrent_requests or None,
            "abandoned": abandoned[replica.id],
            "suspect_slots": 0 if ledger is None else ledger.suspect_slots_of(replica.id),
            "health": None if health is None else _health(health, to_wall_clock),
            "probe": None if probe is None else _probe(probe),
        }


def _probe(probe: ProbeReport) -> dict[str, Any]:
    return {"time": round(probe.at, 1), "failure": probe.failure, "not_ready_reason": probe.not_ready_reason}


def _health(health: ReplicaHealthReport, to_wall_clock: float) -> dict[str, Any]:
    """Return what is known of a replica that has failed. `to_wall_clock` is what the epoch's clock is ahead, in
    seconds."""
    return {
        "errors": health.errors,
        "last_error": health.last_error,
        "last_probe": health.last_probe or None,
        "ejected_until": round(to_wall_clock + health.ejected_until, 3) if health.is_ejected else None,
        "ejected_for": health.reason if health.is_ejected else None,
    }


def _totals(services: list[ServiceStatus]) -> dict[str, float]:
    versions = [version for service in services for version in service["versions"]]
    return {
        "services": len(services),
        "replicas_ready": sum(version["states"][ReplicaState.READY] for version in versions),
        "in_flight": sum(version["in_flight"] for version in versions),
        "abandoned": sum(version["abandoned"] for version in versions),
        "queued": sum(version["queued"] for version in versions),
        "requests_per_second": round(sum(version["requests_per_second"] for version in versions), 2),
        "refused_per_second": round(sum(version["refused_per_second"] for version in versions), 2),
    }


def _worker_statuses(overview: Overview) -> Iterator[dict[str, Any]]:
    for worker in overview.workers.statuses():
        in_flight, queued = overview.reports.load_of(worker.name)
        yield {
            "name": worker.name,
            "pid": worker.pid,
            "state": _worker_state(worker),
            "age_seconds": round(worker.age, 1),
            "in_flight": in_flight,
            "queued": queued,
        }


def _worker_state(worker: WorkerStatus) -> str:
    if worker.draining:
        return "leaving"
    if not worker.ready:
        return "starting"
    return "stuck" if worker.stuck else "accepting"


def _peer_statuses(overview: Overview) -> list[dict[str, Any]]:
    mesh = overview.mesh
    if mesh is None:
        return []
    services = overview.serving.services
    unencrypted = mesh.unencrypted()
    owners = Counter(overview.ledger_dispatcher.ownership.owner(name) for name in services)
    peers: list[dict[str, Any]] = [
        {
            "name": peer,
            "standing": standing,
            "services_owned": owners[peer],
            "encrypted": standing == "live" and peer not in unencrypted,
        }
        for standing, group in (("live", mesh.live()), ("unreachable", mesh.unreachable()))
        for peer in sorted(group)
    ]
    unidentified = mesh.unidentified()
    for address, standing in mesh.expected_statuses().items():
        if standing not in ("live", "unreachable") or address in unidentified:
            name, known = host_port(*address), standing or "unknown"
            peers.append({"name": name, "standing": known, "services_owned": 0, "encrypted": False})
    return peers
