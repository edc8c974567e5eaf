"""Asking a replica whether it is ready."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from router.authority import authority
from router.cluster.local.probe import Watch, probe
from router.services import Version
from tests.cluster.local.world import PATIENCE_SECONDS, config_of, run

HOST = "127.0.0.1"


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A server that gives these answers to one connection after another, the last one to all others, and closes none;
    and the requests it got."""
    requests: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answers[min(len(requests), len(answers)) - 1])

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        for writer in writers:
            writer.close()
        server.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", None),
        (b"HTTP/1.0 204 \r\n\r\n", None),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", None),
        (b"HTTP/1.1 500 Oops\r\n\r\n", "status 500"),
        (b"HTTP/1.1 503 Not yet\r\n\r\n", "status 503"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 OK\r\n\r\n", "no HTTP answer"),
        (b"x" * 100_000, "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n", "no answer within 0.1 s"),
        (b"", "no answer within 0.1 s"),
    ],
)
def test_any_answer_below_500_is_a_success(answer: bytes, reason: str | None) -> None:
    async def scenario() -> None:
        async with answering(answer) as (port, _):
            seconds = 0.1 if reason and "within" in reason else PATIENCE_SECONDS
            assert await probe(HOST, port, "/", seconds) == reason

    run(scenario())


def test_it_asks_as_a_client_would_and_for_one_answer_only() -> None:
    async def scenario() -> None:
        async with answering(b"HTTP/1.1 200 OK\r\n\r\n") as (port, requests):
            await probe(HOST, port, "/health?deep=1", PATIENCE_SECONDS)
            head = requests[0].decode().split("\r\n")
        assert head[0] == "GET /health?deep=1 HTTP/1.1"
        assert f"Host: 127.0.0.1:{port}" in head
        assert "Connection: close" in head

    run(scenario())


def test_a_port_where_nobody_listens_and_a_server_that_hangs_up_are_failures() -> None:
    async def scenario() -> None:
        with socket.socket() as taken:
            taken.bind((HOST, 0))
            assert await probe(HOST, taken.getsockname()[1], "/", PATIENCE_SECONDS) is not None

        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        async with await asyncio.start_server(hang_up, HOST, 0) as server:
            assert await probe(HOST, server.sockets[0].getsockname()[1], "/", PATIENCE_SECONDS) is not None

    run(scenario())


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert authority("::1", 80) == "[::1]:80"
    assert authority("127.0.0.1", 80) == "127.0.0.1:80"


def version_of(folder: Path) -> Version:
    text = "services: {s: {command: [x, '{port}'], scoring_timeout_ms: 200}}"
    return config_of(folder, text).services["s"].default_version


def watch(
    version: Version,
    port: int,
    turns: list[tuple[bool, str]],
    turned: asyncio.Event,
    busy: bool,
    silences: list[str] | None = None,
) -> Watch:
    def note(ready: bool, reason: str) -> None:
        turns.append((ready, reason))
        turned.set()

    def note_silence(reason: str) -> None:
        if silences is not None:
            silences.append(reason)
            turned.set()

    return Watch(
        host=HOST,
        port=port,
        path=lambda: "/",
        version=lambda: version,
        busy=lambda: busy,
        turned=note,
        silent=note_silence,
        interval=0.001,
    )


def test_it_is_told_once_each_time_that_readiness_turns(tmp_path: Path) -> None:
    no, yes = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    async def scenario() -> None:
        # The period is a whole number of seconds in a file; none here, so that the test need not wait.
        version = replace(version_of(tmp_path), period_seconds=0, success_threshold=2, failure_threshold=2)
        turns: list[tuple[bool, str]] = []
        turned = asyncio.Event()
        async with answering(no, yes, no, yes, yes, no, yes, no, no) as (port, requests):
            watching = asyncio.create_task(watch(version, port, turns, turned, busy=False).run())
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(turns) < 2:
                    turned.clear()
                    await turned.wait()
            watching.cancel()
        assert turns == [(True, ""), (False, "status 503")]
        assert len(requests) == 9

    run(scenario())


def test_it_is_told_why_it_does_not_become_ready(tmp_path: Path) -> None:
    """But not of the first failures, which each start has."""
    no, yes = b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

    async def scenario() -> None:
        version = replace(version_of(tmp_path), success_threshold=1, failure_threshold=3)
        turns: list[tuple[bool, str]] = []
        silences: list[str] = []
        turned = asyncio.Event()
        async with answering(no, no, no, no, yes) as (port, _):
            watching = asyncio.create_task(watch(version, port, turns, turned, False, silences).run())
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not turns:
                    turned.clear()
                    await turned.wait()
            watching.cancel()
        assert silences == ["status 503"] * 2

    run(scenario())


def test_a_busy_replica_may_answer_as_late_as_its_request_takes(tmp_path: Path) -> None:
    version = version_of(tmp_path)
    events = asyncio.Event()
    assert watch(version, 1, [], events, busy=False).patience(version) == 2.0
    assert watch(version, 1, [], events, busy=True).patience(version) == 2.2
