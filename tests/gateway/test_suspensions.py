"""Replicas that hang or fail, and requests beside them, on real sockets."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest

from router.gateway.replica_health import HALF_OPEN, IN_USE, ON_TRIAL, REFUSING, ReplicaHealth
from router.model.services import ReplicaState
from tests.gateway.harness import GatewayHarness, Script, ScriptedReplica
from tests.gateway.http_connection import Connection, ok, post

FAST = {
    "outlier_ejection_seconds": 0.05,
    "outlier_consecutive_failures": 3,
    "scoring_timeout_ms": 600,
    "max_request_wait_time": 5000,
}
behind_proxy = pytest.mark.gateway(trusted_proxies=("127.0.0.0/8",))
"""`X-Forwarded-For` tells clients apart."""


def on_request(script: Script) -> Script:
    """Return a script that begins after the first request. Probes of the gateway send none."""

    async def run(connection: Connection) -> None:
        if await connection.wait_for_data():
            await connection.read_message()
            await script(connection)
        else:
            connection.close()

    return run


async def hang(connection: Connection) -> None:
    """Read everything and never respond."""
    connection.discard_input()


@on_request
async def hang_in_head(connection: Connection) -> None:
    """Begin a head, and never complete it."""
    connection.send(b"HTTP/1.1 200 OK\r\nContent-Le")


@on_request
async def hang_in_body(connection: Connection) -> None:
    """Begin a response, and never complete it."""
    connection.send(ok(b"begun", length=100))


@on_request
async def close_after_reading(connection: Connection) -> None:
    connection.close()


@on_request
async def reset_after_reading(connection: Connection) -> None:
    connection.reset()


@on_request
async def truncate(connection: Connection) -> None:
    """Announce more than is sent."""
    connection.send(ok(b"begun", length=100))
    connection.close()


@on_request
async def send_garbage(connection: Connection) -> None:
    connection.send(b"\x00\x01\x02 not HTTP at all\r\n\r\n")


def answer(status: int) -> Script:
    async def script(connection: Connection) -> None:
        while await connection.wait_for_data():
            await connection.read_message()
            connection.send(b"HTTP/1.1 %d Failed\r\nContent-Length: 0\r\n\r\n" % status)

    return script


FAULTS = {
    "hangs": hang,
    "hangs in the head": hang_in_head,
    "hangs in the body": hang_in_body,
    "closes": close_after_reading,
    "resets": reset_after_reading,
    "truncates": truncate,
    "sends garbage": send_garbage,
    "502": answer(502),
    "503": answer(503),
    "504": answer(504),
}


async def respond_slowly(connection: Connection) -> None:
    """Take so long that several requests need all replicas."""
    while await connection.wait_for_data():
        await connection.read_message()
        await asyncio.sleep(0.02)
        connection.send(ok())


async def add_replicas(harness: GatewayHarness, fault: Script, good: int = 2, service: str = "iris") -> ScriptedReplica:
    """Add a replica with a fault and others without one. Return the first."""
    bad = (await harness.add_replica(service)).run_script(fault)
    for _ in range(good):
        (await harness.add_replica(service)).run_script(respond_slowly)
    return bad


async def outcome(client: Connection) -> str:
    """Return the status of the response, or "aborted"."""
    try:
        return str((await client.read_message(until_close=True)).status)
    except (AssertionError, ConnectionError, EOFError):
        return "aborted"


async def ask(harness: GatewayHarness, service: str = "iris") -> str:
    client = await harness.client()
    client.send(post(b"[1]", "Connection: close", path=f"/api/v1/service/{service}/score"))
    result = await outcome(client)
    client.transport.abort()
    return result


async def eject(harness: GatewayHarness, replica: ScriptedReplica) -> ReplicaHealth:
    """Send requests until a replica is ejected. Return its health."""
    health = harness.route().pool(replica.id).health

    async def ask_repeatedly() -> None:
        while not health.is_ejected:
            await ask(harness)

    await asyncio.gather(*(ask_repeatedly() for _ in range(20)))
    return health


@pytest.mark.parametrize("limit", [0, 1])
async def test_few_requests_fail_beside_a_replica_that_fails(harness: GatewayHarness, limit: int) -> None:
    """Each fault is that of another service, and all services get requests at the same time."""

    async def ask_one_after_the_other(fault: str) -> None:
        service = fault.replace(" ", "-")
        settings = FAST | {"outlier_ejection_seconds": 30}
        harness.set_service(service, replica_max_concurrent_requests=limit, **settings)
        bad = await add_replicas(harness, FAULTS[fault], service=service)
        results = Counter([await ask(harness, service) for _ in range(60)])
        assert results["200"] >= 55, (fault, results)
        assert harness.route(service).pool(bad.id).health.errors == 60 - results["200"], (fault, results)

    await asyncio.gather(*(ask_one_after_the_other(fault) for fault in FAULTS))


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("limit", [1, 4])
async def test_failing_replica_is_ejected_under_load(harness: GatewayHarness, fault: Script, limit: int) -> None:
    thresholds = {"outlier_consecutive_failures": 3, "outlier_consecutive_timeouts": 2, "outlier_ejection_seconds": 30}
    harness.set_service("iris", replica_max_concurrent_requests=limit, **FAST | thresholds)
    bad = await add_replicas(harness, fault)
    health = await eject(harness, bad)
    after = Counter(await asyncio.gather(*(ask(harness) for _ in range(30))))
    assert after == {"200": 30}
    assert harness.route().counters.ejections == {"failures": 1}
    errors = sum(pool.health.errors for pool in harness.route().pools())
    assert sum(harness.route().counters.replica_failures.values()) == errors >= health.errors


@pytest.mark.parametrize("fault", [close_after_reading, answer(503), hang], ids=["closes", "503", "hangs"])
@pytest.mark.parametrize("limit", [0, 1])
async def test_request_after_a_failure_goes_to_another_replica(
    harness: GatewayHarness, fault: Script, limit: int
) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=limit, **FAST | {"outlier_consecutive_failures": 1000})
    await add_replicas(harness, fault, good=1)
    results = [await ask(harness) for _ in range(20)]
    assert all("200" in pair for pair in pairwise(results))


async def test_waiting_request_does_not_get_the_slot_that_a_failure_has_freed(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    bad = await harness.add_replica()
    first, connection = await harness.start_request(bad)
    other = await harness.add_replica()
    second, other_connection = await harness.start_request(other)
    waiting = await harness.client()
    waiting.send(post(b"waiting"))
    await harness.wait_until(lambda: harness.queued() == 1)
    connection.close()
    assert (await first.read_message()).status == 502
    other_connection.send(ok())
    assert (await second.read_message()).status == 200
    assert (await other_connection.read_message()).body == b"waiting"
    other_connection.send(ok())
    assert (await waiting.read_message()).status == 200


@pytest.mark.parametrize("limit", [0, 1, 4])
async def test_ejected_replica_returns_by_one_trial_request(harness: GatewayHarness, limit: int) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=limit, **FAST)
    bad = await add_replicas(harness, close_after_reading, good=1)
    at_once = most_at_once = 0

    async def respond_later(connection: Connection) -> None:
        nonlocal at_once, most_at_once
        while await connection.wait_for_data():
            await connection.read_message()
            at_once += 1
            most_at_once = max(most_at_once, at_once)
            await asyncio.sleep(0.02)
            at_once -= 1
            if health.state == ON_TRIAL:
                assert most_at_once == 1
            connection.send(ok())

    health = await eject(harness, bad)
    bad.run_script(respond_later)
    failed = health.errors
    while health.state != IN_USE:
        assert set(await asyncio.gather(*(ask(harness) for _ in range(20)))) == {"200"}
    assert health.errors == failed
    assert most_at_once >= 1


async def test_trial_whose_client_leaves_is_repeated(harness: GatewayHarness) -> None:
    harness.set_service("iris", **FAST | {"scoring_timeout_ms": 60_000})
    bad = await add_replicas(harness, close_after_reading, good=1)
    health = await eject(harness, bad)
    bad.run_script(hang)
    await harness.wait_until(lambda: health.state == HALF_OPEN)
    while health.state != ON_TRIAL:
        clients = [await harness.client() for _ in range(4)]
        for client in clients:
            client.send(post())
        await asyncio.sleep(0.02)
    for client in clients:
        client.transport.abort()
    await harness.wait_until(lambda: health.state == HALF_OPEN)


async def test_only_replica_gets_all_requests_however_many_fail(harness: GatewayHarness) -> None:
    harness.set_service("iris", **FAST)
    replica = (await harness.add_replica()).run_script(answer(503))
    assert {await ask(harness) for _ in range(50)} == {"503"}
    replica.auto_respond()
    assert await ask(harness) == "503"  # on the connection that has the old script
    for connection in replica.connections:
        connection.close()
    assert await ask(harness) in ("200", "502")
    assert await ask(harness) == "200"


async def test_client_that_leaves_is_no_failure_of_the_replica(harness: GatewayHarness) -> None:
    harness.set_service("iris", replica_max_concurrent_requests=10, max_request_wait_time=5000)
    replicas = [await harness.add_replica() for _ in range(2)]
    for _ in range(20):
        client = await harness.client()
        client.send(post())
        await harness.wait_until(lambda: harness.in_flight() == 1)
        await harness.wait_until(lambda: any(r.has_unaccepted_connection for r in replicas))
        client.transport.abort()
        await harness.wait_until(lambda: harness.in_flight() == 0)
        for replica in replicas:
            while replica.has_unaccepted_connection:
                await replica.accept()
    assert [harness.route().pool(replica.id).health.errors for replica in replicas] == [0, 0]


@behind_proxy
@pytest.mark.parametrize("limit", [0, 1, 4])
async def test_bad_input_of_one_client_ejects_nobody(harness: GatewayHarness, limit: int) -> None:
    """A request that ends the connection of whichever replica it reaches."""

    async def die_of_bad_input(connection: Connection) -> None:
        while await connection.wait_for_data():
            if (await connection.read_message()).body == b"bad":
                connection.close()
                return
            connection.send(ok())

    harness.set_service("iris", replica_max_concurrent_requests=limit, **FAST)
    for _ in range(3):
        (await harness.add_replica()).run_script(die_of_bad_input)
    bad, good = await harness.client(), await harness.client()
    for _ in range(60):
        bad.send(post(b"bad", "X-Forwarded-For: 192.0.2.1"))
        assert (await bad.read_message()).status == 502
        good.send(post(b"good", "X-Forwarded-For: 192.0.2.2"))
        assert (await good.read_message()).status == 200
    assert harness.route().counters.ejections == {}


async def test_client_is_not_bound_to_a_replica_that_rejects_all_requests(harness: GatewayHarness) -> None:
    async def ask_one_after_the_other(status: int) -> None:
        service = f"status-{status}"
        harness.set_service(service, **FAST, replica_max_concurrent_requests=4)
        await add_replicas(harness, answer(status), service=service)
        results = Counter([await ask(harness, service) for _ in range(60)])
        assert results["200"] >= 55, (status, results)
        assert harness.route(service).counters.ejections == {}

    await asyncio.gather(*(ask_one_after_the_other(status) for status in (400, 429, 500)))


@behind_proxy
async def test_replica_that_rejects_the_requests_of_all_clients_is_ejected(harness: GatewayHarness) -> None:
    harness.set_service("iris", **FAST | {"outlier_ejection_seconds": 30}, replica_max_concurrent_requests=2)
    bad = await add_replicas(harness, answer(500))
    health = harness.route().pool(bad.id).health

    async def ask_repeatedly(number: int) -> None:
        client = await harness.client()
        while not health.is_ejected:
            client.send(post(b"[1]", f"X-Forwarded-For: 192.0.2.{number}"))
            await client.read_message()

    await asyncio.gather(*(ask_repeatedly(number) for number in range(12)))
    assert harness.route().counters.ejections == {"rate": 1}
    assert Counter(await asyncio.gather(*(ask(harness) for _ in range(40)))) == {"200": 40}


async def test_without_outlier_detection_all_replicas_are_used(harness: GatewayHarness) -> None:
    harness.set_service("iris", outlier_detection=False, **FAST)
    await add_replicas(harness, answer(503))
    results = Counter([await ask(harness) for _ in range(60)])
    assert results["503"] > 15
    assert harness.route().counters.ejections == {}


# A replica that is away for a moment.


@pytest.mark.parametrize("limit", [0, 1, 4])
async def test_requests_wait_while_the_only_replica_is_replaced(harness: GatewayHarness, limit: int) -> None:
    harness.set_service("iris", max_request_wait_time=5000, replica_max_concurrent_requests=limit)
    old = (await harness.add_replica()).auto_respond()
    assert await ask(harness) == "200"
    harness.remove_replica(old)
    clients = [await harness.client() for _ in range(10)]
    for client in clients:
        client.send(post())
    await harness.wait_until(lambda: harness.queued() == 10)
    (await harness.add_replica()).auto_respond(ok(b"new"))
    for client in clients:
        assert (await client.read_message()).body == b"new"


async def test_requests_wait_while_the_first_replica_starts(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=5000)
    replica = (await harness.add_replica(state=ReplicaState.STARTING)).auto_respond()
    client = await harness.client()
    client.send(post())
    await harness.wait_until(lambda: harness.queued() == 1)
    harness.set_state(replica, ReplicaState.READY)
    assert (await client.read_message()).status == 200


async def test_wait_for_a_replica_that_starts_is_limited(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=50)
    await harness.add_replica(state=ReplicaState.STARTING)
    response = await harness.response_to(post())
    assert (response.status, response.error_code) == (503, "no-ready-replicas")


async def test_wait_is_not_restarted_by_the_replica_that_comes(harness: GatewayHarness) -> None:
    harness.set_service("iris", max_request_wait_time=1000)
    replica = await harness.add_replica(state=ReplicaState.STARTING)
    clients = [await harness.client() for _ in range(2)]
    for client in clients:
        client.send(post())
    await harness.wait_until(lambda: harness.queued() == 2)
    (_, waiter) = harness.route().lease_cache.waiters.values()
    waiting_since = waiter.waiting_since
    await asyncio.sleep(0.1)
    harness.set_state(replica, ReplicaState.READY)
    connection = await replica.accept()
    await connection.read_message()
    assert list(harness.route().lease_cache.waiters.values()) == [waiter]
    assert waiter.waiting_since == waiting_since
    response = await clients[1].read_message()
    assert (response.status, response.error_code) == (503, "overloaded")
    connection.send(ok())
    assert (await clients[0].read_message()).status == 200


async def test_refusing_replica_is_probed_without_requests(harness: GatewayHarness) -> None:
    replica = await harness.add_replica(listening=False)
    harness.set_service("iris", max_request_wait_time=1)
    assert await ask(harness) == "503"
    health = harness.route().pool(replica.id).health
    assert health.state == REFUSING
    await harness.wait_until(lambda: health.last_probe == "refused")
    await replica.listen()
    await harness.wait_until(lambda: health.state == IN_USE)
    assert health.last_probe == "accepted"
    await harness.wait_until(lambda: replica.connections)
    assert await replica.connections[0].read_to_end() == b""
