"""Ends the threads that tests of the logs start; fixtures of the tests of exports."""

from collections.abc import Iterator
from typing import Any

import pytest

from router.telemetry.line_writer import LineWriter
from tests.processes import TIMEOUT_SECONDS
from tests.telemetry.collector import collector  # noqa: F401


@pytest.fixture(autouse=True)
def _no_writer_remains(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close each writer after its pipe, so that no thread outlives its test.

    Tests in an event loop check their sockets only while no other thread runs.
    """
    writers: list[LineWriter] = []
    initialize = LineWriter.__init__

    def record(self: LineWriter, *args: Any, **options: Any) -> None:
        initialize(self, *args, **options)
        writers.append(self)

    monkeypatch.setattr(LineWriter, "__init__", record)
    yield
    for writer in writers:
        writer.close(TIMEOUT_SECONDS)
        if writer._thread is not None:
            writer._thread.join(TIMEOUT_SECONDS)
            assert not writer._thread.is_alive()
