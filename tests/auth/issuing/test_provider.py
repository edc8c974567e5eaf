"""The router with tokens of a real OpenID provider, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.auth.issuing.provider import Provider, needs_provider
from tests.processes import send_request, wait_until
from tests.routers import Router, StartRouter, echo_service, joined_router

pytestmark = needs_provider

SERVICES = {"iris": echo_service(token_auth_enabled=True), "resnet": echo_service(token_auth_enabled=True)}
IRIS = "urn:models:iris"


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    provider = Provider(tmp_path)
    yield provider
    provider.stop()


def issuer_settings(provider: Provider, **settings: Any) -> dict[str, Any]:
    return {
        "issuer": provider.url,
        "audience": "urn:models:{service}",
        "ca_file": str(provider.ca_file),
        "required_roles": ["Score"],
    } | settings


def status(router: Router, service: str, token: str) -> int:
    return router.score(service, Authorization=f"Bearer {token}").status


def failed_fetches(router: Router) -> float:
    return router.metric("jwks_fetches_total", issuer="corp", result="failed")


def test_keys_are_followed_through_rotation_and_an_outage(start: StartRouter, provider: Provider) -> None:
    provider.start("one")
    router = start(SERVICES, token_issuers={"corp": issuer_settings(provider)})
    first = provider.token(IRIS)
    assert status(router, "iris", first) == 200
    assert status(router, "resnet", first) == 401  # another audience
    assert provider.key_requests == 1

    provider.rotate("two", "one")
    second = provider.token(IRIS)
    assert status(router, "iris", second) == 200  # its key was fetched while the request waited
    assert status(router, "iris", first) == 200
    assert provider.key_requests == 2

    provider.rotate("two", roles=())
    assert status(router, "iris", provider.token(IRIS)) == 403

    provider.rotate("three")
    third = provider.token(IRIS)
    provider.stop()
    assert status(router, "iris", third) == 401  # its key cannot be fetched
    assert status(router, "iris", second) == 200  # known keys stay in use
    assert status(router, "iris", first) == 200
    assert failed_fetches(router) >= 1
    assert router.metric("jwks_keys", issuer="corp") == 2
    assert len(router.log("fetching keys of a token issuer failed")) == 1

    provider.start("three")
    wait_until(lambda: status(router, "iris", third) == 200, "keys of the restarted provider")
    assert status(router, "iris", second) == 401  # its key was removed


def test_router_that_joins_accepts_the_same_issuers(start: StartRouter, provider: Provider) -> None:
    provider.start("one")
    services = {"iris": echo_service(token_auth_enabled=True, replica_max_concurrent_requests=0)}
    router = start(services, token_issuers={"corp": issuer_settings(provider)})
    token = provider.token(IRIS)
    with joined_router(router) as port:
        path = "/api/v1/service/iris/score"
        wait_until(
            lambda: send_request(port, path, b"[1]", Authorization=f"Bearer {token}").status == 200,
            "a successful request",
        )
        assert send_request(port, path, b"[1]").status == 401


def test_elliptic_curve_keys_and_jwks_url(start: StartRouter, provider: Provider) -> None:
    provider.start("one", algorithm="ES256")
    settings = issuer_settings(provider, jwks_url=f"{provider.url}/jwks", algorithms=["ES256"])
    router = start(SERVICES, token_issuers={"corp": settings})
    token = provider.token(IRIS)
    assert status(router, "iris", token) == 200
    router.token_issuers = {"corp": settings | {"algorithms": ["RS256"]}}
    router.apply_config(SERVICES)
    wait_until(
        lambda: status(router, "iris", token) == 401, "the changed issuer"
    )  # although it was valid and cached before
    router.token_issuers = {}
    router.apply_config(SERVICES)
    wait_until(lambda: status(router, "iris", token) == 401, "no issuer")


def test_provider_with_an_untrusted_certificate_is_rejected(start: StartRouter, provider: Provider) -> None:
    provider.start("one")
    settings = issuer_settings(provider)
    del settings["ca_file"]
    router = start(SERVICES, token_issuers={"corp": settings})
    assert status(router, "iris", provider.token(IRIS)) == 401
    assert provider.key_requests == 0
    assert "certificate verify failed" in router.log("fetching keys of a token issuer failed")[0]["error"]
