"""The writer of the collector, with a store whose operations last as long as the test wants."""

import asyncio
import threading
import time
from pathlib import Path

from router.collection.buffer import Budget
from router.collection.event_log import EventLog
from router.collection.events import Event, EventKey, Layout
from router.collection.store import FolderStore, StoreError
from router.collection.writer import Writer
from router.model.data_collection import PAYLOADS


class BusyStore(FolderStore):
    """A folder that is slow for the service `slow`, and refuses all others with a long pause."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, 2**40)
        self.released = threading.Event()
        self.refused = 0

    def append(self, name: str, offset: int, data: bytes) -> None:
        if "/slow/" not in name:
            self.refused += 1
            raise StoreError("throttled", "status 503", 600.0)
        self.released.wait()
        super().append(name, offset, data)


async def test_pause_that_the_storage_requests_is_kept_when_an_earlier_operation_succeeds(tmp_path: Path) -> None:
    store = BusyStore(tmp_path)
    log = EventLog(Layout("pod-1"), Budget(2**20), flush_seconds=0.0, url=store.url)
    for service in ("slow", "other"):
        key = EventKey(service, "default", "request")
        event = Event(key=key, time=time.time(), request_id="id", content_type="", size=0, total=0)
        log.add(event, PAYLOADS, log.new_body(event.id, key, PAYLOADS, event.time, ""), time.monotonic())
    writer = Writer(log, store)
    writer.dispatch()
    async with asyncio.timeout(60):
        while not writer.failures:
            await asyncio.sleep(0.01)
        store.released.set()
        while not log.counts.events:
            await asyncio.sleep(0.01)
    writer.dispatch()
    assert writer.idle
    assert store.refused == 1
    assert "status 503" in writer.problem
