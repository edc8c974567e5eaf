"""What became of a request, asked of this pod and, where it does not know, of all others.

The workers of this pod are asked first. If none remembers the request, the question goes to all pods that are linked at
once, and the first that remembers it is the answer. Who is silent, or cannot be reached, is named: it may be the one.

    ask -- Explain --> each live pod: its workers    (`answer`)
        <- Explained -- what it knows, or nothing    (`heard`)

Lives here: whom a question goes to, how long and how often. Must not live here: what is told of a request (`explain`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from router.peers.links import Links
from router.peers.messages import Explain, Explained

ANSWER_SECONDS = 1.5
"""For other pods to answer: what their workers may take, and the way."""
ANSWERED_AT_ONCE = 16
"""Questions of other pods; whoever asks more at the same time gets no answer, and says so."""

Explanation = Mapping[str, Any]


class Word(StrEnum):
    """What is known of one pod."""

    REMEMBERS = "remembers it"
    DOES_NOT = "does not remember it"
    AWAITED = "was not waited for"
    SILENT = "did not answer"
    """In time; or it lost its link, or is of a release that does not know the question."""
    UNREACHABLE = "cannot be reached"


class Found(NamedTuple):
    """What became of a request, and what each pod that was asked, or should have been, has said."""

    explanation: Explanation | None
    pods: Mapping[str, Word]


class Inquiry:
    """One question to other pods, and what is known so far. No I/O, no clock."""

    def __init__(self, asked: Iterable[str], unreachable: Iterable[str]) -> None:
        self.pods = dict.fromkeys(unreachable, Word.UNREACHABLE) | dict.fromkeys(asked, Word.AWAITED)
        self.explanation: Explanation | None = None

    @property
    def is_over(self) -> bool:
        """Whether nobody need be waited for."""
        return self.explanation is not None or Word.AWAITED not in self.pods.values()

    def heard(self, pod: str, explanation: Explanation | None) -> None:
        """A pod has answered. Passed over if it was not asked, or has answered before."""
        if self.pods.get(pod) is not Word.AWAITED:
            return
        self.pods[pod] = Word.DOES_NOT if explanation is None else Word.REMEMBERS
        if self.explanation is None:
            self.explanation = explanation

    def lost(self, pod: str) -> None:
        """A pod will not answer any more."""
        if self.pods.get(pod) is Word.AWAITED:
            self.pods[pod] = Word.SILENT

    def time_is_over(self) -> None:
        """Whoever has not answered by now is not waited for any longer."""
        for pod in tuple(self.pods):
            self.lost(pod)


class Inquiries:
    """Asks other pods, and answers them."""

    def __init__(
        self,
        own_id: str,
        explain: Callable[[str], Awaitable[Explanation | None]],
        links: Callable[[], Links],
        unreachable: Callable[[], Iterable[str]],
        *,
        seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`explain` tells what this pod knows of a request; `unreachable` names pods that may live and have no link;
        others have so many `seconds` to answer."""
        self._own_id = own_id
        self._explain = explain
        self._links = links
        self._unreachable = unreachable
        self._seconds = seconds
        self._numbers = itertools.count()
        self._asked: dict[int, tuple[Inquiry, asyncio.Event]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    async def ask(self, request_id: str) -> Found:
        """What became of a request that any pod remembers. Takes no longer than workers may, and others' time."""
        own = await self._explain(request_id)
        if own is not None:
            return Found(own, {self._own_id: Word.REMEMBERS})
        links = self._links()
        live = links.live()
        inquiry, over = Inquiry(sorted(live), sorted(self._unreachable())), asyncio.Event()
        if not inquiry.is_over:
            number = next(self._numbers)
            self._asked[number] = inquiry, over
            try:
                for pod in live:
                    links.send(pod, Explain(number, request_id))
                async with asyncio.timeout(self._seconds):
                    await over.wait()
            except TimeoutError:
                inquiry.time_is_over()
            finally:
                del self._asked[number]
        return Found(inquiry.explanation, {self._own_id: Word.DOES_NOT, **inquiry.pods})

    def heard(self, pod: str, message: Explain | Explained) -> None:
        """Another pod asks, or answers."""
        if isinstance(message, Explained):
            inquiry, over = self._asked.get(message.question, (None, None))
            if inquiry is not None and over is not None:
                inquiry.heard(pod, message.explanation)
                if inquiry.is_over:
                    over.set()
        elif len(self._answering) < ANSWERED_AT_ONCE:
            answering = asyncio.ensure_future(self._answer(pod, message))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    def lost(self, pod: str) -> None:
        """The link of a pod is down."""
        for inquiry, over in self._asked.values():
            inquiry.lost(pod)
            if inquiry.is_over:
                over.set()

    def close(self) -> None:
        """Answer nobody any more."""
        for answering in self._answering:
            answering.cancel()

    async def _answer(self, pod: str, asked: Explain) -> None:
        explanation = await self._explain(asked.request_id)
        self._links().send(pod, Explained(asked.question, explanation))
