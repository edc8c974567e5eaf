"""The bytes of HTTP/1.1 that the router writes."""

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http import http1, responses
from router.http.http1 import CHUNKED, CONTENT_LENGTH, NO_BODY, UNTIL_CLOSE, date_line, local_response
from router.http.responses import LocalResponse
from router.http.streams import UNKNOWN_LENGTH

EPOCH = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110


def rendered(
    response: LocalResponse, *lines: bytes, keep_alive: bool = True, http11: bool = True, bodiless: bool = False
) -> bytes:
    return local_response(response, list(lines), date=EPOCH, keep_alive=keep_alive, http11=http11, bodiless=bodiless)


def test_date_line_changes_with_the_second() -> None:
    assert date_line(EPOCH) == date_line(EPOCH + 0.9) == b"Date: Sun, 06 Nov 1994 08:49:37 GMT"
    assert date_line(EPOCH + 1) == b"Date: Sun, 06 Nov 1994 08:49:38 GMT"


def test_local_response_has_status_date_error_code_and_given_lines() -> None:
    assert rendered(responses.overloaded("iris", 3), b"x-request-id: 1", keep_alive=False) == (
        b"HTTP/1.1 503 Service Unavailable\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 47\r\n"
        b"azureml-fe-error: overloaded\r\n"
        b"Retry-After: 3\r\n"
        b"x-request-id: 1\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"Too many requests for service iris (overloaded)"
    )


def test_bodiless_local_response_has_the_length_of_the_body() -> None:
    complete = rendered(responses.HEALTHY)
    assert rendered(responses.HEALTHY, bodiless=True) == complete.removesuffix(b"Healthy")
    assert b"Content-Length: 7\r\n" in complete


def test_local_response_without_content_has_no_length() -> None:
    expected = b"HTTP/1.1 204 No Content\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
    assert rendered(LocalResponse(204, "", "")) == expected


def test_local_response_to_an_http10_client_has_connection_keep_alive() -> None:
    assert b"\r\nConnection: keep-alive\r\n" in rendered(responses.HEALTHY, http11=False)


@given(st.text(max_size=30))
def test_length_of_local_response_is_that_of_its_bytes(text: str) -> None:
    head, _, body = rendered(LocalResponse(200, "", text)).partition(b"\r\n\r\n")
    assert body == text.encode()
    assert b"Content-Length: %d" % len(body) in head


@given(st.integers(100, 999))
def test_local_response_has_the_standard_reason_phrase(status: int) -> None:
    phrases = {known.value: known.phrase.encode() for known in HTTPStatus}
    start_line, _, _ = rendered(LocalResponse(status, "", "")).partition(b"\r\n")
    assert start_line == b"HTTP/1.1 %d %b" % (status, phrases.get(status, b""))


@pytest.mark.parametrize(
    ("method", "length", "framing"),
    [
        (b"POST", 0, b"Content-Length: 0\r\n"),
        (b"GET", 0, b""),
        (b"POST", 5, b"Content-Length: 5\r\n"),
        (b"GET", 1023, b"Content-Length: 1023\r\n"),
        (b"POST", 1024, b"Content-Length: 1024\r\n"),
        (b"POST", UNKNOWN_LENGTH, b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_request_head_frames_the_body_by_its_length(method: bytes, length: int, framing: bytes) -> None:
    head = http1.request_head(method, b"/score", b"fe", [b"", b"a: b"], length, upgrade=False)
    assert head == method + b" /score HTTP/1.1\r\nHost: fe\r\na: b\r\n" + framing + b"\r\n"


@pytest.mark.parametrize(("method", "framing"), [(b"GET", b""), (b"POST", b"Content-Length: 0\r\n")])
def test_request_head_with_upgrade_has_the_upgrade_headers(method: bytes, framing: bytes) -> None:
    head = http1.request_head(method, b"/ws", b"fe", [b""], 0, upgrade=True)
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    assert head == method + b" /ws HTTP/1.1\r\nHost: fe\r\n" + upgrade + framing + b"\r\n"


@pytest.mark.parametrize(
    ("method", "status", "length", "http11", "framing"),
    [
        (b"POST", 200, 5, True, CONTENT_LENGTH),
        (b"POST", 200, UNKNOWN_LENGTH, True, CHUNKED),
        (b"GET", 200, UNKNOWN_LENGTH, False, UNTIL_CLOSE),
        (b"POST", 204, UNKNOWN_LENGTH, True, NO_BODY),
        (b"GET", 304, 5, True, NO_BODY),
        (b"GET", 101, UNKNOWN_LENGTH, True, NO_BODY),
        (b"HEAD", 200, 5, True, NO_BODY),
        (b"HEAD", 200, UNKNOWN_LENGTH, False, NO_BODY),
        (b"HEAD", 404, UNKNOWN_LENGTH, True, NO_BODY),
    ],
)
def test_response_framing_follows_method_status_length_and_version(
    method: bytes, status: int, length: int, http11: bool, framing: int
) -> None:
    assert http1.response_framing(method, status, length, http11) == framing


@pytest.mark.parametrize(
    ("status", "length", "framing", "keep_alive", "http11", "tail"),
    [
        (200, 5, CONTENT_LENGTH, True, True, b"Content-Length: 5\r\n"),
        (200, 1023, CONTENT_LENGTH, True, True, b"Content-Length: 1023\r\n"),
        (200, 1024, CONTENT_LENGTH, True, True, b"Content-Length: 1024\r\n"),
        (200, 5, CONTENT_LENGTH, False, True, b"Content-Length: 5\r\nConnection: close\r\n"),
        (200, 5, CONTENT_LENGTH, True, False, b"Content-Length: 5\r\nConnection: keep-alive\r\n"),
        (200, UNKNOWN_LENGTH, CHUNKED, True, True, b"Transfer-Encoding: chunked\r\n"),
        (200, UNKNOWN_LENGTH, UNTIL_CLOSE, False, False, b"Connection: close\r\n"),
        (304, 7, NO_BODY, True, True, b"Content-Length: 7\r\n"),
        (101, UNKNOWN_LENGTH, NO_BODY, False, True, b"Connection: Upgrade\r\nUpgrade: websocket\r\n"),
    ],
)
def test_response_head_has_framing_and_connection_headers(
    status: int, length: int, framing: int, keep_alive: bool, http11: bool, tail: bytes
) -> None:
    head = http1.response_head(status, b"Fine", [b"", b"a: b"], length, framing, keep_alive, http11)
    assert head == b"HTTP/1.1 %d Fine\r\na: b\r\n%b\r\n" % (status, tail)


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=4))
def test_pieces_become_one_chunk(pieces: list[bytes]) -> None:
    data = b"".join(http1.chunk(pieces)) + http1.last_chunk(())
    body = b"".join(pieces)
    assert data == (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"


def test_last_chunk_is_followed_by_trailers() -> None:
    assert http1.last_chunk((b"a: 1", b"b: 2")) == b"0\r\na: 1\r\nb: 2\r\n\r\n"
