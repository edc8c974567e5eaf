"""The encoding of what peers say to each other (`messages`): JSON arrays that begin with the message's name.

Two releases run side by side during an update, so what a reader does not know it passes over: messages, words about
slots, fields after the known ones, settings of a service. What it knows it checks: a value of a wrong type is a
`WireError`. A message about slots is an array without names, as it is sent while a request waits for it; the rare ones
about services have names, as their fields change with the releases.

Lives here: no I/O, no state but a count. `Services` carries keys: no message is ever to be logged, and errors do not
repeat what was sent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, get_type_hints

import orjson

from router.auth.issuers import ISSUER_SETTINGS, Issuer
from router.peers.endings import Ending
from router.peers.frames import WireError
from router.peers.messages import (
    Cordons,
    Demand,
    Explain,
    Explained,
    Felt,
    Forget,
    FrontEndGone,
    Goodbye,
    Heartbeat,
    Leases,
    Leaving,
    Message,
    PodSize,
    Reaches,
    Replicas,
    Services,
    ToHolder,
    TokenIssuers,
    Told,
    ToLedger,
)
from router.scaling import demand
from router.scaling.load import Load
from router.scaling.window import Counts, rebinned
from router.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.services import Replica, ReplicaState, Service, Version
from router.slots import messages as slots
from router.telemetry.counters import LAG_BOUNDS, ROUTE_BOUNDS
from router.values import Setting

T = TypeVar("T")


def encode(message: Message) -> bytes:
    """The payload of a message."""
    return orjson.dumps(_ENCODERS[type(message)](message))


class MessageReader:
    """Turns payloads back into messages, and counts what this release does not know."""

    __slots__ = ("unknown",)

    def __init__(self) -> None:
        self.unknown = 0  # messages, and words about slots within them

    def read(self, payload: bytes) -> Message | None:
        """The message; None for one that this release does not know. Raises `WireError`, and nothing else."""
        try:
            fields = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise WireError(Ending.GARBAGE, "payload is not JSON") from None
        if type(fields) is not list or not fields:
            raise WireError(Ending.GARBAGE, "payload is not an array that begins with a name")
        decode = _DECODERS.get(_text(fields[0]))
        if decode is None:
            self.unknown += 1
            return None
        try:
            return decode(self, fields)
        except IndexError:
            raise WireError(Ending.GARBAGE, f"{fields[0]} lacks fields") from None

    def to_ledger(self, fields: list[Any]) -> ToLedger:
        """From its array."""
        words = self._words(_list(fields[4]), _TO_LEDGER)
        return ToLedger(_text(fields[1]), (_text(fields[2]), _text(fields[3])), words)

    def to_holder(self, fields: list[Any]) -> ToHolder:
        """From its array."""
        words = self._words(_list(fields[4]), _TO_HOLDER)
        return ToHolder(_text(fields[1]), (_text(fields[2]), _text(fields[3])), words)

    def _words(self, packed: list[Any], table: Mapping[str, Callable[[list[Any]], T]]) -> tuple[T, ...]:
        words = []
        for fields in packed:
            decode = table.get(_text(_list(fields)[0]))
            if decode is None:
                self.unknown += 1
            else:
                words.append(decode(fields))
        return tuple(words)


# Words about slots.


def _encode_word(word: slots.ToLedger | slots.ToHolder) -> list[object]:
    match word:
        case slots.Wants():
            return ["wants", word.wanted_upto, word.served_upto, word.cancelled]
        case slots.Return():
            return ["return", word.replica, word.count]
        case slots.Avoid():
            return ["avoid", sorted(word.replicas)]
        case slots.Welcome():
            return ["welcome", word.holder, word.session]
        case slots.SayHello():
            return ["say-hello"]
        case slots.Grant():
            return ["grant", word.replica, word.want]
        case slots.Recall():
            return ["recall", word.count, word.after]
        case slots.Revoke():
            return ["revoke", word.replica]
        case slots.Hello():
            held, avoided = dict(word.held), sorted(word.avoided)
            return [
                "hello", word.holder, word.session, held, avoided, word.wanted_upto, word.served_upto, word.cancelled,
            ]  # fmt: skip


_TO_LEDGER: dict[str, Callable[[list[Any]], slots.ToLedger]] = {
    "wants": lambda f: slots.Wants(_count(f[1]), _count(f[2]), _numbers(f[3])),
    "return": lambda f: slots.Return(_text(f[1]), _count(f[2])),
    "avoid": lambda f: slots.Avoid(frozenset(_texts(f[1]))),
    "hello": lambda f: slots.Hello(
        _count(f[1]), _count(f[2]), _counts(f[3]), frozenset(_texts(f[4])), _count(f[5]), _count(f[6]), _numbers(f[7])
    ),
}

_TO_HOLDER: dict[str, Callable[[list[Any]], slots.ToHolder]] = {
    "welcome": lambda f: slots.Welcome(_count(f[1]), _count(f[2])),
    "say-hello": lambda f: slots.SayHello(),
    "grant": lambda f: slots.Grant(_text(f[1]), _count(f[2])),
    "recall": lambda f: slots.Recall(_count(f[1]), _count(f[2])),
    "revoke": lambda f: slots.Revoke(_text(f[1])),
}


# Values.


def _text(value: object) -> str:
    if type(value) is not str:
        raise WireError(Ending.GARBAGE, "is not text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:  # type, as a bool is an int to isinstance
        raise WireError(Ending.GARBAGE, "is not a whole number >= 0")
    return value


def _number(value: object) -> float:
    if type(value) is not float and type(value) is not int:
        raise WireError(Ending.GARBAGE, "is not a number")
    return float(value)


def _flag(value: object) -> bool:
    if type(value) is not bool:
        raise WireError(Ending.GARBAGE, "is neither true nor false")
    return value


def _list(value: object) -> list[Any]:
    if type(value) is not list:
        raise WireError(Ending.GARBAGE, "is not an array")
    return value


def _object(value: object) -> dict[str, Any]:
    if type(value) is not dict:
        raise WireError(Ending.GARBAGE, "is not an object")
    return value


def _counts(value: object) -> dict[str, int]:
    return {name: _count(count) for name, count in _object(value).items()}


def _numbers(value: object) -> tuple[int, ...]:
    return tuple([_count(each) for each in _list(value)])


def _texts(value: object) -> tuple[str, ...]:
    return tuple([_text(each) for each in _list(value)])


def _pairs(value: object) -> tuple[tuple[str, str], ...]:
    return tuple([(_text(each[0]), _text(each[1])) for each in map(_list, _list(value))])


def _optional(check: Callable[[object], T]) -> Callable[[object], T | None]:
    return lambda value: None if value is None else check(value)


# Services and versions: fields by name, as they change with the releases.


class _Field(NamedTuple):
    check: Callable[[object], object]
    default: object  # None if there is none


def _record(kind: type[T], raw: object, table: Mapping[str, _Field]) -> T:
    """A dataclass from an object. Unknown names are passed over; missing ones have the default of their setting."""
    if type(raw) is not dict:
        raise WireError(Ending.GARBAGE, f"{kind.__name__} is not an object")
    values: dict[str, object] = {}
    for name, (check, default) in table.items():
        if name not in raw and default is not None:
            values[name] = default
            continue
        try:
            values[name] = check(raw.get(name))
        except WireError as error:
            raise WireError(Ending.GARBAGE, f"{kind.__name__}.{name}: {error}") from None
    return kind(**values)


def _version(raw: object) -> Version:
    return _record(Version, raw, _VERSION)


def _service(raw: object) -> Service:
    return _record(Service, raw, _SERVICE)


def _versions(raw: object) -> tuple[Version, ...]:
    versions = tuple([_version(each) for each in _list(raw)])
    if not versions:
        raise WireError(Ending.GARBAGE, "is empty")
    return versions


def _fields(kind: type, settings: tuple[Setting, ...]) -> dict[str, _Field]:
    """The table of a dataclass. Raises `KeyError` where a field has a type that no check is known for."""
    defaults = {setting.name: setting.default for setting in settings}
    return {name: _Field(_CHECKS[hint], defaults.get(name)) for name, hint in get_type_hints(kind).items()}


_CHECKS: dict[object, Callable[[object], object]] = {
    bool: _flag,
    int: _count,
    float: _number,
    str: _text,
    int | None: _optional(_count),
    float | None: _optional(_number),
    str | None: _optional(_text),
    tuple[str, ...]: _texts,
    tuple[Version, ...]: _versions,
    tuple[tuple[str, str], ...]: _pairs,
}
_VERSION = _fields(Version, VERSION_SETTINGS)
_SERVICE = _fields(Service, SERVICE_SETTINGS)
_ISSUER = _fields(Issuer, tuple(setting for setting in ISSUER_SETTINGS if setting.name != "required_claims"))


def _replica(fields: list[Any]) -> Replica:
    try:
        state = ReplicaState(_text(fields[3]))
    except ValueError:  # its text would repeat what came; a WireError is one, too
        raise WireError(Ending.GARBAGE, "replica of unknown state") from None
    return Replica(_text(fields[0]), _text(fields[1]), _count(fields[2]), state)


def _demand(fields: list[Any]) -> demand.Demand:
    seconds, busy, queued = _number(fields[2]), _number(fields[3]), _number(fields[4])
    arrivals, refused, completed = _count(fields[5]), _count(fields[6]), _count(fields[7])
    service = _number(fields[8])
    try:
        return demand.Demand(seconds, busy, queued, arrivals, refused, completed, service)
    except ValueError:
        raise WireError(Ending.GARBAGE, "demand is negative or not finite") from None


# Messages.


def _encode_demand(message: Demand) -> list[object]:
    reports = [
        [*key, d.seconds, d.busy_seconds, d.queued_seconds, d.arrivals, d.refused, d.completed, d.service_seconds]
        for key, d in message.reports.items()
    ]
    waiting = [[*key, count] for key, count in message.waiting.items()]
    return ["demand", reports, dict(message.busy), waiting, sorted(message.closed)]


def _decode_demand(_: MessageReader, fields: list[Any]) -> Demand:
    reports = {(_text(each[0]), _text(each[1])): _demand(each) for each in map(_list, _list(fields[1]))}
    waiting = {(_text(each[0]), _text(each[1])): _count(each[2]) for each in map(_list, _list(fields[3]))}
    return Demand(reports, _counts(fields[2]), waiting, frozenset(_texts(fields[4])))


def _encode_leases(message: Leases) -> list[object]:
    holds = [[*key, h.holder, h.session, h.heard, dict(h.held)] for key, h in message.holds.items()]
    return ["leases", message.front_end, holds]


def _decode_leases(_: MessageReader, fields: list[Any]) -> Leases:
    holds = {
        (_text(each[0]), _text(each[1])): slots.Holds(
            _count(each[2]), _count(each[3]), _count(each[4]), _counts(each[5])
        )
        for each in map(_list, _list(fields[2]))
    }
    return Leases(_text(fields[1]), holds)


def _encode_felt(message: Felt) -> list[object]:
    load = message.load
    histograms = (_encode_counts(load.route_time, ROUTE_BOUNDS), _encode_counts(load.loop_lag, LAG_BOUNDS))
    return ["felt", load.seconds, load.cpus, load.cpu_seconds, *histograms]


def _encode_counts(counts: Counts, bounds: tuple[float, ...]) -> list[tuple[float | None, int]]:
    """A histogram by its bounds, as another release may have others. None stands for what is above all of them."""
    return [(bound, count) for bound, count in zip((*bounds, None), counts, strict=True) if count]


def _decode_felt(_: MessageReader, fields: list[Any]) -> Felt:
    seconds, cpus, cpu_seconds = _number(fields[1]), _number(fields[2]), _number(fields[3])
    route_time = _decode_counts(fields[4], ROUTE_BOUNDS)
    loop_lag = _decode_counts(fields[5], LAG_BOUNDS)
    try:
        return Felt(Load(seconds, cpus, cpu_seconds, route_time, loop_lag))
    except ValueError:
        raise WireError(Ending.GARBAGE, "load is negative or not finite") from None


def _decode_counts(value: object, bounds: tuple[float, ...]) -> tuple[int, ...]:
    pairs = [(math.inf if each[0] is None else _number(each[0]), _count(each[1])) for each in map(_list, _list(value))]
    return rebinned(pairs, bounds)


def _decode_services(_: MessageReader, fields: list[Any]) -> Services:
    return Services({service.name: service for service in map(_service, _list(fields[1]))})


def _decode_issuers(_: MessageReader, fields: list[Any]) -> TokenIssuers:
    issuers = [_record(Issuer, each, _ISSUER) for each in _list(fields[1])]
    return TokenIssuers({issuer.name: issuer for issuer in issuers})


def _encode_replicas(message: Replicas) -> list[object]:
    replicas = [[r.id, r.host, r.port, r.state.value] for r in message.replicas]
    return ["replicas", *message.key, replicas, sorted(message.cordoned)]


def _decode_replicas(_: MessageReader, fields: list[Any]) -> Replicas:
    replicas = tuple([_replica(_list(each)) for each in _list(fields[3])])
    return Replicas((_text(fields[1]), _text(fields[2])), replicas, frozenset(_texts(fields[4])))


def _decode_cordons(_: MessageReader, fields: list[Any]) -> Cordons:
    cordoned = {(_text(each[0]), _text(each[1])): frozenset(_texts(each[2])) for each in map(_list, _list(fields[2]))}
    return Cordons(_count(fields[1]), cordoned)


_ENCODERS: dict[type, Callable[[Any], list[object]]] = {
    Heartbeat: lambda _: ["heartbeat"],
    Goodbye: lambda _: ["goodbye"],
    Leaving: lambda _: ["leaving"],
    Reaches: lambda m: ["reaches", sorted(m.peers)],
    ToLedger: lambda m: ["to-ledger", m.front_end, *m.key, [_encode_word(word) for word in m.messages]],
    ToHolder: lambda m: ["to-holder", m.front_end, *m.key, [_encode_word(word) for word in m.messages]],
    Leases: _encode_leases,
    FrontEndGone: lambda m: ["front-end-gone", m.front_end],
    Told: lambda m: ["told", m.service],
    Forget: lambda m: ["forget", m.service],
    Demand: _encode_demand,
    Felt: _encode_felt,
    PodSize: lambda m: ["pod-size", m.cpus],
    Services: lambda m: ["services", list(m.services.values())],  # orjson writes dataclasses as objects
    TokenIssuers: lambda m: ["token-issuers", list(m.issuers.values())],
    Replicas: _encode_replicas,
    Cordons: lambda m: ["cordons", m.term, [[*key, sorted(ids)] for key, ids in m.cordoned.items()]],
    Explain: lambda m: ["explain", m.question, m.request_id],
    Explained: lambda m: ["explained", m.question, m.explanation],
}

_DECODERS: dict[str, Callable[[MessageReader, list[Any]], Message]] = {
    "heartbeat": lambda _, f: Heartbeat(),
    "goodbye": lambda _, f: Goodbye(),
    "leaving": lambda _, f: Leaving(),
    "reaches": lambda _, f: Reaches(frozenset(_texts(f[1]))),
    "to-ledger": MessageReader.to_ledger,
    "to-holder": MessageReader.to_holder,
    "leases": _decode_leases,
    "front-end-gone": lambda _, f: FrontEndGone(_text(f[1])),
    "told": lambda _, f: Told(_text(f[1])),
    "forget": lambda _, f: Forget(_text(f[1])),
    "demand": _decode_demand,
    "felt": _decode_felt,
    "pod-size": lambda _, f: PodSize(_number(f[1])),
    "services": _decode_services,
    "token-issuers": _decode_issuers,
    "replicas": _decode_replicas,
    "cordons": _decode_cordons,
    "explain": lambda _, f: Explain(_count(f[1]), _text(f[2])),
    "explained": lambda _, f: Explained(_count(f[1]), _optional(_object)(f[2])),
}
