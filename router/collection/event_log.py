"""Events from their end to their storage: lines, bodies that are blobs of their own, and what was counted. No I/O.

Does not contain: how exchanges become events (`assembly`), and writing (`collector`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from router.collection.buffer import Batch, Budget, LineBuffer
from router.collection.events import MAX_INLINE_BYTES, BlobAddress, Event, EventKey, Layout, embedded, line
from router.collection.uploads import BLOCK_BYTES, Block, Commit, Discard, Upload
from router.model.data_collection import DataCollector

Work = Batch | Block | Commit | Discard
"""One operation of a store."""


@dataclass(slots=True)
class CollectionCounts:
    """Totals since the start of the process. Bytes are those of lines and of blobs."""

    events: Counter[EventKey] = field(default_factory=Counter)
    sizes: Counter[EventKey] = field(default_factory=Counter)
    truncated: Counter[EventKey] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By service, version and reason."""

    def drop(self, key: EventKey, reason: str, count: int = 1) -> None:
        """Count events that are not stored."""
        self.dropped[key.service, key.version, reason] += count


class Body:
    """The body of an event while it arrives: within memory, or on its way into a blob."""

    def __init__(self, budget: Budget, open_upload: Callable[[], Upload]) -> None:
        self.size = 0
        self.truncated = False
        self.upload: Upload | None = None
        self._budget = budget
        self._open_upload = open_upload
        self._data = bytearray()  # a list of small pieces would need many times their size

    def add(self, piece: bytes) -> None:
        """Add a piece. The body is truncated if there is no room."""
        self.size += len(piece)
        self.check_upload()
        if self.truncated:
            return
        if not self._budget.reserve(len(piece)):
            self.truncate()
        elif self.upload is not None:
            self.upload.append(piece)
        else:
            self._data += piece
            if self.size > MAX_INLINE_BYTES:
                self.move_to_upload()

    def check_upload(self) -> None:
        """Truncate the body if storage has refused a part of it."""
        if self.upload is not None and self.upload.aborted:
            self.upload = None
            self.truncated = True

    def move_to_upload(self) -> Upload:
        """Make the body a blob of its own."""
        self.upload = upload = self._open_upload()
        view = memoryview(self._data)
        for start in range(0, len(view), BLOCK_BYTES):
            upload.append(view[start : start + BLOCK_BYTES])
        self._data = bytearray()
        return upload

    def truncate(self) -> None:
        """Give the body up, and its memory back."""
        self.truncated = True
        self._budget.release(len(self._data))
        self._data = bytearray()
        if self.upload is not None:
            self.upload.abort()
            self.upload = None

    def restart(self) -> None:
        """The body follows again from its beginning."""
        self.truncate()
        self.truncated = False
        self.size = 0

    def join(self) -> bytes:
        """Return the body in memory."""
        return bytes(self._data)

    def release(self) -> None:
        """Give the memory back after `join`."""
        self._budget.release(len(self._data))
        self._data = bytearray()


@dataclass(slots=True, eq=False)
class _PendingBlob:
    """An event whose body is on its way into a blob."""

    event: Event
    collector: DataCollector
    upload: Upload
    added_at: float


