"""Builders of versions, demand and replica facts for tests of scaling."""

from router.config.service import parse_service
from router.model.services import ReplicaState, Version
from router.scaling.demand import Demand
from router.scaling.replica_reconciler import ReplicaFacts


def version(**settings: object) -> Version:
    """Return a version with these settings and defaults for all others."""
    return parse_service("iris", settings).default_version


def demand_of(busy: float = 0.0, queued: float = 0.0, seconds: float = 1.0) -> Demand:
    """Return the demand of an interval with this average number of requests in flight and queued."""
    return Demand(seconds=seconds, busy_seconds=busy * seconds, queued_seconds=queued * seconds)


def ready(
    name: str, in_flight: int = 0, *, cordoned: bool = False, started_at: float = 0.0, streaming: int = 0
) -> ReplicaFacts:
    return ReplicaFacts(name, ReplicaState.READY, in_flight, cordoned, started_at, streaming)


def starting(name: str, *, cordoned: bool = False, started_at: float = 0.0) -> ReplicaFacts:
    return ReplicaFacts(name, ReplicaState.STARTING, 0, cordoned, started_at)


def draining(name: str, in_flight: int = 0, *, cordoned: bool = False) -> ReplicaFacts:
    return ReplicaFacts(name, ReplicaState.DRAINING, in_flight, cordoned, 0.0)
