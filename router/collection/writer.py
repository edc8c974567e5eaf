"""Writes the work of an `EventLog` to a store, in threads, with one backoff for all failures of the store."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from router.collection.buffer import Batch
from router.collection.event_log import EventLog, Work
from router.collection.store import FileLostError, RefusedError, Store, StoreError
from router.collection.uploads import Block, Commit
from router.net.backoff import Backoff
from router.telemetry.log import event

_log = logging.getLogger("router.collection")

_MAX_IN_FLIGHT = 8
_FIRST_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 30.0
_MAX_STOPPING_DELAY_SECONDS = 1.0
_WARNING_SECONDS = 60.0  # between two log lines about the same kind of failure


class Writer:
    """Starts the operations of a log that are due, and reports their results to it."""

    def __init__(self, log: EventLog, store: Store) -> None:
        self._log = log
        self.store = store
        self._in_flight: dict[int, Work] = {}
        self._numbers = itertools.count()
        self._backoff = Backoff(_FIRST_DELAY_SECONDS, _MAX_DELAY_SECONDS, jitter=0.2)
        self._retry_at = 0.0
        self._warned_at: dict[str, float] = {}
        self.failures: Counter[str] = Counter()
        """Failed operations by reason."""
        self.problem = ""
        """Why the last operation failed; "" if it did not."""
        self._stopping = False

    def begin_stop(self) -> None:
        """Write all that is left at once, with short pauses after failures."""
        self._stopping = True
        self._retry_at = min(self._retry_at, time.monotonic() + _MAX_STOPPING_DELAY_SECONDS)

    @property
    def idle(self) -> bool:
        """True if no operation is in flight."""
        return not self._in_flight

    def dispatch(self) -> None:
        """Start operations that are due. Must be called often."""
        now = time.monotonic()
        room = _MAX_IN_FLIGHT - len(self._in_flight)
        if room <= 0 or now < self._retry_at:
            return
        loop = asyncio.get_running_loop()
        for work in list(itertools.islice(self._log.take_work(now, everything=self._stopping), room)):
            number = next(self._numbers)
            self._in_flight[number] = work

            def report(error: Exception | None, number: int = number) -> None:
                loop.call_soon_threadsafe(self._on_done, number, error)

            # A daemon: the process must be able to end although a storage hangs.
            threading.Thread(target=_run, args=(self.store, work, report), daemon=True).start()

    def use(self, store: Store) -> None:
        """Write to another store from now on. What is in flight, and may hang, is written again there."""
        for work in self._in_flight.values():
            self._log.on_failed(work)
        self._in_flight.clear()
        self.store = store
        self._retry_at = 0.0

    def _on_done(self, number: int, error: Exception | None) -> None:
        work = self._in_flight.pop(number, None)
        if work is None:
            return  # of a store that is not used any more
        now = time.monotonic()
        if error is None:
            self._backoff.reset()
            if now >= self._retry_at:  # else it began before the failure that is waited for
                self.problem = ""
            self._log.on_done(work, now)
        elif isinstance(error, FileLostError):
            self._report("missing", f"{error} was removed")
            self._log.on_lost(work, now)
        elif isinstance(error, RefusedError):
            self._report(error.reason, str(error))
            self._log.on_refused(work, error.reason, now)
        else:
            if not isinstance(error, StoreError):
                error = StoreError("failed", f"{type(error).__name__}")
            self._report(error.reason, str(error))
            self._log.on_failed(work)
            if now >= self._retry_at:  # else another operation has failed at the same time
                delay = self._backoff.next_delay(error.retry_after)
                self._retry_at = now + (min(delay, _MAX_STOPPING_DELAY_SECONDS) if self._stopping else delay)
        self.dispatch()

    def _report(self, reason: str, detail: str) -> None:
        self.failures[reason] += 1
        self.problem = f"collected data cannot be stored ({reason}): {detail}"
        now = time.monotonic()
        if now - self._warned_at.get(reason, -_WARNING_SECONDS) >= _WARNING_SECONDS:
            self._warned_at[reason] = now
            event(_log, logging.WARNING, "collected data cannot be stored", reason=reason, error=detail)


def _run(store: Store, work: Work, report: Callable[[Exception | None], None]) -> None:
    """Carry out an operation, in a thread."""
    error: Exception | None = None
    try:
        carry_out(store, work)
    except Exception as raised:  # noqa: BLE001  (libraries may raise anything; the operation is repeated)
        error = raised
    try:
        report(error)
    except RuntimeError:
        pass  # the event loop is closed: the process ends


def carry_out(store: Store, work: Work) -> None:
    """Carry out an operation. Raises the errors of stores."""
    if isinstance(work, Batch):
        store.append(work.name, work.offset, work.data)
    elif isinstance(work, Block):
        store.stage(work.upload.name, work.index, work.offset, work.data)
    elif isinstance(work, Commit):
        store.commit(work.upload.name, work.count, work.upload.content_type)
    else:
        store.discard(work.upload.name)
