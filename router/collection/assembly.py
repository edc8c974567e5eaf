"""Assembles the frames of workers to events of requests and responses. No I/O, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from router.collection.event_log import Body, EventLog
from router.collection.events import Event, EventKey, request_extra
from router.collection.frame_reader import Frame, parse_end, response_version, split_fields
from router.collection.frames import (
    BEGIN,
    END,
    REQUEST_COMPLETE,
    REQUEST_DATA,
    REQUEST_TRUNCATED,
    RESPONSE,
    RESPONSE_COMPLETE,
    RESPONSE_DATA,
    RESPONSE_TRUNCATED,
    RESTART,
)
from router.config.data_collector import attribute_name
from router.model import data_collection
from router.model.data_collection import PAYLOADS, DataCollector
from router.model.services import VersionKey


@dataclass(slots=True, eq=False)
class _Side:
    """The request or the response of an exchange."""

    key: EventKey
    event_id: str
    time: float
    content_type: str
    extra: Mapping[str, object]
    body: Body


@dataclass(slots=True, eq=False)
class _Exchange:
    key: VersionKey
    collector: DataCollector
    request_id: str
    request: _Side | None
    response: _Side | None = None


class Assembly:
    """The exchanges that have begun and not ended."""

    def __init__(self, log: EventLog, new_id: Callable[[], str]) -> None:
        """`new_id` returns a unique id for an event."""
        self.collectors: Mapping[VersionKey, DataCollector] = {}
        """The effective settings. A version that was just removed is collected in the default layout."""
        self._log = log
        self._new_id = new_id
        self._exchanges: dict[tuple[int, int], _Exchange] = {}

    def __len__(self) -> int:
        return len(self._exchanges)

    def feed(self, frame: Frame, now: float) -> None:
        """Add a frame. `now` is in seconds of the monotonic clock."""
        identity = (frame.sender, frame.number)
        if frame.kind == BEGIN:
            self._exchanges[identity] = self._begin(split_fields(frame.payload))
            return
        exchange = self._exchanges.get(identity)
        if exchange is None:  # its beginning was lost with another collector, which counts the request
            if frame.kind == RESPONSE:
                key = EventKey(*response_version(frame.payload), data_collection.RESPONSE)
                self._log.counts.drop(key, "collector-ended")
            return
        if frame.kind == REQUEST_DATA:
            if exchange.request is not None:
                exchange.request.body.add(bytes(frame.payload))
        elif frame.kind == RESPONSE_DATA:
            if exchange.response is not None:
                exchange.response.body.add(bytes(frame.payload))
        elif frame.kind == RESPONSE:
            exchange.response = self._response(exchange, split_fields(frame.payload))
        elif frame.kind == RESTART:
            if exchange.request is not None:
                exchange.request.body.restart()
        elif frame.kind == END:
            del self._exchanges[identity]
            self._end(exchange, frame.payload, now)

    def _begin(self, fields: Sequence[bytes]) -> _Exchange:
        service, version, request_id, time, logs_request, method, path, content_type, *headers = [
            field.decode("latin-1") for field in fields
        ]
        key = (service, version)
        exchange = _Exchange(key, self.collectors.get(key) or PAYLOADS, request_id, None)
        if logs_request == "1":
            captured = [(attribute_name(name), value) for name, value in zip(headers[::2], headers[1::2], strict=True)]
            extra = request_extra(method, path, captured)
            exchange.request = self._side(exchange, data_collection.REQUEST, float(time), content_type, extra)
        return exchange

    def _response(self, exchange: _Exchange, fields: Sequence[bytes]) -> _Side:
        _, _, time, status, content_type = [field.decode("latin-1") for field in fields]
        extra = {"statuscode": int(status)}
        return self._side(exchange, data_collection.RESPONSE, float(time), content_type, extra)

    def _side(
        self, exchange: _Exchange, collection: str, time: float, content_type: str, extra: Mapping[str, object]
    ) -> _Side:
        key, event_id = EventKey(*exchange.key, collection), self._new_id()
        body = self._log.new_body(event_id, key, exchange.collector, time, content_type)
        return _Side(key, event_id, time, content_type, extra, body)

    def _end(self, exchange: _Exchange, payload: memoryview, now: float) -> None:
        flags, request_bytes, response_bytes = parse_end(payload)
        for side, size, complete, truncated in (
            (exchange.request, request_bytes, flags & REQUEST_COMPLETE, flags & REQUEST_TRUNCATED),
            (exchange.response, response_bytes, flags & RESPONSE_COMPLETE, flags & RESPONSE_TRUNCATED),
        ):
            if side is None:
                continue
            if truncated or not complete:
                side.body.truncate()
            event = Event(
                key=side.key, id=side.event_id, time=side.time, request_id=exchange.request_id,
                content_type=side.content_type, size=0 if side.body.truncated else size,
                total=size if complete else None, extra=side.extra,
            )  # fmt: skip
            self._log.add(event, exchange.collector, side.body, now)

    def unstored(self) -> Counter[EventKey]:
        """Return the number of events that have begun and not ended, by key."""
        sides = [side for exchange in self._exchanges.values() for side in (exchange.request, exchange.response)]
        return Counter(side.key for side in sides if side is not None)

    def drop_sender(self, sender: int, reason: str = "worker-ended") -> None:
        """Give up the exchanges of a worker that has ended, of which no frame is left."""
        for identity in [identity for identity in self._exchanges if identity[0] == sender]:
            self._drop(self._exchanges.pop(identity), reason)

    def drop_all(self, reason: str) -> None:
        """Give up all exchanges."""
        for exchange in self._exchanges.values():
            self._drop(exchange, reason)
        self._exchanges.clear()

    def _drop(self, exchange: _Exchange, reason: str) -> None:
        for side in (exchange.request, exchange.response):
            if side is not None:
                side.body.truncate()
                self._log.counts.drop(side.key, reason)
