"""Routes of the admin port for tokens.

    GET  /.well-known/jwks.json              the router's own public keys
    POST /api/v1/service/NAME/token?ttl=N    a token for the service NAME, for a client with one of its keys

A client with a key of the service requests a token here. It sends scoring requests with the token until it expires.
"""

from __future__ import annotations

import logging

from aiohttp import web

from router.auth.issuing.token_authority import TokenAuthority
from router.auth.keys import CHALLENGE, INVALID_CHALLENGE, MISSING, KeyCheck
from router.config.schema import SettingsError
from router.telemetry.log import event

_log = logging.getLogger("router.auth")

_NO_STORE = {"Cache-Control": "no-store"}  # RFC 6750 section 5.3


def add_token_routes(routes: web.UrlDispatcher, authority: TokenAuthority) -> None:
    """Add the routes. Call this before the admin port is opened."""

    async def get_keys(_: web.Request) -> web.Response:
        headers = {"Cache-Control": "public, max-age=60"}
        return web.json_response({"keys": [{**key, "use": "sig"} for key in authority.own_keys]}, headers=headers)

    async def post_token(request: web.Request) -> web.Response:
        return await _issue(request, authority)

    routes.add_get("/.well-known/jwks.json", get_keys)
    routes.add_post("/api/v1/service/{name:.+}/token", post_token)


async def _issue(request: web.Request, authority: TokenAuthority) -> web.Response:
    service = authority.services.get(request.match_info["name"])
    if service is None:
        return _error(404, "No such service.")
    header = request.headers.get("Authorization")
    authorization = header.encode("utf-8", "surrogateescape") if header is not None else None
    check = KeyCheck((service.primary_key, service.secondary_key))
    if not check.allows(authorization):
        challenge = CHALLENGE if check.denial_reason(authorization) == MISSING else INVALID_CHALLENGE
        return _error(401, "The service's key is missing or wrong.", {"WWW-Authenticate": challenge})
    if not service.token_auth_enabled:
        return _error(409, f"Service {service.name} does not accept tokens: token_auth_enabled is false.")
    try:
        document = await authority.issue(service.name, request.query.get("ttl"))
    except SettingsError as error:
        if error.setting != "ttl":
            return _signing_failed(service.name, error)
        return _error(400, str(error))
    except OSError as error:
        return _signing_failed(service.name, error)
    return web.json_response(document, headers=_NO_STORE)


def _signing_failed(service: str, error: Exception) -> web.Response:
    event(_log, logging.ERROR, "no token can be issued", service=service, error=str(error))
    return _error(503, "The router cannot sign tokens at present; see its log.")


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(status=status, text=text + "\n", headers=_NO_STORE | (headers or {}))
