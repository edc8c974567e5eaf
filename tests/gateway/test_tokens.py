"""Tokens in the data plane: who gets in, what the others are told, and requests that wait for a key."""

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
from tests.auth.signing import issuer, pair, published
from tests.gateway.wire import Message, ok, post, post_chunked
from tests.gateway.world import World, story

REALM = 'Bearer realm="azureml-fe"'
ROOT = Path(__file__).parents[2]


def token(kid: str = "one", **claims: Any) -> str:
    now = time.time()
    return signing.token(signing.claims(**{"exp": now + 600, "iat": now} | claims), key=pair(kid), kid=kid).decode()


def known(*kids: str, answered_at: float = 1.0, may_be_asked_at: float = 0.0, **settings: Any) -> Trust:
    keys = tuple({**published(pair(kid)), "kid": kid} for kid in kids)
    return Trust((issuer(**settings),), {"corp": KeySet(keys, answered_at, may_be_asked_at)})


def serve(world: World, trust: Trust | None = None) -> None:
    world.gateway.set_trust(known("one") if trust is None else trust)
    world.serve(token_auth_enabled=True)


def told(answer: Message) -> tuple[int, str | None, str | None]:
    return answer.status, answer.error, answer.get("www-authenticate")


@story()
async def test_a_good_token_gets_in_and_stays_outside_the_replica(world: World) -> None:
    serve(world)
    replica = await world.replica()
    client = await world.client()
    client.send(post(key=token()))
    line = await replica.accept()
    assert "authorization" not in await line.message()
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_key_of_the_service_is_no_token(world: World) -> None:
    serve(world)
    await world.replica()
    assert told(await world.ask(post())) == (401, "unauthorized", REALM + ', error="invalid_token"')


@pytest.mark.parametrize(
    "text", ["", "x", "a.b.c", "é.é.é", "." * 5000, {"exp": 1}, {"aud": "other"}, {"iss": "x"}, {"nbf": 2**40}]
)
@story()
async def test_whatever_is_wrong_with_a_token_the_client_is_told_the_same(
    world: World, text: str | dict[str, Any]
) -> None:
    """No more than that it is not valid: neither why, nor which issuers there are."""
    serve(world)
    await world.replica()
    answer = await world.ask(post(key=text if isinstance(text, str) else token(**text)))
    assert told(answer) == (401, "unauthorized", REALM + ', error="invalid_token"')
    assert answer.body == b"Key or token missing or wrong."


@story()
async def test_request_without_a_token_is_told_how_and_nothing_else(world: World) -> None:
    serve(world)
    await world.replica()
    assert told(await world.ask(post(key=None))) == (401, "unauthorized", REALM)
    assert told(await world.ask(post(b"{}", "Authorization: Basic YTpi", key=None))) == (401, "unauthorized", REALM)


@story()
async def test_valid_token_without_a_required_role_is_forbidden(world: World) -> None:
    serve(world, known("one", required_roles=("Score",)))
    (await world.replica()).answers()
    answer = await world.ask(post(key=token(roles=["Read"])))
    assert told(answer) == (403, "forbidden", REALM + ', error="insufficient_scope"')
    assert (await world.ask(post(key=token(roles=["Score"])))).status == 200


@story()
async def test_failures_are_counted_by_reason(world: World) -> None:
    serve(world, known("one", may_be_asked_at=1e18))
    await world.replica()
    for text in (None, "x", token(exp=1), token("two"), token(aud="x"), token(iss="x"), token(nbf=time.time() + 999)):
        assert (await world.ask(post(key=text))).status == 401
    assert {reason for service, reason in world.gateway.counters.auth_failures if service == "iris"} == {
        "missing", "malformed", "expired", "unknown-key", "wrong-audience", "unknown-issuer", "not-yet-valid",
    }  # fmt: skip


@story()
async def test_remembered_tokens_are_counted(world: World) -> None:
    serve(world)
    (await world.replica()).answers()
    text = token()
    for _ in range(3):
        assert (await world.ask(post(key=text))).status == 200
    world.gateway.authentication.count(world.gateway.counters)
    counters = world.gateway.counters
    assert (counters.token_cache_entries, counters.token_cache_hits, counters.token_cache_misses) == (1, 2, 1)


