"""The status document: all that `/status`, `/status.json` and `azureml-fe top` show. Plain data, JSON-able.

Lives here: its shape. Must not live here: how it is sent (`routes`, `feed`) or shown. A field is only ever added, so
that programs which read it go on working.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypedDict

from router import __version__
from router.overview.capacity import VersionCapacity, of_service
from router.overview.overview import Overview
from router.services import ReplicaState, Service, Version, VersionKey
from router.workers import WorkerFacts

_REPLICAS_SHOWN = 256
"""Of one version; beyond that only their number is told, which keeps the document of a large cluster readable."""


class VersionStatus(TypedDict):
    """One version. `in_flight` and `queued` are of all pods that report here (all of them to the leader)."""

    name: str
    traffic_percent: int
    in_flight: int
    queued: int
    slots: int | None
    leases_idle: int
    requests_per_second: float
    refused_per_second: float
    mean_service_seconds: float | None
    utilization: float | None
    target: float
    desired: int
    minimum: int
    maximum: int
    autoscaled: bool
    reason: str | None
    states: dict[str, int]
    replicas: list[dict[str, Any]]


class ServiceStatus(TypedDict):
    """One service."""

    name: str
    authentication: str
    owner: str
    versions: list[VersionStatus]


class Status(TypedDict):
    """The whole document. Times of day are seconds since the epoch."""

    time: float
    router: dict[str, Any]
    totals: dict[str, float]
    services: list[ServiceStatus]
    decisions: list[dict[str, Any]]
    workers: list[dict[str, Any]]
    peers: list[dict[str, Any]]
    config_errors: list[dict[str, Any]]
    problems: list[str]
    """What is wrong now."""


def status(overview: Overview) -> Status:
    """What is so now."""
    now = time.monotonic()
    services = [_service(overview, service, now) for service in overview.served.services.values()]
    return {
        "time": round(time.time(), 3),
        "router": _router(overview, now),
        "totals": _totals(services),
        "services": services,
        "decisions": [decision._asdict() for decision in reversed(overview.decisions)],
        "workers": list(_workers(overview)),
        "peers": _peers(overview),
        "config_errors": [error._asdict() for error in reversed(overview.config_errors)],
        "problems": [problem for tell in overview.problems for problem in tell()],
    }


def capacity(overview: Overview, name: str) -> dict[str, object]:
    """How much more a service can take. Raises KeyError for one that is not served."""
    service = overview.served.services[name]
    now = time.monotonic()
    by_version = {
        version.name: _capacity(version, _version(overview, (name, version.name), version, share, now), share)
        for version, share in service.shares()
    }
    versions = {
        version: of_service([each._replace(share=1.0)]) | {"traffic_percent": round(each.share * 100)}
        for version, each in by_version.items()
    }
    return {"service": name, **of_service(list(by_version.values())), "versions": versions}


def _capacity(version: Version, seen: VersionStatus, share: int) -> VersionCapacity:
    per_replica = version.replica_max_concurrent_requests
    return VersionCapacity(
        share=share / 100,
        slots=seen["slots"],
        in_flight=seen["in_flight"],
        queued=seen["queued"],
        mean_service=seen["mean_service_seconds"],
        slots_at_most=per_replica * seen["maximum"] if per_replica else None,
        target=seen["target"],
    )


def _router(overview: Overview, now: float) -> dict[str, Any]:
    return {
        "version": __version__,
        "pod": overview.peering.own_id,
        "leads": overview.pods.leads,
        "uptime_seconds": round(now - overview.started, 1),
        "config_in_force": overview.last_reload_succeeded,
        "log_level": overview.log_level(),
    }


def _service(overview: Overview, service: Service, now: float) -> ServiceStatus:
    return {
        "name": service.name,
        "authentication": "tokens" if service.token_auth_enabled else "keys" if service.auth_enabled else "none",
        "owner": overview.peering.ownership.owner(service.name),
        "versions": [
            _version(overview, (service.name, version.name), version, share, now) for version, share in service.shares()
        ],
    }


def _version(overview: Overview, key: VersionKey, version: Version, share: int, now: float) -> VersionStatus:
    facts = overview.facts(key)
    rate = overview.rates.of(key, now)
    busy = _busy(overview, key)
    decision = overview.loop.decision(key)
    fixed = version.num_replicas or 0
    return {
        "name": version.name,
        "traffic_percent": share,
        "in_flight": sum(busy.values()),
        "queued": facts.queued + overview.pods.waiting(key),
        "slots": facts.slots,
        "leases_idle": facts.leases_idle,
        "requests_per_second": round(rate.arrivals, 2),
        "refused_per_second": round(rate.refused, 2),
        "mean_service_seconds": None if rate.mean_service is None else round(rate.mean_service, 6),
        "utilization": None if facts.utilization is None else round(facts.utilization, 4),
        "target": facts.target,
        "desired": facts.desired,
        "minimum": version.autoscale_min_replicas if version.autoscale_enabled else fixed,
        "maximum": version.autoscale_max_replicas if version.autoscale_enabled else fixed,
        "autoscaled": version.autoscale_enabled,
        "reason": None if decision is None else decision.reason,
        "states": dict(facts.replicas_by_state),
        "replicas": list(_replicas(overview, key, version, busy)),
    }


def _busy(overview: Overview, key: VersionKey) -> Counter[str]:
    """Requests in flight by replica, of all pods that report here; also at replicas that are not served any more."""
    busy: Counter[str] = Counter()
    for said in overview.reports.of(key):
        busy.update(said.busy)
    for replica in overview.served.replicas(key):
        others = overview.pods.in_flight(replica.id, closed=False)
        if others:
            busy[replica.id] += others
    return busy


def _replicas(overview: Overview, key: VersionKey, version: Version, busy: Counter[str]) -> Iterator[dict[str, Any]]:
    cordoned = overview.loop.cordoned(key)
    for replica in overview.served.replicas(key)[:_REPLICAS_SHOWN]:
        yield {
            "id": replica.id,
            "address": f"{replica.host}:{replica.port}" if replica.state is not ReplicaState.STARTING else None,
            "state": "draining" if replica.id in cordoned else replica.state.value,
            "in_flight": busy[replica.id],
            "slots": version.replica_max_concurrent_requests or None,
        }


def _totals(services: list[ServiceStatus]) -> dict[str, float]:
    versions = [version for service in services for version in service["versions"]]
    return {
        "services": len(services),
        "replicas_ready": sum(version["states"][ReplicaState.READY] for version in versions),
        "in_flight": sum(version["in_flight"] for version in versions),
        "queued": sum(version["queued"] for version in versions),
        "requests_per_second": round(sum(version["requests_per_second"] for version in versions), 2),
        "refused_per_second": round(sum(version["refused_per_second"] for version in versions), 2),
    }


def _workers(overview: Overview) -> Iterator[dict[str, Any]]:
    if overview.workers is None:
        return
    for worker in overview.workers.facts():
        in_flight, queued = overview.reports.load_of(worker.name)
        yield {
            "name": worker.name,
            "pid": worker.pid,
            "state": _state(worker),
            "age_seconds": round(worker.age, 1),
            "in_flight": in_flight,
            "queued": queued,
        }


def _state(worker: WorkerFacts) -> str:
    if worker.leaving:
        return "leaving"
    if not worker.ready:
        return "starting"
    return "stuck" if worker.stuck else "accepting"


def _peers(overview: Overview) -> list[dict[str, Any]]:
    mesh = overview.mesh
    if mesh is None:
        return []
    services = overview.served.services
    unencrypted = mesh.unencrypted()
    owners = Counter(overview.peering.ownership.owner(name) for name in services)
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
    unmet = mesh.unmet()
    for (host, port), standing in mesh.standings().items():
        if standing not in ("live", "unreachable") or (host, port) in unmet:
            name, known = f"{host}:{port}", standing or "unknown"
            peers.append({"name": name, "standing": known, "services_owned": 0, "encrypted": False})
    return peers
