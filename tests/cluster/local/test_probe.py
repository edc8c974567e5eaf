"""Probes: one probe, the thresholds, and the loop that reports changes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from router.cluster.local.probe import (
    ProbeFailure,
    Prober,
    ProbeSettings,
    ProbeTracker,
    extra_timeout,
    probe,
    readiness_settings,
)
from router.net.address import host_port
from tests.cluster.local.helpers import config_of
from tests.processes import TIMEOUT_SECONDS

HOST = "127.0.0.1"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
UNAVAILABLE = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"


@asynccontextmanager
async def scripted_server(*responses: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that sends one response per connection, repeats the last one, and closes no connection.

    Yields its port and the requests that it received.
    """
    requests: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(responses[min(len(requests), len(responses)) - 1])

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        for writer in writers:
            writer.close()
        server.close()


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", None),
        (b"HTTP/1.0 204 \r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nLocation: /ui\r\n\r\n", None),
        (b"HTTP/1.1 399 Odd\r\n\r\n", None),
        (b"HTTP/1.1 500 Oops\r\n\r\n", "status 500"),
        (b"HTTP/1.1 503 Not yet\r\n\r\n", "status 503"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", "status 103"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP response"),
        (b"HTTP/1.1 OK\r\n\r\n", "no HTTP response"),
        (b"x" * 100_000, "no HTTP response"),
        (b"HTTP/1.1 200 OK\r\n", "no response within 0.1 s"),
        (b"", "no response within 0.1 s"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/ready"])
async def test_probe_succeeds_with_a_status_from_200_to_399(response: bytes, reason: str | None, path: str) -> None:
    async with scripted_server(response) as (port, _):
        timeout = 0.1 if reason and "within" in reason else TIMEOUT_SECONDS
        failure = await probe(HOST, port, path, timeout)
    assert (failure and failure.reason) == reason


@pytest.mark.parametrize("status", [400, 401, 404, 405, 429, 499, 501])
async def test_status_of_a_missing_path_is_a_success_of_the_default_path_only(status: int) -> None:
    async with scripted_server(f"HTTP/1.1 {status} No\r\n\r\n".encode()) as (port, _):
        assert await probe(HOST, port, "/", TIMEOUT_SECONDS) is None
        for path in ("/v2/health/ready", "/?deep", "//"):
            failure = await probe(HOST, port, path, TIMEOUT_SECONDS)
            assert failure == ProbeFailure(f"status {status}", status)


async def test_probe_is_a_get_that_closes_its_connection() -> None:
    async with scripted_server(b"HTTP/1.1 200 OK\r\n\r\n") as (port, requests):
        await probe(HOST, port, "/health?deep=1", TIMEOUT_SECONDS)
        head = requests[0].decode().split("\r\n")
    assert head[0] == "GET /health?deep=1 HTTP/1.1"
    assert f"Host: 127.0.0.1:{port}" in head
    assert "Connection: close" in head


async def test_probe_fails_without_listener_and_if_the_server_closes() -> None:
    with socket.socket() as unused:
        unused.bind((HOST, 0))
        failure = await probe(HOST, unused.getsockname()[1], "/", TIMEOUT_SECONDS)
        assert failure == ProbeFailure("Connection refused", is_refused=True)

    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, HOST, 0) as server:
        failure = await probe(HOST, server.sockets[0].getsockname()[1], "/", TIMEOUT_SECONDS)
        assert failure is not None
        assert not failure.is_refused


def test_ipv6_address_is_written_in_brackets() -> None:
    assert host_port("::1", 80) == "[::1]:80"
    assert host_port("127.0.0.1", 80) == "127.0.0.1:80"


def states_after(results: str, success_threshold: int, failure_threshold: int, *, ok: bool = False) -> str:
    """The state after each probe result, both written as `+` and `-`."""
    tracker = ProbeTracker(ok=ok)
    states = ""
    for result in results:
        before = tracker.ok
        has_changed = tracker.record(
            result == "+", success_threshold=success_threshold, failure_threshold=failure_threshold
        )
        assert has_changed == (tracker.ok != before)
        states += "+" if tracker.ok else "-"
    return states


def test_state_changes_after_a_threshold_of_results_in_a_row() -> None:
    assert states_after("-+++---+", 1, 3) == "-+++++-+"
    assert states_after("++-+++", 3, 1) == "-----+"
    assert states_after("+--+--+---", 1, 3) == "+++++++++-"
    assert states_after("--+---", 1, 3, ok=True) == "+++++-"


