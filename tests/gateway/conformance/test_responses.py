"""All response cases, in one piece and in small pieces.

The client must get exactly one response to its request, with one framing, the router's request id, and no part of
another response. Afterwards the router either closes the client connection or responds to the next request on it.
"""

import re

import pytest

from tests.gateway.conformance.cases import ResponseCase, send_in_small_pieces
from tests.gateway.conformance.responses import CASES
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Connection, Message, get, ok, post

CASES_BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("case", CASES_BY_NAME.values(), ids=CASES_BY_NAME.keys())
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in pieces"])
async def test_response_case(harness: GatewayHarness, case: ResponseCase, in_pieces: bool) -> None:
    replica = await harness.add_replica()
    client, connection = await harness.start_request(replica, case.request)
    if in_pieces:
        await send_in_small_pieces(connection, case.raw)
    else:
        connection.send(case.raw)
    if case.replica_closes:
        connection.close()
    for status in case.interim:
        assert (await client.read_head()).status == status
    if case.truncated:
        head = await client.read_head()
        check_head(head, case)
        assert truncated_body(head, await client.read_to_end()) == case.body
    else:
        response = await client.read_message()
        check_head(response, case)
        assert response.body == case.body
        assert dict(response.trailers) == case.trailers
    if case.client_connection_reused:
        await check_next_requests(client, connection if case.replica_connection_reused else None)
    await harness.wait_idle()
    if not case.replica_connection_reused:
        await connection.wait_closed()


def truncated_body(head: Message, rest: bytes) -> bytes:
    """Check that the body is detectably incomplete, and return it. Chunks must consist of letters."""
    if head.get("transfer-encoding") != "chunked":
        assert len(rest) < int(head["content-length"])
        return rest
    assert not rest.endswith(b"0\r\n\r\n")
    return b"".join(re.findall(rb"[0-9a-f]+\r\n([a-z]*)\r\n", rest))


async def check_next_requests(client: Connection, connection: Connection | None) -> None:
    """Check that the client connection serves requests, by the replica connection if it is not None."""
    client.send(get(path="/"))
    assert (await client.read_message()).body == b"Healthy"
    if connection is not None:
        client.send(post(b"next"))
        assert (await connection.read_message()).body == b"next"
        connection.send(ok(b"next response"))
        assert (await client.read_message()).body == b"next response"


def check_head(response: Message, case: ResponseCase) -> None:
    """Check the head for what its case and all cases require."""
    assert response.status == case.status
    for name, value in case.headers.items():
        assert response.get(name) == value
    for name in case.absent:
        assert name not in response
    for name in ("x-request-id", "x-ms-request-id"):
        assert len(response.values(name)) == 1
    assert len(response.values("content-length")) + len(response.values("transfer-encoding")) <= 1
    assert "evil" not in "".join(value for name, value in response.headers if name.lower() != "location")
    if response.status == 502 and case.status == 502:
        assert response.error_code in ("replica-closed", "replica-error")


def test_case_names_are_unique_and_no_case_is_missing() -> None:
    assert len(CASES_BY_NAME) == len(CASES), "two cases have the same name"
    assert len(CASES) >= 150
