"""Bodies that are blobs of their own: staged in blocks while they arrive, then committed. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from router.collection.buffer import Budget

BLOCK_BYTES = 2**20
"""Size of a block, except the last one. A block blob has at most 50,000."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of a blob: its number, and its place in the blob."""

    upload: Upload
    index: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """All blocks of a blob are staged: they become the blob."""

    upload: Upload
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Discard:
    """The blob will not be complete: its staged blocks are not needed."""

    upload: Upload


class Upload:
    """One blob. It has one operation in flight at a time."""

    def __init__(self, name: str, content_type: str, budget: Budget) -> None:
        self.name = name
        self.content_type = content_type
        self.size = 0
        self.ended = False
        """True once it is committed or discarded."""
        self._budget = budget
        self._pending = bytearray()  # of the next block
        self._blocks: deque[Block] = deque()
        self._count = 0
        self._offset = 0
        self._finished = self._aborted = self._busy = False

    @property
    def aborted(self) -> bool:
        """True if the body was given up."""
        return self._aborted

    def append(self, piece: bytes | memoryview) -> None:
        """Add a piece of the body, whose bytes are reserved."""
        self._pending += piece
        self.size += len(piece)
        if len(self._pending) >= BLOCK_BYTES:
            self._cut()

    def _cut(self) -> None:
        data = bytes(self._pending)
        self._blocks.append(Block(self, self._count, self._offset, data))
        self._count += 1
        self._offset += len(data)
        self._pending = bytearray()

    def finish(self) -> None:
        """The body is complete."""
        if self._pending:
            self._cut()
        self._finished = True

    def abort(self) -> None:
        """Give the body up, and its memory back."""
        in_flight = len(self._blocks[0].data) if self._busy and self._blocks else 0
        self._budget.release(len(self._pending) + sum(len(block.data) for block in self._blocks) - in_flight)
        self._pending = bytearray()
        self._blocks = deque([self._blocks[0]] if in_flight else [])
        self._aborted = True

    def take(self) -> Block | Commit | Discard | None:
        """Return the next operation; None if there is none now. It must be reported as done or failed."""
        if self._busy or self.ended:
            return None
        operation: Block | Commit | Discard | None = None
        if self._aborted:
            operation = Discard(self)
        elif self._blocks:
            operation = self._blocks[0]
        elif self._finished:
            operation = Commit(self, self._count)
        self._busy = operation is not None
        return operation

    def on_done(self, operation: Block | Commit | Discard) -> None:
        """The operation succeeded."""
        self._busy = False
        if isinstance(operation, Block):
            self._blocks.popleft()
            self._budget.release(len(operation.data))
        else:
            self.ended = True

    def on_failed(self, operation: Block | Commit | Discard) -> None:
        """The operation failed, and must be repeated. A failed `Discard` is not: storage removes blocks that are never
        committed."""
        self._busy = False
        if isinstance(operation, Discard):
            self.ended = True
        elif self._aborted and self._blocks:
            self._budget.release(len(self._blocks.popleft().data))
