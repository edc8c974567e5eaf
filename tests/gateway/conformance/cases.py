"""How the tables of this folder are written: one line of a table is one case, and says all that is asked of it.

A case of a request says what the client sends and gets, and what the replica sees of it. A case of an answer says what
the replica sends, and what the client gets of it. What holds for each case alike is not in the tables: the runners
check it (`test_requests.py`, `test_answers.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.gateway.wire import KEY, Line, post, turns

_PIECE = 3
SCORE = "POST /score HTTP/1.1"
OPEN = f"POST /api/v1/service/iris/score HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\n".encode()
HEAD = OPEN + b"Host: fe\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
SMUGGLED = (
    b"GET /api/v1/service/iris/smuggled HTTP/1.1\r\nHost: fe\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the replica must see it: first line, body, headers that must stand there, once and so, and headers
    that must not."""

    start: str = SCORE
    body: bytes = b""
    has: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    trailers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RequestCase:
    """What a client sends, the status of each answer that it gets, whether the router then closes the connection, and
    what the replica sees."""

    name: str
    raw: bytes
    statuses: tuple[int, ...]
    seen: tuple[Seen, ...] = ()
    closes: bool = False


def forwarded(name: str, raw: bytes, *seen: Seen, closes: bool = False) -> RequestCase:
    """One that reaches the replica, as one request or several, and is answered."""
    seen = seen or (Seen(),)
    return RequestCase(name, raw, (200,) * len(seen), seen, closes)


def refused(name: str, raw: bytes, *statuses: int, seen: tuple[Seen, ...] = (), closes: bool = True) -> RequestCase:
    """One that the router answers itself: 400 and the end of the connection, if nothing else is said."""
    return RequestCase(name, raw, statuses or (400,), seen, closes)


@dataclass(frozen=True, slots=True)
class AnswerCase:
    """What a replica sends, and what the client gets. `cut`: the client sees that the answer is not whole. `reused`:
    the connection to the replica serves on. `kept`: the client's connection does."""

    name: str
    raw: bytes
    status: int = 200
    body: bytes = b""
    has: Mapping[str, str] = field(default_factory=dict)
    lacks: tuple[str, ...] = ()
    interim: tuple[int, ...] = ()
    trailers: Mapping[str, str] = field(default_factory=dict)
    reused: bool = False
    kept: bool = True
    cut: bool = False
    ends: bool = False  # the replica closes after it
    request: bytes = post()


def invalid(name: str, raw: bytes, *, ends: bool = False) -> AnswerCase:
    """An answer that is none: the client gets 502 and keeps its connection, the replica's is closed."""
    return AnswerCase(name, raw, 502, b"Replica closed connection before replying", ends=ends)


async def in_pieces(line: Line, data: bytes) -> None:
    """Send so that a few bytes arrive at a time, up to the point where the other side has heard enough."""
    for start in range(0, len(data), _PIECE):
        if line.ended or line.transport.is_closing():
            return
        line.send(data[start : start + _PIECE])
        await turns(3)
