"""Explanations of requests that another pod handled."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.admin.explain_broker import MAX_CONCURRENT_ANSWERS, ExplainBroker, PeerAnswer, PeerQuery
from router.peers.links import Links
from router.peers.messages import ExplainReply, ExplainRequest, Message


class Pod:
    """One of several pods: the requests that its workers remember, and its links to the others."""

    def __init__(self, name: str, pods: dict[str, Pod], *remembered: str, timeout: float = 5.0) -> None:
        pods[name] = self
        self._pods = pods
        self.name = name
        self.remembered = remembered
        self.unreachable: Mapping[str, float] = {}
        self.drops_messages = False
        self.explain_calls: list[str] = []  # request ids
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.broker = ExplainBroker(name, self._explain, self._links, lambda: self.unreachable, timeout=timeout)

    async def _explain(self, request_id: str) -> dict[str, Any] | None:
        self.explain_calls.append(request_id)
        await self.may_answer.wait()
        return {"request_id": request_id, "pod": self.name} if request_id in self.remembered else None

    def _links(self) -> Links:
        pod = self

        class DirectLinks:
            def send(self, peer: str, message: Message) -> None:
                assert isinstance(message, ExplainRequest | ExplainReply)
                if not pod._pods[peer].drops_messages:
                    pod._pods[peer].broker.on_peer_message(pod.name, message)

            def broadcast(self, message: Message) -> None:
                raise AssertionError("the broker must not broadcast")

            def live(self) -> frozenset[str]:
                return frozenset(pod._pods) - {pod.name} - pod.unreachable.keys()

            def unreachable(self) -> Mapping[str, float]:
                return pod.unreachable

            def has_tried_all(self) -> bool:
                return True

        return DirectLinks()


@pytest.fixture
def pods() -> dict[str, Pod]:
    """The pods by name. Each `Pod` adds itself."""
    return {}


async def test_other_pod_explains_its_request(pods: dict[str, Pod]) -> None:
    asking, remembering = Pod("a", pods), Pod("b", pods, "r-1")
    explanation, answers = await asking.broker.ask("r-1")
    assert explanation == {"request_id": "r-1", "pod": "b"}
    assert answers == {"a": PeerAnswer.DOES_NOT, "b": PeerAnswer.REMEMBERS}
    assert remembering.explain_calls == ["r-1"]


async def test_own_request_is_explained_without_asking_other_pods(pods: dict[str, Pod]) -> None:
    asking, other = Pod("a", pods, "r-1"), Pod("b", pods, "r-1")
    explanation, answers = await asking.broker.ask("r-1")
    assert (explanation or {})["pod"] == "a"
    assert answers == {"a": PeerAnswer.REMEMBERS}
    assert not other.explain_calls


async def test_first_explanation_is_returned_while_another_pod_is_silent(pods: dict[str, Pod]) -> None:
    asking, _, silent = Pod("a", pods, timeout=3600), Pod("b", pods, "r-1"), Pod("c", pods)
    silent.drops_messages = True
    explanation, answers = await asking.broker.ask("r-1")
    assert (explanation or {})["pod"] == "b"
    assert answers["c"] is PeerAnswer.AWAITED


async def test_silent_and_unreachable_pods_are_listed(pods: dict[str, Pod]) -> None:
    asking, _, silent = Pod("a", pods, timeout=0.01), Pod("b", pods), Pod("c", pods, "r-1")
    silent.drops_messages = True
    asking.unreachable = {"d": 1.0}
    assert await asking.broker.ask("r-1") == (
        None,
        {"a": PeerAnswer.DOES_NOT, "b": PeerAnswer.DOES_NOT, "c": PeerAnswer.SILENT, "d": PeerAnswer.UNREACHABLE},
    )


async def test_pod_whose_link_goes_down_is_not_waited_for(pods: dict[str, Pod]) -> None:
    asking, slow = Pod("a", pods, timeout=3600), Pod("b", pods, "r-1")
    slow.may_answer.clear()
    asked = asyncio.ensure_future(asking.broker.ask("r-1"))
    while not slow.explain_calls:
        await asyncio.sleep(0)
    asking.broker.on_peer_down("b")
    assert await asked == (None, {"a": PeerAnswer.DOES_NOT, "b": PeerAnswer.SILENT})
    slow.may_answer.set()  # its late answer is ignored


async def test_concurrent_answers_are_limited(pods: dict[str, Pod]) -> None:
    asking, flooded = Pod("a", pods, timeout=0.05), Pod("b", pods)
    flooded.may_answer.clear()
    asked = [asyncio.ensure_future(asking.broker.ask(f"r-{n}")) for n in range(MAX_CONCURRENT_ANSWERS + 3)]
    while len(flooded.explain_calls) < MAX_CONCURRENT_ANSWERS:
        await asyncio.sleep(0)
    flooded.may_answer.set()
    answers = [(await each).pods["b"] for each in asked]
    assert len(flooded.explain_calls) == MAX_CONCURRENT_ANSWERS
    assert answers.count(PeerAnswer.SILENT) == 3
    assert (await asking.broker.ask("later")).pods["b"] is PeerAnswer.DOES_NOT


async def test_closed_broker_answers_no_pod(pods: dict[str, Pod]) -> None:
    asking, closed = Pod("a", pods, timeout=0.05), Pod("b", pods, "r-1")
    closed.may_answer.clear()
    asked = asyncio.ensure_future(asking.broker.ask("r-1"))
    while not closed.explain_calls:
        await asyncio.sleep(0)
    closed.broker.close()
    closed.may_answer.set()
    assert (await asked).pods["b"] is PeerAnswer.SILENT


PODS = ("b", "c", "d")
EVENTS = st.tuples(st.sampled_from([*PODS, "stranger"]), st.sampled_from(["remembers", "does not", "link down"]))
ANSWERS = {"remembers": PeerAnswer.REMEMBERS, "does not": PeerAnswer.DOES_NOT, "link down": PeerAnswer.SILENT}


@given(st.sets(st.sampled_from(PODS)), st.lists(EVENTS, max_size=8))
def test_each_pod_has_one_answer_for_any_order_of_events(live: set[str], events: list[tuple[str, str]]) -> None:
    query = PeerQuery(live, set(PODS) - live)
    for pod, event in events:
        if event == "link down":
            query.on_peer_down(pod)
        else:
            query.on_answer(pod, {"pod": pod} if event == "remembers" else None)
    query.time_out()
    assert query.is_done
    assert set(query.pods) == set(PODS)
    first = {pod: event for pod, event in reversed(events) if pod in live}
    for pod in PODS:
        without_event = PeerAnswer.SILENT if pod in live else PeerAnswer.UNREACHABLE
        assert query.pods[pod] is (ANSWERS[first[pod]] if pod in first else without_event)
    remembering = [pod for pod, event in events if event == "remembers" and first.get(pod) == "remembers"]
    assert query.explanation == ({"pod": remembering[0]} if remembering else None)
