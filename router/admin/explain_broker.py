"""Finds the explanation of a request that any pod has handled: asks this pod first, then all others.

If no worker of this pod has a journal entry of the request, the broker asks all pods with a live link at once and
returns the first explanation. The result names the pods that did not reply or cannot be reached, since one of them may
have handled the request.

    ask -- ExplainRequest --> each live pod: its workers
        <-- ExplainReply --   the explanation, or none

Contains: which pods are asked, timeouts and limits. Does not contain: the content of an explanation (`explain`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from router.peers.links import Links
from router.peers.messages import ExplainReply, ExplainRequest

PEER_TIMEOUT_SECONDS = 1.5
"""Timeout for replies of other pods: the timeout of their workers plus the network latency."""
MAX_CONCURRENT_ANSWERS = 16
"""Maximum number of requests of other pods that are handled at the same time. Further ones are ignored, so that the
pods that sent them time out."""

Explanation = Mapping[str, Any]


class PeerAnswer(StrEnum):
    """The answer of one pod. The values are part of the response of `/explain/<request-id>`."""

    REMEMBERS = "remembers it"
    DOES_NOT = "does not remember it"
    AWAITED = "was not waited for"
    SILENT = "did not answer"
    """Timed out, lost its link, or runs a release without `ExplainRequest`."""
    UNREACHABLE = "cannot be reached"


class ExplainResult(NamedTuple):
    """The explanation of a request, if any, and the answer of each pod."""

    explanation: Explanation | None
    pods: Mapping[str, PeerAnswer]


class PeerQuery:
    """A query to other pods and their answers. No I/O, no clock."""

    def __init__(self, asked: Iterable[str], unreachable: Iterable[str]) -> None:
        self.pods = dict.fromkeys(unreachable, PeerAnswer.UNREACHABLE) | dict.fromkeys(asked, PeerAnswer.AWAITED)
        self.explanation: Explanation | None = None

    @property
    def is_done(self) -> bool:
        """True if there is an explanation, or no answer is pending."""
        return self.explanation is not None or PeerAnswer.AWAITED not in self.pods.values()

    def on_answer(self, pod: str, explanation: Explanation | None) -> None:
        """Record a pod's answer. Does nothing if the pod was not asked or has answered before."""
        if self.pods.get(pod) is not PeerAnswer.AWAITED:
            return
        self.pods[pod] = PeerAnswer.DOES_NOT if explanation is None else PeerAnswer.REMEMBERS
        if self.explanation is None:
            self.explanation = explanation

    def on_peer_down(self, pod: str) -> None:
        """Stop waiting for a pod."""
        if self.pods.get(pod) is PeerAnswer.AWAITED:
            self.pods[pod] = PeerAnswer.SILENT

    def time_out(self) -> None:
        """Stop waiting for all pods."""
        for pod in tuple(self.pods):
            self.on_peer_down(pod)


class ExplainBroker:
    """Asks other pods for explanations, and answers their requests."""

    def __init__(
        self,
        own_id: str,
        explain: Callable[[str], Awaitable[Explanation | None]],
        links: Callable[[], Links],
        unreachable_peers: Callable[[], Iterable[str]],
        *,
        timeout: float = PEER_TIMEOUT_SECONDS,
    ) -> None:
        """`explain` returns this pod's explanation. `unreachable_peers` returns the names of pods that may be alive but
        have no link. `timeout` is in seconds, for the replies of other pods."""
        self._own_id = own_id
        self._explain = explain
        self._links = links
        self._unreachable_peers = unreachable_peers
        self._timeout = timeout
        self._query_ids = itertools.count()
        self._pending: dict[int, tuple[PeerQuery, asyncio.Event]] = {}
        self._answering: set[asyncio.Task[None]] = set()

    async def ask(self, request_id: str) -> ExplainResult:
        """Return the explanation of a request and the answer of each pod. Takes at most the timeout of this pod's
        workers plus `timeout`."""
        own = await self._explain(request_id)
        if own is not None:
            return ExplainResult(own, {self._own_id: PeerAnswer.REMEMBERS})
        links = self._links()
        live = links.live()
        query, done = PeerQuery(sorted(live), sorted(self._unreachable_peers())), asyncio.Event()
        if not query.is_done:
            query_id = next(self._query_ids)
            self._pending[query_id] = query, done
            try:
                for pod in live:
                    links.send(pod, ExplainRequest(query_id, request_id))
                async with asyncio.timeout(self._timeout):
                    await done.wait()
            except TimeoutError:
                query.time_out()
            finally:
                del self._pending[query_id]
        return ExplainResult(query.explanation, {self._own_id: PeerAnswer.DOES_NOT, **query.pods})

    def on_peer_message(self, pod: str, message: ExplainRequest | ExplainReply) -> None:
        """Handle a request or a reply of another pod."""
        if isinstance(message, ExplainReply):
            query, done = self._pending.get(message.query_id, (None, None))
            if query is not None and done is not None:
                query.on_answer(pod, message.explanation)
                if query.is_done:
                    done.set()
        elif len(self._answering) < MAX_CONCURRENT_ANSWERS:
            answering = asyncio.ensure_future(self._answer(pod, message))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)

    def on_peer_down(self, pod: str) -> None:
        """Stop waiting for a pod whose link is down."""
        for query, done in self._pending.values():
            query.on_peer_down(pod)
            if query.is_done:
                done.set()

    def close(self) -> None:
        """Cancel all answers in progress."""
        for answering in self._answering:
            answering.cancel()

    async def _answer(self, pod: str, request: ExplainRequest) -> None:
        explanation = await self._explain(request.request_id)
        self._links().send(pod, ExplainReply(request.query_id, explanation))
