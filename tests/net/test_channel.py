"""The channel between supervisor and worker: frames over a socket pair, split at any byte."""

import asyncio
import os
import pickle
import socket
import struct
from typing import Any

import pytest

from router.net.channel import Channel

TIMEOUT_SECONDS = 10.0


class ChannelEnd:
    """One end of a channel, and the messages that it has received."""

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.closed = asyncio.Event()
        self._arrival = asyncio.Event()
        self.channel = Channel(self._on_message, self.closed.set)

    def _on_message(self, message: Any) -> None:
        self.received.append(message)
        self._arrival.set()

    async def open(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: self.channel, sock=sock)

    async def receive(self, count: int) -> list[Any]:
        """Wait until `count` messages have arrived in all, and return them."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(self.received) < count:
                self._arrival.clear()
                await self._arrival.wait()
        return self.received

    async def wait_closed(self) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self.closed.wait()


def frame(message: object) -> bytes:
    data = pickle.dumps(message, protocol=5)
    return struct.pack("!I", len(data)) + data


async def open_pair() -> tuple[ChannelEnd, ChannelEnd]:
    one, other = ChannelEnd(), ChannelEnd()
    for end, sock in zip((one, other), socket.socketpair(), strict=True):
        await end.open(sock)
    return one, other


async def test_messages_arrive_in_order_in_both_directions() -> None:
    one, other = await open_pair()
    assert not one.channel.is_closed
    messages = [None, "text", ("a", 1), {"key": b"\0" * 70_000}, frozenset({1, 2})]
    for message in messages:
        one.channel.send(message)
    other.channel.send("back")
    assert await other.receive(len(messages)) == messages
    assert await one.receive(1) == ["back"]
    assert (one.channel.sent_count, other.channel.sent_count) == (len(messages), 1)
    one.channel.close()
    await one.wait_closed()
    await other.wait_closed()
    assert one.channel.is_closed


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1000])
async def test_frames_may_be_split_anywhere(size: int) -> None:
    ours, theirs = socket.socketpair()
    end = ChannelEnd()
    await end.open(theirs)
    messages = ["", "text", list(range(300)), "last"]
    stream = b"".join(map(frame, messages))
    for start in range(0, len(stream), size):
        ours.send(stream[start : start + size])
        await asyncio.sleep(0)
    assert await end.receive(len(messages)) == messages
    ours.close()
    await end.wait_closed()


async def test_large_frames_arrive() -> None:
    one, other = await open_pair()
    large = [os.urandom(8 * 1024 * 1024), os.urandom(3)]
    for message in large:
        one.channel.send(message)
    one.channel.send("after")
    assert await other.receive(3) == [*large, "after"]
    one.channel.close()
    await other.wait_closed()


async def test_messages_sent_before_close_arrive() -> None:
    one, other = await open_pair()
    large = os.urandom(4 * 1024 * 1024)
    one.channel.send(large)
    one.channel.close()
    assert await other.receive(1) == [large]
    await other.wait_closed()
    await one.wait_closed()


async def test_messages_of_a_closed_channel_are_dropped_and_not_counted() -> None:
    end = ChannelEnd()
    end.channel.send("before it is open")
    end.channel.close()
    one, other = await open_pair()
    other.channel.close()
    await one.wait_closed()
    one.channel.send("after the end")
    one.channel.close()
    assert (end.channel.sent_count, one.channel.sent_count) == (0, 0)
    assert other.received == []


async def test_incomplete_frame_at_the_end_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    end = ChannelEnd()
    await end.open(theirs)
    ours.send(frame("whole") + frame("cut")[:-1])
    ours.close()
    await end.wait_closed()
    assert end.received == ["whole"]


async def test_exception_of_the_message_handler_closes_the_channel() -> None:
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    one, other = ChannelEnd(), ChannelEnd()

    def fail(message: Any) -> None:
        raise ValueError(message)

    other.channel = Channel(fail, other.closed.set)
    for end, sock in zip((one, other), socket.socketpair(), strict=True):
        await end.open(sock)
    one.channel.send("text")
    await one.wait_closed()
    await other.wait_closed()
    assert [repr(error["exception"]) for error in errors] == ["ValueError('text')"]
