"""Status and error code of each response of the router itself."""

import pytest

from router.http import responses
from router.http.responses import LocalResponse

TABLE = (
    (responses.bad_request("reason"), 400, "bad-request"),
    (responses.unauthorized("Bearer"), 401, "unauthorized"),
    (responses.forbidden("Bearer"), 403, "forbidden"),
    (responses.unknown_service("iris"), 404, "unknown-service"),
    (responses.unknown_version("iris", "blue"), 404, "unknown-service"),
    (responses.no_such_path("/api/v1/service/<name>"), 404, "unknown-service"),
    (responses.method_not_allowed("GET"), 405, "method-not-allowed"),
    (responses.HEAD_TIMEOUT, 408, "request-timeout"),
    (responses.BODY_TIMEOUT, 408, "request-timeout"),
    (responses.payload_too_large(5), 413, "payload-too-large"),
    (responses.head_too_large(5, 6), 431, "headers-too-large"),
    (responses.ROUTER_ERROR, 500, "router-error"),
    (responses.REPLICA_CLOSED, 502, "replica-closed"),
    (responses.overloaded("iris", 3), 503, "overloaded"),
    (responses.no_ready_replicas("iris", 3), 503, "no-ready-replicas"),
    (responses.scoring_timeout(5), 504, "scoring-timeout"),
)


@pytest.mark.parametrize(("response", "status", "error_code"), TABLE)
def test_response_has_its_status_and_error_code(response: LocalResponse, status: int, error_code: str) -> None:
    assert (response.status, response.error_code) == (status, error_code)
    assert response.text
