"""The messages' encoding: what is known is checked, what is not known is passed over."""

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.peers import messages as peer_messages
from router.peers.endings import Ending
from router.peers.frames import WireError
from router.peers.wire import MessageReader, encode
from router.services import Service, Version
from router.slots import messages as slots
from router.telemetry.counters import ROUTE_BOUNDS
from tests.peers.messages import a_service, every_message

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)
KNOWN = [
    "heartbeat", "goodbye", "leaving", "to-ledger", "to-holder", "front-end-gone", "told", "forget", "demand", "felt",
    "pod-size", "services", "replicas",
]  # fmt: skip
WANTS = peer_messages.ToLedger("pod-1/worker-0", ("iris", "blue"), (slots.Wants(7, 3, (5,)),))


def read(payload: bytes) -> peer_messages.Message | None:
    return MessageReader().read(payload)


def altered(message: peer_messages.Message, *path: int | str, to: object) -> bytes:
    """A message's payload, with one value replaced."""
    fields: Any = orjson.loads(encode(message))
    place = fields
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return orjson.dumps(fields)


@given(every_message)
def test_every_message_comes_out_as_it_went_in(message: peer_messages.Message) -> None:
    reader = MessageReader()
    assert reader.read(encode(message)) == message
    assert reader.unknown == 0


@given(st.binary(max_size=100))
def test_garbage_raises_nothing_but_wire_error(garbage: bytes) -> None:
    with contextlib.suppress(WireError):
        read(garbage)


@given(st.sampled_from(KNOWN), st.lists(json_values, max_size=6))
def test_json_of_any_shape_raises_nothing_but_wire_error(name: str, fields: list[object]) -> None:
    with contextlib.suppress(WireError):
        read(orjson.dumps([name, *fields]))


@given(every_message, st.data())
def test_a_message_with_one_value_of_another_kind_raises_nothing_but_wire_error(
    message: peer_messages.Message, data: st.DataObject
) -> None:
    fields = orjson.loads(encode(message))
    place = fields
    while True:
        steps = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not steps:
            return
        step = data.draw(st.sampled_from(steps))
        if isinstance(place[step], list | dict) and data.draw(st.booleans()):
            place = place[step]
            continue
        place[step] = data.draw(json_values)
        break
    with contextlib.suppress(WireError):
        read(orjson.dumps(fields))


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"null", b"[]", b"{}", b"[1]", b'"told"', b'["told"]', b'["told",1]', b"[" * 100_000, b"\xff", b"[NaN]",
        b'["to-ledger","w","s","v",[[]]]', b'["to-ledger","w","s","v",{}]', b'["to-ledger","w","s","v",[["wants",1]]]',
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError) as caught:
        read(payload)
    assert caught.value.ending is Ending.GARBAGE


@pytest.mark.parametrize("number", [-1, 1.0, True, "1", None, 2**70])
def test_a_number_of_the_wrong_kind_is_refused(number: object) -> None:
    fields = orjson.loads(encode(WANTS))
    fields[4][0][1] = 0
    payload = orjson.dumps(fields).replace(b'["wants",0,', b'["wants",' + _json(number) + b",")
    with pytest.raises(WireError):
        read(payload)


def _json(value: object) -> bytes:
    return str(value).encode() if isinstance(value, int) and value > 2**64 else orjson.dumps(value)


def test_a_message_of_a_later_release_is_passed_over_and_counted() -> None:
    reader = MessageReader()
    assert reader.read(b'["moon-phase",{"full":true}]') is None
    assert reader.unknown == 1


def test_a_word_of_a_later_release_is_passed_over_and_counted() -> None:
    reader = MessageReader()
    fields = orjson.loads(encode(WANTS))
    fields[4].insert(0, ["lend", "replica-1", 2])
    assert reader.read(orjson.dumps(fields)) == WANTS
    assert reader.unknown == 1


@given(every_message)
def test_fields_of_a_later_release_are_passed_over(message: peer_messages.Message) -> None:
    assert read(orjson.dumps([*orjson.loads(encode(message)), {"later": 1}])) == message