# What is taken back.


@story()
async def test_key_that_is_gone_makes_a_remembered_token_worthless(world: World) -> None:
    serve(world)
    (await world.replica()).answers()
    text = token()
    assert (await world.ask(post(key=text))).status == 200
    world.gateway.set_trust(known("two", may_be_asked_at=1e18))
    assert (await world.ask(post(key=text))).status == 401
    world.gateway.set_trust(Trust())
    assert (await world.ask(post(key=text))).status == 401


@story()
async def test_changed_issuer_makes_a_remembered_token_worthless(world: World) -> None:
    serve(world)
    (await world.replica()).answers()
    text = token()
    assert (await world.ask(post(key=text))).status == 200
    world.gateway.set_trust(known("one", required_roles=("Score",)))
    assert (await world.ask(post(key=text))).status == 403


@story()
async def test_another_key_or_another_service_leaves_remembered_tokens_alone(world: World) -> None:
    serve(world)
    (await world.replica()).answers()
    text = token()
    assert (await world.ask(post(key=text))).status == 200
    world.gateway.set_trust(known("one", "two"))
    world.serve("resnet")
    assert (await world.ask(post(key=text))).status == 200
    world.gateway.authentication.count(world.gateway.counters)
    assert world.gateway.counters.token_cache_misses == 1


@story()
async def test_service_that_was_taken_away_does_not_remember(world: World) -> None:
    serve(world)
    (await world.replica()).answers()
    text = token()
    assert (await world.ask(post(key=text))).status == 200
    world.withdraw("iris")
    assert (await world.ask(post(key=text))).status == 404
    serve(world)
    (await world.replica()).answers()
    assert (await world.ask(post(key=text))).status == 200
    world.gateway.authentication.count(world.gateway.counters)
    assert world.gateway.counters.token_cache_misses == 2


@story()
async def test_service_may_change_between_keys_and_tokens(world: World) -> None:
    serve(world)
    (await world.replica()).answers()
    assert (await world.ask(post(key=token()))).status == 200
    world.serve()
    assert (await world.ask(post(key=token()))).status == 401
    assert (await world.ask(post())).status == 200


# Who waits for a key.


@story()
async def test_request_with_a_new_key_waits_until_it_is_known(world: World) -> None:
    serve(world)
    replica = (await world.replica()).answers()
    client = await world.client()
    client.send(post(key=token("two")))
    await world.until(lambda: world.asked, "question")
    assert not replica.lines
    world.gateway.set_trust(known("one", "two", answered_at=2.0))
    assert (await client.message()).status == 200
    assert world.asked == ["corp"]


@story()
async def test_many_wait_with_one_question_and_are_judged_one_by_one(world: World) -> None:
    serve(world)
    world.serve(token_auth_enabled=True, replica_max_concurrent_requests=0)
    (await world.replica()).answers()
    good, bad = [await world.client() for _ in range(5)], [await world.client() for _ in range(5)]
    for client in good:
        client.send(post(key=token("two")))
    for client in bad:
        client.send(post(key=token("three")))
    await world.until(lambda: sum(map(len, world.gateway.authentication._held.values())) == 10, "ten that wait")
    world.gateway.set_trust(known("one", "two", answered_at=2.0))
    assert [(await client.message()).status for client in good] == [200] * 5
    assert [(await client.message()).status for client in bad] == [401] * 5
    assert world.asked == ["corp"]


@story()
async def test_before_the_first_keys_are_known_requests_wait(world: World) -> None:
    """A worker accepts clients before its issuers have answered."""
    serve(world, Trust((issuer(),), {"corp": KeySet()}))
    (await world.replica()).answers()
    client = await world.client()
    client.send(post(key=token()))
    await world.until(lambda: world.asked, "question")
    world.gateway.set_trust(known("one"))
    assert (await client.message()).status == 200


@story()
async def test_flood_of_unknown_keys_is_refused_at_once_when_the_issuer_was_asked(world: World) -> None:
    serve(world, known("one", may_be_asked_at=time.monotonic() + 1000))
    (await world.replica()).answers()
    for number in range(50):
        text = signing.token(signing.claims(), kid=f"made up {number}").decode()
        assert (await world.ask(post(key=text))).status == 401
    assert world.asked == []
    assert (await world.ask(post(key=token()))).status == 200