class EventLog:
    """The events that are not stored yet. Times are seconds of the monotonic clock, except those of events."""

    def __init__(self, layout: Layout, budget: Budget, *, flush_seconds: float, url: Callable[[str], str]) -> None:
        """`url` returns the address of a stored blob, given its name."""
        self.counts = CollectionCounts()
        self.budget = budget
        self._layout = layout
        self._lines = LineBuffer(budget, layout.instance, flush_seconds)
        self._url = url
        self._uploads: list[Upload] = []
        self._pending: dict[Upload, _PendingBlob] = {}

    def new_body(self, event_id: str, key: EventKey, collector: DataCollector, time: float, content_type: str) -> Body:
        """Return the empty body of an event that begins at this time."""

        def open_upload() -> Upload:
            name = f"{self._layout.folder(key, collector, time)}/{event_id}"
            upload = Upload(name, content_type, self.budget)
            self._uploads.append(upload)
            return upload

        return Body(self.budget, open_upload)

    def add(self, event: Event, collector: DataCollector, body: Body, now: float) -> None:
        """Add a complete event."""
        data: bytes | None = None
        body.check_upload()
        if not body.truncated and body.upload is None and body.size:
            data = embedded(body.join())
            if data is None:
                body.move_to_upload()
        if body.upload is not None:
            body.upload.finish()
            self._pending[body.upload] = _PendingBlob(event, collector, body.upload, now)
            return
        body.release()
        if body.truncated:
            event = _truncated(event)
        self._add_line(event, collector, data, now, truncated=body.truncated)

    def _add_line(
        self, event: Event, collector: DataCollector, data: bytes | BlobAddress | None, now: float, *, truncated: bool
    ) -> None:
        folder = self._layout.folder(event.key, collector, event.time)
        source = self._layout.source((event.key.service, event.key.version))
        if not self._lines.add(folder, event.key, line(event, source, data), now):
            self.counts.drop(event.key, "buffer")
        elif truncated:
            self.counts.truncated[event.key] += 1

    # Storage.

    def take_work(self, now: float, *, everything: bool = False) -> Iterator[Work]:
        """Yield the operations that are due, or all that are possible now. Each must be reported as done, failed or
        refused."""
        for upload in self._uploads:
            if (operation := upload.take()) is not None:
                yield operation
        yield from self._lines.take(now, everything=everything)

    def on_done(self, work: Work, now: float) -> None:
        """The operation succeeded."""
        if isinstance(work, Batch):
            self._lines.on_stored(work)
            self.counts.events += work.events
            self.counts.sizes += work.sizes
            return
        work.upload.on_done(work)
        if not isinstance(work, Block):
            self._end_upload(work.upload, now, stored=isinstance(work, Commit))

    def on_failed(self, work: Work) -> None:
        """The operation failed, and is repeated: it is yielded again."""
        if isinstance(work, Batch):
            self._lines.on_failed(work)
        else:
            work.upload.on_failed(work)
            self._forget_ended(work.upload)

    def on_lost(self, work: Work, now: float) -> None:
        """What was stored before does not exist any more: lines continue in another file, and a body is given up."""
        if isinstance(work, Batch):
            self._lines.on_file_lost(work)
        else:
            self._give_up(work, now)

    def on_refused(self, work: Work, reason: str, now: float) -> None:
        """The operation certainly failed, and is not repeated."""
        if isinstance(work, Batch):
            self._lines.on_refused(work)
            for key, count in work.events.items():
                self.counts.drop(key, reason, count)
        else:
            self._give_up(work, now)

    def _give_up(self, work: Block | Commit | Discard, now: float) -> None:
        work.upload.on_failed(work)
        self._forget_ended(work.upload)
        if not work.upload.ended:
            work.upload.abort()
        if (pending := self._pending.pop(work.upload, None)) is not None:
            self._add_line(_truncated(pending.event), pending.collector, None, now, truncated=True)

    def _forget_ended(self, upload: Upload) -> None:
        if upload.ended:
            self._uploads.remove(upload)

    def _end_upload(self, upload: Upload, now: float, *, stored: bool) -> None:
        self._uploads.remove(upload)
        pending = self._pending.pop(upload, None)
        if pending is not None and stored:
            self.counts.sizes[pending.event.key] += upload.size
            address = BlobAddress(self._url(upload.name))
            self._add_line(pending.event, pending.collector, address, now, truncated=False)

    # State.

    def oldest(self) -> float | None:
        """Return when the oldest event ended that is not stored; None if all are."""
        times = [pending.added_at for pending in self._pending.values()]
        if (line_time := self._lines.oldest()) is not None:
            times.append(line_time)
        return min(times, default=None)

    @property
    def is_empty(self) -> bool:
        """True if everything is stored."""
        return not self._uploads and self._lines.oldest() is None

    def unstored(self) -> Counter[EventKey]:
        """Return the number of complete events that are not stored, by key."""
        return self._lines.unstored() + Counter(pending.event.key for pending in self._pending.values())

    def drop_rest(self, reason: str) -> None:
        """Count all events that are not stored as dropped. No other method may be called afterwards."""
        for key, count in self.unstored().items():
            self.counts.drop(key, reason, count)


def _truncated(event: Event) -> Event:
    return replace(event, extra={**event.extra, "truncated": "true"})
