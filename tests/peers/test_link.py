"""One link, its bytes carried by hand: what it sends when, and what ends it."""

import asyncio
import dataclasses
from collections.abc import Callable

import pytest

from router.peers import messages
from router.peers.endings import Ending
from router.peers.frames import WireError
from router.peers.handshake import ServerHandshake, Versions
from router.peers.link import Link, LinkLimits
from router.peers.wire import MessageReader
from tests.peers.by_hand import ANN, BEN, STEADY, Hand, Owner, accepts, carry, dials, linked
from tests.peers.world import SECRET, eventually, run

QUICK = LinkLimits(handshake_seconds=0.05, heartbeat_seconds=0.01, dead_after_seconds=0.05)
HELLO = messages.Told("iris")


def test_both_ends_know_one_another_once_they_are_up() -> None:
    async def story() -> None:
        dialling, accepting = await linked()
        assert (dialling.link.peer, accepting.link.peer) == (BEN, ANN)
        assert dialling.link.is_up
        assert dialling.link.version == 1
        dialling.link.send(HELLO)
        accepting.link.send(messages.Forget("iris"))
        await carry(dialling, accepting)
        assert accepting.owner.told[2:] == [HELLO]
        assert dialling.owner.told[2:] == [messages.Forget("iris")]
        dialling.link.end(Ending.STOPPED)
        accepting.link.end(Ending.STOPPED)

    run(story())


def test_the_accepting_end_is_up_only_when_the_dialling_one_has_spoken() -> None:
    async def story() -> None:
        dialling, accepting = dials(), accepts()
        dialling.link.data_received(accepting.takes())
        accepting.link.data_received(dialling.takes())
        assert accepting.owner.told == ["agreed"]
        accepting.link.send(HELLO)
        dialling.link.data_received(accepting.takes())
        assert dialling.owner.told == ["agreed", "up"], "and what was sent before it was up is not said"
        await asyncio.sleep(0)
        accepting.link.data_received(dialling.takes())
        assert accepting.owner.told == ["agreed", "up"]
        dialling.link.end(Ending.STOPPED)
        accepting.link.end(Ending.STOPPED)

    run(story())


def test_what_is_sent_within_one_turn_of_the_loop_is_written_at_once() -> None:
    async def story() -> None:
        dialling, accepting = await linked()
        for number in range(50):
            dialling.link.send(messages.Told(str(number)))
        assert dialling.hand.writes == []
        await asyncio.sleep(0)
        assert len(dialling.hand.writes) == 1
        await carry(dialling, accepting)
        assert accepting.owner.told[2:] == [messages.Told(str(number)) for number in range(50)]
        dialling.link.end(Ending.STOPPED)
        accepting.link.end(Ending.STOPPED)

    run(story())


def test_every_byte_may_come_by_itself() -> None:
    async def story() -> None:
        dialling, accepting = dials(), accepts()
        for _ in range(3):
            for one, other in ((accepting, dialling), (dialling, accepting)):
                await asyncio.sleep(0)
                for byte in one.takes():
                    other.link.data_received(bytes([byte]))
        assert dialling.owner.told == accepting.owner.told == ["agreed", "up"]
        dialling.link.end(Ending.STOPPED)
        accepting.link.end(Ending.STOPPED)

    run(story())


def test_a_goodbye_comes_after_all_that_was_said_before() -> None:
    async def story() -> None:
        dialling, accepting = await linked()
        dialling.link.send(HELLO)
        dialling.link.leave()
        assert dialling.hand.closed == "in order"
        accepting.link.data_received(dialling.takes())
        assert accepting.owner.told[2:] == [HELLO, Ending.GOODBYE]
        await asyncio.sleep(0)
        assert dialling.owner.told[2:] == [Ending.STOPPED, "closed"]
        dialling.link.send(HELLO)
        dialling.link.leave()
        assert dialling.takes() == b""

    run(story())


