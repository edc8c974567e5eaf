"""The admin port over real sockets."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

import aiohttp
import pytest
import uvloop
from aiohttp import web

from router.telemetry.admin import AdminPortError, AdminServer
from router.telemetry.counters import GatewayCounters
from router.telemetry.metrics import MetricsView


def a_view() -> MetricsView:
    counters = GatewayCounters()
    counters.version(("iris", "default")).count(200, "")
    return MetricsView(
        router_version="1.2.3",
        hot_path="interpreted",
        counters=counters.snapshot(),
        versions={},
    )


def serve(
    talk: Callable[[AdminServer, aiohttp.ClientSession], Awaitable[None]],
    *,
    ready: Callable[[], Sequence[str]] = tuple,
    metrics: Callable[[], MetricsView] = a_view,
) -> None:
    """Run `talk` with a server and a client whose URLs are relative to it."""

    async def run() -> None:
        server = AdminServer("127.0.0.1", 0, metrics=metrics, ready=ready)
        await server.start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
                await talk(server, client)
        finally:
            await server.stop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_healthz_answers_while_the_loop_turns() -> None:
    async def talk(_: AdminServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/healthz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")

    serve(talk, ready=lambda: ["not ready"])


def test_readyz_names_each_unmet_condition_until_there_is_none() -> None:
    unmet = ["services are not loaded", "iris: no ready replica"]

    async def talk(_: AdminServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/readyz") as answer:
            assert answer.status == 503
            assert answer.content_type == "text/plain"
            assert await answer.text() == "services are not loaded\niris: no ready replica\n"
        unmet.clear()
        async with client.get("/readyz") as answer:
            assert (answer.status, await answer.text()) == (200, "ok\n")

    serve(talk, ready=lambda: unmet)


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("*/*", "text/plain", "\n"),
        ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", "application/openmetrics-text", "# EOF\n"),
    ],
)
def test_metrics_are_served_in_the_form_that_is_asked_for(accept: str, content_type: str, end: str) -> None:
    async def talk(_: AdminServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/metrics", headers={"Accept": accept}) as answer:
            assert answer.status == 200
            assert answer.content_type == content_type
            text = await answer.text()
            sample = (
                'azureml_fe_requests_total{answered_by="replica",code="200",code_class="2xx",error="",'
                'service="iris",version="default"} 1.0'
            )
            assert sample in text
            assert text.endswith(end)

    serve(talk)


def test_metrics_are_read_anew_at_each_scrape() -> None:
    reads: list[int] = []

    def read() -> MetricsView:
        reads.append(1)
        return a_view()

    async def talk(_: AdminServer, client: aiohttp.ClientSession) -> None:
        for _i in range(3):
            async with client.get("/metrics") as answer:
                assert answer.status == 200

    serve(talk, metrics=read)
    assert len(reads) == 3


def test_a_fault_while_reading_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> MetricsView:
        raise RuntimeError("hunter2")

    async def talk(_: AdminServer, client: aiohttp.ClientSession) -> None:
        async with client.get("/metrics") as answer:
            assert answer.status == 500
            assert "hunter2" not in await answer.text()
            assert "Server" not in answer.headers

    serve(talk, metrics=read)
    assert "hunter2" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405)]
)
def test_anything_else_is_not_found(method: str, path: str, status: int) -> None:
    async def talk(_: AdminServer, client: aiohttp.ClientSession) -> None:
        async with client.request(method, path) as answer:
            assert answer.status == status

    serve(talk)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/nothing"])
def test_no_answer_tells_which_software_serves(path: str) -> None:
    async def talk(_: AdminServer, client: aiohttp.ClientSession) -> None:
        async with client.get(path) as answer:
            assert "Server" not in answer.headers

    serve(talk)


def test_routes_can_be_added_before_the_start() -> None:
    async def status(_: web.Request) -> web.Response:
        return web.Response(text="all well")

    async def run() -> None:
        server = AdminServer("127.0.0.1", 0, metrics=a_view, ready=tuple)
        server.routes.add_get("/status", status)
        await server.start()
        try:
            async with (
                aiohttp.ClientSession() as client,
                client.get(f"http://127.0.0.1:{server.port}/status") as answer,
            ):
                assert await answer.text() == "all well"
        finally:
            await server.stop()

    asyncio.run(run())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_taken_port_is_one_line_that_names_the_setting(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def run() -> None:
            server = AdminServer("127.0.0.1", port, metrics=a_view, ready=tuple)
            with pytest.raises(AdminPortError) as caught:
                await server.start()
            assert str(caught.value) == (
                f"admin_port: {port} cannot be listened on at 127.0.0.1: Address already in use; "
                "allowed: a free port from 1 to 65535 of an address of this machine, 0 for any free port"
            )

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run())


def refused_start(host: str) -> str:
    async def run() -> str:
        with pytest.raises(AdminPortError) as caught:
            await AdminServer(host, 0, metrics=a_view, ready=tuple).start()
        return str(caught.value)

    return asyncio.run(run())


def test_an_address_of_another_machine_is_one_line() -> None:
    line = refused_start("192.0.2.1")
    assert line.startswith("admin_port: 0 cannot be listened on at 192.0.2.1: ")
    assert "; allowed: a free port from 1 to 65535 of an address of this machine" in line
    assert "\n" not in line


def test_a_name_without_an_address_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    line = refused_start("no-such-host.invalid")
    assert "at no-such-host.invalid: Name or service not known; allowed: " in line


def test_stop_frees_the_port_and_may_be_called_at_any_time() -> None:
    async def run() -> None:
        server = AdminServer("127.0.0.1", 0, metrics=a_view, ready=tuple)
        await server.stop()
        server = AdminServer("127.0.0.1", 0, metrics=a_view, ready=tuple)
        await server.start()
        port = server.port
        await server.stop()
        await server.stop()
        again = AdminServer("127.0.0.1", port, metrics=a_view, ready=tuple)
        await again.start()
        assert again.port == port
        await again.stop()

    asyncio.run(run())
