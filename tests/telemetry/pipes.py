"""A pipe whose reader reads only when a test wants it to."""

import os
import select

from tests.processes import TIMEOUT_SECONDS


class Pipe:
    """A pipe. Its writer is in blocking mode."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self._filling = 0
        self._unread = b""

    def fileno(self) -> int:
        """Return the descriptor of the writer."""
        return self._writer

    def fill(self) -> None:
        """Fill the pipe until not a single byte fits."""
        os.set_blocking(self._writer, False)
        for size in (select.PIPE_BUF, 1):
            try:
                while True:
                    self._filling += os.write(self._writer, b"x" * size)
            except BlockingIOError:
                pass
        os.set_blocking(self._writer, True)

    def discard_filling(self) -> None:
        """Read what `fill` has written."""
        while self._filling:
            self._filling -= len(self._read(self._filling).replace(b"\n", b"")) or self._filling

    def read_lines(self, count: int) -> list[bytes]:
        """Wait for `count` lines, and return them without their ends."""
        while self._unread.count(b"\n") < count:
            self._unread += self._read(1 << 20)
        *lines, self._unread = self._unread.split(b"\n", count)
        return lines

    def _read(self, size: int) -> bytes:
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        assert poll.poll(TIMEOUT_SECONDS * 1000), "nothing was written"
        return os.read(self.reader, size)

    def close_reader(self) -> None:
        """Close the reader: writes fail."""
        os.close(self.reader)
        self.reader = -1

    def close(self) -> None:
        """Close both ends."""
        if self.reader >= 0:
            self.close_reader()
        os.close(self._writer)
