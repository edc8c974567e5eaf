"""The router's own answers: one table from slug to status and text, and their bytes. No I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus


@dataclass(frozen=True, slots=True)
class Answer:
    """What the router says by itself. `slug` is the stable word in `azureml-fe-error`; `text` is for people."""

    status: int
    slug: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()


HEALTHY = Answer(200, "", "Healthy")
REPLICA_CLOSED = Answer(502, "replica-closed", "Replica closed connection before replying")
REPLICA_ERROR = "replica-error"  # the slug of a replica's 500, whose own body goes to the client as 502
ROUTER_ERROR = Answer(500, "router-error", "The router failed to handle this request.")
HEAD_TIMEOUT = Answer(408, "request-timeout", "The request's head did not arrive in time.")
BODY_TIMEOUT = Answer(408, "request-timeout", "The request's body did not arrive in time.")
CLIENT_CLOSED = Answer(499, "client-closed", "")  # never sent: how a request that was given up is counted


def bad_request(why: str) -> Answer:
    """400: the request breaks HTTP's rules."""
    return Answer(400, "bad-request", f"Bad request: {why}.")


def unauthorized(challenge: str) -> Answer:
    """401 with the challenge of RFC 6750."""
    return Answer(401, "unauthorized", "Key or token missing or wrong.", (("WWW-Authenticate", challenge),))


def forbidden(challenge: str) -> Answer:
    """403 with the challenge of RFC 6750: the token is valid, and does not say what it must."""
    return Answer(
        403, "forbidden", "The token does not have what the service requires.", (("WWW-Authenticate", challenge),)
    )


def unknown_service(name: str) -> Answer:
    """404: no service of that name."""
    return Answer(404, "unknown-service", f"No service {name}.")


def unknown_version(service: str, version: str) -> Answer:
    """404: the service has no version of the name that `azureml-model-deployment` asks for."""
    return Answer(404, "unknown-service", f"No version {version} of service {service}.")


def no_such_path(prefix: str) -> Answer:
    """404: an address that is no service's; `prefix` is what those of services begin with."""
    return Answer(404, "unknown-service", f"No such path. Scoring: POST {prefix}<name>/score")


def method_not_allowed(allow: str) -> Answer:
    """405 with the methods that are allowed."""
    return Answer(405, "method-not-allowed", f"Method not allowed. Allowed: {allow}.", (("Allow", allow),))


def payload_too_large(limit: int) -> Answer:
    """413: `limit` in bytes."""
    return Answer(413, "payload-too-large", f"The request's body is over the limit of {limit} bytes.")


def head_too_large(limit: int, most_headers: int) -> Answer:
    """431: `limit` in bytes."""
    return Answer(
        431, "headers-too-large", f"The request's head is over the limit of {limit} bytes or {most_headers} headers."
    )


def overloaded(service: str, retry_after: int) -> Answer:
    """503: no slot became free in time; `retry_after` in seconds."""
    return Answer(
        503,
        "overloaded",
        f"Too many requests for service {service} (overloaded)",
        (("Retry-After", str(retry_after)),),
    )


def no_ready_replicas(service: str, retry_after: int) -> Answer:
    """503: there is nothing to send the request to; `retry_after` in seconds."""
    return Answer(
        503, "no-ready-replicas", f"No ready replicas for service {service}.", (("Retry-After", str(retry_after)),)
    )


def scoring_timeout(milliseconds: int) -> Answer:
    """504: the replica took longer than `scoring_timeout_ms`."""
    return Answer(504, "scoring-timeout", f"The replica did not answer within {milliseconds} ms.")


def reason_phrase(status: int) -> bytes:
    """The standard phrase of a status; empty for one that has none."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def render(
    answer: Answer, ids: bytes, *, now: float, close: bool, bodiless: bool, extra: Iterable[bytes] = ()
) -> bytes:
    """The bytes of an answer. `ids` are finished header lines; `now` is the time of day in seconds since the epoch.

    `bodiless` leaves the body out but not its length, as an answer to HEAD must. `extra` are more finished lines.
    """
    body = answer.text.encode()
    lines = [
        b"HTTP/1.1 %d %b" % (answer.status, reason_phrase(answer.status)),
        b"Date: " + formatdate(now, usegmt=True).encode(),
    ]
    if answer.status != 204:
        lines += [b"Content-Type: text/plain; charset=utf-8", b"Content-Length: %d" % len(body)]
    if answer.slug:
        lines.append(b"azureml-fe-error: " + answer.slug.encode())
    lines += [f"{name}: {value}".encode() for name, value in answer.headers]
    lines += extra
    if close:
        lines.append(b"Connection: close")
    head = b"\r\n".join(lines) + ids + b"\r\n\r\n"
    return head if bodiless or answer.status == 204 else head + body
