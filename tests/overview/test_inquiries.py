"""Questions about a request that another pod handled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.overview.inquiries import ANSWERED_AT_ONCE, Inquiries, Inquiry, Word
from router.peers.links import Links
from router.peers.messages import Explain, Explained, Message


class Pod:
    """One of several pods: what its workers remember, and whom it is linked with."""

    def __init__(self, name: str, pods: dict[str, Pod], *remembered: str, seconds: float = 5.0) -> None:
        pods[name] = self
        self._pods = pods
        self.name = name
        self.remembered = remembered
        self.unreachable: Mapping[str, float] = {}
        self.deaf = False
        self.asked: list[str] = []  # ids, of its workers
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.inquiries = Inquiries(name, self._explain, self._links, lambda: self.unreachable, seconds=seconds)

    async def _explain(self, request_id: str) -> dict[str, Any] | None:
        self.asked.append(request_id)
        await self.may_answer.wait()
        return {"request_id": request_id, "pod": self.name} if request_id in self.remembered else None

    def _links(self) -> Links:
        pod = self

        class Linked:
            def send(self, peer: str, message: Message) -> None:
                assert isinstance(message, Explain | Explained)
                if not pod._pods[peer].deaf:
                    pod._pods[peer].inquiries.heard(pod.name, message)

            def broadcast(self, message: Message) -> None:
                raise AssertionError("who is asked is known")

            def live(self) -> frozenset[str]:
                return frozenset(pod._pods) - {pod.name} - pod.unreachable.keys()

            def unreachable(self) -> Mapping[str, float]:
                return pod.unreachable

            def has_tried_all(self) -> bool:
                return True

        return Linked()


def play(story: Callable[[dict[str, Pod]], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(5):
            await story({})

    asyncio.run(run())


def test_another_pod_remembers_it() -> None:
    async def story(pods: dict[str, Pod]) -> None:
        asking, handled = Pod("a", pods), Pod("b", pods, "r-1")
        explanation, words = await asking.inquiries.ask("r-1")
        assert explanation == {"request_id": "r-1", "pod": "b"}
        assert words == {"a": Word.DOES_NOT, "b": Word.REMEMBERS}
        assert handled.asked == ["r-1"]

    play(story)


def test_others_are_not_asked_what_this_pod_knows() -> None:
    async def story(pods: dict[str, Pod]) -> None:
        asking, other = Pod("a", pods, "r-1"), Pod("b", pods, "r-1")
        explanation, words = await asking.inquiries.ask("r-1")
        assert (explanation or {})["pod"] == "a"
        assert words == {"a": Word.REMEMBERS}
        assert not other.asked

    play(story)


def test_who_remembers_it_is_told_at_once_though_another_pod_is_silent() -> None:
    async def story(pods: dict[str, Pod]) -> None:
        asking, _, silent = Pod("a", pods, seconds=3600), Pod("b", pods, "r-1"), Pod("c", pods)
        silent.deaf = True
        explanation, words = await asking.inquiries.ask("r-1")
        assert (explanation or {})["pod"] == "b"
        assert words["c"] is Word.AWAITED

    play(story)


def test_pods_that_are_silent_or_cannot_be_reached_are_named() -> None:
    async def story(pods: dict[str, Pod]) -> None:
        asking, _, silent = Pod("a", pods, seconds=0.01), Pod("b", pods), Pod("c", pods, "r-1")
        silent.deaf = True
        asking.unreachable = {"d": 1.0}
        assert await asking.inquiries.ask("r-1") == (
            None,
            {"a": Word.DOES_NOT, "b": Word.DOES_NOT, "c": Word.SILENT, "d": Word.UNREACHABLE},
        )

    play(story)


def test_a_pod_whose_link_is_lost_is_not_waited_for() -> None:
    async def story(pods: dict[str, Pod]) -> None:
        asking, slow = Pod("a", pods, seconds=3600), Pod("b", pods, "r-1")
        slow.may_answer.clear()
        asked = asyncio.ensure_future(asking.inquiries.ask("r-1"))
        while not slow.asked:
            await asyncio.sleep(0)
        asking.inquiries.lost("b")
        assert await asked == (None, {"a": Word.DOES_NOT, "b": Word.SILENT})
        slow.may_answer.set()  # what it says now is passed over

    play(story)


def test_a_flood_of_questions_is_answered_in_part() -> None:
    async def story(pods: dict[str, Pod]) -> None:
        asking, flooded = Pod("a", pods, seconds=0.05), Pod("b", pods)
        flooded.may_answer.clear()
        asked = [asyncio.ensure_future(asking.inquiries.ask(f"r-{n}")) for n in range(ANSWERED_AT_ONCE + 3)]
        while len(flooded.asked) < ANSWERED_AT_ONCE:
            await asyncio.sleep(0)
        flooded.may_answer.set()
        words = [(await each).pods["b"] for each in asked]
        assert len(flooded.asked) == ANSWERED_AT_ONCE
        assert words.count(Word.SILENT) == 3
        assert (await asking.inquiries.ask("later")).pods["b"] is Word.DOES_NOT

    play(story)


def test_nobody_is_answered_once_it_is_closed() -> None:
    async def story(pods: dict[str, Pod]) -> None:
        asking, closed = Pod("a", pods, seconds=0.05), Pod("b", pods, "r-1")
        closed.may_answer.clear()
        asked = asyncio.ensure_future(asking.inquiries.ask("r-1"))
        while not closed.asked:
            await asyncio.sleep(0)
        closed.inquiries.close()
        closed.may_answer.set()
        assert (await asked).pods["b"] is Word.SILENT

    play(story)


PODS = ("b", "c", "d")
steps = st.tuples(st.sampled_from([*PODS, "stranger"]), st.sampled_from(["has it", "has it not", "is lost"]))


@given(st.sets(st.sampled_from(PODS)), st.lists(steps, max_size=8))
def test_every_pod_is_named_once_whatever_comes_in_which_order(live: set[str], said: list[tuple[str, str]]) -> None:
    inquiry = Inquiry(live, set(PODS) - live)
    for pod, what in said:
        if what == "is lost":
            inquiry.lost(pod)
        else:
            inquiry.heard(pod, {"pod": pod} if what == "has it" else None)
    inquiry.time_is_over()
    assert inquiry.is_over
    assert set(inquiry.pods) == set(PODS)
    first = {pod: what for pod, what in reversed(said) if pod in live}
    expected = {"has it": Word.REMEMBERS, "has it not": Word.DOES_NOT, "is lost": Word.SILENT}
    for pod in PODS:
        otherwise = Word.SILENT if pod in live else Word.UNREACHABLE
        assert inquiry.pods[pod] is (expected[first[pod]] if pod in first else otherwise)
    remembering = [pod for pod, what in said if what == "has it" and first.get(pod) == "has it"]
    assert inquiry.explanation == ({"pod": remembering[0]} if remembering else None)
