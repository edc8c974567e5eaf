"""The live feed: first the whole document, then changes."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from router.admin.status import StatusDocument
from router.admin.status_feed import StatusFeed

Event = tuple[str, dict[str, Any]]


class FeedHarness:
    """A feed of a status document that the test controls."""

    def __init__(self) -> None:
        self.services = {"iris": 1, "resnet": 1}
        self.reads = 0
        self.error: Exception | None = None
        self.feed = StatusFeed(self._read, seconds=0.01)

    def _read(self) -> StatusDocument:
        self.reads += 1
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        services = [{"name": name, "number": number} for name, number in self.services.items()]
        return cast(StatusDocument, {"services": services, "totals": {"reads": self.reads}})


@pytest.fixture
def harness() -> FeedHarness:
    return FeedHarness()


async def next_event(events: AsyncGenerator[bytes, None]) -> Event:
    async with asyncio.timeout(5):
        name, data = (line.split(": ", 1)[1] for line in (await anext(events)).decode().strip().split("\n"))
    return name, json.loads(data)


def names(event: Event) -> list[str]:
    return [service["name"] for service in event[1]["services"]]


async def test_first_event_is_the_whole_document_then_changes(harness: FeedHarness) -> None:
    events = harness.feed.subscribe()
    first = await next_event(events)
    assert (first[0], names(first)) == ("all", ["iris", "resnet"])
    harness.services["iris"] = 2
    del harness.services["resnet"]
    kind, change = await next_event(events)
    assert (kind, change["services"], change["gone"]) == ("change", [{"name": "iris", "number": 2}], ["resnet"])
    assert names(await next_event(events)) == []
    await events.aclose()


async def test_status_is_not_read_without_subscribers(harness: FeedHarness) -> None:
    events = harness.feed.subscribe()
    await next_event(events)
    await next_event(events)
    await events.aclose()
    before = harness.reads
    await asyncio.sleep(0.05)
    assert harness.reads == before


async def test_slow_subscriber_gets_the_whole_document_again(harness: FeedHarness) -> None:
    slow, quick = harness.feed.subscribe(), harness.feed.subscribe()
    await next_event(slow)
    await next_event(quick)
    await next_event(slow)
    for number in range(12):
        harness.services["iris"] = 100 + number
        await next_event(quick)
    received = [await next_event(slow) for _ in range(8)]
    (whole,) = [data for kind, data in received if kind == "all"]
    assert {"name": "iris", "number": 111} in whole["services"]
    await slow.aclose()
    await quick.aclose()


async def test_feed_continues_after_an_error(harness: FeedHarness) -> None:
    events = harness.feed.subscribe()
    await next_event(events)
    harness.error = RuntimeError("once")
    assert (await next_event(events))[0] == "change"
    await events.aclose()


async def test_close_ends_the_feed_of_all_subscribers(harness: FeedHarness) -> None:
    events = harness.feed.subscribe()
    await next_event(events)
    harness.feed.close()
    async with asyncio.timeout(5):
        assert [event async for event in events if b"never" in event] == []
