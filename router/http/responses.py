"""The responses that the router makes itself: status, error code, text and headers of each. No I/O.

`Exchange.respond` adds further headers, and `http1.local_response` makes the bytes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LocalResponse:
    """A response of the router itself. `error_code` is the stable value of `azureml-fe-error`; `text` is for people."""

    status: int
    error_code: str
    text: str
    headers: tuple[tuple[str, str], ...] = ()


HEALTHY = LocalResponse(200, "", "Healthy")
REPLICA_CLOSED = LocalResponse(502, "replica-closed", "Replica closed connection before replying")
REPLICA_REMOVED = LocalResponse(502, "drain-timeout", "The replica was removed before it had responded.")
# Error codes of responses that the router aborts after their head was sent: in the access log and metrics only.
STREAM_TIMEOUT = "stream-timeout"  # the stream lasted longer than `max_stream_seconds`
TUNNEL_IDLE = "tunnel-idle"  # the tunnel had no data for `tunnel_idle_timeout_seconds`
# The error code of a replica's 500, which is forwarded to the client as 502 with the replica's body.
REPLICA_ERROR = "replica-error"
ROUTER_ERROR = LocalResponse(500, "router-error", "The router failed to handle this request.")
HEAD_TIMEOUT = LocalResponse(408, "request-timeout", "The request's head did not arrive in time.")
BODY_TIMEOUT = LocalResponse(408, "request-timeout", "The request's body did not arrive in time.")
MOSTLY_FRAMING = LocalResponse(
    400,
    "bad-request",
    "Bad request: the chunks of the body are too small. Their sizes, extensions and trailers are longer than the data "
    "by more than 16384 bytes.",
)
INPUT_NOT_BUFFERED = LocalResponse(
    503,
    "overloaded",
    "The router has no memory left for requests that arrive in parts or wait for the response to the one before.",
    (("Retry-After", "1"),),
)
_STANDBY_RETRY_SECONDS = 10  # an operator has to act, or a release is replacing another one
# Never sent: for metrics and logs of requests whose client has left. 499 is nginx's status for this case.
CLIENT_CLOSED = LocalResponse(499, "client-closed", "")


def bad_request(reason: str) -> LocalResponse:
    """400: the request violates HTTP."""
    return LocalResponse(400, "bad-request", f"Bad request: {reason}.")


HTTP_ON_TLS_PORT = bad_request("plain HTTP was sent to a port for HTTPS")
HTTP2_IS_OFF = bad_request("HTTP/2 is not enabled on this port")
TLS_ON_HTTP_PORT = bad_request("TLS was sent to a port for plain HTTP")


def unauthorized(challenge: str) -> LocalResponse:
    """401 with the challenge of RFC 6750."""
    return LocalResponse(401, "unauthorized", "Key or token missing or wrong.", (("WWW-Authenticate", challenge),))


def forbidden(challenge: str) -> LocalResponse:
    """403 with the challenge of RFC 6750: the token is valid but lacks a claim that the service requires."""
    return LocalResponse(
        403, "forbidden", "The token does not have what the service requires.", (("WWW-Authenticate", challenge),)
    )


def unknown_service(name: str) -> LocalResponse:
    """404: there is no service of this name."""
    return LocalResponse(404, "unknown-service", f"No service {name}.")


def unknown_version(service: str, version: str) -> LocalResponse:
    """404: the service has no version of the name in `azureml-model-deployment`."""
    return LocalResponse(404, "unknown-service", f"No version {version} of service {service}.")


def no_such_path(service_path: str) -> LocalResponse:
    """404: the path does not belong to a service; `service_path` is the form of paths that do, without the last `/`."""
    return LocalResponse(404, "unknown-service", f"No such path. Scoring: POST {service_path}/score")


def method_not_allowed(allow: str) -> LocalResponse:
    """405 with the allowed methods."""
    return LocalResponse(405, "method-not-allowed", f"Method not allowed. Allowed: {allow}.", (("Allow", allow),))


def payload_too_large(limit: int) -> LocalResponse:
    """413: `limit` in bytes."""
    return LocalResponse(413, "payload-too-large", f"The request's body is over the limit of {limit} bytes.")


def head_too_large(limit: int, max_headers: int) -> LocalResponse:
    """431: `limit` in bytes, `max_headers` the limit of header fields."""
    return LocalResponse(
        431, "headers-too-large", f"The request's head is over the limit of {limit} bytes or {max_headers} headers."
    )


def overloaded(service: str, retry_after: int) -> LocalResponse:
    """503: no slot was free in time, or the queue is full; `retry_after` in seconds."""
    return LocalResponse(
        503,
        "overloaded",
        f"Too many requests for service {service} (overloaded)",
        (("Retry-After", str(retry_after)),),
    )


def no_ready_replicas(service: str, retry_after: int) -> LocalResponse:
    """503: the service has no ready replica; `retry_after` in seconds."""
    return LocalResponse(
        503, "no-ready-replicas", f"No ready replicas for service {service}.", (("Retry-After", str(retry_after)),)
    )


def standby(service: str) -> LocalResponse:
    """503: this router follows the service but does not serve it."""
    return LocalResponse(
        503,
        "standby",
        f"This router does not serve {service}: it only observes, or another release of the router serves it.",
        (("Retry-After", str(_STANDBY_RETRY_SECONDS)),),
    )


def scoring_timeout(milliseconds: int) -> LocalResponse:
    """504: the replica took longer than `scoring_timeout_ms`."""
    return LocalResponse(504, "scoring-timeout", f"The replica did not answer within {milliseconds} ms.")
