"""The status document and the status page of a thousand services."""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import orjson
import pytest

from router.admin.activity import Activity
from router.admin.effective_settings import EffectiveSettings
from router.admin.metrics import metrics_snapshot
from router.admin.overview import Overview
from router.admin.routes import StatusRoutes
from router.admin.server import AdminServer
from router.admin.status import status_document, timeline_document
from router.admin.timeline import STEP_SECONDS, Gauges, Timeline
from router.config.router import load_sourced_settings
from router.config.service import parse_service
from router.model.services import Replica, ReplicaState, Service, Version, VersionKey
from router.model.usage import ZERO
from router.model.version_replicas import VersionReplicas
from router.peers.leadership import Leadership
from router.peers.ledger_dispatcher import LedgerDispatcher
from router.peers.peer_reports import PeerReports
from router.scaling.loop import ControlLoop
from router.telemetry.counters import CounterReport
from router.telemetry.totals import CounterTotals
from router.telemetry.traffic import ServiceTraffic
from router.workers.messages import VersionReport, WorkerReport
from router.workers.pool import WorkerStatus
from router.workers.reports import Reports
from tests.chromium import chromium

COUNT = 1000
ROWS = "document.querySelectorAll('[data-service]')"


class NoWorkers:
    """A worker pool without processes."""

    stuck: Mapping[str, float] = {}
    unexpected_exits = 0

    def __len__(self) -> int:
        return 0

    def statuses(self) -> list[WorkerStatus]:
        return []


class ThousandServices:
    """The parts of a supervisor with one worker and a thousand services of three replicas each."""

    def __init__(self) -> None:
        self.services: Mapping[str, Service] = {
            name: parse_service(name, {"num_replicas": 3}) for name in (f"model-{number:04}" for number in range(COUNT))
        }
        self.versions: Mapping[VersionKey, Version] = {
            (name, "default"): service.versions[0] for name, service in self.services.items()
        }
        ledger_dispatcher = LedgerDispatcher("pod-1", lambda _, __: None)
        ledger_dispatcher.set_versions(self.versions)
        self.loop = ControlLoop()
        self.loop.set_services(self.services, 0.0)
        for key in self.versions:
            self.loop.set_replicas(key, self.replicas(key), 0.0)
        self.reports = Reports()
        self.reports.add_worker("worker-0")
        self.timeline = Timeline()
        peer_reports = PeerReports(frozenset)
        self.overview = Overview(
            self, loop=self.loop, counters=CounterTotals(), reports=self.reports, peer_reports=peer_reports,
            ledger_dispatcher=ledger_dispatcher,
            leadership=Leadership(cast(Any, None), ledger_dispatcher, peer_reports, None),
            workers=cast(Any, NoWorkers()), effective=EffectiveSettings(load_sourced_settings(environ={})),
            activity=Activity(), timeline=self.timeline,
            scoring_url=lambda: "http://127.0.0.1:8080/api/v1/service/",
        )  # fmt: skip

    def replicas(self, key: VersionKey) -> VersionReplicas:
        names = (f"{key[0]}-{number}" for number in range(3))
        return VersionReplicas(tuple(Replica(name, "10.0.0.1", 5001, ReplicaState.READY) for name in names))

    def report(self, name: str, in_flight: int, queued: int = 0) -> None:
        """Let the worker report requests at the first replica of a service, and in its queue."""
        versions = {(name, "default"): VersionReport(ZERO, queued, 0, {f"{name}-0": in_flight}, {})}
        self.reports.record("worker-0", WorkerReport(0.2, 0, versions, CounterReport({}, None), 0), self.versions)


@contextmanager
def admin_port(sources: ThousandServices) -> Iterator[int]:
    """Serve the admin port in a thread with its own event loop; yields the port."""
    started, stopping = threading.Event(), threading.Event()
    ports = []

    async def serve() -> None:
        admin = AdminServer("127.0.0.1", 0, metrics=lambda: metrics_snapshot(sources.overview), unmet_conditions=tuple)
        routes = StatusRoutes(sources.overview)
        routes.add_to(admin.routes)
        await admin.start()
        ports.append(admin.port)
        started.set()
        await asyncio.to_thread(stopping.wait)
        routes.close()
        await admin.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(20)
    try:
        yield ports[0]
    finally:
        stopping.set()
        thread.join()


def test_status_document_of_a_thousand_services() -> None:
    sources = ThousandServices()
    sources.report("model-0007", 1, queued=2)
    document = status_document(sources.overview)
    assert document["totals"] == {
        "services": COUNT, "replicas_ready": 3 * COUNT, "in_flight": 1, "abandoned": 0, "queued": 2,
        "requests_per_second": 0, "refused_per_second": 0,
    }  # fmt: skip
    assert len(json.dumps(document)) < 1150 * COUNT


async def test_other_work_runs_between_the_timelines_of_services() -> None:
    sources, turns = ThousandServices(), 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count_turns())
    names = list(sources.services)[:100]
    document = await timeline_document(sources.overview, "hour", [*names, "unknown"])
    counting.cancel()
    assert turns >= 100
    services = json.loads(orjson.dumps(document["services"]))
    assert list(services) == names
    assert services[names[0]] == sources.timeline.points(names[0], "hour")


@pytest.mark.needs("chromium")
def test_page_shows_a_thousand_services_and_their_changes() -> None:
    sources = ThousandServices()
    sources.timeline.add("model-0007", ServiceTraffic(150, errors=(15, 0, 0, 0, 0)))
    sources.timeline.close("model-0007", Gauges(3, 3), STEP_SECONDS)
    sources.timeline.end_step(STEP_SECONDS)
    with admin_port(sources) as port, chromium() as browser, browser.page(f"http://127.0.0.1:{port}/status") as page:
        page.wait_until(f"{ROWS}.length === 25")
        assert page.evaluate("document.getElementById('pages').textContent") == "1 to 25 of 1000PreviousNext"
        sources.report("model-0007", 1, queued=2)
        page.wait_until("document.querySelector('[data-service=model-0007] .warn')?.textContent === '2'")
        page.wait_until("document.querySelector('[data-service=model-0007] .c-bad .line').getAttribute('d') !== null")
        page.wait_until("document.querySelector('[data-service=model-0007] .bad')?.textContent === '10 %'")
        page.evaluate("document.getElementById('order').value = 'queued'; arrange()")
        assert page.evaluate(f"{ROWS}[0].dataset.service") == "model-0007"
        page.evaluate("document.querySelector('#pages button:last-child').click()")
        assert page.evaluate(f"{ROWS}[0].dataset.service") == "model-0025"
        page.evaluate("document.getElementById('filter').value = '-099'; arrange()")
        assert page.evaluate(f"{ROWS}.length") == 10
        assert page.evaluate("document.getElementById('pages').offsetHeight") == 0
        page.evaluate("document.getElementById('filter').value = 'none'; arrange()")
        assert (
            page.evaluate("document.getElementById('services').textContent") == "No service matchesChange the filter."
        )
