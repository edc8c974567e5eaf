"""Strategies for every message that peers exchange."""

from typing import Any

from hypothesis import strategies as st

from router.auth.issuers import Issuer
from router.peers import messages as peer_messages
from router.scaling.demand import Demand
from router.scaling.load import Load
from router.services import Replica, ReplicaState, Service, Version, parse_service
from router.slots import messages as slots
from router.telemetry.counters import LAG_BOUNDS, ROUTE_BOUNDS

names = st.text(st.characters(codec="utf-8"), max_size=20)
counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e12)
keys = st.tuples(names, names)
numbers = st.lists(counts, max_size=5).map(tuple)
replica_ids = st.frozensets(names, max_size=5)
held = st.dictionaries(names, counts, max_size=5)

to_ledger = (
    st.builds(slots.Wants, counts, counts, numbers)
    | st.builds(slots.Return, names, counts)
    | st.builds(slots.Avoid, replica_ids)
    | st.builds(slots.Hello, counts, counts, held, replica_ids, counts, counts, numbers)
)
to_holder = (
    st.builds(slots.Welcome, counts, counts)
    | st.builds(slots.SayHello)
    | st.builds(slots.Grant, names, counts)
    | st.builds(slots.Recall, counts, counts)
    | st.builds(slots.Revoke, names)
)
demands = st.builds(Demand, seconds, seconds, seconds, counts, counts, counts, seconds)
replicas = st.builds(Replica, names, names, st.integers(0, 65535), st.sampled_from(ReplicaState))


def _histograms(bounds: tuple[float, ...]) -> st.SearchStrategy[tuple[int, ...]]:
    buckets = len(bounds) + 1
    return st.lists(st.just(0) | counts, min_size=buckets, max_size=buckets).map(tuple)


loads = st.builds(Load, seconds, seconds, seconds, _histograms(ROUTE_BOUNDS), _histograms(LAG_BOUNDS))


def _words(word: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(word, max_size=5).map(tuple)


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
    versions=st.lists(_any_version(), min_size=1, max_size=2).map(tuple),
)


def _by_name(found: list[Service]) -> peer_messages.Services:
    return peer_messages.Services({service.name: service for service in found})


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


def _by_issuer(found: list[Issuer]) -> peer_messages.TokenIssuers:
    return peer_messages.TokenIssuers({issuer.name: issuer for issuer in found})


explained = st.recursive(
    st.none() | st.booleans() | counts | seconds | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)

every_message: st.SearchStrategy[peer_messages.Message] = st.one_of(
    st.just(peer_messages.Heartbeat()),
    st.just(peer_messages.Goodbye()),
    st.just(peer_messages.Leaving()),
    st.builds(peer_messages.Reaches, st.frozensets(names, max_size=4)),
    st.builds(peer_messages.ToLedger, names, keys, _words(to_ledger)),
    st.builds(peer_messages.ToHolder, names, keys, _words(to_holder)),
    st.builds(peer_messages.FrontEndGone, names),
    st.builds(
        peer_messages.Leases,
        names,
        st.dictionaries(keys, st.builds(slots.Holds, counts, counts, counts, held), max_size=3),
    ),
    st.builds(peer_messages.Told, names),
    st.builds(peer_messages.Forget, names),
    st.builds(
        peer_messages.Demand,
        st.dictionaries(keys, demands, max_size=3),
        st.dictionaries(names, counts, max_size=3),
        st.dictionaries(keys, counts, max_size=3),
    ),
    st.builds(peer_messages.Felt, loads),
    st.builds(peer_messages.PodSize, seconds),
    st.lists(services, max_size=2).map(_by_name),
    st.lists(issuers, max_size=2).map(_by_issuer),
    st.builds(peer_messages.Replicas, keys, _words(replicas), st.frozensets(names, max_size=3)),
    st.builds(peer_messages.Cordons, counts, st.dictionaries(keys, st.frozensets(names, max_size=3), max_size=3)),
    st.builds(peer_messages.Explain, counts, names),
    st.builds(peer_messages.Explained, counts, st.none() | st.dictionaries(names, explained, max_size=3)),
)


def a_service(name: str = "iris", **settings: object) -> Service:
    """A service with its keys."""
    return parse_service(name, {"primary_key": "hunter2-primary", "secondary_key": "hunter2-second", **settings})
