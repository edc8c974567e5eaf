"""A store whose operations fail in all ways in which those of a remote storage can."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from router.collection.store import FolderStore, StoreError


class FaultyStore(FolderStore):
    """A folder. An operation fails with probability `rate`: before it, after it, or in the middle of it."""

    def __init__(self, root: Path, rng: random.Random, rate: float) -> None:
        super().__init__(root, 2**40)
        self.rate = rate
        self._random = rng
        self.attempts = 0

    def _attempt(self, operation: Callable[[], None]) -> None:
        self.attempts += 1
        point = self._random.random() / self.rate if self.rate else 1.0
        if point < 0.5:
            raise StoreError("timeout", "before")
        operation()
        if point < 1.0:
            raise StoreError("timeout", "after")

    def append(self, name: str, offset: int, data: bytes) -> None:
        if self.rate and self._random.random() < self.rate / 4:
            super().append(name, offset, data[: len(data) // 2])
            raise StoreError("timeout", "in the middle")
        self._attempt(lambda: FolderStore.append(self, name, offset, data))

    def stage(self, name: str, index: int, offset: int, data: bytes) -> None:
        self._attempt(lambda: FolderStore.stage(self, name, index, offset, data))

    def commit(self, name: str, count: int, content_type: str) -> None:
        self._attempt(lambda: FolderStore.commit(self, name, count, content_type))
