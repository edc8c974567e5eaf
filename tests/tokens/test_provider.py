"""The whole router with tokens of a real OpenID provider, over TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ask, until
from tests.routers import Router, Start, echo, joined
from tests.tokens.provider import Provider, needs_provider

pytestmark = needs_provider

SERVICES = {"iris": echo(token_auth_enabled=True), "resnet": echo(token_auth_enabled=True)}
IRIS = "urn:models:iris"


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    made = Provider(tmp_path)
    yield made
    made.stop()


def corp(provider: Provider, **settings: Any) -> dict[str, Any]:
    return {
        "issuer": provider.url,
        "audience": "urn:models:{service}",
        "ca_file": str(provider.ca_file),
        "required_roles": ["Score"],
    } | settings


def status(router: Router, service: str, token: str) -> int:
    return router.score(service, Authorization=f"Bearer {token}").status


def failed(router: Router) -> float:
    return router.metric("jwks_fetches_total", issuer="corp", result="failed")


def test_provider_from_its_first_key_through_rotation_and_loss(start: Start, provider: Provider) -> None:
    provider.start("one")
    router = start(SERVICES, token_issuers={"corp": corp(provider)})
    first = provider.token(IRIS)
    assert status(router, "iris", first) == 200
    assert status(router, "resnet", first) == 401  # of another audience
    assert provider.times_asked == 1

    provider.rotate("two", "one")
    second = provider.token(IRIS)
    assert status(router, "iris", second) == 200  # its key was asked for while the request waited
    assert status(router, "iris", first) == 200
    assert provider.times_asked == 2

    provider.rotate("two", roles=())
    assert status(router, "iris", provider.token(IRIS)) == 403

    provider.rotate("three")
    third = provider.token(IRIS)
    provider.stop()
    assert status(router, "iris", third) == 401  # nobody can tell its key
    assert status(router, "iris", second) == 200  # and those known go on
    assert status(router, "iris", first) == 200
    assert failed(router) >= 1
    assert router.metric("jwks_keys", issuer="corp") == 2
    assert len(router.log("token issuer cannot be asked")) == 1

    provider.start("three")
    until(lambda: status(router, "iris", third) == 200, "keys of the provider that is back")
    assert status(router, "iris", second) == 401  # whose key is gone


def test_router_that_joins_accepts_the_same_issuers(start: Start, provider: Provider) -> None:
    provider.start("one")
    services = {"iris": echo(token_auth_enabled=True, replica_max_concurrent_requests=0)}
    router = start(services, token_issuers={"corp": corp(provider)})
    token = provider.token(IRIS)
    with joined(router) as port:
        path = "/api/v1/service/iris/score"
        until(lambda: ask(port, path, b"[1]", Authorization=f"Bearer {token}").status == 200, "a request there")
        assert ask(port, path, b"[1]").status == 401


def test_elliptic_keys_and_an_address_of_keys(start: Start, provider: Provider) -> None:
    provider.start("one", algorithm="ES256")
    settings = corp(provider, jwks_url=f"{provider.url}/jwks", algorithms=["ES256"])
    router = start(SERVICES, token_issuers={"corp": settings})
    token = provider.token(IRIS)
    assert status(router, "iris", token) == 200
    router.token_issuers = {"corp": settings | {"algorithms": ["RS256"]}}
    router.change(SERVICES)
    until(lambda: status(router, "iris", token) == 401, "the changed issuer")  # though it was accepted before
    router.token_issuers = {}
    router.change(SERVICES)
    until(lambda: status(router, "iris", token) == 401, "no issuer")


def test_provider_with_a_certificate_of_an_unknown_authority_is_not_believed(start: Start, provider: Provider) -> None:
    provider.start("one")
    settings = corp(provider)
    del settings["ca_file"]
    router = start(SERVICES, token_issuers={"corp": settings})
    assert status(router, "iris", provider.token(IRIS)) == 401
    assert provider.times_asked == 0
    assert "certificate verify failed" in router.log("token issuer cannot be asked")[0]["error"]
