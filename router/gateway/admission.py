"""Decides whether a request gets a slot. It checks target, method, origin, credentials, length, version, body. No I/O.

Contains: every reason to respond to a request without a replica, in the order of the checks, so that a request with a
wrong key is refused before its body is read. Does not contain: effects of the decision (`exchange`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from router.auth.credentials import (
    AUTHORIZATION,
    WEBSOCKET_PROTOCOL,
    CredentialError,
    find_credential,
    split_protocols,
)
from router.auth.keys import CHALLENGE, INSUFFICIENT_CHALLENGE, INVALID_CHALLENGE, MISSING, KeyCheck
from router.gateway.pool import ReplicaPool
from router.gateway.request import Request
from router.gateway.routes import ServiceRoute, VersionRoute
from router.gateway.routing_table import RoutingTable
from router.http import responses
from router.http.header_rules import is_field_list, without_fields
from router.http.responses import LocalResponse
from router.http.target import origin_form, split_target, with_one_slash
from router.slots.replica_leases import ReplicaLeases

if TYPE_CHECKING:
    from router.auth.tokens import TokenCheck

# For paths that belong to no service.
_METHODS: Final = frozenset((b"POST", b"GET"))
_ALLOWED: Final = "GET, POST"
_VARY: Final = b"Vary: Origin"
_PREFLIGHT_VARY: Final = b"Vary: Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
_PREFLIGHT_MAX_AGE: Final = b"Access-Control-Max-Age: 600"
_PREFLIGHT: Final = LocalResponse(204, "", "")
_MISSING_CLAIM: Final = "missing-claim"
_MAX_NAME_IN_ERRORS: Final = 64
_TEST_HEADER: Final = b"azureml-fe-test"


class Refuse:
    """Respond to the request without a replica. `denial_reason` is "" if the request was authenticated."""

    __slots__ = ("denial_reason", "response")

    def __init__(self, response: LocalResponse, denial_reason: str = "") -> None:
        self.response = response
        self.denial_reason = denial_reason


class Hold:
    """Hold the request until the issuer's keys were fetched again, then call `readmit`.

    If the request cannot be held, apply `otherwise`. See `Authentication.park_until_keys_fetched`.
    """

    __slots__ = ("issuer", "otherwise")

    def __init__(self, issuer: str, otherwise: Refuse) -> None:
        self.issuer = issuer
        self.otherwise = otherwise


class ReceiveBody:
    """Receive the rest of the body first, then `admit_received`."""

    __slots__ = ()


RECEIVE_BODY: Final = ReceiveBody()


class Wait:
    """Queue the request for a slot of its version: `Exchange` calls `LeaseCache.enqueue`."""

    __slots__ = ()


WAIT: Final = Wait()

Start = ReplicaLeases[ReplicaPool]
"""Send the request to the replica of this lease, which the request has acquired."""


def admit(
    request: Request, routes: RoutingTable, clock: Callable[[], float], may_hold: bool = True
) -> Refuse | Hold | ReceiveBody | Wait | Start:
    """Decide what to do with a request whose head was read.

    Sets the service and version of the request, its CORS response headers, and its target at the replica.
    `clock` returns seconds of the monotonic clock. `may_hold` is False for a request that was held before.
    """
    service = request.service
    if service is None:
        if request.rejection is not None:
            return Refuse(request.rejection)
        found = routes.targets.get(request.target)
        if found is None:
            resolved = _resolve_target(request, routes)
            if isinstance(resolved, Refuse):
                return resolved
            found = resolved
        service, request.replica_target = found
        request.service = service
        if service.is_special or request.upgrade or request.method not in service.methods:
            refusal = _check_special(request, service)
            if refusal is not None:
                return refusal
    captured = request.captured
    check = service.check
    if check is not None:
        if service.key_headers is None and not request.upgrade:
            credential = captured.get(AUTHORIZATION)
        else:
            try:
                credential = find_credential(captured, service.key_headers or (AUTHORIZATION,), request.upgrade)
            except CredentialError as error:
                return Refuse(responses.bad_request(str(error)))
        if not check.allows(credential):
            denial = _denial(check, credential)
            return Hold(check.unknown_key_issuer, denial) if check.unknown_key_issuer and may_hold else denial
    if request.length > routes.max_payload_bytes:
        return Refuse(responses.payload_too_large(routes.max_payload_bytes))
    version = service.only_version
    if version is None or b"azureml-model-deployment" in captured:
        forced = captured.get(b"azureml-model-deployment")
        version = service.choose(forced)
        if version is None:
            return _unknown_version(service, forced)
    request.version = version
    request.authenticated_at = now = clock()
    if (
        not request.body_complete
        and request.length <= routes.max_buffered_body_bytes
        and _receives_body(routes, version)
    ):
        return RECEIVE_BODY
    lease = version.lease_cache.acquire(now)
    return lease if lease is not None else _wait_or_refuse(version, request)


def admit_received(request: Request, routes: RoutingTable, now: float) -> Refuse | Wait | Start:
    """Ask for a slot for a request whose body was received, or as much of it as there was room for.

    The version is chosen among the present ones: services may have changed in the meantime. What was checked before is
    not checked again.
    """
    assert request.service is not None
    name = request.service.name
    service = routes.services.get(name.encode())
    if service is None:
        return Refuse(responses.unknown_service(name))
    request.service = service
    forced = request.captured.get(b"azureml-model-deployment")
    version = service.choose(forced)
    if version is None:
        return _unknown_version(service, forced)
    request.version = version
    lease = version.lease_cache.acquire(now)
    return lease if lease is not None else _wait_or_refuse(version, request)


def _receives_body(routes: RoutingTable, version: VersionRoute) -> bool:
    """Return True if bodies are received before their requests ask for a slot of this version.

    If no replica can serve them, the response need not wait for the body.
    """
    return routes.max_buffered_body_bytes > 0 and version.settings.request_buffering and version.may_serve


def _wait_or_refuse(version: VersionRoute, request: Request) -> Refuse | Wait:
    return WAIT if version.may_queue else refuse_without_slot(version, request)


def readmit(
    request: Request, routes: RoutingTable, clock: Callable[[], float]
) -> Refuse | Hold | ReceiveBody | Wait | Start:
    """Decide again about a request that was held, as the key that its token names may be known now.

    Never returns `Hold`.
    """
    assert request.service is not None
    name = request.service.name
    service = routes.services.get(name.encode())
    if service is None:
        return Refuse(responses.unknown_service(name))
    request.service = service
    return admit(request, routes, clock, may_hold=False)


def refuse_without_slot(version: VersionRoute, request: Request) -> Refuse:
    """Refuse a request that got no slot. It counts as demand for the autoscaler, but its repeats do not."""
    version.count_refusal(request.client_request_id)
    retry_after = version.retry_after()
    if version.has_ready_replicas and not version.all_replicas_refuse:
        return Refuse(responses.overloaded(version.service_name, retry_after))
    return Refuse(responses.no_ready_replicas(version.service_name, retry_after))


def _unknown_version(service: ServiceRoute, forced: bytes | None) -> Refuse:
    """Refuse a request that names a version which does not exist."""
    assert forced is not None
    return Refuse(responses.unknown_version(service.name, forced[:_MAX_NAME_IN_ERRORS].decode("latin-1")))


def _resolve_target(request: Request, routes: RoutingTable) -> tuple[ServiceRoute, bytes] | Refuse:
    """Return the service, and the path at its replicas, for a target that is not in `RoutingTable.targets`."""
    target = path = request.target
    if b"#" in target:  # a fragment never belongs to a request (RFC 9110 section 4.2.5)
        return Refuse(responses.bad_request("a fragment in the target"))
    if target[:1] != b"/":
        origin = origin_form(target, request.captured.get(b"host", b""))
        if origin is None:
            if target.lower().startswith((b"http://", b"https://")):
                request.keep_alive = False  # the client takes this router for another server
            return Refuse(responses.bad_request("the target is not a path of this host"))
        path = origin
    path = with_one_slash(path)
    split = split_target(path, routes.scoring_prefix, name_parts=routes.name_parts)
    if split is None:
        return Refuse(_outside_of_services(path, request.method, routes.service_path))
    name, replica_path = split
    service = routes.services.get(name)
    if service is None:
        return Refuse(responses.unknown_service(name[:_MAX_NAME_IN_ERRORS].decode("latin-1")))
    if path is target:
        routes.remember(target, service, replica_path)
    return service, replica_path


def _outside_of_services(path: bytes, method: bytes, service_path: str) -> LocalResponse:
    """Return the response for a path that belongs to no service."""
    if path == b"/" and method in (b"GET", b"HEAD"):
        return responses.HEALTHY
    if method not in _METHODS:
        return responses.method_not_allowed(_ALLOWED)
    return responses.no_such_path(service_path)


def _check_special(request: Request, service: ServiceRoute) -> Refuse | None:
    """Check what most requests and services do not have: standby, origins, other methods, credentials in other headers.

    Responds to a CORS preflight, sets the CORS headers of the response, and removes credentials from the request.
    Refuses requests for a service on standby, except tests. The header that marks them has no effect otherwise.
    """
    if service.standby and request.captured.get(_TEST_HEADER, b"").strip() != b"true":
        return Refuse(responses.standby(service.name))
    if service.origins is not None and _is_preflight(request, service.origins):
        request.cors_lines = _preflight_lines(request, service)
        return Refuse(_PREFLIGHT)
    if request.method not in service.methods:
        return Refuse(responses.method_not_allowed(service.allow))
    if request.upgrade and service.check is not None and WEBSOCKET_PROTOCOL in request.captured:
        try:
            _remove_token_from_protocols(request)
        except CredentialError as error:
            return Refuse(responses.bad_request(str(error)))
    if service.key_headers is not None:
        request.header_lines = without_fields(request.header_lines, service.removed_fields)
        request.underscore_lines = without_fields([*request.underscore_lines], service.removed_fields)
    return None


def _is_preflight(request: Request, origins: frozenset[bytes]) -> bool:
    """Return True for a CORS preflight from an allowed origin. Sets the CORS headers of the response.

    A response to another origin varies with the origin, too: a cache must not use it for an allowed one.
    """
    captured = request.captured
    origin = captured.get(b"origin", b"")
    if not origin or not (b"*" in origins or origin in origins):
        request.cors_lines = (_VARY,)
        return False
    request.cors_lines = (b"Access-Control-Allow-Origin: " + origin, _VARY, b"Access-Control-Expose-Headers: *")
    return request.method == b"OPTIONS" and b"access-control-request-method" in captured


def _preflight_lines(request: Request, service: ServiceRoute) -> tuple[bytes, ...]:
    """Return the CORS headers of the response to a preflight. Any headers may be sent: the credential protects."""
    captured = request.captured
    lines = (
        b"Access-Control-Allow-Origin: " + captured[b"origin"],
        _PREFLIGHT_VARY,
        b"Access-Control-Allow-Methods: " + service.allow.encode(),
        _PREFLIGHT_MAX_AGE,
    )
    requested = captured.get(b"access-control-request-headers", b"")
    return (*lines, b"Access-Control-Allow-Headers: " + requested) if is_field_list(requested) else lines


def _remove_token_from_protocols(request: Request) -> None:
    """Remove the token from Sec-WebSocket-Protocol, as the replica must not get it. Raises `CredentialError`."""
    token, others = split_protocols(request.captured[WEBSOCKET_PROTOCOL])
    if token is not None:
        lines = without_fields(request.header_lines, frozenset((WEBSOCKET_PROTOCOL,)))
        lines.append(b"Sec-WebSocket-Protocol: " + others)
        request.header_lines = lines


def _denial(check: KeyCheck | TokenCheck, credential: bytes | None) -> Refuse:
    """Refuse a request whose key or token was not accepted, with no more detail than RFC 6750 section 3.1 allows."""
    reason = check.denial_reason(credential)
    if reason == MISSING:
        return Refuse(responses.unauthorized(CHALLENGE), reason)
    if reason == _MISSING_CLAIM:
        return Refuse(responses.forbidden(INSUFFICIENT_CHALLENGE), reason)
    return Refuse(responses.unauthorized(INVALID_CHALLENGE), reason)
