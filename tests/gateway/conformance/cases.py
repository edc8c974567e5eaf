"""The types of the tables in this directory. Each row of a table is one case.

A request case has the bytes from the client, the responses that it must get, and the requests that the replica must
get. A response case has the bytes from the replica, and the response that the client must get. `test_requests.py` and
`test_responses.py` check in addition what must hold for all cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.gateway.http_connection import KEY, Connection, post, run_loop

_PIECE_BYTES = 3

SCORE_LINE = "POST /score HTTP/1.1"
# Unterminated heads: a test adds headers and the empty line.
POST_HEAD_START_WITHOUT_HOST = f"POST /api/v1/service/iris/score HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n".encode()
POST_HEAD_START = POST_HEAD_START_WITHOUT_HOST + b"Host: fe\r\n"
CHUNKED_POST_HEAD = POST_HEAD_START + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED_REQUEST = (
    b"GET /api/v1/service/iris/smuggled HTTP/1.1\r\nHost: fe\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class ReplicaRequest:
    """A request as the replica must receive it. Each of `headers` must occur once, those of `absent` must not occur."""

    start_line: str = SCORE_LINE
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    trailers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestCase:
    """The bytes `raw` from a client, the status of each response, whether the router then closes the client connection,
    and the requests that it forwards."""

    name: str
    raw: bytes
    statuses: tuple[int, ...]
    forwarded_requests: tuple[ReplicaRequest, ...] = ()
    closes: bool = False


def forwarded_case(name: str, raw: bytes, *requests: ReplicaRequest, closes: bool = False) -> RequestCase:
    """Return a case whose requests, by default one POST, are all forwarded. Each gets a 200 response."""
    requests = requests or (ReplicaRequest(),)
    return RequestCase(name, raw, (200,) * len(requests), requests, closes)


def local_response_case(
    name: str, raw: bytes, *statuses: int, forwarded_requests: tuple[ReplicaRequest, ...] = (), closes: bool = True
) -> RequestCase:
    """Return a case whose last request is not forwarded: the router itself responds to it.

    By default it gets a 400 response, and the router closes the client connection.
    """
    return RequestCase(name, raw, statuses or (400,), forwarded_requests, closes)


@dataclass(frozen=True, slots=True)
class ResponseCase:
    """The bytes `raw` from a replica, and the response that the client must get."""

    name: str
    raw: bytes
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    interim: tuple[int, ...] = ()
    trailers: Mapping[str, str] = field(default_factory=dict)
    replica_connection_reused: bool = False  # the replica connection serves the next request
    client_connection_reused: bool = True  # the client connection serves the next request
    truncated: bool = False  # the client can detect that the response is incomplete
    replica_closes: bool = False  # the replica closes its connection after `raw`
    request: bytes = post()


def invalid_response_case(name: str, raw: bytes, *, replica_closes: bool = False) -> ResponseCase:
    """Return a case of an invalid response: the client gets a 502 response, and the replica connection is closed."""
    return ResponseCase(name, raw, 502, b"Replica closed connection before replying", replica_closes=replica_closes)


async def send_in_small_pieces(connection: Connection, data: bytes) -> None:
    """Send `data` in pieces of three bytes that arrive separately. Stop if the connection is closed."""
    for start in range(0, len(data), _PIECE_BYTES):
        if connection.remote_closed or connection.transport.is_closing():
            return
        connection.send(data[start : start + _PIECE_BYTES])
        await run_loop(3)
