"""Collects errors, so that all faults are reported at once, not only the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

E = TypeVar("E", bound=Exception)


class Collector(Generic[E]):
    """Collects the errors of one type that independent steps raise. An error with `errors` stands for these."""

    def __init__(self, error_type: type[E], combine: Callable[[Sequence[E]], E]) -> None:
        """`combine` returns the error that stands for several."""
        self._error_type = error_type
        self._combine = combine
        self._errors: dict[str, E] = {}  # by text: two steps may find the same error

    def __len__(self) -> int:
        return len(self._errors)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect the errors that are raised within this context, which then ends."""
        try:
            yield
        except self._error_type as error:
            self.add(error)

    def add(self, error: E) -> None:
        """Collect an error."""
        self._errors |= {str(each): each for each in getattr(error, "errors", (error,))}

    def raise_errors(self) -> None:
        """Raise what was collected: nothing, the only error, or one that stands for all."""
        errors = self.errors()
        if errors:
            raise errors[0] if len(errors) == 1 else self._combine(errors)

    def errors(self) -> list[E]:
        """Return what was collected."""
        return list(self._errors.values())
