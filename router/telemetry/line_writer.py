"""Writes the lines of a log to a file descriptor without blocking the caller.

Theory of operation. `write` puts a line into a bounded queue, and a thread writes the queue. Lines beyond the bound are
dropped and counted. If nobody reads a pipe or a terminal, only the thread waits. A regular file waits for no reader, so
`write` itself writes it.

Standard output and standard error are shared with other processes, which rules out the alternatives: non-blocking mode
belongs to the open file description, so it would also change the parent's terminal; and a pipe that polls as writable
may be full when it is written, because another process was faster. That write would block.

Each write has whole lines and at most PIPE_BUF bytes, so that lines of processes that share a pipe do not mix
(pipe(7)). Only a single line that is longer may.
"""

import os
import select
import stat
import threading
from collections import deque
from collections.abc import Callable

CAPACITY = 1 << 20
"""Default bound of the queue, in bytes. About 5,000 lines."""


class LineWriter:
    """A queue of lines and the thread that writes them to one file descriptor. Any thread may call its methods."""

    def __init__(
        self, fd: int, *, capacity: int = CAPACITY, on_recovered: Callable[[int], None] = lambda _: None
    ) -> None:
        """`on_recovered` is called by the thread with the number of dropped lines once lines are written again."""
        self._fd = fd
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._capacity = capacity
        self._on_recovered = on_recovered
        self._changed = threading.Condition()  # re-entrant: a finalizer may log while this thread holds it
        self._pending: deque[bytes] = deque()
        self._pending_bytes = 0  # includes what the thread is writing
        self._is_writing = False
        self._thread: threading.Thread | None = None  # from the first line on
        self._closed = False
        self._dropped = self._reported = 0

    @property
    def dropped(self) -> int:
        """Number of lines that could not be written."""
        return self._dropped

    @property
    def pending_bytes(self) -> int:
        """Number of bytes that are not written yet."""
        return self._pending_bytes

    def write(self, *texts: bytes) -> None:
        """Write texts of whole lines to a file, or enqueue them. Drop and count those that exceed the capacity, and all
        that would be enqueued after `close`."""
        if self._is_file:
            self._write_and_count(b"".join(texts))
            return
        with self._changed:
            for text in texts:
                if self._closed or self._pending_bytes + len(text) > self._capacity:
                    self._dropped += text.count(b"\n")
                else:
                    self._pending.append(text)
                    self._pending_bytes += len(text)
            if self._pending and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Wait for at most `seconds` until all lines are written, then drop the rest. The descriptor stays open."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending and not self._is_writing, seconds)
            self._closed = True
            self._dropped += sum(text.count(b"\n") for text in self._pending)
            self._pending_bytes -= sum(map(len, self._pending))
            self._pending.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while chunk := self._next_chunk():
            self._write_and_count(chunk)
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()

    def _write_and_count(self, chunk: bytes) -> None:
        """Write lines, count those lost, and report them once lines are written again."""
        lost = self._write(chunk)
        with self._changed:
            if not self._is_file:
                self._pending_bytes -= len(chunk)
            self._dropped += lost
            unreported = self._dropped - self._reported if not lost and not self._pending else 0
            self._reported += unreported
        if unreported:
            self._on_recovered(unreported)  # without the lock: it takes that of the log

    def _next_chunk(self) -> bytes:
        """Wait for lines. Return as many as one write may have; nothing after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            if not self._pending:
                return b""
            self._is_writing = True
            chunk = bytearray(self._pending.popleft())
            while self._pending and len(chunk) + len(self._pending[0]) <= select.PIPE_BUF:
                chunk += self._pending.popleft()
            return bytes(chunk)

    def _write(self, chunk: bytes) -> int:
        """Write all of `chunk`, however long it takes. Return the number of lines lost by an error."""
        while chunk:
            try:
                chunk = chunk[os.write(self._fd, chunk) :]
            except BlockingIOError:  # another process has set non-blocking mode
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:  # the reader has closed the pipe, the disk is full
                return max(chunk.count(b"\n"), 1)
        return 0