@pytest.mark.parametrize("ending", [Ending.DUPLICATE, Ending.STALE, Ending.SELF])
def test_the_accepting_end_tells_a_proven_peer_why_it_is_turned_away(ending: Ending) -> None:
    async def story() -> None:
        dialling, accepting = dials(), accepts()
        accepting.owner.verdict = ending
        await carry(dialling, accepting)
        assert accepting.owner.told == ["agreed", ending, "closed"]
        assert accepting.hand.closed == "in order"
        assert dialling.owner.told == [ending, "closed"]
        assert dialling.link.peer == BEN

    run(story())


def test_the_dialling_end_may_leave_after_it_has_learnt_who_answers() -> None:
    async def story() -> None:
        dialling, accepting = dials(), accepts()
        dialling.owner.verdict = Ending.DUPLICATE
        await carry(dialling, accepting)
        assert dialling.owner.told == ["agreed", Ending.DUPLICATE, "closed"]
        accepting.link.connection_lost(None)
        assert accepting.owner.told == ["agreed", Ending.CLOSED, "closed"]

    run(story())


def test_one_without_the_secret_is_told_nothing() -> None:
    async def story() -> None:
        dialling, accepting = dials(secret=b"another secret, as long"), accepts()
        await carry(dialling, accepting)
        assert accepting.owner.told == [Ending.SECRET, "closed"]
        assert accepting.link.peer is None
        assert accepting.hand.closed == "aborted"
        dialling.link.connection_lost(None)
        assert dialling.owner.told == [Ending.REFUSED, "closed"]

    run(story())


def test_versions_that_overlap_are_linked_by_the_highest_common_one_and_others_are_not() -> None:
    async def story() -> None:
        dialling, accepting = dials(versions=Versions(1, 3)), accepts(versions=Versions(2, 5))
        await carry(dialling, accepting)
        assert dialling.link.version == accepting.link.version == 3
        dialling.link.end(Ending.STOPPED)
        accepting.link.end(Ending.STOPPED)

        dialling, accepting = dials(versions=Versions(1, 1)), accepts(versions=Versions(2, 5))
        await carry(dialling, accepting)
        assert dialling.owner.told == accepting.owner.told == [Ending.VERSION, "closed"]

    run(story())


@pytest.mark.parametrize(
    ("data", "ending"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", Ending.OVERSIZED),
        (b"\x16\x03\x01\x02\x00\x01", Ending.OVERSIZED),
        (b"\0\0\4\1", Ending.OVERSIZED),
        (b"\0\0\0\0", Ending.SECRET),
        (b"\0\0\0\x05hello", Ending.SECRET),
    ],
)
def test_what_strangers_send_is_refused(data: bytes, ending: Ending) -> None:
    async def story() -> None:
        end = accepts()
        end.link.data_received(data)
        await asyncio.sleep(0)
        assert end.owner.told == [ending, "closed"]

    run(story())


def test_what_answers_and_is_no_router_is_refused() -> None:
    async def story() -> None:
        for data in (b"\0\0\0\x05hello", b"\0\0\0\x32" + bytes(50)):
            end = dials()
            end.link.data_received(data)
            await asyncio.sleep(0)
            assert end.owner.told == [Ending.GARBAGE, "closed"]

    run(story())


