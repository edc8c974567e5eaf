"""Lines that wait for storage: one memory budget, and batches of lines that are appended to files. No I/O, no clock.

Theory of operation. A file has at most one batch in flight, which is written at a known offset. A batch that may or may
not have been written is written again, unchanged and at the same offset, so that a store detects a repetition. So each
line is stored exactly once. Names of files are never used again: once a file is finished, the generation, which is part
of the names of later files, grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from router.collection.events import EventKey

MAX_BATCH_BYTES = 4 * 2**20
"""Maximum size of a batch, unless a single line is longer. An append block of Azure Blob Storage has at most 4 MiB in
older versions of its API."""
MAX_BATCHES = 40_000
"""Maximum number of batches of a file. An append blob has at most 50,000 blocks."""
IDLE_SECONDS = 3600.0
"""Time without lines after which a file is finished."""

_BODY_SHARE = 0.8


class Budget:
    """The memory for data that is not stored yet, in bytes. Bodies may use only a part of it, so that their metadata
    can be stored when there is no room for more of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body_limit = int(limit * _BODY_SHARE)
        self.used = 0

    def reserve(self, size: int, *, metadata: bool = False) -> bool:
        """Reserve bytes; return False if there is no room."""
        if self.used + size > (self._limit if metadata else self._body_limit):
            return False
        self.used += size
        return True

    def release(self, size: int) -> None:
        """Give reserved bytes back."""
        self.used -= size


@dataclass(slots=True, eq=False)
class Batch:
    """Lines that are appended to a file at an offset. `events` and `sizes` count them by key; sizes are in bytes."""

    folder: str
    name: str
    offset: int
    data: bytes
    events: Counter[EventKey]
    sizes: Counter[EventKey]
    oldest: float


@dataclass(slots=True, eq=False)
class _File:
    name: str
    offset: int = 0
    batches: int = 0
    lines: list[tuple[EventKey, bytes]] = field(default_factory=list)
    size: int = 0
    oldest: float = 0.0
    used_at: float = 0.0
    in_flight: Batch | None = None
    retry: Batch | None = None


class LineBuffer:
    """The lines of all files that are not stored yet. Times are seconds of the monotonic clock."""

    def __init__(self, budget: Budget, instance: str, flush_seconds: float) -> None:
        self._budget = budget
        self._instance = instance
        self._flush_seconds = flush_seconds
        self._files: dict[str, _File] = {}
        self._generation = 0

    def add(self, folder: str, key: EventKey, line: bytes, now: float) -> bool:
        """Add a line to the file of a folder. Return False if there is no room for it."""
        if not self._budget.reserve(len(line), metadata=True):
            return False
        file = self._files.get(folder)
        if file is None:
            file = self._files[folder] = _File(self._new_name(folder))
        if not file.lines:
            file.oldest = now
        file.lines.append((key, line))
        file.size += len(line)
        file.used_at = now
        return True

    def _new_name(self, folder: str) -> str:
        suffix = f"-{self._generation}" if self._generation else ""
        return f"{folder}/{self._instance}{suffix}.jsonl"

    def take(self, now: float, *, everything: bool = False) -> Iterator[Batch]:
        """Yield the batches that are due, or all that can be written now. Each must be reported as stored, failed or
        lost."""
        for folder, file in list(self._files.items()):
            if file.in_flight is not None:
                continue
            if file.retry is not None:
                file.in_flight, file.retry = file.retry, None
                yield file.in_flight
            elif file.lines and (
                everything or file.size >= MAX_BATCH_BYTES or now - file.oldest >= self._flush_seconds
            ):
                file.in_flight = _next_batch(folder, file)
                yield file.in_flight
            elif not file.lines and now - file.used_at >= IDLE_SECONDS:
                del self._files[folder]
                self._generation += 1

    def on_stored(self, batch: Batch) -> None:
        """The batch was written."""
        file = self._files[batch.folder]
        file.in_flight = None
        file.offset += len(batch.data)
        file.batches += 1
        self._budget.release(len(batch.data))
        if file.batches >= MAX_BATCHES:
            self._restart(batch.folder, file)

    def on_failed(self, batch: Batch) -> None:
        """The batch may or may not have been written, and must be written again."""
        file = self._files[batch.folder]
        file.in_flight, file.retry = None, batch

    def on_file_lost(self, batch: Batch) -> None:
        """The file does not exist any more: the batch, and all further lines, belong to another one."""
        file = self._files[batch.folder]
        self._restart(batch.folder, file)
        batch.name, batch.offset = file.name, 0
        file.in_flight, file.retry = None, batch

    def on_refused(self, batch: Batch) -> None:
        """The batch was certainly not written, and will not be."""
        self._files[batch.folder].in_flight = None
        self._budget.release(len(batch.data))

    def _restart(self, folder: str, file: _File) -> None:
        self._generation += 1
        file.name, file.offset, file.batches = self._new_name(folder), 0, 0

    def oldest(self) -> float | None:
        """Return when the oldest line was added that is not stored; None if all are."""
        times: list[float] = []
        for file in self._files.values():
            times += [batch.oldest for batch in (file.in_flight, file.retry) if batch is not None]
            if file.lines:
                times.append(file.oldest)
        return min(times, default=None)

    def unstored(self) -> Counter[EventKey]:
        """Return the number of lines that are not known to be stored, by key."""
        events: Counter[EventKey] = Counter()
        for file in self._files.values():
            events.update(key for key, _ in file.lines)
            for batch in (file.in_flight, file.retry):
                if batch is not None:
                    events += batch.events
        return events


def _next_batch(folder: str, file: _File) -> Batch:
    """Remove lines of up to `MAX_BATCH_BYTES` from a file, at least one, and return them."""
    events: Counter[EventKey] = Counter()
    sizes: Counter[EventKey] = Counter()
    taken, size = 0, 0
    for key, line in file.lines:
        if taken and size + len(line) > MAX_BATCH_BYTES:
            break
        taken, size = taken + 1, size + len(line)
        events[key] += 1
        sizes[key] += len(line)
    data = b"".join(line for _, line in file.lines[:taken])
    del file.lines[:taken]
    file.size -= size
    return Batch(folder, file.name, file.offset, data, events, sizes, file.oldest)
