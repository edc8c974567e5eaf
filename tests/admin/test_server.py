"""The admin port over real sockets."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp
import pytest
import uvloop
from aiohttp import web

from router.admin import server as server_module
from router.admin.server import MAX_CONNECTIONS, AdminServer
from router.telemetry.counters import GatewayCounters
from router.telemetry.metrics import MetricsSnapshot
from tests.processes import needs_ipv6
from tests.telemetry.snapshots import snapshot_of


def example_snapshot() -> MetricsSnapshot:
    counters = GatewayCounters()
    counters.version(("iris", "default")).count_response(200, "")
    return MetricsSnapshot(
        router_version="1.2.3",
        hot_path="interpreted",
        counters=snapshot_of(counters),
        versions={},
    )


@contextlib.asynccontextmanager
async def admin_client(
    *,
    unmet_conditions: Callable[[], Sequence[str]] = tuple,
    metrics: Callable[[], MetricsSnapshot] = example_snapshot,
) -> AsyncIterator[aiohttp.ClientSession]:
    """Run a server. Yield a client whose URLs are relative to it."""
    server = AdminServer("127.0.0.1", 0, metrics=metrics, unmet_conditions=unmet_conditions)
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as client:
            yield client
    finally:
        await server.stop()


async def test_healthz_is_ok_before_the_router_is_ready() -> None:
    async with admin_client(unmet_conditions=lambda: ["not ready"]) as client, client.get("/healthz") as response:
        assert (response.status, await response.text()) == (200, "ok\n")


@needs_ipv6
async def test_admin_port_on_all_addresses_is_reached_by_ipv6_and_ipv4() -> None:
    server = AdminServer("::", 0, metrics=example_snapshot, unmet_conditions=tuple)
    await server.start()
    try:
        for host in ("[::1]", "127.0.0.1"):
            async with (
                aiohttp.ClientSession(f"http://{host}:{server.port}") as client,
                client.get("/readyz") as response,
            ):
                assert response.status == 200
    finally:
        await server.stop()


async def test_readyz_lists_unmet_conditions_until_there_are_none() -> None:
    unmet = ["services are not loaded", "iris: no ready replica"]

    async with admin_client(unmet_conditions=lambda: unmet) as client:
        async with client.get("/readyz") as response:
            assert response.status == 503
            assert response.content_type == "text/plain"
            assert await response.text() == "services are not loaded\niris: no ready replica\n"
        unmet.clear()
        async with client.get("/readyz") as response:
            assert (response.status, await response.text()) == (200, "ok\n")


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("*/*", "text/plain", "\n"),
        ("application/openmetrics-text; version=1.0.0,text/plain;q=0.5", "application/openmetrics-text", "# EOF\n"),
    ],
)
async def test_metrics_are_served_in_the_accepted_format(accept: str, content_type: str, end: str) -> None:
    async with admin_client() as client, client.get("/metrics", headers={"Accept": accept}) as response:
        assert response.status == 200
        assert response.content_type == content_type
        text = await response.text()
        sample = (
            'azureml_fe_requests_total{answered_by="replica",code="200",code_class="2xx",error="",'
            'service="iris",version="default"} 1.0'
        )
        assert sample in text
        assert text.endswith(end)


async def test_metrics_are_read_at_each_scrape() -> None:
    reads: list[int] = []

    def read() -> MetricsSnapshot:
        reads.append(1)
        return example_snapshot()

    async with admin_client(metrics=read) as client:
        for _i in range(3):
            async with client.get("/metrics") as response:
                assert response.status == 200
    assert len(reads) == 3


async def test_error_while_reading_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> MetricsSnapshot:
        raise RuntimeError("hunter2")

    async with admin_client(metrics=read) as client, client.get("/metrics") as response:
        assert response.status == 500
        assert "hunter2" not in await response.text()
        assert "Server" not in response.headers
    assert "hunter2" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("GET", "/metrics/x", 404), ("POST", "/metrics", 405)]
)
async def test_other_requests_are_rejected(method: str, path: str, status: int) -> None:
    async with admin_client() as client, client.request(method, path) as response:
        assert response.status == status


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/nothing"])
async def test_responses_have_no_server_header(path: str) -> None:
    async with admin_client() as client, client.get(path) as response:
        assert "Server" not in response.headers


async def test_routes_can_be_added_before_start() -> None:
    async def status(_: web.Request) -> web.Response:
        return web.Response(text="added")

    server = AdminServer("127.0.0.1", 0, metrics=example_snapshot, unmet_conditions=tuple)
    server.routes.add_get("/status", status)
    await server.start()
    try:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{server.port}/status") as response,
        ):
            assert await response.text() == "added"
    finally:
        await server.stop()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_port_in_use_is_an_error_that_names_the_setting(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        async def run() -> None:
            server = AdminServer("127.0.0.1", port, metrics=example_snapshot, unmet_conditions=tuple)
            expected = rf"^admin_port: cannot listen on 127\.0\.0\.1:{port}: Address already in use; "
            with pytest.raises(OSError, match=expected):
                await server.start()

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(run())


async def start_error(host: str) -> str:
    with pytest.raises(OSError, match=r"^admin_host: ") as caught:
        await AdminServer(host, 0, metrics=example_snapshot, unmet_conditions=tuple).start()
    return str(caught.value)


async def test_address_of_another_machine_is_an_error_that_names_the_setting() -> None:
    line = await start_error("192.0.2.1")
    assert line.startswith("admin_host: cannot listen on 192.0.2.1:0: ")
    assert line.endswith("; allowed: an address of this machine")
    assert "\n" not in line


async def test_unknown_host_name_is_an_error_that_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    line = await start_error("no-such-host.invalid")
    assert line.startswith("admin_host: cannot listen on no-such-host.invalid:0: Name or service not known; ")


async def test_stop_frees_the_port_and_may_be_called_repeatedly() -> None:
    server = AdminServer("127.0.0.1", 0, metrics=example_snapshot, unmet_conditions=tuple)
    await server.stop()
    server = AdminServer("127.0.0.1", 0, metrics=example_snapshot, unmet_conditions=tuple)
    await server.start()
    port = server.port
    await server.stop()
    await server.stop()
    restarted = AdminServer("127.0.0.1", port, metrics=example_snapshot, unmet_conditions=tuple)
    await restarted.start()
    assert restarted.port == port
    await restarted.stop()


# Bounds of connections.

HALF_HEAD = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nX-"
WAIT_SECONDS = 10.0  # longer than anything takes


@contextlib.asynccontextmanager
async def running_server(*routes: web.RouteDef, **options: float) -> AsyncIterator[AdminServer]:
    server = AdminServer("127.0.0.1", 0, metrics=example_snapshot, unmet_conditions=tuple, **options)  # type: ignore[arg-type]
    for route in routes:
        route.register(server.routes)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def connect(server: AdminServer, sent: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(sent)
    return reader, writer


async def rest_of(reader: asyncio.StreamReader) -> bytes:
    """Return what arrives until the server closes the connection."""
    async with asyncio.timeout(WAIT_SECONDS):
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""


def request(path: str, host: str = "127.0.0.1", *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *more, "", ""]).encode()


@pytest.mark.parametrize("sent", [b"", HALF_HEAD, request("/healthz"), request("/healthz") + HALF_HEAD])
async def test_connection_without_a_complete_request_is_closed(sent: bytes) -> None:
    async with running_server(idle_seconds=0.05) as server:
        reader, writer = await connect(server, sent)
        received = await rest_of(reader)
        assert received.count(b"HTTP/1.1 200 OK") == sent.count(b"/healthz")
        writer.close()


async def test_head_sent_byte_by_byte_does_not_extend_the_time() -> None:
    async with running_server(idle_seconds=0.1) as server:
        reader, writer = await connect(server, HALF_HEAD)

        async def trickle() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.01)

        trickling = asyncio.ensure_future(trickle())
        assert await rest_of(reader) == b""
        trickling.cancel()
        writer.close()


async def test_thousands_of_idle_connections_keep_no_probe_out() -> None:
    async with running_server() as server:
        connections = [await connect(server, HALF_HEAD) for _i in range(MAX_CONNECTIONS)]
        reader, writer = await connect(server, request("/healthz", "127.0.0.1", "Connection: close"))
        assert (await rest_of(reader)).startswith(b"HTTP/1.1 200 OK")
        assert await rest_of(connections[0][0]) == b""  # the oldest one was closed for it
        connections[1][1].write(b"A: 1\r\nConnection: close\r\n\r\n")
        assert (await rest_of(connections[1][0])).startswith(b"HTTP/1.1 200 OK")
        for _, each in [(reader, writer), *connections]:
            each.close()


async def test_connections_with_a_request_in_progress_are_not_closed_for_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    release, started = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(_: web.Request) -> web.Response:
        started.release()
        await release.wait()
        return web.Response(text="done")

    async with running_server(web.get("/wait", wait)) as server:
        busy = [await connect(server, request("/wait", "127.0.0.1", "Connection: close")) for _i in range(2)]
        for _i in range(2):
            await started.acquire()
        reader, writer = await connect(server, request("/healthz"))
        assert await rest_of(reader) == b""  # refused
        writer.close()
        release.set()
        for reader, writer in busy:
            assert (await rest_of(reader)).endswith(b"done")
            writer.close()
        reader, writer = await connect(server, request("/healthz", "127.0.0.1", "Connection: close"))
        assert (await rest_of(reader)).startswith(b"HTTP/1.1 200 OK")
        writer.close()


async def test_operator_that_does_not_read_is_disconnected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    size = 16 * 2**20

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=bytes(size))

    async with running_server(web.get("/large", large), send_seconds=0.05) as server:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", server.port))
            client.send(request("/large"))
            async with asyncio.timeout(WAIT_SECONDS):
                received = b""
                while not received:  # the slow client occupies the only place until it is disconnected
                    reader, writer = await connect(server, request("/healthz", "127.0.0.1", "Connection: close"))
                    received = await rest_of(reader)
                    writer.close()
    assert received.startswith(b"HTTP/1.1 200 OK")
    assert not caplog.records


async def test_client_that_leaves_during_its_response_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def large(request: web.Request) -> web.Response:
        assert request.task is not None
        request.task.add_done_callback(lambda _: ended.set())
        return web.Response(body=bytes(16 * 2**20))

    async with running_server(web.get("/large", large)) as server:
        reader, writer = await connect(server, request("/large"))
        await reader.readexactly(1000)
        writer.transport.abort()
        async with asyncio.timeout(WAIT_SECONDS):
            await ended.wait()
    assert not caplog.records


# The Host header.


@pytest.mark.parametrize(
    ("path", "status"), [("/healthz", 200), ("/readyz", 200), ("/metrics", 421), ("/nothing", 421)]
)
async def test_foreign_host_gets_421_except_for_probes(path: str, status: int) -> None:
    async with admin_client() as client, client.get(path, headers={"Host": "evil.example:9090"}) as response:
        assert response.status == status
        if status == 421:
            text = await response.text()
            assert "evil.example" in text
            assert "admin_hosts" in text


async def test_own_names_are_allowed() -> None:
    server = AdminServer(
        "127.0.0.1", 0, metrics=example_snapshot, unmet_conditions=tuple, host_names=["router.example"]
    )
    await server.start()
    url = f"http://127.0.0.1:{server.port}/metrics"
    async with aiohttp.ClientSession() as client:
        for host in ("router.example", f"localhost:{server.port}", "ROUTER.example:80"):
            async with client.get(url, headers={"Host": host}) as response:
                assert response.status == 200
    await server.stop()
