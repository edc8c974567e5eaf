"""What entry scripts log themselves, with the real package azureml-ai-monitoring."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from azureml.ai.monitoring.config import init_config, teardown_config
from azureml.ai.monitoring.context import BasicCorrelationContext
from azureml.ai.monitoring.payload import PandasFrameData
from azureml.ai.monitoring.payload.payload import build_payload
from azureml.ai.monitoring.worker.sender import MdcSender

from router.collection.buffer import Budget
from router.collection.custom_log import CustomLogServer
from router.collection.event_log import EventLog
from router.collection.events import Layout
from router.collection.messages import LogSources
from router.collection.store import FolderStore
from router.collection.writer import carry_out
from router.config.data_collector import parse_data_collector
from tests.collection.reader import StoredEvent, read_folder
from tests.processes import wait_until
from tests.routers import StartRouter

KEY = ("iris", "blue")
COLLECTOR = parse_data_collector({"collections": {"model_inputs": {}, "request": {}, "off": {"enabled": False}}})
FRAME = pd.DataFrame({"sepal": [5.1, 4.9], "name": ["a", "b"]})
RECORDS = [{"sepal": 5.1, "name": "a"}, {"sepal": 4.9, "name": "b"}]
SCRIPT = """
import json
import pandas
from azureml.ai.monitoring import Collector
from azureml.ai.monitoring.context import BasicCorrelationContext

def init():
    global inputs, outputs
    inputs, outputs = Collector(name="model_inputs"), Collector(name="model_outputs")

def run(data):
    rows = json.loads(data)["data"]
    context = inputs.collect(pandas.DataFrame(rows, columns=["x"]))
    outputs.collect(pandas.DataFrame({"y": [row[0] * 2 for row in rows]}), context)
    return {"id": str(context)}
"""


@pytest.fixture
def sdk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AZUREML_MDC_ENABLED", "true")
    init_config("default")
    yield
    teardown_config()


class Server:
    """A server for entry scripts in this process, and what it has stored."""

    def __init__(self, root: Path, sources: LogSources, limit: int = 2**24) -> None:
        self._root = root
        store = FolderStore(root, 2**30)
        self.log = EventLog(Layout("pod"), Budget(limit), flush_seconds=1.0, url=store.url)
        self._store = store
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.server = CustomLogServer(self._socket, self.log, 10_000)
        self.server.sources = sources
        self.server.collectors = {KEY: COLLECTOR}

    async def send(self, host: str, name: str = "model_inputs", **options: Any) -> tuple[bool, str]:
        """Send the frame with the sender of the package."""
        context = BasicCorrelationContext(id="id-of-the-request", **options)
        payload = build_payload(name, PandasFrameData(FRAME), model_version="7", context=context)
        return await asyncio.to_thread(MdcSender(host, self.port).send, payload)

    def stored(self) -> list[StoredEvent]:
        """Write everything, and return it."""
        while not self.log.is_empty:
            for work in list(self.log.take_work(time.monotonic(), everything=True)):
                carry_out(self._store, work)
                self.log.on_done(work, time.monotonic())
        return read_folder(self._root)


@asynccontextmanager
async def server(root: Path, sources: LogSources) -> AsyncIterator[Server]:
    running = Server(root, sources)
    await running.server.start()
    try:
        yield running
    finally:
        await running.server.stop()


BY_ADDRESS = LogSources({}, {"127.0.0.1": KEY})
BY_TOKEN = LogSources({"token": KEY}, {})


@pytest.mark.parametrize(("sources", "host"), [(BY_ADDRESS, "127.0.0.1"), (BY_TOKEN, "token:@127.0.0.1")])
async def test_event_of_the_package_is_stored_for_the_version_of_its_replica(
    sdk: None, tmp_path: Path, sources: LogSources, host: str
) -> None:
    async with server(tmp_path, sources) as running:
        assert (await running.send(host, headers={"other": "x"}))[0]
        (event,) = running.stored()
    assert (event.endpoint, event.deployment, event.collection) == ("iris", "blue", "model_inputs")
    attributes = event.attributes
    assert attributes["data"] == RECORDS
    assert attributes["correlationid"] == attributes["xrequestid"] == "id-of-the-request"
    assert attributes["modelversion"] == "7"
    assert "DataFrame" in attributes["collectdatatype"]
    assert attributes["agent"].startswith("azureml-ai-monitoring/")
    assert attributes["contentrange"].startswith("bytes 0-")


@pytest.mark.parametrize(
    ("host", "name", "status"),
    [
        ("127.0.0.1", "model_inputs", 403),
        ("other:@127.0.0.1", "model_inputs", 403),
        ("token:@127.0.0.1", "off", 404),
        ("token:@127.0.0.1", "unknown", 404),
        ("token:@127.0.0.1", "request", 404),
    ],
)
async def test_unknown_replicas_and_other_collections_are_refused(
    sdk: None, tmp_path: Path, host: str, name: str, status: int
) -> None:
    async with server(tmp_path, BY_TOKEN) as running:
        sent, text = await running.send(host, name)
        assert (sent, text[:3]) == (False, str(status))
        assert running.stored() == []


async def test_too_large_body_is_refused_and_gives_its_memory_back(sdk: None, tmp_path: Path) -> None:
    async with server(tmp_path, BY_ADDRESS) as running:
        payload = build_payload("model_inputs", PandasFrameData(pd.DataFrame({"x": range(5_000)})))
        sent, text = await asyncio.to_thread(MdcSender("127.0.0.1", running.port).send, payload)
        assert (sent, text[:3]) == (False, "413")
        assert running.log.budget.used == 0


async def test_time_far_from_now_is_replaced(sdk: None, tmp_path: Path) -> None:
    async with server(tmp_path, BY_ADDRESS) as running:
        await running.send("127.0.0.1", timestamp=1)
        (event,) = running.stored()
    assert event.attributes["time"] > "2020"


def test_entry_script_logs_its_collections_beside_requests(start: StartRouter, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(SCRIPT)
    collections = {name: {"enabled": True} for name in ("request", "model_inputs", "model_outputs")}
    service = {
        "entry_script": str(script), "num_replicas": 1, "auth_enabled": False, "success_threshold": 1,
        "data_collector": {"collections": collections},
    }  # fmt: skip
    router = start({"model": service}, collection_flush_seconds=0.1)
    ids = [
        json.loads(router.score("model", b'{"data": [[%d]]}' % number, **{"Content-Type": "application/json"}).body)[
            "id"
        ]
        for number in range(10)
    ]
    wait_until(lambda: router.metric("collection_events_total") >= 30, "10 events in each of three collections")
    events = read_folder(router.state_dir / "collected")
    by_collection = {
        name: {e.attributes["correlationid"]: e.attributes["data"] for e in events if e.collection == name}
        for name in collections
    }
    assert by_collection["model_inputs"] == {each: [{"x": number}] for number, each in enumerate(ids)}
    assert by_collection["model_outputs"] == {each: [{"y": 2 * number}] for number, each in enumerate(ids)}
    assert [data["data"] for data in by_collection["request"].values()] == [[[number]] for number in range(10)]
    assert router.metric("collection_events_total", collection="model_inputs") <= 10
