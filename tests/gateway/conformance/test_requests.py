"""Each request of the tables, in one piece and byte by byte, in front of a replica that answers all it understands.

For each of them, whatever its line says: what reaches the replica is framed in one way only, has one Host, no key, no
hop-by-hop field and the router's own id, and servers that read HTTP wrongly (`readers`) find the same requests in it.
After it the connection is either at its end, or gives the answer to the next request and no other.
"""

import re
from typing import Any, Self

import pytest

from tests.gateway.conformance import framing, hops, syntax
from tests.gateway.conformance.cases import RequestCase, Seen, in_pieces
from tests.gateway.conformance.readers import READERS
from tests.gateway.wire import KEY, Line, Message, get, ok
from tests.gateway.world import ScriptedReplica, World, more, story

CASES = {f"{table}: {case.name}": case for table, cases in (
    ("framing", framing.CASES), ("syntax", syntax.CASES), ("hops", hops.CASES)) for case in cases}  # fmt: skip
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
ONCE = ("host", "x-request-id", "x-ms-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
NEVER = (
    "authorization",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
    "expect",
    "proxy-authorization",
)


class Record(bytearray):
    """What a line has received and not yet taken; `every` has all that it ever received."""

    def __init__(self, received: bytes | bytearray) -> None:
        super().__init__(received)
        self.every = bytearray(received)

    def __iadd__(self, data: Any) -> Self:  # type: ignore[misc]
        self.every += data
        self.extend(data)
        return self


class Recorder:
    """Plays a replica, and keeps what it was sent: as messages, and as bytes."""

    def __init__(self, replica: ScriptedReplica) -> None:
        self.messages: list[Message] = []
        self.bytes: list[bytearray] = []
        replica.plays(self._play)

    async def _play(self, line: Line) -> None:
        line.received = Record(line.received)
        self.bytes.append(line.received.every)
        while await more(line):
            try:
                self.messages.append(await line.message())
            except AssertionError:  # the router gave it up: what came after its head was refused
                assert line.ended
                break
            line.send(ok(b"%d" % len(self.messages)))
        line.close()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("split", [False, True], ids=["whole", "in pieces"])
@story()
async def test_request(world: World, case: RequestCase, split: bool) -> None:
    recorder = Recorder(await world.replica())
    client = await world.client()
    if split:
        await in_pieces(client, case.raw)
    else:
        client.send(case.raw)
    is_head = case.raw.startswith(b"HEAD ")
    for status in case.statuses:
        answer = await (client.head() if is_head else client.message())
        assert answer.status == status
        assert (answer.error is not None) == (status >= 400)
    if case.closes:
        await client.end()
        assert not client.received
    else:
        client.send(get(path="/"))
        assert (await client.message()).body == b"Healthy"
    await world.at_rest()
    assert len(recorder.messages) == len(case.seen)
    for message, seen in zip(recorder.messages, case.seen, strict=True):
        check(message, seen)
    for every in recorder.bytes:
        assert KEY.encode() not in every.split(b"\r\n\r\n")[0]
        wanted = [(*(word.encode() for word in m.start.split(" ")[:2]), m.body) for m in recorder.messages]
        for reader in READERS:
            found = reader.read(bytes(every))
            assert found[: len(wanted)] == wanted, reader
            # More is only there where a request was given up half-way.
            assert not case.seen or len(found) == len(wanted), reader
            assert not any(b"smuggled" in target for _, target, _ in found), reader


def check(message: Message, seen: Seen) -> None:
    """What the case asks of a request at the replica, and what all cases do."""
    assert (message.start, message.body) == (seen.start, seen.body)
    assert dict(message.trailers) == seen.trailers
    for name, value in seen.has.items():
        assert message.get(name) == value
    for name in (*seen.lacks, *NEVER):
        assert name not in message
    for name in ONCE:
        assert len(message.all(name)) == 1, name
    assert len(message.all("content-length")) + len(message.all("transfer-encoding")) <= 1
    assert UUID.fullmatch(message["x-request-id"])
    assert "spoofed" not in message["x-request-id"]


def test_there_are_enough_of_them() -> None:
    tables = (*framing.CASES, *syntax.CASES, *hops.CASES)
    assert len(tables) == len(CASES), "two cases of one name"
    assert len({case.raw for case in tables}) >= 400
