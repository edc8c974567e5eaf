"""The channel between supervisor and worker: frames over a real socket pair, however they are cut."""

import asyncio
import os
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop

from router.channel import Channel

PATIENCE_SECONDS = 10.0


class End:
    """A channel that remembers what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.closed = asyncio.Event()
        self._news = asyncio.Event()
        self.channel = Channel(self._received, self.closed.set)

    def _received(self, message: Any) -> None:
        self.heard.append(message)
        self._news.set()

    async def open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self.channel, sock=sock)

    async def hears(self, count: int) -> list[Any]:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.heard) < count:
                self._news.clear()
                await self._news.wait()
        return self.heard

    async def ends(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.closed.wait()


def frame(message: object) -> bytes:
    data = pickle.dumps(message, protocol=5)
    return struct.pack("!I", len(data)) + data


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def told() -> None:
        await story()

    uvloop.run(told())


async def pair() -> tuple[End, End]:
    one, other = End(), End()
    for end, sock in zip((one, other), socket.socketpair(), strict=True):
        await end.open(sock)
    return one, other


def test_messages_arrive_whole_and_in_order_both_ways() -> None:
    async def story() -> None:
        one, other = await pair()
        sent = [None, "word", ("a", 1), {"key": b"\0" * 70_000}, frozenset({1, 2})]
        for message in sent:
            one.channel.send(message)
        other.channel.send("back")
        assert await other.hears(len(sent)) == sent
        assert await one.hears(1) == ["back"]
        assert (one.channel.sent, other.channel.sent) == (len(sent), 1)
        one.channel.close()
        await one.ends()
        await other.ends()

    run(story)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
def test_frames_may_be_split_anywhere(size: int) -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        end = End()
        await end.open(theirs)
        sent = ["", "word", list(range(300)), "last"]
        stream = b"".join(map(frame, sent))
        for start in range(0, len(stream), size):
            ours.send(stream[start : start + size])
            await asyncio.sleep(0)
        assert await end.hears(len(sent)) == sent
        ours.close()
        await end.ends()

    run(story)


def test_large_frames_arrive() -> None:
    async def story() -> None:
        one, other = await pair()
        large = [os.urandom(8 * 1024 * 1024), os.urandom(3)]
        for message in large:
            one.channel.send(message)
        one.channel.send("after")
        assert await other.hears(3) == [*large, "after"]
        one.channel.close()
        await other.ends()

    run(story)


def test_close_sends_what_was_said_before() -> None:
    async def story() -> None:
        one, other = await pair()
        large = os.urandom(4 * 1024 * 1024)
        one.channel.send(large)
        one.channel.close()
        assert await other.hears(1) == [large]
        await other.ends()
        await one.ends()

    run(story)


def test_what_is_said_to_nobody_is_lost_and_not_counted() -> None:
    async def story() -> None:
        end = End()
        end.channel.send("before it is open")
        end.channel.close()
        one, other = await pair()
        other.channel.close()
        await one.ends()
        one.channel.send("after the end")
        one.channel.close()
        assert (end.channel.sent, one.channel.sent) == (0, 0)
        assert other.heard == []

    run(story)


def test_an_end_within_a_frame_is_an_end() -> None:
    async def story() -> None:
        ours, theirs = socket.socketpair()
        end = End()
        await end.open(theirs)
        ours.send(frame("whole") + frame("cut")[:-1])
        ours.close()
        await end.ends()
        assert end.heard == ["whole"]

    run(story)


def test_a_fault_of_the_hearer_ends_the_channel() -> None:
    async def story() -> None:
        faults: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        one, other = await pair()

        def fail(message: Any) -> None:
            raise ValueError(message)

        other.channel._received = fail
        one.channel.send("word")
        await one.ends()
        await other.ends()
        assert [repr(fault["exception"]) for fault in faults] == ["ValueError('word')"]

    run(story)
