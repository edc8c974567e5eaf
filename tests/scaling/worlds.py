"""Versions, demands and facts as tests of scaling name them."""

from router.scaling.demand import Demand
from router.scaling.scaler import ReplicaFacts
from router.services import ReplicaState, Version, parse_service


def version(**settings: object) -> Version:
    """A version with these settings and the defaults for all others."""
    return parse_service("iris", settings).default_version


def load(busy: float = 0.0, queued: float = 0.0, seconds: float = 1.0) -> Demand:
    """An interval in which, on average, so many requests were in flight and waiting."""
    return Demand(seconds=seconds, busy_seconds=busy * seconds, queued_seconds=queued * seconds)


def ready(name: str, in_flight: int = 0, *, cordoned: bool = False, started_at: float = 0.0) -> ReplicaFacts:
    return ReplicaFacts(name, ReplicaState.READY, in_flight, cordoned, started_at)


def starting(name: str, *, cordoned: bool = False, started_at: float = 0.0) -> ReplicaFacts:
    return ReplicaFacts(name, ReplicaState.STARTING, 0, cordoned, started_at)


def draining(name: str, in_flight: int = 0, *, cordoned: bool = False) -> ReplicaFacts:
    return ReplicaFacts(name, ReplicaState.DRAINING, in_flight, cordoned, 0.0)