SETTINGS = ProbeSettings(initial_delay=0, period=0, timeout=TIMEOUT_SECONDS, success_threshold=1, failure_threshold=3)


@dataclass
class Recorder:
    """Records the callbacks of a prober."""

    changes: list[tuple[bool, str]] = field(default_factory=list)
    failures: list[ProbeFailure] = field(default_factory=list)
    recorded: asyncio.Event = field(default_factory=asyncio.Event)

    def on_change(self, ok: bool, reason: str) -> None:
        self.changes.append((ok, reason))
        self.recorded.set()

    def on_failure(self, failure: ProbeFailure) -> None:
        self.failures.append(failure)
        self.recorded.set()

    async def wait_for_changes(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(self.changes) < count:
                self.recorded.clear()
                await self.recorded.wait()


def prober(
    port: int, recorder: Recorder, *, ok: bool = False, interval: float = 0.001, settings: ProbeSettings | None = None
) -> Prober:
    return Prober(
        host=HOST,
        port=port,
        path=lambda: "/",
        settings=lambda: settings or SETTINGS,
        extra_timeout=lambda: 0.0,
        on_change=recorder.on_change,
        on_failure=recorder.on_failure,
        ok=ok,
        starting_interval=interval,
    )


async def test_prober_reports_each_change_once() -> None:
    settings = replace(SETTINGS, success_threshold=2, failure_threshold=2)
    no, yes = UNAVAILABLE, OK
    recorder = Recorder()
    async with scripted_server(no, yes, no, yes, yes, no, yes, no, no) as (port, requests):
        probing = asyncio.create_task(prober(port, recorder, settings=settings).run())
        await recorder.wait_for_changes(2)
        probing.cancel()
    assert recorder.changes == [(True, ""), (False, "status 503")]
    assert len(requests) == 9


async def test_prober_of_liveness_begins_with_success() -> None:
    recorder = Recorder()
    async with scripted_server(OK, UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, OK) as (port, _):
        probing = asyncio.create_task(prober(port, recorder, ok=True).run())
        await recorder.wait_for_changes(2)
        probing.cancel()
    assert recorder.changes == [(False, "status 503"), (True, "")]


async def test_prober_reports_further_failures_from_the_threshold_on() -> None:
    recorder = Recorder()
    async with scripted_server(UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, UNAVAILABLE, OK) as (port, _):
        probing = asyncio.create_task(prober(port, recorder).run())
        await recorder.wait_for_changes(1)
        probing.cancel()
    assert recorder.failures == [ProbeFailure("status 503", 503)] * 2


async def test_first_probe_is_sent_after_the_initial_delay() -> None:
    recorder = Recorder()
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    async with scripted_server(OK) as (port, requests):
        settings = replace(SETTINGS, initial_delay=0.3, period=60)
        probing = asyncio.create_task(prober(port, recorder, settings=settings).run())
        await asyncio.sleep(0.2)
        assert not requests
        await recorder.wait_for_changes(1)
        probing.cancel()
    assert loop.time() - started_at >= 0.3


async def test_probes_of_a_start_do_not_wait_for_the_period() -> None:
    recorder = Recorder()
    async with scripted_server(UNAVAILABLE, UNAVAILABLE, OK) as (port, requests):
        probing = asyncio.create_task(prober(port, recorder, settings=replace(SETTINGS, period=3600)).run())
        await recorder.wait_for_changes(1)
        await asyncio.sleep(0.05)
        probing.cancel()
    assert len(requests) == 3  # once it is ready, the period applies


async def test_timeout_includes_the_scoring_timeout_while_the_replica_is_busy(tmp_path: Path) -> None:
    text = "services: {s: {command: [x, '{port}'], scoring_timeout_ms: 200}}"
    version = config_of(tmp_path, text).services["s"].default_version
    assert readiness_settings(version) == ProbeSettings(0, 10, 2, 1, 3)
    assert extra_timeout(version, has_requests=False) == 0.0
    assert extra_timeout(version, has_requests=True) == 0.2
    slow = replace(version, abandoned_request_timeout_ms=3000)
    assert extra_timeout(slow, has_requests=True) == 3.0
