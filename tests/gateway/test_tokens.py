"""Tokens in the data plane: accepted and refused requests, the token cache, parked requests."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from router.auth.trust import KeySet, Trust
from router.gateway import authentication
from tests.auth import signing
from tests.auth.signing import issuer, key_pair, public_jwk
from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import Message, ok, post, post_chunked

REALM = 'Bearer realm="azureml-fe"'
ROOT = Path(__file__).parents[2]


def token(kid: str = "one", **claims: Any) -> str:
    now = time.time()
    return signing.token(signing.claims(**{"exp": now + 600, "iat": now} | claims), key=key_pair(kid), kid=kid).decode()


def trust_with_keys(
    *kids: str, last_attempt_at: float = 1.0, refetch_allowed_at: float = 0.0, **settings: Any
) -> Trust:
    keys = tuple({**public_jwk(key_pair(kid)), "kid": kid} for kid in kids)
    return Trust((issuer(**settings),), {"corp": KeySet(keys, last_attempt_at, refetch_allowed_at)})


def add_token_service(harness: GatewayHarness, trust: Trust | None = None) -> None:
    harness.gateway.set_trust(trust_with_keys("one") if trust is None else trust)
    harness.set_service(token_auth_enabled=True)


def denial(response: Message) -> tuple[int, str | None, str | None]:
    return response.status, response.error_code, response.get("www-authenticate")


async def test_valid_token_is_accepted_and_not_forwarded(harness: GatewayHarness) -> None:
    add_token_service(harness)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(key=token()))
    connection = await replica.accept()
    assert "authorization" not in await connection.read_message()
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_key_is_refused_where_a_token_is_required(harness: GatewayHarness) -> None:
    add_token_service(harness)
    await harness.add_replica()
    assert denial(await harness.response_to(post())) == (401, "unauthorized", REALM + ', error="invalid_token"')


@pytest.mark.parametrize(
    "token_or_claims",
    ["", "x", "a.b.c", "é.é.é", "." * 5000, {"exp": 1}, {"aud": "other"}, {"iss": "x"}, {"nbf": 2**40}],
)
async def test_all_invalid_tokens_get_the_same_response(
    harness: GatewayHarness, token_or_claims: str | dict[str, Any]
) -> None:
    """The response reveals neither the reason nor the trusted issuers."""
    add_token_service(harness)
    await harness.add_replica()
    key = token_or_claims if isinstance(token_or_claims, str) else token(**token_or_claims)
    response = await harness.response_to(post(key=key))
    assert denial(response) == (401, "unauthorized", REALM + ', error="invalid_token"')
    assert response.body == b"Key or token missing or wrong."


async def test_request_without_a_token_gets_a_challenge_without_an_error(harness: GatewayHarness) -> None:
    add_token_service(harness)
    await harness.add_replica()
    assert denial(await harness.response_to(post(key=None))) == (401, "unauthorized", REALM)
    assert denial(await harness.response_to(post(b"{}", "Authorization: Basic YTpi", key=None))) == (
        401,
        "unauthorized",
        REALM,
    )


async def test_valid_token_without_a_required_role_is_forbidden(harness: GatewayHarness) -> None:
    add_token_service(harness, trust_with_keys("one", required_roles=("Score",)))
    (await harness.add_replica()).auto_respond()
    response = await harness.response_to(post(key=token(roles=["Read"])))
    assert denial(response) == (403, "forbidden", REALM + ', error="insufficient_scope"')
    assert (await harness.response_to(post(key=token(roles=["Score"])))).status == 200


async def test_authentication_failures_are_counted_by_reason(harness: GatewayHarness) -> None:
    add_token_service(harness, trust_with_keys("one", refetch_allowed_at=1e18))
    await harness.add_replica()
    for text in (None, "x", token(exp=1), token("two"), token(aud="x"), token(iss="x"), token(nbf=time.time() + 999)):
        assert (await harness.response_to(post(key=text))).status == 401
    assert {reason for service, reason in harness.gateway.counters.auth_failures if service == "iris"} == {
        "missing", "malformed", "expired", "unknown-key", "wrong-audience", "unknown-issuer", "not-yet-valid",
    }  # fmt: skip


async def test_cached_tokens_are_counted(harness: GatewayHarness) -> None:
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    text = token()
    for _ in range(3):
        assert (await harness.response_to(post(key=text))).status == 200
    harness.gateway.authentication.count(harness.gateway.counters)
    counters = harness.gateway.counters
    assert (counters.token_cache_entries, counters.token_cache_hits, counters.token_cache_misses) == (1, 2, 1)


# Revocation.


async def test_cached_token_is_refused_after_its_key_was_removed(harness: GatewayHarness) -> None:
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    text = token()
    assert (await harness.response_to(post(key=text))).status == 200
    harness.gateway.set_trust(trust_with_keys("two", refetch_allowed_at=1e18))
    assert (await harness.response_to(post(key=text))).status == 401
    harness.gateway.set_trust(Trust())
    assert (await harness.response_to(post(key=text))).status == 401


async def test_cached_token_is_checked_again_after_its_issuer_changed(harness: GatewayHarness) -> None:
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    text = token()
    assert (await harness.response_to(post(key=text))).status == 200
    harness.gateway.set_trust(trust_with_keys("one", required_roles=("Score",)))
    assert (await harness.response_to(post(key=text))).status == 403


async def test_token_cache_is_kept_when_a_key_or_a_service_is_added(harness: GatewayHarness) -> None:
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    text = token()
    assert (await harness.response_to(post(key=text))).status == 200
    harness.gateway.set_trust(trust_with_keys("one", "two"))
    harness.set_service("resnet")
    assert (await harness.response_to(post(key=text))).status == 200
    harness.gateway.authentication.count(harness.gateway.counters)
    assert harness.gateway.counters.token_cache_misses == 1


async def test_token_cache_of_a_removed_service_is_dropped(harness: GatewayHarness) -> None:
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    text = token()
    assert (await harness.response_to(post(key=text))).status == 200
    harness.remove_service("iris")
    assert (await harness.response_to(post(key=text))).status == 404
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    assert (await harness.response_to(post(key=text))).status == 200
    harness.gateway.authentication.count(harness.gateway.counters)
    assert harness.gateway.counters.token_cache_misses == 2


async def test_service_can_switch_between_keys_and_tokens(harness: GatewayHarness) -> None:
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    assert (await harness.response_to(post(key=token()))).status == 200
    harness.set_service()
    assert (await harness.response_to(post(key=token()))).status == 401
    assert (await harness.response_to(post())).status == 200


# Parked requests.


async def test_request_with_an_unknown_key_is_parked_until_keys_were_fetched(harness: GatewayHarness) -> None:
    add_token_service(harness)
    replica = (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(key=token("two")))
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    assert not replica.connections
    harness.gateway.set_trust(trust_with_keys("one", "two", last_attempt_at=2.0))
    assert (await client.read_message()).status == 200
    assert harness.key_requests == ["corp"]


async def test_many_parked_requests_cause_one_key_request(harness: GatewayHarness) -> None:
    add_token_service(harness)
    harness.set_service(token_auth_enabled=True, replica_max_concurrent_requests=0)
    (await harness.add_replica()).auto_respond()
    valid, invalid = [await harness.client() for _ in range(5)], [await harness.client() for _ in range(5)]
    for client in valid:
        client.send(post(key=token("two")))
    for client in invalid:
        client.send(post(key=token("three")))
    await harness.wait_until(
        lambda: sum(map(len, harness.gateway.authentication._parked.values())) == 10, "ten parked requests"
    )
    harness.gateway.set_trust(trust_with_keys("one", "two", last_attempt_at=2.0))
    assert [(await client.read_message()).status for client in valid] == [200] * 5
    assert [(await client.read_message()).status for client in invalid] == [401] * 5
    assert harness.key_requests == ["corp"]


async def test_requests_are_parked_until_the_first_keys_were_fetched(harness: GatewayHarness) -> None:
    """A worker accepts clients before the first keys were fetched."""
    add_token_service(harness, Trust((issuer(),), {"corp": KeySet()}))
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(key=token()))
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    harness.gateway.set_trust(trust_with_keys("one"))
    assert (await client.read_message()).status == 200


async def test_unknown_keys_are_refused_immediately_after_a_recent_fetch(harness: GatewayHarness) -> None:
    add_token_service(harness, trust_with_keys("one", refetch_allowed_at=time.monotonic() + 1000))
    (await harness.add_replica()).auto_respond()
    for number in range(50):
        text = signing.token(signing.claims(), kid=f"unknown {number}").decode()
        assert (await harness.response_to(post(key=text))).status == 401
    assert harness.key_requests == []
    assert (await harness.response_to(post(key=token()))).status == 200


async def test_number_of_parked_requests_is_limited(harness: GatewayHarness) -> None:
    add_token_service(harness)
    await harness.add_replica()
    with mock.patch.object(authentication, "MAX_PARKED", 2):
        parked = [await harness.client() for _ in range(2)]
        for client in parked:
            client.send(post(key=token("two")))
        await harness.wait_until(
            lambda: sum(map(len, harness.gateway.authentication._parked.values())) == 2, "two parked requests"
        )
        assert (await harness.response_to(post(key=token("two")))).status == 401
    harness.gateway.set_trust(trust_with_keys("one", last_attempt_at=2.0))
    assert [(await client.read_message()).status for client in parked] == [401, 401]


async def test_parked_request_is_refused_after_a_timeout(harness: GatewayHarness) -> None:
    add_token_service(harness)
    await harness.add_replica()
    with mock.patch.object(authentication, "MAX_PARKED_SECONDS", 0.02):
        assert (await harness.response_to(post(key=token("two")))).status == 401
    assert harness.gateway.authentication._parked == {}


async def test_parked_request_of_a_closed_client_is_dropped(harness: GatewayHarness) -> None:
    add_token_service(harness)
    replica = await harness.add_replica()
    client = await harness.client()
    client.send(post(key=token("two")))
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    client.reset()
    await harness.wait_until(lambda: not harness.gateway.clients, "end of the client")
    harness.gateway.set_trust(trust_with_keys("one", "two", last_attempt_at=2.0))
    assert not replica.connections
    assert harness.gateway.authentication._parked == {}


async def test_body_received_while_parked_is_forwarded_completely(harness: GatewayHarness) -> None:
    add_token_service(harness)
    replica = await harness.add_replica()
    client = await harness.client()
    request = post(b"x" * 300_000, key=token("two"))
    client.send(request[:70_000])
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    client.send(request[70_000:])
    harness.gateway.set_trust(trust_with_keys("one", "two", last_attempt_at=2.0))
    connection = await replica.accept()
    assert (await connection.read_message()).body == b"x" * 300_000
    connection.send(ok())
    assert (await client.read_message()).status == 200


async def test_pipelined_requests_wait_behind_a_parked_request(harness: GatewayHarness) -> None:
    add_token_service(harness)
    (await harness.add_replica()).auto_respond()
    client = await harness.client()
    client.send(post(key=token("two")), post(key=token()))
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    harness.gateway.set_trust(trust_with_keys("one", last_attempt_at=2.0))
    assert [(await client.read_message()).status for _ in range(2)] == [401, 200]


async def test_malformed_body_of_a_parked_request_is_refused_immediately(harness: GatewayHarness) -> None:
    add_token_service(harness)
    replica = await harness.add_replica()
    client = await harness.client()
    head = post_chunked(b"a", end=False).replace(f"Bearer {'k' * 32}".encode(), f"Bearer {token('two')}".encode())
    client.send(head)
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    client.send(b"not a chunk\r\n")
    assert (await client.read_message()).status == 400
    harness.gateway.set_trust(trust_with_keys("one", "two", last_attempt_at=2.0))
    assert not replica.connections


async def test_parked_request_of_a_removed_service_is_404(harness: GatewayHarness) -> None:
    add_token_service(harness)
    await harness.add_replica()
    client = await harness.client()
    client.send(post(key=token("two")))
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    harness.remove_service("iris")
    harness.gateway.set_trust(trust_with_keys("one", "two", last_attempt_at=2.0))
    assert (await client.read_message()).status == 404


@pytest.mark.gateway(max_payload_bytes=10)
async def test_payload_limit_is_checked_after_a_request_was_parked(harness: GatewayHarness) -> None:
    add_token_service(harness)
    await harness.add_replica()
    client = await harness.client()
    client.send(post(b"x" * 11, key=token("two")))
    await harness.wait_until(lambda: harness.key_requests, "request for keys")
    harness.gateway.set_trust(trust_with_keys("one", "two", last_attempt_at=2.0))
    assert (await client.read_message()).status == 413


# Memory of workers without tokens.


def test_worker_without_tokens_does_not_load_cryptography() -> None:
    code = """
import asyncio, sys
from router.gateway.gateway import Gateway
from router.config.service import parse_service
from router.config.router import load_settings
from router.telemetry.access_log import AccessLog

def loaded():
    return [name for name in ("jwt", "cryptography") if name in sys.modules]

async def main():
    gateway = Gateway(load_settings(environ={}), AccessLog(0.0, sys.stderr), lambda *_: None)
    gateway.apply({"a": parse_service("a", {"num_replicas": 1})})
    assert loaded() == [], loaded()
    gateway.apply({"a": parse_service("a", {"num_replicas": 1, "token_auth_enabled": True})})
    assert loaded() == ["jwt", "cryptography"], loaded()
    gateway.close()

asyncio.run(main())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
