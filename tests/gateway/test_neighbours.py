"""Services beside each other: what one of them suffers, the others do not feel."""

from tests.gateway.wire import ok, post, turns
from tests.gateway.world import World, story

BUSY = "/api/v1/service/busy/score"
CALM = "/api/v1/service/calm/score"
QUEUE = 20


@story()
async def test_an_overloaded_service_does_not_delay_another(world: World) -> None:
    world.serve("busy", max_queue_length=QUEUE, max_request_wait_time=60_000)
    stuck = await world.replica("busy")
    (await world.replica("calm")).answers(ok(b"calm"))
    crowd = [await world.client() for _ in range(2 * QUEUE)]
    for client in crowd:
        client.send(post(path=BUSY))
    await stuck.accept()
    await world.until(
        lambda: sum(bool(client.received) for client in crowd) + world.queued("busy") + 1 == len(crowd), "refusals"
    )
    queued = world.queued("busy")
    assert queued >= QUEUE - 1
    other = await world.client()
    for _ in range(20):
        other.send(post(path=CALM))
        await turns(30)  # of the event loop, none of which waits for the other service
        assert other.received, "not answered at once"
        assert (await other.message()).body == b"calm"
    assert world.queued("busy") == queued
    assert world.busy("busy") == 1
