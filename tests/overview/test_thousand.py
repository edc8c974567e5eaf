"""The status of a thousand services: the document, and the page in a browser."""

import asyncio
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pytest

from router.gateway.control import Report, VersionReport
from router.overview.document import status
from router.overview.overview import Overview
from router.overview.routes import StatusRoutes
from router.peering import Peering
from router.pods import Pods
from router.reports import Reports
from router.scaling.loop import ControlLoop
from router.services import Replica, ReplicaState, Service, Version, VersionKey, parse_service
from router.slots.holder import Totals as Seen
from router.telemetry.admin import AdminServer
from router.telemetry.counters import Counted
from router.telemetry.totals import Totals
from tests.chromium import chromium

COUNT = 1000


class World:
    """A supervisor's parts with a thousand services of three replicas each, and one worker."""

    def __init__(self) -> None:
        self.services: Mapping[str, Service] = {
            name: parse_service(name, {"num_replicas": 3}) for name in (f"model-{number:04}" for number in range(COUNT))
        }
        self.versions: Mapping[VersionKey, Version] = {
            (name, "default"): service.versions[0] for name, service in self.services.items()
        }
        peering = Peering("pod-1", lambda _, __: None)
        peering.services_changed(self.versions)
        self.loop = ControlLoop()
        self.loop.services_changed(self.services, 0.0)
        for key in self.versions:
            self.loop.replicas_changed(key, self.replicas(key), 0.0)
        self.reports = Reports()
        self.reports.began("worker-0")
        self.overview = Overview(
            self, loop=self.loop, counters=Totals(), reports=self.reports, peering=peering,
            pods=Pods(cast(Any, None), peering, None),
        )  # fmt: skip

    def replicas(self, key: VersionKey) -> tuple[Replica, ...]:
        return tuple(Replica(f"{key[0]}-{number}", "10.0.0.1", 5001, ReplicaState.READY) for number in range(3))

    def busy(self, name: str, count: int, waiting: int = 0) -> None:
        """The worker reports so many requests in flight at a service's first replica."""
        report = VersionReport(Seen(0.0, 0.0, 0, 0, 0, 0.0), waiting, 0, {f"{name}-0": count})
        self.reports.take("worker-0", Report(0.2, 0, {(name, "default"): report}, Counted({}, None), 0), self.versions)


@contextmanager
def served(world: World) -> Iterator[int]:
    """Its admin port, in an event loop of its own."""
    started, over = threading.Event(), threading.Event()
    port = []

    async def serve() -> None:
        admin = AdminServer("127.0.0.1", 0, metrics=world.overview.metrics, ready=tuple)
        routes = StatusRoutes(world.overview)
        routes.add_to(admin.routes)
        await admin.start()
        port.append(admin.port)
        started.set()
        await asyncio.to_thread(over.wait)
        routes.close()
        await admin.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    try:
        yield port[0]
    finally:
        over.set()
        thread.join()


def test_document_tells_all_of_them() -> None:
    world = World()
    world.busy("model-0007", 1, waiting=2)
    told = status(world.overview)
    assert told["totals"] == {
        "services": COUNT, "replicas_ready": 3 * COUNT, "in_flight": 1, "queued": 2, "requests_per_second": 0,
        "refused_per_second": 0,
    }  # fmt: skip
    assert len(json.dumps(told)) < 1000 * COUNT


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_page_shows_all_of_them_and_what_changes() -> None:
    world = World()
    with served(world) as port, chromium() as browser, browser.page(f"http://127.0.0.1:{port}/status") as page:
        page.until(f"document.querySelectorAll('article').length === {COUNT}")
        assert page.evaluate("document.getElementById('shown').textContent") == str(COUNT)
        world.busy("model-0007", 1, waiting=2)
        page.until("document.querySelector('[data-service=model-0007] .chip.warn')?.textContent === '2 queued'")
        page.evaluate("document.getElementById('order').value = 'queued'; arrange()")
        assert page.evaluate("document.querySelector('article').dataset.service") == "model-0007"
        page.evaluate("document.getElementById('filter').value = '-099'; arrange()")
        assert page.evaluate("document.querySelectorAll('article').length") == 10
        assert page.evaluate("document.getElementById('shown').textContent") == f"10 of {COUNT}"
