"""The sources of the dynamic configuration: what they deliver, and the source that is a file.

A source is polled. It recognizes an unchanged document by its version (`etag`), so a poll costs little. Does not
contain: what a document means (`config.dynamic`), and when a source is polled (`follower`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from router.config.regular_file import read_regular_file

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 262_144
"""Maximum size of a dynamic configuration. It and the last valid settings of models fit in one ConfigMap (1 MiB)."""

_SETTLE_SECONDS = 0.3
"""Time for which a file must be unchanged before it is read, since it may be incomplete before."""


class Document(NamedTuple):
    """A dynamic configuration as its source has it. Of a longer content, the first `MAX_DOCUMENT_BYTES` + 1 bytes are
    enough."""

    etag: str
    content: bytes


class SourceUnavailable(Exception):
    """The source cannot be read. `str()` is the reason in one line, without credentials. `retry_after` is the minimum
    number of seconds until the next attempt, as the source requests it."""

    def __init__(self, reason: str, retry_after: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Source(Protocol):
    """Where the dynamic configuration is. The methods are called in the event loop."""

    @property
    def name(self) -> str:
        """The name of the source for operators, without credentials."""

    async def fetch(self, etag: str) -> Document | None:
        """Return the document, None if its version is still `etag`. Raises `SourceUnavailable`."""

    def close(self) -> None:
        """Close connections."""


class ReadThread:
    """Calls a function that may hang, as storage does, in a thread that does not keep the process from exiting."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    async def call(self, work: Callable[[], T]) -> T:
        """Return the result of `work`, or raise its exception. Raises `SourceUnavailable` while an earlier call, which
        the caller has given up, has not returned."""
        if self._thread is not None and self._thread.is_alive():
            raise SourceUnavailable("the previous read has not returned yet")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._thread = threading.Thread(target=_run, args=(work, loop, done), name="dynamic-config", daemon=True)
        self._thread.start()
        return await done


def _run(work: Callable[[], T], loop: asyncio.AbstractEventLoop, done: asyncio.Future[T]) -> None:
    deliver: Callable[[], None]
    try:
        result = work()
    except Exception as error:  # noqa: BLE001  (the caller's `await` raises it)
        deliver = partial(_unless_done, done, done.set_exception, error)
    else:
        deliver = partial(_unless_done, done, done.set_result, result)
    try:
        loop.call_soon_threadsafe(deliver)
    except RuntimeError:
        pass  # the event loop was closed meanwhile


def _unless_done(done: asyncio.Future[T], deliver: Callable[[Any], None], result: object) -> None:
    if not done.done():  # otherwise the caller has given up
        deliver(result)


class FileSource:
    """A file. It is read once it has been unchanged for a moment, so a write in progress is not seen."""

    def __init__(self, path: Path, sleep: Callable[[float], None] = time.sleep) -> None:
        self._path = path
        self._sleep = sleep
        self._thread = ReadThread()

    @property
    def name(self) -> str:
        """See `Source`."""
        return str(self._path)

    async def fetch(self, etag: str) -> Document | None:
        """See `Source`."""
        try:
            return await self._thread.call(lambda: self._read(etag))
        except OSError as error:
            raise SourceUnavailable(error.strerror or str(error)) from error

    def close(self) -> None:
        """See `Source`. There are no connections."""

    def _read(self, etag: str) -> Document | None:
        version = self._version()
        if version == etag:
            return None
        self._sleep(_SETTLE_SECONDS)
        content = read_regular_file(self._path, MAX_DOCUMENT_BYTES + 1)
        return Document(version, content) if self._version() == version else None

    def _version(self) -> str:
        """Return a text that changes when the file is written or replaced, or a symbolic link in its path changes."""
        status = self._path.stat()
        return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
