"""One link with fake transports: what it sends, and what ends it."""

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from router.peers import messages
from router.peers.close_reason import CloseReason
from router.peers.frames import WireError
from router.peers.handshake import ProtocolVersions, ServerHandshake
from router.peers.link import Link, LinkLimits
from tests.peers.link_sides import (
    ACCEPTING_PEER,
    DIALING_PEER,
    NO_TIMEOUTS,
    FakeTransport,
    RecordingLinkObserver,
    accepting_side,
    dialing_side,
    end_both_sides,
    exchange_bytes,
    linked_sides,
)
from tests.peers.mesh_fixtures import OTHER_SECRET, SECRET, eventually

FAST_LIMITS = LinkLimits(handshake_seconds=0.05, heartbeat_seconds=0.01, dead_after_seconds=0.05)
MESSAGE = messages.OwnerSyncComplete("iris")


async def test_linked_sides_have_each_others_identity_and_exchange_messages() -> None:
    dialing, accepting = await linked_sides()
    assert (dialing.link.peer, accepting.link.peer) == (ACCEPTING_PEER, DIALING_PEER)
    assert dialing.link.is_up
    assert dialing.link.version == 1
    dialing.link.send(MESSAGE)
    accepting.link.send(messages.OwnershipRevoked("iris"))
    await exchange_bytes(dialing, accepting)
    assert accepting.observer.events[2:] == [MESSAGE]
    assert dialing.observer.events[2:] == [messages.OwnershipRevoked("iris")]
    end_both_sides(dialing, accepting)


async def test_accepting_side_goes_up_at_the_first_frame_of_the_dialing_side() -> None:
    dialing, accepting = dialing_side(), accepting_side()
    dialing.link.data_received(accepting.take_written())
    accepting.link.data_received(dialing.take_written())
    assert accepting.observer.events == ["authenticated"]
    accepting.link.send(MESSAGE)
    dialing.link.data_received(accepting.take_written())
    assert dialing.observer.events == ["authenticated", "up"], "a message sent before the link was up is dropped"
    await asyncio.sleep(0)
    accepting.link.data_received(dialing.take_written())
    assert accepting.observer.events == ["authenticated", "up"]
    end_both_sides(dialing, accepting)


async def test_messages_of_one_event_loop_turn_take_one_write() -> None:
    dialing, accepting = await linked_sides()
    for number in range(50):
        dialing.link.send(messages.OwnerSyncComplete(str(number)))
    assert dialing.transport.writes == []
    await asyncio.sleep(0)
    assert len(dialing.transport.writes) == 1
    await exchange_bytes(dialing, accepting)
    assert accepting.observer.events[2:] == [messages.OwnerSyncComplete(str(number)) for number in range(50)]
    end_both_sides(dialing, accepting)


async def test_data_can_arrive_byte_by_byte() -> None:
    dialing, accepting = dialing_side(), accepting_side()
    for _ in range(3):
        for one, other in ((accepting, dialing), (dialing, accepting)):
            await asyncio.sleep(0)
            for byte in one.take_written():
                other.link.data_received(bytes([byte]))
    assert dialing.observer.events == accepting.observer.events == ["authenticated", "up"]
    end_both_sides(dialing, accepting)


async def test_goodbye_follows_all_messages_sent_before() -> None:
    dialing, accepting = await linked_sides()
    dialing.link.send(MESSAGE)
    dialing.link.close_gracefully()
    assert dialing.transport.closed_by == "close"
    accepting.link.data_received(dialing.take_written())
    assert accepting.observer.events[2:] == [MESSAGE, CloseReason.GOODBYE]
    await asyncio.sleep(0)
    assert dialing.observer.events[2:] == [CloseReason.STOPPED, "closed"]
    dialing.link.send(MESSAGE)
    dialing.link.close_gracefully()
    assert dialing.take_written() == b""