def test_settings_of_a_later_release_are_passed_over() -> None:
    message = peer_messages.Services({"iris": a_service()})
    fields = orjson.loads(encode(message))
    fields[1][0]["mirror_to"] = "elsewhere"
    fields[1][0]["versions"][0]["priority"] = 3
    assert read(orjson.dumps(fields)) == message


def test_a_setting_that_an_earlier_release_lacks_has_its_default() -> None:
    message = peer_messages.Services({"iris": a_service(max_queue_length=5, keep_underscore_headers=True)})
    fields = orjson.loads(encode(message))
    del fields[1][0]["keep_underscore_headers"]
    del fields[1][0]["versions"][0]["max_queue_length"]
    found = read(orjson.dumps(fields))
    assert found == peer_messages.Services({"iris": a_service()})


def test_a_service_lacks_no_field_without_a_default() -> None:
    for name in ("name", "versions"):
        fields = orjson.loads(encode(peer_messages.Services({"iris": a_service()})))
        del fields[1][0][name]
        with pytest.raises(WireError, match=f"Service.{name}"):
            read(orjson.dumps(fields))


def test_services_travel_with_their_keys() -> None:
    found = read(encode(peer_messages.Services({"iris": a_service()})))
    assert isinstance(found, peer_messages.Services)
    assert found.services["iris"].primary_key == "hunter2-primary"


def test_keys_are_in_no_repr_and_no_error() -> None:
    message = peer_messages.Services({"iris": a_service()})
    assert "hunter2" not in repr(message)
    for payload in (
        encode(message)[:-1],
        altered(message, 1, 0, "primary_key", to=["hunter2"]),
        altered(message, 1, 0, "auth_enabled", to="hunter2"),
        altered(message, 1, 0, to="hunter2"),
        altered(message, 0, to=["hunter2"]),
    ):
        with pytest.raises(WireError) as caught:
            read(payload)
        assert "hunter2" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_every_field_of_a_service_is_carried() -> None:
    fields = orjson.loads(encode(peer_messages.Services({"iris": a_service()})))
    assert set(fields[1][0]) == set(Service.__annotations__)
    assert set(fields[1][0]["versions"][0]) == set(Version.__annotations__)


def test_demand_that_cannot_be_is_refused() -> None:
    message = peer_messages.Demand({}, {}, {})
    report = ["iris", "default", 1.0, 1.0, 0.0, 1, 0, 1, 0.5]
    assert read(altered(message, 1, to=[report])) != message
    for place, value in ((2, -1.0), (3, "1"), (5, 1.5), (8, None)):
        wrong = [*report[:place], value, *report[place + 1 :]]
        with pytest.raises(WireError):
            read(altered(message, 1, to=[wrong]))
    with pytest.raises(WireError):
        read(altered(message, 1, to=[report[:-1]]))


def test_a_load_of_a_release_with_other_buckets_is_taken_to_be_slower() -> None:
    found = read(b'["felt",1.0,2.0,0.5,[[0.00006,3],[0.002,1],[0.003,1],[60.0,1],[null,1]],[]]')
    assert isinstance(found, peer_messages.Felt)
    counted = {bound: found.load.route_time[i] for i, bound in enumerate((*ROUTE_BOUNDS, None))}
    assert {bound: count for bound, count in counted.items() if count} == {0.000075: 3, 0.002: 1, 0.003: 1, None: 2}


@pytest.mark.parametrize("fields", [b"-1.0,2.0,0.5,[],[]", b"1.0,2.0,0.5,[[0.1,-1]],[]", b'1.0,2.0,0.5,[["0.1",1]],[]'])
def test_a_load_that_cannot_be_is_refused(fields: bytes) -> None:
    with pytest.raises(WireError):
        read(b'["felt",' + fields + b"]")


def test_a_message_about_slots_is_small() -> None:
    grant = peer_messages.ToHolder("router-7f9c/worker-0", ("iris", "default"), (slots.Grant("iris-default-5d6f", 17),))
    assert len(encode(grant)) < 100
