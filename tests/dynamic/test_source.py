"""The sources of the dynamic configuration."""

import asyncio
import threading
from pathlib import Path

import pytest

from router.dynamic.source import MAX_DOCUMENT_BYTES, FileSource, ReadThread, SourceUnavailable


async def test_unchanged_file_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "dynamic.yaml"
    file.write_text("{}")
    source = FileSource(file, sleep=lambda _: None)
    document = await source.fetch("")
    assert document is not None
    assert document.content == b"{}"
    assert await source.fetch(document.etag) is None
    file.write_text("{ }")
    changed = await source.fetch(document.etag)
    assert changed is not None
    assert changed.content == b"{ }"


async def test_file_that_is_being_written_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "dynamic.yaml"
    file.write_text("router: {max_headers: 5")

    def go_on_writing(_: float) -> None:
        with file.open("a") as stream:
            stream.write("0}")

    source = FileSource(file, sleep=go_on_writing)
    assert await source.fetch("") is None


async def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "dynamic.yaml"
    with file.open("wb") as stream:
        stream.truncate(10 * MAX_DOCUMENT_BYTES)
    document = await FileSource(file, sleep=lambda _: None).fetch("")
    assert document is not None
    assert len(document.content) == MAX_DOCUMENT_BYTES + 1


async def test_missing_file_and_directory_are_failures(tmp_path: Path) -> None:
    with pytest.raises(SourceUnavailable, match="No such file or directory"):
        await FileSource(tmp_path / "none").fetch("")
    with pytest.raises(SourceUnavailable, match="Is a directory"):
        await FileSource(tmp_path, sleep=lambda _: None).fetch("")


async def test_one_hanging_read_does_not_start_others() -> None:
    thread, hanging = ReadThread(), threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await thread.call(hanging.wait)
    with pytest.raises(SourceUnavailable, match="previous read has not returned"):
        await thread.call(lambda: None)
    hanging.set()
