"""Hypothesis strategies for every message that peers exchange."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from router.auth.issuers import Issuer
from router.config.service import parse_service
from router.model.data_collection import Collection, DataCollector
from router.model.services import Replica, ReplicaState, Service, Version
from router.peers import messages as peer_messages
from router.scaling.demand import Demand
from router.scaling.self.load import PodLoad
from router.slots import messages as slots
from router.telemetry.histogram import DURATION_BOUNDS, LAG_BOUNDS, ROUTE_BOUNDS
from router.telemetry.traffic import ERROR_KINDS, ServiceTraffic, TimelinePoints

names = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e12)
keys = st.tuples(names, names)
numbers = st.lists(counts, max_size=5).map(tuple)
replica_id_sets = st.frozensets(names, max_size=5)
held = st.dictionaries(names, counts, max_size=5)

to_ledger = (
    st.builds(slots.SlotDemand, counts, counts, numbers)
    | st.builds(slots.Return, names, counts, st.floats(0, 3600))
    | st.builds(slots.Answered, names)
    | st.builds(slots.RecallDone, counts)
    | st.builds(slots.Exclude, replica_id_sets)
    | st.builds(slots.Register, counts, counts, held, replica_id_sets, counts, counts, numbers)
)
to_lease_cache = (
    st.builds(slots.Registered, counts, counts)
    | st.builds(slots.Reregister)
    | st.builds(slots.Grant, names, counts)
    | st.builds(slots.Recall, counts, counts, counts)
    | st.builds(slots.Revoke, names)
    | st.builds(slots.Suspect, names, st.booleans())
)
demands = st.builds(Demand, seconds, seconds, seconds, counts, counts, counts, seconds)
replicas = st.builds(Replica, names, names, st.integers(0, 65535), st.sampled_from(ReplicaState))


def _histograms(bounds: tuple[float, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    buckets = len(bounds) + 1
    return st.lists(st.just(0) | counts, min_size=buckets, max_size=buckets).map(tuple)


loads = st.builds(
    PodLoad, seconds, seconds, seconds, _histograms(ROUTE_BOUNDS), _histograms(LAG_BOUNDS), counts, counts
)


def _tuples(element: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(element, max_size=5).map(tuple)


data_collectors = st.builds(
    DataCollector, _tuples(st.builds(Collection, names, st.booleans(), names)), seconds, names, _tuples(names)
)


def _any_version() -> st.SearchStrategy[Version]:
    return st.builds(
        Version,
        **{
            field: {
                bool: st.booleans(),
                int: counts,
                float: seconds,
                str: names,
                int | None: st.none() | counts,
                float | None: st.none() | seconds,
                str | None: st.none() | names,
                DataCollector | None: st.none() | data_collectors,
                Mapping[str, str]: st.dictionaries(names, names, max_size=3),
            }[kind]
            for field, kind in Version.__annotations__.items()
        },
    )


services = st.builds(
    Service,
    name=names,
    auth_enabled=st.booleans(),
    token_auth_enabled=st.booleans(),
    primary_key=st.none() | names,
    secondary_key=st.none() | names,
    forward_authorization=st.booleans(),
    keep_underscore_headers=st.booleans(),
    cors_allowed_origins=st.lists(names, max_size=3).map(tuple),
    allowed_methods=st.lists(names, max_size=3).map(tuple),
    key_headers=st.lists(names, max_size=3).map(tuple),
    versions=st.lists(_any_version(), min_size=1, max_size=2).map(tuple),
)


def _services_update(services: list[Service]) -> peer_messages.ServicesUpdate:
    return peer_messages.ServicesUpdate({service.name: service for service in services})


issuers = st.builds(
    Issuer,
    name=names,
    issuer=names,
    audience=st.lists(names, max_size=3).map(tuple),
    jwks_url=st.none() | names,
    algorithms=st.lists(names, max_size=3).map(tuple),
    required_claims=st.lists(st.tuples(names, names), max_size=3).map(tuple),
    required_roles=st.lists(names, max_size=3).map(tuple),
    services=st.lists(names, max_size=3).map(tuple),
    clock_skew_seconds=seconds,
    keys_refresh_seconds=seconds,
    keys_max_age_seconds=seconds,
    ca_file=st.none() | names,
)


def _issuers_update(issuers: list[Issuer]) -> peer_messages.TokenIssuersUpdate:
    return peer_messages.TokenIssuersUpdate({issuer.name: issuer for issuer in issuers})


explanations = st.recursive(
    st.none() | st.booleans() | counts | seconds | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)

traffic = st.builds(
    ServiceTraffic, counts, _histograms(DURATION_BOUNDS), st.tuples(*[counts] * len(ERROR_KINDS)), counts, counts,
    counts, seconds, seconds, st.none() | counts, st.none() | counts,
)  # fmt: skip

every_message: st.SearchStrategy[peer_messages.Message] = st.one_of(
    st.just(peer_messages.Heartbeat()),
    st.just(peer_messages.Goodbye()),
    st.just(peer_messages.Leaving()),
    st.builds(peer_messages.ReachabilityReport, st.frozensets(names, max_size=4)),
    st.builds(peer_messages.ForwardedLeaseRequests, names, keys, _tuples(to_ledger)),
    st.builds(peer_messages.ForwardedLedgerReplies, names, keys, _tuples(to_lease_cache)),
    st.builds(peer_messages.WorkerEnded, names),
    st.builds(
        peer_messages.HeldSnapshots,
        names,
        st.dictionaries(keys, st.builds(slots.HeldSnapshot, counts, counts, counts, held), max_size=3),
    ),
    st.builds(peer_messages.OwnerSyncComplete, names),
    st.builds(peer_messages.OwnershipRevoked, names),
    st.builds(
        peer_messages.DemandReport,
        st.dictionaries(keys, demands, max_size=3),
        st.dictionaries(names, counts, max_size=3),
        st.dictionaries(keys, counts, max_size=3),
    ),
    st.builds(peer_messages.LoadReport, loads),
    st.builds(peer_messages.PodSize, seconds),
    st.lists(services, max_size=2).map(_services_update),
    st.lists(issuers, max_size=2).map(_issuers_update),
    st.builds(peer_messages.ReplicasUpdate, keys, _tuples(replicas), st.frozensets(names, max_size=3)),
    st.builds(peer_messages.CordonsUpdate, counts, st.dictionaries(keys, st.frozensets(names, max_size=3), max_size=3)),
    st.builds(peer_messages.ExplainRequest, counts, names),
    st.builds(peer_messages.ExplainReply, counts, st.none() | st.dictionaries(names, explanations, max_size=3)),
    st.builds(
        peer_messages.TimelineSnapshot,
        st.dictionaries(names, st.builds(TimelinePoints, numbers, numbers), max_size=3),
    ),
    st.builds(peer_messages.TrafficReport, st.dictionaries(names, traffic, max_size=3)),
)


def new_service(name: str = "iris", **settings: object) -> Service:
    """Return a service with keys."""
    return parse_service(name, {"primary_key": "hunter2-primary", "secondary_key": "hunter2-second", **settings})
