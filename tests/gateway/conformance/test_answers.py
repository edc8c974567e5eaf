"""Each answer of the table, in one piece and byte by byte, and the client that gets it.

For each of them, whatever its line says: the client gets one answer to its request, framed in one way only, with the
router's own id, nothing of another answer, and either the end of its connection or the answer to its next request.
"""

import re

import pytest

from tests.gateway.conformance.answers import CASES
from tests.gateway.conformance.cases import AnswerCase, in_pieces
from tests.gateway.wire import Line, Message, get, ok, post
from tests.gateway.world import World, story

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", BY_NAME.values(), ids=BY_NAME.keys())
@pytest.mark.parametrize("split", [False, True], ids=["whole", "in pieces"])
@story()
async def test_answer(world: World, case: AnswerCase, split: bool) -> None:
    replica = await world.replica()
    client, line = await world.in_flight(replica, case.request)
    if split:
        await in_pieces(line, case.raw)
    else:
        line.send(case.raw)
    if case.ends:
        line.close()
    for status in case.interim:
        assert (await client.head()).status == status
    if case.cut:
        head = await client.head()
        check_head(head, case)
        assert cut_body(head, await client.rest()) == case.body
    else:
        answer = await client.message()
        check_head(answer, case)
        assert answer.body == case.body
        assert dict(answer.trailers) == case.trailers
    if case.kept:
        await next_request(client, line if case.reused else None)
    await world.at_rest()
    if not case.reused:
        await line.end()


def cut_body(head: Message, rest: bytes) -> bytes:
    """What came of a body that is not whole. Bodies of the table are made of letters."""
    if head.get("transfer-encoding") != "chunked":
        assert len(rest) < int(head["content-length"])
        return rest
    assert not rest.endswith(b"0\r\n\r\n")
    return b"".join(re.findall(rb"[0-9a-f]+\r\n([a-z]*)\r\n", rest))


async def next_request(client: Line, line: Line | None) -> None:
    """The client's connection goes on, and nothing of the former answer is left in it."""
    client.send(get(path="/"))
    assert (await client.message()).body == b"Healthy"
    if line is not None:
        client.send(post(b"next"))
        assert (await line.message()).body == b"next"
        line.send(ok(b"following"))
        assert (await client.message()).body == b"following"


def check_head(answer: Message, case: AnswerCase) -> None:
    """What the case asks of the head, and what all cases do."""
    assert answer.status == case.status
    for name, value in case.has.items():
        assert answer.get(name) == value
    for name in case.lacks:
        assert name not in answer
    for name in ("x-request-id", "x-ms-request-id"):
        assert len(answer.all(name)) == 1
    assert len(answer.all("content-length")) + len(answer.all("transfer-encoding")) <= 1
    assert "evil" not in "".join(value for name, value in answer.headers if name.lower() != "location")
    if answer.status == 502 and case.status == 502:
        assert answer.error in ("replica-closed", "replica-error")


def test_there_are_enough_of_them() -> None:
    assert len(BY_NAME) == len(CASES), "two cases of one name"
    assert len(CASES) >= 150
