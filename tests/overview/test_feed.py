"""The live feed: the whole first, then what changes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, cast

from router.overview.document import Status
from router.overview.feed import Feed

Told = tuple[str, dict[str, Any]]


class Scene:
    """A feed of a status that the test makes up."""

    def __init__(self) -> None:
        self.services = {"iris": 1, "resnet": 1}
        self.reads = 0
        self.fault: Exception | None = None
        self.feed = Feed(self._read, seconds=0.01)

    def _read(self) -> Status:
        self.reads += 1
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        services = [{"name": name, "number": number} for name, number in self.services.items()]
        return cast(Status, {"services": services, "totals": {"reads": self.reads}})


async def following(events: AsyncGenerator[bytes, None]) -> Told:
    async with asyncio.timeout(5):
        name, data = (line.split(": ", 1)[1] for line in (await anext(events)).decode().strip().split("\n"))
    return name, json.loads(data)


def play(story: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        await story(Scene())

    asyncio.run(run())


def names(told: Told) -> list[str]:
    return [service["name"] for service in told[1]["services"]]


def test_the_whole_comes_first_then_only_what_differs() -> None:
    async def story(scene: Scene) -> None:
        events = scene.feed.watch()
        first = await following(events)
        assert (first[0], names(first)) == ("all", ["iris", "resnet"])
        scene.services["iris"] = 2
        del scene.services["resnet"]
        kind, change = await following(events)
        assert (kind, change["services"], change["gone"]) == ("change", [{"name": "iris", "number": 2}], ["resnet"])
        assert names(await following(events)) == []
        await events.aclose()

    play(story)


def test_nothing_is_read_while_nobody_watches() -> None:
    async def story(scene: Scene) -> None:
        events = scene.feed.watch()
        await following(events)
        await following(events)
        await events.aclose()
        before = scene.reads
        await asyncio.sleep(0.05)
        assert scene.reads == before

    play(story)


def test_one_who_does_not_keep_up_is_told_the_whole_again() -> None:
    async def story(scene: Scene) -> None:
        slow, quick = scene.feed.watch(), scene.feed.watch()
        await following(slow)
        await following(quick)
        await following(slow)
        for number in range(12):
            scene.services["iris"] = 100 + number
            await following(quick)
        told = [await following(slow) for _ in range(8)]
        (whole,) = [data for kind, data in told if kind == "all"]
        assert {"name": "iris", "number": 111} in whole["services"]
        await slow.aclose()
        await quick.aclose()

    play(story)


def test_a_fault_is_not_the_end() -> None:
    async def story(scene: Scene) -> None:
        events = scene.feed.watch()
        await following(events)
        scene.fault = RuntimeError("once")
        assert (await following(events))[0] == "change"
        await events.aclose()

    play(story)


def test_close_ends_all() -> None:
    async def story(scene: Scene) -> None:
        events = scene.feed.watch()
        await following(events)
        scene.feed.close()
        async with asyncio.timeout(5):
            assert [event async for event in events if b"never" in event] == []

    play(story)
