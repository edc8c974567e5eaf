"""The load of one service does not affect others."""

from tests.gateway.harness import GatewayHarness
from tests.gateway.http_connection import ok, post, run_loop

OVERLOADED_PATH = "/api/v1/service/overloaded/score"
OTHER_PATH = "/api/v1/service/other/score"
QUEUE_LENGTH = 20


async def test_overloaded_service_does_not_delay_another(harness: GatewayHarness) -> None:
    harness.set_service("overloaded", max_queue_length=QUEUE_LENGTH, max_request_wait_time=60_000)
    hanging = await harness.add_replica("overloaded")
    (await harness.add_replica("other")).auto_respond(ok(b"other"))
    clients = [await harness.client() for _ in range(2 * QUEUE_LENGTH)]
    for client in clients:
        client.send(post(path=OVERLOADED_PATH))
    await hanging.accept()
    await harness.wait_until(
        lambda: sum(bool(client.received) for client in clients) + harness.queued("overloaded") + 1 == len(clients),
        "refusals",
    )
    queued = harness.queued("overloaded")
    assert queued >= QUEUE_LENGTH - 1
    client = await harness.client()
    for _ in range(20):
        client.send(post(path=OTHER_PATH))
        await run_loop(30)
        assert client.received, "no immediate response"
        assert (await client.read_message()).body == b"other"
    assert harness.queued("overloaded") == queued
    assert harness.in_flight("overloaded") == 1