@pytest.mark.parametrize("close_reason", [CloseReason.DUPLICATE, CloseReason.STALE, CloseReason.SELF])
async def test_accepting_side_sends_the_reason_of_a_refusal_to_an_authenticated_peer(close_reason: CloseReason) -> None:
    dialing, accepting = dialing_side(), accepting_side()
    accepting.observer.refuse_with = close_reason
    await exchange_bytes(dialing, accepting)
    assert accepting.observer.events == ["authenticated", close_reason, "closed"]
    assert accepting.transport.closed_by == "close"
    assert dialing.observer.events == [close_reason, "closed"]
    assert dialing.link.peer == ACCEPTING_PEER


async def test_dialing_side_can_refuse_after_it_has_the_peers_identity() -> None:
    dialing, accepting = dialing_side(), accepting_side()
    dialing.observer.refuse_with = CloseReason.DUPLICATE
    await exchange_bytes(dialing, accepting)
    assert dialing.observer.events == ["authenticated", CloseReason.DUPLICATE, "closed"]
    accepting.link.connection_lost(None)
    assert accepting.observer.events == ["authenticated", CloseReason.CLOSED, "closed"]


async def test_peer_without_the_secret_is_disconnected_without_a_reason() -> None:
    dialing, accepting = dialing_side(secret=OTHER_SECRET), accepting_side()
    await exchange_bytes(dialing, accepting)
    assert accepting.observer.events == [CloseReason.SECRET, "closed"]
    assert accepting.link.peer is None
    assert accepting.transport.closed_by == "abort"
    dialing.link.connection_lost(None)
    assert dialing.observer.events == [CloseReason.REFUSED, "closed"]


async def test_link_uses_the_highest_common_version_or_is_refused_without_one() -> None:
    dialing, accepting = dialing_side(versions=ProtocolVersions(1, 3)), accepting_side(versions=ProtocolVersions(2, 5))
    await exchange_bytes(dialing, accepting)
    assert dialing.link.version == accepting.link.version == 3
    end_both_sides(dialing, accepting)

    dialing, accepting = dialing_side(versions=ProtocolVersions(1, 1)), accepting_side(versions=ProtocolVersions(2, 5))
    await exchange_bytes(dialing, accepting)
    assert dialing.observer.events == accepting.observer.events == [CloseReason.VERSION, "closed"]


@pytest.mark.parametrize(
    ("data", "close_reason"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", CloseReason.OVERSIZED),
        (b"\x16\x03\x01\x02\x00\x01", CloseReason.OVERSIZED),
        (b"\0\0\4\1", CloseReason.OVERSIZED),
        (b"\0\0\0\0", CloseReason.SECRET),
        (b"\0\0\0\x05hello", CloseReason.SECRET),
    ],
)
async def test_data_that_is_no_handshake_is_refused(data: bytes, close_reason: CloseReason) -> None:
    side = accepting_side()
    side.link.data_received(data)
    await asyncio.sleep(0)
    assert side.observer.events == [close_reason, "closed"]


async def test_invalid_challenge_is_refused_by_the_dialing_side() -> None:
    for data in (b"\0\0\0\x05hello", b"\0\0\0\x32" + bytes(50)):
        side = dialing_side()
        side.link.data_received(data)
        await asyncio.sleep(0)
        assert side.observer.events == [CloseReason.GARBAGE, "closed"]


