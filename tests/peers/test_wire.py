"""Decoding checks known messages and fields, and ignores unknown ones."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.model.services import Service, Version
from router.peers import messages as peer_messages
from router.peers.close_reason import CloseReason
from router.peers.frames import WireError
from router.peers.wire import decode, encode
from router.slots import messages as slots
from router.telemetry.histogram import ROUTE_BOUNDS
from tests.peers.message_strategies import every_message, new_service

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)
TAGS = [
    "heartbeat", "goodbye", "leaving", "to-ledger", "to-holder", "front-end-gone", "told", "forget", "demand", "felt",
    "pod-size", "services", "replicas",
]  # fmt: skip
LEASE_REQUESTS = peer_messages.ForwardedLeaseRequests(
    "pod-1/worker-0", ("iris", "blue"), (slots.SlotDemand(7, 3, (5,)),)
)


def encode_altered(message: peer_messages.Message, *path: int | str, to: object) -> bytes:
    """Return the payload of a message with the value at `path` replaced."""
    fields: Any = orjson.loads(encode(message))
    container = fields
    for step in path[:-1]:
        container = container[step]
    container[path[-1]] = to
    return orjson.dumps(fields)


@given(every_message)
def test_every_message_is_decoded_as_it_was_encoded(message: peer_messages.Message) -> None:
    assert decode(encode(message)) == message


@given(st.binary(max_size=100))
def test_garbage_raises_nothing_but_wire_error(garbage: bytes) -> None:
    with contextlib.suppress(WireError):
        decode(garbage)


@given(st.sampled_from(TAGS), st.lists(json_values, max_size=6))
def test_json_of_any_shape_raises_nothing_but_wire_error(tag: str, fields: list[object]) -> None:
    with contextlib.suppress(WireError):
        decode(orjson.dumps([tag, *fields]))


@given(every_message, st.data())
def test_message_with_one_value_replaced_raises_nothing_but_wire_error(
    message: peer_messages.Message, data: st.DataObject
) -> None:
    fields = orjson.loads(encode(message))
    container = fields
    while True:
        steps = list(container) if isinstance(container, dict) else list(range(len(container)))
        if not steps:
            return
        step = data.draw(st.sampled_from(steps))
        if isinstance(container[step], list | dict) and data.draw(st.booleans()):
            container = container[step]
            continue
        container[step] = data.draw(json_values)
        break
    with contextlib.suppress(WireError):
        decode(orjson.dumps(fields))


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"null", b"[]", b"{}", b"[1]", b'"told"', b'["told"]', b'["told",1]', b"[" * 100_000, b"\xff", b"[NaN]",
        b'["to-ledger","w","s","v",[[]]]', b'["to-ledger","w","s","v",{}]', b'["to-ledger","w","s","v",[["wants",1]]]',
    ],
)  # fmt: skip
def test_malformed_payload_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError) as caught:
        decode(payload)
    assert caught.value.close_reason is CloseReason.GARBAGE


@pytest.mark.parametrize("number", [-1, 1.0, True, "1", None, 2**70])
def test_invalid_count_is_refused(number: object) -> None:
    fields = orjson.loads(encode(LEASE_REQUESTS))
    fields[4][0][1] = 0
    payload = orjson.dumps(fields).replace(b'["wants",0,', b'["wants",' + _json(number) + b",")
    with pytest.raises(WireError):
        decode(payload)


def _json(value: object) -> bytes:
    return str(value).encode() if isinstance(value, int) and value > 2**64 else orjson.dumps(value)


def test_message_of_a_later_release_is_ignored() -> None:
    assert decode(b'["moon-phase",{"full":true}]') is None


def test_slot_message_of_a_later_release_is_ignored() -> None:
    fields = orjson.loads(encode(LEASE_REQUESTS))
    fields[4].insert(0, ["lend", "replica-1", 2])
    assert decode(orjson.dumps(fields)) == LEASE_REQUESTS


@given(every_message)
def test_fields_of_a_later_release_are_ignored(message: peer_messages.Message) -> None:
    assert decode(orjson.dumps([*orjson.loads(encode(message)), {"later": 1}])) == message


def test_settings_of_a_later_release_are_ignored() -> None:
    message = peer_messages.ServicesUpdate({"iris": new_service()})
    fields = orjson.loads(encode(message))
    fields[1][0]["mirror_to"] = "elsewhere"
    fields[1][0]["versions"][0]["priority"] = 3
    assert decode(orjson.dumps(fields)) == message


def test_setting_missing_in_an_earlier_release_gets_its_default() -> None:
    message = peer_messages.ServicesUpdate({"iris": new_service(max_queue_length=5, keep_underscore_headers=True)})
    fields = orjson.loads(encode(message))
    del fields[1][0]["keep_underscore_headers"]
    del fields[1][0]["versions"][0]["max_queue_length"]
    decoded = decode(orjson.dumps(fields))
    assert decoded == peer_messages.ServicesUpdate({"iris": new_service()})


def test_missing_field_without_a_default_is_refused() -> None:
    for name in ("name", "versions"):
        fields = orjson.loads(encode(peer_messages.ServicesUpdate({"iris": new_service()})))
        del fields[1][0][name]
        with pytest.raises(WireError, match=f"Service.{name}"):
            decode(orjson.dumps(fields))


def test_services_are_sent_with_their_keys() -> None:
    decoded = decode(encode(peer_messages.ServicesUpdate({"iris": new_service()})))
    assert isinstance(decoded, peer_messages.ServicesUpdate)
    assert decoded.services["iris"].primary_key == "hunter2-primary"


def test_keys_are_not_in_repr_or_errors() -> None:
    message = peer_messages.ServicesUpdate({"iris": new_service()})
    assert "hunter2" not in repr(message)
    for payload in (
        encode(message)[:-1],
        encode_altered(message, 1, 0, "primary_key", to=["hunter2"]),
        encode_altered(message, 1, 0, "auth_enabled", to="hunter2"),
        encode_altered(message, 1, 0, to="hunter2"),
        encode_altered(message, 0, to=["hunter2"]),
    ):
        with pytest.raises(WireError) as caught:
            decode(payload)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_every_field_of_a_service_is_encoded() -> None:
    fields = orjson.loads(encode(peer_messages.ServicesUpdate({"iris": new_service()})))
    assert set(fields[1][0]) == set(Service.__annotations__)
    assert set(fields[1][0]["versions"][0]) == set(Version.__annotations__)


def test_invalid_demand_is_refused() -> None:
    message = peer_messages.DemandReport({}, {}, {})
    report = ["iris", "default", 1.0, 1.0, 0.0, 1, 0, 1, 0.5]
    assert decode(encode_altered(message, 1, to=[report])) != message
    for index, value in ((2, -1.0), (3, "1"), (5, 1.5), (8, None)):
        wrong = [*report[:index], value, *report[index + 1 :]]
        with pytest.raises(WireError):
            decode(encode_altered(message, 1, to=[wrong]))
    with pytest.raises(WireError):
        decode(encode_altered(message, 1, to=[report[:-1]]))


def test_histogram_with_other_bounds_is_rounded_up_to_own_bounds() -> None:
    decoded = decode(b'["felt",1.0,2.0,0.5,[[0.00006,3],[0.002,1],[0.003,1],[60.0,1],[null,1]],[]]')
    assert isinstance(decoded, peer_messages.LoadReport)
    counted = {bound: decoded.load.route_time[i] for i, bound in enumerate((*ROUTE_BOUNDS, None))}
    assert {bound: count for bound, count in counted.items() if count} == {0.000075: 3, 0.002: 1, 0.003: 1, None: 2}


@pytest.mark.parametrize(
    "fields",
    [
        b"-1.0,2.0,0.5,[],[]", b"1.0,2.0,0.5,[[0.1,-1]],[]", b'1.0,2.0,0.5,[["0.1",1]],[]', b"1.0,2.0,0.5,[],[],-1,0",
        b"1.0,2.0,0.5,[],[],1,0.5",
    ],
)  # fmt: skip
def test_invalid_load_is_refused(fields: bytes) -> None:
    with pytest.raises(WireError):
        decode(b'["felt",' + fields + b"]")


def test_grant_is_encoded_in_less_than_100_bytes() -> None:
    grant = peer_messages.ForwardedLedgerReplies(
        "router-7f9c/worker-0", ("iris", "default"), (slots.Grant("iris-default-5d6f", 17),)
    )
    assert len(encode(grant)) < 100