@story()
async def test_as_many_wait_as_there_is_room_for(world: World) -> None:
    serve(world)
    await world.replica()
    with mock.patch.object(authentication, "MOST_HELD", 2):
        waiting = [await world.client() for _ in range(2)]
        for client in waiting:
            client.send(post(key=token("two")))
        await world.until(lambda: sum(map(len, world.gateway.authentication._held.values())) == 2, "two that wait")
        assert (await world.ask(post(key=token("two")))).status == 401
    world.gateway.set_trust(known("one", answered_at=2.0))
    assert [(await client.message()).status for client in waiting] == [401, 401]


@story()
async def test_nobody_waits_longer_than_a_moment(world: World) -> None:
    serve(world)
    await world.replica()
    with mock.patch.object(authentication, "HELD_SECONDS", 0.02):
        assert (await world.ask(post(key=token("two")))).status == 401
    assert world.gateway.authentication._held == {}


@story()
async def test_client_that_leaves_while_it_waits_is_forgotten(world: World) -> None:
    serve(world)
    replica = await world.replica()
    client = await world.client()
    client.send(post(key=token("two")))
    await world.until(lambda: world.asked, "question")
    client.reset()
    await world.until(lambda: not world.gateway._clients, "end of the client")
    world.gateway.set_trust(known("one", "two", answered_at=2.0))
    assert not replica.lines
    assert world.gateway.authentication._held == {}


@story()
async def test_body_that_comes_meanwhile_reaches_the_replica_whole(world: World) -> None:
    serve(world)
    replica = await world.replica()
    client = await world.client()
    request = post(b"x" * 300_000, key=token("two"))
    client.send(request[:70_000])
    await world.until(lambda: world.asked, "question")
    client.send(request[70_000:])
    world.gateway.set_trust(known("one", "two", answered_at=2.0))
    line = await replica.accept()
    assert (await line.message()).body == b"x" * 300_000
    line.send(ok())
    assert (await client.message()).status == 200


@story()
async def test_pipelined_requests_wait_behind_the_one_that_waits(world: World) -> None:
    serve(world)
    (await world.replica()).answers()
    client = await world.client()
    client.send(post(key=token("two")), post(key=token()))
    await world.until(lambda: world.asked, "question")
    world.gateway.set_trust(known("one", answered_at=2.0))
    assert [(await client.message()).status for _ in range(2)] == [401, 200]


@story()
async def test_malformed_body_of_a_request_that_waits_is_refused_at_once(world: World) -> None:
    serve(world)
    replica = await world.replica()
    client = await world.client()
    head = post_chunked(b"a", end=False).replace(f"Bearer {'k' * 32}".encode(), f"Bearer {token('two')}".encode())
    client.send(head)
    await world.until(lambda: world.asked, "question")
    client.send(b"not a chunk\r\n")
    assert (await client.message()).status == 400
    world.gateway.set_trust(known("one", "two", answered_at=2.0))
    assert not replica.lines


@story()
async def test_service_that_goes_while_a_request_waits(world: World) -> None:
    serve(world)
    await world.replica()
    client = await world.client()
    client.send(post(key=token("two")))
    await world.until(lambda: world.asked, "question")
    world.withdraw("iris")
    world.gateway.set_trust(known("one", "two", answered_at=2.0))
    assert (await client.message()).status == 404


@story(max_payload_bytes=10)
async def test_what_comes_after_authentication_is_checked_after_the_wait(world: World) -> None:
    serve(world)
    await world.replica()
    client = await world.client()
    client.send(post(b"x" * 11, key=token("two")))
    await world.until(lambda: world.asked, "question")
    world.gateway.set_trust(known("one", "two", answered_at=2.0))
    assert (await client.message()).status == 413


# What it costs who has no tokens.


def test_worker_without_tokens_loads_no_cryptography() -> None:
    code = """
import asyncio, sys
from router.gateway.gateway import Gateway
from router.services import parse_service
from router.settings import load_settings
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
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
