"""Fixtures of the tests of the local cluster."""

from collections.abc import Iterator

import pytest

from tests.cluster.local.helpers import process_mark


@pytest.fixture
def mark() -> Iterator[str]:
    """A unique word for command lines. After the test, no process with it may be left."""
    with process_mark() as mark:
        yield mark