async def test_altered_repeated_or_oversized_frame_ends_the_link() -> None:
    def flip(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    changes: list[tuple[Callable[[bytes], bytes], CloseReason]] = [
        (flip, CloseReason.FORGED),
        (lambda data: data + data, CloseReason.FORGED),
        (lambda data: b"\0\0\0\0" + data, CloseReason.FORGED),
        (lambda data: b"\xff\xff\xff\xff" + data, CloseReason.OVERSIZED),
    ]
    for change, close_reason in changes:
        dialing, accepting = await linked_sides()
        dialing.link.send(MESSAGE)
        await asyncio.sleep(0)
        accepting.link.data_received(change(dialing.take_written()))
        await asyncio.sleep(0)
        assert accepting.observer.events[-2:] == [close_reason, "closed"]
        assert accepting.observer.events.count(MESSAGE) <= 1
        dialing.link.end(CloseReason.STOPPED)


async def test_malformed_message_ends_the_link_but_unknown_message_is_ignored() -> None:
    dialing, accepting = await linked_sides()
    dialing.link.send_encoded(b'["moon-phase"]')
    dialing.link.send(MESSAGE)
    await exchange_bytes(dialing, accepting)
    assert accepting.observer.events[2:] == [MESSAGE]
    dialing.link.send_encoded(b'["told",7]')
    dialing.link.send(MESSAGE)
    await exchange_bytes(dialing, accepting)
    assert accepting.observer.events[3:] == [CloseReason.GARBAGE, "closed"]
    dialing.link.end(CloseReason.STOPPED)


async def test_handshake_times_out() -> None:
    dialing, accepting = dialing_side(FAST_LIMITS), accepting_side(FAST_LIMITS)
    await eventually(lambda: dialing.observer.events == accepting.observer.events == [CloseReason.TIMEOUT, "closed"])


async def test_authenticated_peer_that_sends_no_frame_times_out() -> None:
    dialing, accepting = dialing_side(), accepting_side(FAST_LIMITS)
    dialing.link.data_received(accepting.take_written())
    accepting.link.data_received(dialing.take_written())
    await eventually(lambda: accepting.observer.events == ["authenticated", CloseReason.TIMEOUT, "closed"])
    dialing.link.end(CloseReason.STOPPED)


async def test_link_with_heartbeats_stays_up_until_its_peer_is_silent() -> None:
    dialing, accepting = await linked_sides(FAST_LIMITS)
    for _ in range(20):  # heartbeats, over many times `dead_after_seconds`
        await eventually(lambda: dialing.transport.writes and accepting.transport.writes)
        await exchange_bytes(dialing, accepting)
    assert dialing.observer.events == accepting.observer.events == ["authenticated", "up"]
    await eventually(lambda: dialing.observer.events[2:] == [CloseReason.SILENT, "closed"])
    await eventually(lambda: accepting.observer.events[2:] == [CloseReason.SILENT, "closed"])
    assert dialing.transport.closed_by == "abort"


async def test_peer_that_does_not_read_ends_the_link() -> None:
    dialing, accepting = await linked_sides(dataclasses.replace(NO_TIMEOUTS, write_limit_bytes=1000))
    dialing.transport.write_buffer_size = 1000
    dialing.link.send(MESSAGE)
    await asyncio.sleep(0)
    assert dialing.link.is_up
    dialing.transport.write_buffer_size = 1001
    dialing.link.send(MESSAGE)
    await asyncio.sleep(0)
    assert dialing.observer.events[2:] == [CloseReason.UNREAD]
    accepting.link.end(CloseReason.STOPPED)


async def test_sending_a_message_over_the_frame_limit_raises_but_keeps_the_link() -> None:
    dialing, accepting = await linked_sides(dataclasses.replace(NO_TIMEOUTS, frame_limit_bytes=100))
    with pytest.raises(WireError):
        dialing.link.send(messages.OwnerSyncComplete("x" * 100))
    dialing.link.send(MESSAGE)
    await exchange_bytes(dialing, accepting)
    assert accepting.observer.events[2:] == [MESSAGE]
    end_both_sides(dialing, accepting)


async def test_link_ended_before_it_is_connected_aborts_the_connection() -> None:
    observer = RecordingLinkObserver()
    link = Link(observer, ServerHandshake(ACCEPTING_PEER, SECRET), source="127.0.0.1", limits=NO_TIMEOUTS)
    link.end(CloseReason.CROWDED)
    link.end(CloseReason.STOPPED)
    transport = FakeTransport(link)
    link.connection_made(transport)
    await asyncio.sleep(0)
    assert transport.closed_by == "abort"
    assert transport.writes == []
    assert observer.events == [CloseReason.CROWDED, "closed"]
