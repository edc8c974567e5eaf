"""The parser of client connections: random requests, cut into random pieces."""

import random

import pytest

from router.config.router import load_settings
from router.gateway.request_reader import RequestLimits, RequestReader
from router.http.header_rules import request_rules

SETTINGS = load_settings(environ={})
INVALID_LINES = (b"GET  /x HTTP/1.1", b"GET /x  HTTP/1.1", b"GET /x RTSP/1.1", b"SOURCE /x ICE/1.1")


def random_request(rng: random.Random) -> tuple[bytes, bytes]:
    """Return a request and its body. The body may contain line ends, chunk sizes and request lines."""

    def data(least: int) -> bytes:
        return b"".join(rng.choices([b"\r\n", b"0", b"a", b"GET /x  HTTP/1.1", b"\r"], k=rng.randrange(least, 6)))

    head = rng.choice([b"", b"\r\n", b"\r\n\r\n"]) + rng.choice([b"POST /a/b", b"GET /"]) + b" HTTP/1.1\r\nHost: a\r\n"
    if rng.random() < 0.5:
        body = data(0)
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, body
    pieces = [data(1) for _ in range(rng.randrange(4))]
    extension = rng.choice([b"", b";a", b";a=b"])
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    trailers = rng.choice([b"", b"X-A: b\r\n", b"Connection: close\r\nX: y\r\n"])
    raw = (
        head
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + chunks
        + rng.choice([b"0", b"00;q"])
        + b"\r\n"
        + trailers
        + b"\r\n"
    )
    return raw, b"".join(pieces)


@pytest.mark.parametrize("seed", range(300))
def test_requests_are_read_alike_in_all_pieces(seed: int) -> None:
    """Only an invalid request line, which follows in every fourth case, is refused, wherever the pieces are cut."""
    rng = random.Random(seed)
    requests = [random_request(rng) for _ in range(rng.randrange(1, 5))]
    raw = b"".join(request for request, _ in requests)
    is_invalid = seed % 4 == 0
    if is_invalid:
        raw += rng.choice(INVALID_LINES) + b"\r\nHost: a\r\n\r\n"
    cuts = sorted(rng.sample(range(1, len(raw)), min(rng.choice([0, 1, 3, 20, 1000]), len(raw) - 1)))
    reader = RequestReader(RequestLimits(SETTINGS), request_rules())
    bodies: list[list[bytes]] = []
    rejection = None
    for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        rejection = reader.feed(raw[start:end])
        if reader.request is not None:
            bodies += [request.body for request in (reader.request, *reader.more_requests)]
    assert (rejection is not None) == is_invalid
    assert [b"".join(body) for body in bodies] == [body for _, body in requests]
    if not is_invalid:
        assert reader.body_of is None
        assert reader.head_started_at == 0
        assert (reader._at, reader._unfinished, reader._text) == (0, b"", b"")
