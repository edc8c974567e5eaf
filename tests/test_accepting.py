"""Who accepts clients from which socket: evenly, and always somebody."""

import asyncio
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from router.ports import open_ports
from router.settings import load_settings
from router.workers import RestartPause, share_of_sockets
from tests.processes import echo_server
from tests.worker_stage import Stage, stage


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """One model server."""
    with echo_server() as echo:
        yield {"echo": echo}


@given(st.integers(1, 40), st.integers(1, 40))
def test_each_socket_is_somebodys_and_shares_are_about_equal(workers: int, sockets: int) -> None:
    shares = [share_of_sockets(place, workers, sockets) for place in range(workers)]
    assert frozenset().union(*shares) == frozenset(range(sockets))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if workers <= sockets:
        assert sum(map(len, shares)) == sockets


def test_a_port_that_another_router_has_is_refused() -> None:
    """Though the sockets of one router share it."""
    settings = replace(load_settings(environ={}), port=0)
    mine = open_ports(settings)
    try:
        assert len({sock.getsockname() for sock in mine.plain}) == 1
        with pytest.raises(OSError, match=rf"port: {mine.port} cannot be listened on"):
            open_ports(replace(settings, port=mine.port))
    finally:
        mine.close()


def test_connections_spread_evenly_over_workers(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 2) as scene:
            lines = [await asyncio.to_thread(connect, scene) for _ in range(200)]
            await scene.until(lambda: sum(scene.open.values()) == len(lines))
            assert min(scene.open.values()) >= 60  # a chance of one in a hundred million to be less
            for line in lines:
                line.close()

    uvloop.run(story())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_others_accept_for_one_that_is_dead_or_stuck(
    ports: dict[str, int], number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RestartPause, "FIRST", 1000.0)  # no successor

    async def story() -> None:
        async with stage(ports, 2) as scene:
            lost = scene.pids[0]
            os.kill(lost, number)
            lines = [connect(scene) for _ in range(40)]  # some of them wait in the sockets of the one that is lost
            for line in lines:
                await scene.looking(functools.partial(is_answered, line))
                line.close()
            if number is signal.SIGSTOP:
                os.kill(lost, signal.SIGCONT)
                await scene.looking(lambda: not any(worker.stuck for worker in scene.workers._staying()))

    uvloop.run(story())


def test_no_connection_that_waits_is_lost_when_workers_are_replaced_and_drained(ports: dict[str, int]) -> None:
    async def story() -> None:
        async with stage(ports, 3) as scene:
            lines: list[socket.socket] = []
            changing = asyncio.gather(scene.workers.replace_all(), scene.workers.resize(1))
            while not changing.done():
                lines.append(connect(scene))
                await asyncio.sleep(0.002)
            lines += [connect(scene) for _ in range(20)]
            for line in lines:
                await scene.until(functools.partial(is_answered, line))
                line.close()

    uvloop.run(story())


def connect(scene: Stage) -> socket.socket:
    """A client that has asked whether the router is healthy, and not to be kept."""
    line = socket.create_connection(("127.0.0.1", scene.port))
    line.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    line.setblocking(False)
    return line


def is_answered(line: socket.socket) -> bool:
    """Whether its answer has come; fails if the connection was closed instead."""
    try:
        answer = line.recv(4096)
    except BlockingIOError:
        return False
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return True


def test_a_worker_that_goes_on_saying_nothing_is_killed_and_replaced(ports: dict[str, int]) -> None:
    """It holds slots that nobody else can use, and clients that nobody else can answer."""

    async def story() -> None:
        async with stage(ports, 1) as scene:
            (stuck,) = scene.pids
            os.kill(stuck, signal.SIGSTOP)
            await scene.looking(lambda: scene.workers.stuck)  # what it said before is heard
            assert [facts.stuck for facts in scene.workers.facts()] == [True]
            assert scene.workers.accepting  # for so short a time
            scene.look_for(6.0)
            assert not scene.workers.accepting
            scene.look_for(20.0)
            assert scene.ended == []
            scene.look_for(6.0)
            await scene.until(lambda: scene.ended == ["worker-0"] and scene.workers.accepting)
            assert await scene.ask() == 200
            assert scene.workers.ended_unasked == 1

    uvloop.run(story())


def test_a_supervisor_that_slept_takes_nobody_for_silent(ports: dict[str, int]) -> None:
    """As after a pause of the whole machine: the workers slept, too."""

    async def story() -> None:
        async with stage(ports, 1) as scene:
            scene.workers.look(time.monotonic())
            scene.workers.look(time.monotonic() + 3600.0)
            assert not scene.workers.stuck
            assert scene.workers.accepting

    uvloop.run(story())
