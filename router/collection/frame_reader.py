"""Reads the packets of workers. `frames` has their format. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from router.collection.frames import BEGIN, END_LAYOUT, FRAME, PACKET, RESPONSE, SEPARATOR
from router.model.services import VersionKey


class Frame(NamedTuple):
    """A frame of an exchange. Exchanges are numbered by their sender."""

    sender: int
    number: int
    kind: int
    payload: memoryview


class EndPayload(NamedTuple):
    """The payload of END: flags, and bytes of the bodies that have passed."""

    flags: int
    request_bytes: int
    response_bytes: int


def parse_end(payload: memoryview) -> EndPayload:
    """Return the payload of END."""
    flags, request_bytes, response_bytes = END_LAYOUT.unpack(payload)
    return EndPayload(flags, request_bytes, response_bytes)


def split_fields(payload: memoryview) -> list[bytes]:
    """Return the fields of a payload."""
    return bytes(payload).split(SEPARATOR)


def frames(packet: memoryview) -> Iterator[Frame]:
    """Yield the frames of a packet."""
    (sender,) = PACKET.unpack_from(packet, 0)
    position, size = PACKET.size, len(packet)
    while position < size:
        length, kind, number = FRAME.unpack_from(packet, position)
        position += FRAME.size
        yield Frame(sender, number, kind, packet[position : position + length])
        position += length


def begun_events(packet: memoryview) -> Iterator[VersionKey]:
    """Yield the version of each event that begins in a packet."""
    for frame in frames(packet):
        if frame.kind == RESPONSE:
            yield response_version(frame.payload)
        elif frame.kind == BEGIN:
            service, version, _request_id, _time, logs_request, *_ = split_fields(frame.payload)
            if logs_request == b"1":
                yield service.decode(), version.decode()


def response_version(payload: memoryview) -> VersionKey:
    """Return the version in the payload of RESPONSE."""
    service, version, *_ = split_fields(payload)
    return service.decode(), version.decode()
