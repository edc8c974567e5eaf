"""All request cases, in one piece and in small pieces, with a replica that sends 200 responses.

Each request that the replica receives must have exactly one framing, one Host and the router's request id, and neither
a key nor a hop-by-hop header. Lenient parsers must find the same requests in the received bytes. Afterwards the router
either closes the client connection or responds to the next request on it.
"""

import re
from typing import Any, Self

import pytest

from tests.gateway.conformance import framing, hop_by_hop, syntax
from tests.gateway.conformance.cases import ReplicaRequest, RequestCase, send_in_small_pieces
from tests.gateway.conformance.lenient_parsers import LENIENT_PARSERS
from tests.gateway.harness import GatewayHarness, ScriptedReplica
from tests.gateway.http_connection import KEY, Connection, Message, get, ok

CASES = {f"{table}: {case.name}": case for table, cases in (
    ("framing", framing.CASES), ("syntax", syntax.CASES), ("hop-by-hop", hop_by_hop.CASES)) for case in cases}  # fmt: skip
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REQUIRED = ("host", "x-request-id", "x-ms-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
FORBIDDEN = (
    "authorization",
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
    "expect",
    "proxy-authorization",
)


class RecordingBuffer(bytearray):
    """A buffer of received bytes. `all_bytes` also has those that were already read."""

    def __init__(self, received: bytes | bytearray) -> None:
        super().__init__(received)
        self.all_bytes = bytearray(received)

    def __iadd__(self, data: Any) -> Self:  # type: ignore[misc]
        self.all_bytes += data
        self.extend(data)
        return self


class Recorder:
    """The script of a replica. It sends 200 responses and records the requests, and the bytes of each connection."""

    def __init__(self, replica: ScriptedReplica) -> None:
        self.messages: list[Message] = []
        self.received: list[bytearray] = []
        replica.run_script(self._respond)

    async def _respond(self, connection: Connection) -> None:
        connection.received = buffer = RecordingBuffer(connection.received)
        self.received.append(buffer.all_bytes)
        while await connection.wait_for_data():
            try:
                self.messages.append(await connection.read_message())
            except AssertionError:  # the router has aborted the request, as its body is invalid
                assert connection.remote_closed
                break
            connection.send(ok(b"%d" % len(self.messages)))
        connection.close()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "in pieces"])
async def test_request_case(harness: GatewayHarness, case: RequestCase, in_pieces: bool) -> None:
    recorder = Recorder(await harness.add_replica())
    client = await harness.client()
    if in_pieces:
        await send_in_small_pieces(client, case.raw)
    else:
        client.send(case.raw)
    is_head = case.raw.startswith(b"HEAD ")
    for status in case.statuses:
        response = await (client.read_head() if is_head else client.read_message())
        assert response.status == status
        assert (response.error_code is not None) == (status >= 400)
    if case.closes:
        await client.wait_closed()
        assert not client.received
    else:
        client.send(get(path="/"))
        assert (await client.read_message()).body == b"Healthy"
    await harness.wait_idle()
    assert len(recorder.messages) == len(case.forwarded_requests)
    for message, expected in zip(recorder.messages, case.forwarded_requests, strict=True):
        check_forwarded_request(message, expected)
    for received in recorder.received:
        assert KEY.encode() not in received.split(b"\r\n\r\n")[0]
        forwarded = [(*(word.encode() for word in m.start_line.split(" ")[:2]), m.body) for m in recorder.messages]
        for parser in LENIENT_PARSERS:
            found = parser.parse(bytes(received))
            assert found[: len(forwarded)] == forwarded, parser
            # Only an aborted request may follow.
            assert not case.forwarded_requests or len(found) == len(forwarded), parser
            assert not any(b"smuggled" in target for _, target, _ in found), parser


def check_forwarded_request(message: Message, expected: ReplicaRequest) -> None:
    """Check a request at the replica for what its case and all cases require."""
    assert (message.start_line, message.body) == (expected.start_line, expected.body)
    assert dict(message.trailers) == expected.trailers
    for name, value in expected.headers.items():
        assert message.get(name) == value
    for name in (*expected.absent, *FORBIDDEN):
        assert name not in message
    for name in REQUIRED:
        assert len(message.values(name)) == 1, name
    assert len(message.values("content-length")) + len(message.values("transfer-encoding")) <= 1
    assert UUID.fullmatch(message["x-request-id"])
    assert "spoofed" not in message["x-request-id"]


def test_case_names_are_unique_and_no_case_is_missing() -> None:
    tables = (*framing.CASES, *syntax.CASES, *hop_by_hop.CASES)
    assert len(tables) == len(CASES), "two cases have the same name"
    assert len({case.raw for case in tables}) >= 400
