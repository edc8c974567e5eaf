"""The encoding of the messages between peers (`messages`): JSON arrays that begin with the message's tag.

The format consists of the tags, the order of an array's fields and the names of an object's fields. Pods of two
releases run at the same time during a rolling upgrade, so the format may only change together with the protocol version
(`handshake`). Renaming a class here does not change the format.

For the same reason, a release ignores what it does not recognize: messages, messages about slots within them, fields
after the known ones, settings of a service. Everything else is checked, and a value of a wrong type raises `WireError`.

Messages about slots are arrays without field names, which are faster, because requests wait for them. Errors never
contain received data, because `ServicesUpdate` contains keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from router.model.services import VersionKey
from router.peers.messages import (
    CordonsUpdate,
    DemandReport,
    ExplainReply,
    ExplainRequest,
    ForwardedLeaseRequests,
    ForwardedLedgerReplies,
    Goodbye,
    Heartbeat,
    HeldSnapshots,
    Leaving,
    LoadReport,
    Message,
    OwnershipRevoked,
    OwnerSyncComplete,
    PodSize,
    ReachabilityReport,
    ReplicasUpdate,
    ServicesUpdate,
    TimelineSnapshot,
    TokenIssuersUpdate,
    TrafficReport,
    WorkerEnded,
)
from router.peers.wire_services import decode_issuer, decode_replica, decode_service, encode_replica
from router.peers.wire_traffic import decode_points, decode_traffic, encode_traffic
from router.peers.wire_values import (
    as_array,
    as_count,
    as_counts,
    as_counts_by_name,
    as_flag,
    as_histogram,
    as_number,
    as_object,
    as_rows,
    as_text,
    as_text_set,
    as_version_key,
    encode_histogram,
    malformed,
    optional,
)
from router.scaling.demand import Demand
from router.scaling.self.load import PodLoad
from router.slots import messages as slots
from router.telemetry.histogram import LAG_BOUNDS, ROUTE_BOUNDS


def encode(message: Message) -> bytes:
    """Return the payload of a message."""
    codec = _BY_CLASS[type(message)]
    return orjson.dumps([codec.tag, *codec.encode(message)])


def decode(payload: bytes) -> Message | None:
    """Return the message of a payload, or None if this release does not recognize its tag. Raises `WireError` only."""
    try:
        fields = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise malformed("payload is not JSON") from None
    if type(fields) is not list or not fields:
        raise malformed("payload is not an array that begins with a tag")
    codec = _BY_TAG.get(as_text(fields[0]))
    if codec is None:
        return None
    try:
        message: Message = codec.decode(fields)
    except IndexError:
        raise malformed(f"{codec.tag} lacks fields") from None
    return message


class _Codec(NamedTuple):
    """The encoding of the messages of one class."""

    message: type
    tag: str
    """The first element of the array. It may only change with the protocol version."""
    encode: Callable[[Any], Sequence[object]]
    """Returns the fields after the tag."""
    decode: Callable[[list[Any]], Any]
    """Returns the message from the array, whose first field is at index 1. Raises `WireError`, or `IndexError`."""


def _by_tag(codecs: Sequence[_Codec]) -> dict[str, _Codec]:
    return {codec.tag: codec for codec in codecs}


# Messages about the slots of one version.

_TO_LEDGER = (
    _Codec(
        slots.SlotDemand,
        "wants",
        lambda m: (m.wanted_up_to, m.served_up_to, m.cancelled),
        lambda f: slots.SlotDemand(as_count(f[1]), as_count(f[2]), as_counts(f[3])),
    ),
    _Codec(
        slots.Return,
        "return",
        lambda m: (m.replica, m.count, m.suspect_seconds),
        lambda f: slots.Return(as_text(f[1]), as_count(f[2]), as_number(f[3]) if len(f) > 3 else 0.0),
    ),
    _Codec(
        slots.Answered,
        "answered",
        lambda m: (m.replica,),
        lambda f: slots.Answered(as_text(f[1])),
    ),
    _Codec(
        slots.RecallDone,
        "recalled",
        lambda m: (m.number,),
        lambda f: slots.RecallDone(as_count(f[1])),
    ),
    _Codec(
        slots.Exclude,
        "avoid",
        lambda m: (sorted(m.replicas),),
        lambda f: slots.Exclude(as_text_set(f[1])),
    ),
    _Codec(
        slots.Register,
        "hello",
        lambda m: (
            m.cache_id, m.session, dict(m.held), sorted(m.excluded), m.wanted_up_to, m.served_up_to, m.cancelled,
        ),
        lambda f: slots.Register(
            as_count(f[1]), as_count(f[2]), as_counts_by_name(f[3]), as_text_set(f[4]), as_count(f[5]), as_count(f[6]),
            as_counts(f[7]),
        ),
    ),
)  # fmt: skip

_TO_LEASE_CACHE = (
    _Codec(
        slots.Registered,
        "welcome",
        lambda m: (m.cache_id, m.session),
        lambda f: slots.Registered(as_count(f[1]), as_count(f[2])),
    ),
    _Codec(
        slots.Reregister,
        "say-hello",
        lambda _: (),
        lambda _: slots.Reregister(),
    ),
    _Codec(
        slots.Grant,
        "grant",
        lambda m: (m.replica, m.waiter),
        lambda f: slots.Grant(as_text(f[1]), as_count(f[2])),
    ),
    _Codec(
        slots.Recall,
        "recall",
        lambda m: (m.count, m.after_waiter, m.number),
        lambda f: slots.Recall(as_count(f[1]), as_count(f[2]), as_count(f[3]) if len(f) > 3 else 0),
    ),
    _Codec(
        slots.Revoke,
        "revoke",
        lambda m: (m.replica,),
        lambda f: slots.Revoke(as_text(f[1])),
    ),
    _Codec(
        slots.Suspect,
        "suspect",
        lambda m: (m.replica, m.suspect),
        lambda f: slots.Suspect(as_text(f[1]), as_flag(f[2])),
    ),
)

_SLOT_CODECS = {codec.message: codec for codec in (*_TO_LEDGER, *_TO_LEASE_CACHE)}
_TO_LEDGER_BY_TAG = _by_tag(_TO_LEDGER)
_TO_LEASE_CACHE_BY_TAG = _by_tag(_TO_LEASE_CACHE)


def _encode_forwarded(message: ForwardedLeaseRequests | ForwardedLedgerReplies) -> list[object]:
    encoded = []
    for each in message.messages:
        codec = _SLOT_CODECS[type(each)]
        encoded.append([codec.tag, *codec.encode(each)])
    return [message.worker_id, *message.key, encoded]


def _decode_forwarded(value: object, codecs: Mapping[str, _Codec]) -> tuple[Any, ...]:
    messages = []
    for fields in as_rows(value):
        codec = codecs.get(as_text(fields[0]))
        if codec is not None:
            messages.append(codec.decode(fields))
    return tuple(messages)


def _decode_lease_requests(fields: list[Any]) -> ForwardedLeaseRequests:
    messages = _decode_forwarded(fields[4], _TO_LEDGER_BY_TAG)
    return ForwardedLeaseRequests(as_text(fields[1]), as_version_key(fields[2], fields[3]), messages)


def _decode_ledger_replies(fields: list[Any]) -> ForwardedLedgerReplies:
    messages = _decode_forwarded(fields[4], _TO_LEASE_CACHE_BY_TAG)
    return ForwardedLedgerReplies(as_text(fields[1]), as_version_key(fields[2], fields[3]), messages)


def _encode_snapshots(message: HeldSnapshots) -> list[object]:
    snapshots = [[*key, s.cache_id, s.session, s.acked_grants, dict(s.held)] for key, s in message.snapshots.items()]
    return [message.worker_id, snapshots]


def _decode_snapshots(fields: list[Any]) -> HeldSnapshots:
    snapshots = {
        as_version_key(row[0], row[1]): slots.HeldSnapshot(
            as_count(row[2]), as_count(row[3]), as_count(row[4]), as_counts_by_name(row[5])
        )
        for row in as_rows(fields[2])
    }
    return HeldSnapshots(as_text(fields[1]), snapshots)


# Messages to or from the leader.


def _encode_demand(message: DemandReport) -> list[object]:
    demand = [
        [*key, d.seconds, d.busy_seconds, d.queued_seconds, d.arrivals, d.refused, d.completed, d.service_seconds]
        for key, d in message.demand.items()
    ]
    waiting = [[*key, requests] for key, requests in message.waiting.items()]
    return [
        demand,
        dict(message.in_flight),
        waiting,
        sorted(message.acked_cordons),
        dict(message.streaming),
        dict(message.abandoned),
    ]


def _decode_demand(fields: list[Any]) -> DemandReport:
    demand = {as_version_key(row[0], row[1]): _decode_version_demand(row) for row in as_rows(fields[1])}
    waiting = {as_version_key(row[0], row[1]): as_count(row[2]) for row in as_rows(fields[3])}
    streaming = as_counts_by_name(fields[5]) if len(fields) > 5 else {}
    abandoned = as_counts_by_name(fields[6]) if len(fields) > 6 else {}
    return DemandReport(demand, as_counts_by_name(fields[2]), waiting, as_text_set(fields[4]), streaming, abandoned)


def _decode_version_demand(row: list[Any]) -> Demand:
    seconds, busy_seconds, queued_seconds = as_number(row[2]), as_number(row[3]), as_number(row[4])
    arrivals, refused, completed = as_count(row[5]), as_count(row[6]), as_count(row[7])
    service_seconds = as_number(row[8])
    try:
        return Demand(seconds, busy_seconds, queued_seconds, arrivals, refused, completed, service_seconds)
    except ValueError:
        raise malformed("demand is negative or not finite") from None


def _encode_load(message: LoadReport) -> list[object]:
    load = message.load
    histograms = (encode_histogram(load.route_time, ROUTE_BOUNDS), encode_histogram(load.loop_lag, LAG_BOUNDS))
    return [load.seconds, load.cpus, load.cpu_seconds, *histograms, load.periods, load.throttled_periods]


def _decode_load(fields: list[Any]) -> LoadReport:
    seconds, cpus, cpu_seconds = as_number(fields[1]), as_number(fields[2]), as_number(fields[3])
    route_time = as_histogram(fields[4], ROUTE_BOUNDS)
    loop_lag = as_histogram(fields[5], LAG_BOUNDS)
    periods, throttled = (as_count(fields[6]), as_count(fields[7])) if len(fields) > 7 else (0, 0)
    try:
        return LoadReport(PodLoad(seconds, cpus, cpu_seconds, route_time, loop_lag, periods, throttled))
    except ValueError:
        raise malformed("load is negative or not finite") from None


def _encode_cordons(message: CordonsUpdate) -> list[object]:
    return [message.term, _encode_ids(message.cordoned), _encode_ids(message.aborted)]


def _decode_cordons(fields: list[Any]) -> CordonsUpdate:
    aborted = _decode_ids(fields[3]) if len(fields) > 3 else {}
    return CordonsUpdate(as_count(fields[1]), _decode_ids(fields[2]), aborted)


def _encode_ids(ids_by_version: Mapping[VersionKey, frozenset[str]]) -> list[list[object]]:
    return [[*key, sorted(replicas)] for key, replicas in ids_by_version.items()]


def _decode_ids(value: object) -> dict[VersionKey, frozenset[str]]:
    return {as_version_key(row[0], row[1]): as_text_set(row[2]) for row in as_rows(value)}


# Messages to joined routers.


def _decode_services(fields: list[Any]) -> ServicesUpdate:
    return ServicesUpdate({service.name: service for service in map(decode_service, as_array(fields[1]))})


def _decode_issuers(fields: list[Any]) -> TokenIssuersUpdate:
    return TokenIssuersUpdate({issuer.name: issuer for issuer in map(decode_issuer, as_array(fields[1]))})


def _encode_replicas(message: ReplicasUpdate) -> list[object]:
    replicas = [encode_replica(replica) for replica in message.replicas]
    return [*message.key, replicas, sorted(message.cordoned), sorted(message.aborted)]


def _decode_replicas(fields: list[Any]) -> ReplicasUpdate:
    replicas = tuple([decode_replica(row) for row in as_rows(fields[3])])
    aborted = as_text_set(fields[5]) if len(fields) > 5 else frozenset()
    return ReplicasUpdate(as_version_key(fields[1], fields[2]), replicas, as_text_set(fields[4]), aborted)


_CODECS = (
    _Codec(Heartbeat, "heartbeat", lambda _: (), lambda _: Heartbeat()),
    _Codec(Goodbye, "goodbye", lambda _: (), lambda _: Goodbye()),
    _Codec(Leaving, "leaving", lambda _: (), lambda _: Leaving()),
    _Codec(
        ReachabilityReport, "reaches", lambda m: (sorted(m.peers),), lambda f: ReachabilityReport(as_text_set(f[1]))
    ),
    _Codec(ForwardedLeaseRequests, "to-ledger", _encode_forwarded, _decode_lease_requests),
    _Codec(ForwardedLedgerReplies, "to-holder", _encode_forwarded, _decode_ledger_replies),
    _Codec(HeldSnapshots, "leases", _encode_snapshots, _decode_snapshots),
    _Codec(WorkerEnded, "front-end-gone", lambda m: (m.worker_id,), lambda f: WorkerEnded(as_text(f[1]))),
    _Codec(OwnerSyncComplete, "told", lambda m: (m.service,), lambda f: OwnerSyncComplete(as_text(f[1]))),
    _Codec(OwnershipRevoked, "forget", lambda m: (m.service,), lambda f: OwnershipRevoked(as_text(f[1]))),
    _Codec(DemandReport, "demand", _encode_demand, _decode_demand),
    _Codec(LoadReport, "felt", _encode_load, _decode_load),
    _Codec(PodSize, "pod-size", lambda m: (m.cpus,), lambda f: PodSize(as_number(f[1]))),
    _Codec(ServicesUpdate, "services", lambda m: (list(m.services.values()),), _decode_services),
    _Codec(TokenIssuersUpdate, "token-issuers", lambda m: (list(m.issuers.values()),), _decode_issuers),
    _Codec(ReplicasUpdate, "replicas", _encode_replicas, _decode_replicas),
    _Codec(CordonsUpdate, "cordons", _encode_cordons, _decode_cordons),
    _Codec(
        ExplainRequest,
        "explain",
        lambda m: (m.query_id, m.request_id),
        lambda f: ExplainRequest(as_count(f[1]), as_text(f[2])),
    ),
    _Codec(
        ExplainReply,
        "explained",
        lambda m: (m.query_id, m.explanation),
        lambda f: ExplainReply(as_count(f[1]), optional(as_object)(f[2])),
    ),
    _Codec(
        TrafficReport,
        "traffic",
        lambda m: (encode_traffic(m.services),),
        lambda f: TrafficReport(decode_traffic(f[1])),
    ),
    _Codec(
        TimelineSnapshot,
        "timeline",
        lambda m: ([(name, *points) for name, points in m.services.items()],),
        lambda f: TimelineSnapshot(decode_points(f[1])),
    ),
)  # fmt: skip
_BY_CLASS = {codec.message: codec for codec in _CODECS}
_BY_TAG = _by_tag(_CODECS)