def test_altered_repeated_and_oversized_frames_end_a_link_and_are_not_heard() -> None:
    def flip(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    changes: list[tuple[Callable[[bytes], bytes], Ending]] = [
        (flip, Ending.FORGED),
        (lambda data: data + data, Ending.FORGED),
        (lambda data: b"\0\0\0\0" + data, Ending.FORGED),
        (lambda data: b"\xff\xff\xff\xff" + data, Ending.OVERSIZED),
    ]

    async def story() -> None:
        for change, ending in changes:
            dialling, accepting = await linked()
            dialling.link.send(HELLO)
            await asyncio.sleep(0)
            accepting.link.data_received(change(dialling.takes()))
            await asyncio.sleep(0)
            assert accepting.owner.told[-2:] == [ending, "closed"]
            assert accepting.owner.told.count(HELLO) <= 1
            dialling.link.end(Ending.STOPPED)

    run(story())


def test_a_peer_that_talks_nonsense_is_left_and_one_of_a_later_release_is_not() -> None:
    async def story() -> None:
        dialling, accepting = await linked()
        dialling.link.send_payload(b'["moon-phase"]')
        dialling.link.send(HELLO)
        await carry(dialling, accepting)
        assert accepting.owner.told[2:] == [HELLO]
        dialling.link.send_payload(b'["told",7]')
        dialling.link.send(HELLO)
        await carry(dialling, accepting)
        assert accepting.owner.told[3:] == [Ending.GARBAGE, "closed"]
        dialling.link.end(Ending.STOPPED)

    run(story())


def test_a_hand_shake_may_not_take_for_ever() -> None:
    async def story() -> None:
        dialling, accepting = dials(QUICK), accepts(QUICK)
        await eventually(lambda: dialling.owner.told == accepting.owner.told == [Ending.TIMEOUT, "closed"])

    run(story())


def test_a_proven_peer_that_never_speaks_does_not_keep_its_connection() -> None:
    async def story() -> None:
        dialling, accepting = dials(), accepts(QUICK)
        dialling.link.data_received(accepting.takes())
        accepting.link.data_received(dialling.takes())
        await eventually(lambda: accepting.owner.told == ["agreed", Ending.TIMEOUT, "closed"])
        dialling.link.end(Ending.STOPPED)

    run(story())


def test_silence_ends_a_link_and_heartbeats_keep_it() -> None:
    async def story() -> None:
        dialling, accepting = await linked(QUICK)
        for _ in range(20):  # each is a heartbeat's time, and all together many times the silence that ends a link
            await eventually(lambda: dialling.hand.writes and accepting.hand.writes)
            await carry(dialling, accepting)
        assert dialling.owner.told == accepting.owner.told == ["agreed", "up"]
        await eventually(lambda: dialling.owner.told[2:] == [Ending.SILENT, "closed"])
        await eventually(lambda: accepting.owner.told[2:] == [Ending.SILENT, "closed"])
        assert dialling.hand.closed == "aborted"

    run(story())


def test_a_peer_that_does_not_read_is_left() -> None:
    async def story() -> None:
        dialling, accepting = await linked(dataclasses.replace(STEADY, write_limit_bytes=1000))
        dialling.hand.unread = 1000
        dialling.link.send(HELLO)
        await asyncio.sleep(0)
        assert dialling.link.is_up
        dialling.hand.unread = 1001
        dialling.link.send(HELLO)
        await asyncio.sleep(0)
        assert dialling.owner.told[2:] == [Ending.UNREAD]
        accepting.link.end(Ending.STOPPED)

    run(story())


def test_a_message_over_the_limit_is_refused_to_the_sender() -> None:
    async def story() -> None:
        dialling, accepting = await linked(dataclasses.replace(STEADY, frame_limit_bytes=100))
        with pytest.raises(WireError):
            dialling.link.send(messages.Told("x" * 100))
        dialling.link.send(HELLO)
        await carry(dialling, accepting)
        assert accepting.owner.told[2:] == [HELLO]
        dialling.link.end(Ending.STOPPED)
        accepting.link.end(Ending.STOPPED)

    run(story())


def test_a_link_that_is_ended_before_it_is_connected_connects_no_more() -> None:
    async def story() -> None:
        owner = Owner()
        link = Link(owner, ServerHandshake(BEN, SECRET), "127.0.0.1", STEADY, MessageReader())
        link.end(Ending.CROWDED)
        link.end(Ending.STOPPED)
        hand = Hand(link)
        link.connection_made(hand)
        await asyncio.sleep(0)
        assert hand.closed == "aborted"
        assert hand.writes == []
        assert owner.told == [Ending.CROWDED, "closed"]

    run(story())
