"""A thread that exports what the supervisor gives it, from a bounded queue.

The libraries that export are written in Python, and so is the supervisor, which grants slots: only one of them runs at
a time. So the thread uses at most a share of one CPU, and the interpreter switches between them more often than usual.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

from router.telemetry.log import event

T = TypeVar("T")

_CPU_SHARE = 0.25
_SWITCH_SECONDS = 0.0005  # Python's default is 5 ms, for which the event loop would wait for the thread
_STOP_SECONDS = 2.0  # for the last export when the router stops

_log = logging.getLogger("router.telemetry")


class ExportThread(Generic[T]):
    """Passes items to a function that exports them, in batches."""

    def __init__(
        self,
        name: str,
        export: Callable[[Sequence[T]], Iterator[None]],
        close: Callable[[], None],
        *,
        capacity: int,
        batch: int = 1,
        min_seconds: float = 0.0,
    ) -> None:
        """`export` exports a batch of at most `batch` items, and yields after each step, where the thread may pause.
        `close` is called once at the end. Both are called in the thread, and must not raise. `capacity` is the maximum
        number of items in the queue. An incomplete batch is exported `min_seconds` after the last one."""
        self._export = export
        self._close = close
        self._capacity = capacity
        self._batch = batch
        self._min_seconds = min_seconds
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._is_exporting = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """True if nothing is queued or being exported."""
        with self._changed:
            return not self._items and not self._is_exporting

    def submit(self, items: Iterable[T]) -> int:
        """Queue items without waiting. Return the number of those that the queue had no room for."""
        with self._changed:
            before = len(self._items)
            pending = list(items)
            self._items.extend(islice(pending, self._capacity - before))
            self._changed.notify()
            return before + len(pending) - len(self._items)

    def stop(self) -> None:
        """Export the queued items and end the thread. Gives up after a few seconds, and logs how many are lost."""
        if not self._thread.is_alive():
            return
        self._stopping.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(_STOP_SECONDS)
        if lost := len(self._items):
            event(_log, logging.WARNING, "not exported before the end", export=self._thread.name, lost=lost)

    def _run(self) -> None:
        exported_at = -self._min_seconds
        while batch := self._take(exported_at + self._min_seconds):
            exported_at = time.monotonic()
            cpu_before = time.thread_time()
            for _ in self._export(batch):
                used = time.thread_time() - cpu_before
                self._stopping.wait(used / _CPU_SHARE - used)
                cpu_before = time.thread_time()
            with self._changed:
                self._is_exporting = False
        self._close()

    def _take(self, not_before: float) -> list[T]:
        """Return the next batch, once it is complete or the time has come; an empty one to stop."""
        with self._changed:
            while not self._stopping.is_set() and not self._items:
                self._changed.wait()
            while not self._stopping.is_set() and len(self._items) < self._batch:
                seconds = not_before - time.monotonic()
                if seconds <= 0:
                    break
                self._changed.wait(seconds)
            batch = [self._items.popleft() for _ in range(min(self._batch, len(self._items)))]
            self._is_exporting = bool(batch)
            return batch
