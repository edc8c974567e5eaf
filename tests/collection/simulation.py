"""Simulated workers and their traffic for an event log and its store, in simulated time."""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping

from router.collection.assembly import Assembly
from router.collection.buffer import Budget
from router.collection.event_log import EventLog
from router.collection.events import Layout
from router.collection.frame_reader import Frame
from router.collection.frames import (
    BEGIN,
    END,
    REQUEST_COMPLETE,
    REQUEST_DATA,
    RESPONSE,
    RESPONSE_COMPLETE,
    RESPONSE_DATA,
    end_payload,
    join_fields,
)
from router.collection.store import FileLostError, RefusedError, Store, StoreError
from router.collection.writer import carry_out
from tests.collection.reader import StoredEvent

DAY = 86_400
START = 1_700_006_400.0  # midnight, UTC
MORNING = DAY / 4


class Simulation:
    """An assembly and its log, with the time of the test."""

    def __init__(
        self, store: Store, *, limit: int = 2**26, instance: str = "pod-1", flush_seconds: float = 5.0
    ) -> None:
        self.store = store
        self.now = 0.0
        self.failures: Counter[str] = Counter()
        self._retry_at = 0.0
        self.log = EventLog(Layout(instance), Budget(limit), flush_seconds=flush_seconds, url=store.url)
        self.assembly = Assembly(self.log, lambda: str(uuid.uuid4()))
        self.number = 0

    def feed(self, kind: int, payload: bytes = b"", sender: int = 1) -> None:
        self.assembly.feed(Frame(sender, self.number, kind, memoryview(payload)), self.now)

    def begin(self, service: str, request: bytes) -> str:
        self.number += 1
        request_id = str(uuid.uuid4())
        fields = (service, "default", request_id, f"{START + self.now:.3f}", "1", "POST", "/score", "application/json")
        self.feed(BEGIN, join_fields([field.encode() for field in fields]))
        self.feed(REQUEST_DATA, request)
        return request_id

    def exchange(self, service: str, request: bytes, response: bytes, *, complete: bool = True) -> str:
        request_id = self.begin(service, request)
        self.respond(service, response)
        self.end(len(request), len(response), complete=complete)
        return request_id

    def respond(self, service: str, response: bytes) -> None:
        fields = (service, "default", f"{START + self.now:.3f}", "200", "")
        self.feed(RESPONSE, join_fields([field.encode() for field in fields]))
        self.feed(RESPONSE_DATA, response)

    def end(self, request_size: int, response_size: int, *, complete: bool = True) -> None:
        flags = REQUEST_COMPLETE | (RESPONSE_COMPLETE if complete else 0)
        self.feed(END, end_payload(flags, request_size, response_size))

    def write(self, *, everything: bool = False) -> None:
        if self.now < self._retry_at:
            return
        for work in list(self.log.take_work(self.now, everything=everything)):
            try:
                carry_out(self.store, work)
            except StoreError as error:
                self.log.on_failed(work)
                self.failures[error.reason] += 1
                self._retry_at = self.now + error.retry_after
            except FileLostError:
                self.log.on_lost(work, self.now)
            except RefusedError as error:
                self.log.on_refused(work, error.reason, self.now)
            else:
                self.log.on_done(work, self.now)

    def write_all(self) -> None:
        while not self.log.is_empty:
            self.now = max(self.now, self._retry_at)
            self.write(everything=True)

    def pass_day(self, rng: random.Random, services: list[str], interval: float) -> dict[str, tuple[str, int]]:
        """Let a few exchanges pass once in `interval` seconds on average, from six o'clock to six o'clock. Write them.
        Return the service of each and the number in its bodies, by the id of the request."""
        sent: dict[str, tuple[str, int]] = {}
        self.now = MORNING
        while (now := self.now + rng.expovariate(1 / interval)) < MORNING + DAY:
            self.now = now
            for _ in range(rng.randrange(5)):
                service, number = rng.choice(services), len(sent)
                body = json.dumps({"number": number}).encode()
                sent[self.exchange(service, body, body)] = (service, number)
            self.write()
        self.write_all()
        return sent


def check_stored(events: Iterable[StoredEvent], sent: Mapping[str, tuple[str, int]]) -> None:
    """Check that each request and each response of a day was stored once, with its data."""
    stored = sorted(
        (event.attributes["correlationid"], event.collection, event.endpoint, event.attributes["data"]["number"])
        for event in events
    )
    assert stored == sorted(
        (request_id, collection, service.replace("/", "."), number)
        for request_id, (service, number) in sent.items()
        for collection in ("request", "response")
    )
