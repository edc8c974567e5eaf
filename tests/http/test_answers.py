"""The router's own answers as bytes."""

from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.http import answers
from router.http.answers import Answer, reason_phrase, render

EPOCH = 784111777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110
TABLE = (
    (answers.bad_request("why"), 400, "bad-request"),
    (answers.unauthorized("Bearer"), 401, "unauthorized"),
    (answers.unknown_service("iris"), 404, "unknown-service"),
    (answers.unknown_version("iris", "blue"), 404, "unknown-service"),
    (answers.no_such_path("/api/v1/service/"), 404, "unknown-service"),
    (answers.method_not_allowed("GET"), 405, "method-not-allowed"),
    (answers.HEAD_TIMEOUT, 408, "request-timeout"),
    (answers.BODY_TIMEOUT, 408, "request-timeout"),
    (answers.payload_too_large(5), 413, "payload-too-large"),
    (answers.head_too_large(5, 6), 431, "headers-too-large"),
    (answers.ROUTER_ERROR, 500, "router-error"),
    (answers.REPLICA_CLOSED, 502, "replica-closed"),
    (answers.overloaded("iris", 3), 503, "overloaded"),
    (answers.no_ready_replicas("iris", 3), 503, "no-ready-replicas"),
    (answers.scoring_timeout(5), 504, "scoring-timeout"),
)


@pytest.mark.parametrize(("answer", "status", "slug"), TABLE)
def test_status_and_slug(answer: Answer, status: int, slug: str) -> None:
    assert (answer.status, answer.slug) == (status, slug)
    assert answer.text


def test_bytes_of_an_answer() -> None:
    assert render(answers.overloaded("iris", 3), b"\r\nx-request-id: 1", now=EPOCH, close=True, bodiless=False) == (
        b"HTTP/1.1 503 Service Unavailable\r\n"
        b"Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 47\r\n"
        b"azureml-fe-error: overloaded\r\n"
        b"Retry-After: 3\r\n"
        b"Connection: close\r\n"
        b"x-request-id: 1\r\n"
        b"\r\n"
        b"Too many requests for service iris (overloaded)"
    )


def test_answer_to_head_has_the_length_and_not_the_body() -> None:
    whole = render(answers.HEALTHY, b"", now=EPOCH, close=False, bodiless=False)
    assert render(answers.HEALTHY, b"", now=EPOCH, close=False, bodiless=True) == whole.removesuffix(b"Healthy")
    assert b"Content-Length: 7\r\n" in whole


def test_answer_without_content_has_neither() -> None:
    rendered = render(Answer(204, "", ""), b"", now=EPOCH, close=False, bodiless=False)
    assert rendered == b"HTTP/1.1 204 No Content\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"


@given(st.text(max_size=30))
def test_length_is_that_of_the_bytes(text: str) -> None:
    head, _, body = render(Answer(200, "", text), b"", now=EPOCH, close=False, bodiless=False).partition(b"\r\n\r\n")
    assert body == text.encode()
    assert b"Content-Length: %d" % len(body) in head


@given(st.integers(100, 999))
def test_reason_of_a_status(status: int) -> None:
    known = {one.value: one.phrase.encode() for one in HTTPStatus}
    assert reason_phrase(status) == known.get(status, b"")
