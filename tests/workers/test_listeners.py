"""The client listeners: which worker accepts from which, evenly, and without losing a connection."""

import asyncio
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.config.router import load_settings
from router.net.backoff import Backoff
from router.workers.listeners import ClientListeners
from router.workers.pool import listeners_of_worker
from tests.processes import echo_server
from tests.workers.harness import PoolHarness, running_pool


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """One model server."""
    with echo_server() as echo:
        yield {"echo": echo}


@given(st.integers(1, 40), st.integers(1, 40))
def test_each_listener_has_a_worker_and_shares_are_about_equal(workers: int, listeners: int) -> None:
    shares = [listeners_of_worker(position, workers, listeners) for position in range(workers)]
    assert frozenset().union(*shares) == frozenset(range(listeners))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if workers <= listeners:
        assert sum(map(len, shares)) == listeners


def test_port_of_another_router_is_refused() -> None:
    """Only listeners of the same router may share the port."""
    settings = replace(load_settings(environ={}), port=0)
    with closing(ClientListeners(settings)) as first:
        first.open()
        assert len({sock.getsockname() for sock in first.plain}) == 1
        with pytest.raises(OSError, match=rf"port: cannot listen on 127\.0\.0\.1:{first.port}: "):
            ClientListeners(replace(settings, port=first.port)).open()


async def test_connections_spread_evenly_over_workers(ports: dict[str, int]) -> None:
    async with running_pool(ports, 2) as pool:
        clients = [await asyncio.to_thread(connect, pool) for _ in range(200)]
        await pool.wait_until(lambda: sum(pool.open_connections.values()) == len(clients))
        assert min(pool.open_connections.values()) >= 60  # the probability of a smaller share is 1e-8
        for client in clients:
            client.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_other_workers_accept_for_one_that_crashed_or_hangs(
    ports: dict[str, int], number: signal.Signals
) -> None:
    no_restart = Backoff(1000.0, 1000.0)
    async with running_pool(ports, 2, restart_backoff=no_restart) as pool:
        victim = pool.pids[0]
        os.kill(victim, number)
        clients = [connect(pool) for _ in range(40)]  # some of them wait in the accept queues of the crashed worker
        for client in clients:
            await pool.wait_until_with_checks(functools.partial(has_response, client))
            client.close()
        if number is signal.SIGSTOP:
            os.kill(victim, signal.SIGCONT)
            await pool.wait_until_with_checks(lambda: not pool.workers.stuck)


async def test_waiting_connections_survive_replacement_and_drain(ports: dict[str, int]) -> None:
    async with running_pool(ports, 3) as pool:
        clients: list[socket.socket] = []
        changes = asyncio.gather(pool.workers.replace_all(), pool.workers.resize(1))
        while not changes.done():
            clients.append(connect(pool))
            await asyncio.sleep(0.002)
        clients += [connect(pool) for _ in range(20)]
        for client in clients:
            await pool.wait_until(functools.partial(has_response, client))
            client.close()


def connect(pool: PoolHarness) -> socket.socket:
    """Connect, and send a request for the router's health."""
    client = socket.create_connection(("127.0.0.1", pool.port))
    client.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    client.setblocking(False)
    return client


def has_response(client: socket.socket) -> bool:
    """True once the response has arrived; fails if the connection was closed instead."""
    try:
        response = client.recv(4096)
    except BlockingIOError:
        return False
    assert response.startswith(b"HTTP/1.1 200"), response
    return True


async def test_unresponsive_worker_is_killed_and_replaced(ports: dict[str, int]) -> None:
    async with running_pool(ports, 1) as pool:
        (victim,) = pool.pids
        os.kill(victim, signal.SIGSTOP)
        await pool.wait_until_with_checks(lambda: pool.workers.stuck)  # it may have sent messages before
        assert [worker.stuck for worker in pool.workers.statuses()] == [True]
        assert pool.workers.accepting  # for up to five seconds
        pool.check_for(6.0)
        assert not pool.workers.accepting
        pool.check_for(20.0)
        assert pool.ended == []
        pool.check_for(6.0)
        await pool.wait_until(lambda: pool.ended == ["worker-0"] and pool.workers.accepting)
        assert await pool.send_request() == 200
        assert pool.workers.unexpected_exits == 1


async def test_workers_do_not_count_as_silent_while_the_supervisor_did_not_run(ports: dict[str, int]) -> None:
    """The supervisor does not run, for example, while the machine is suspended."""
    async with running_pool(ports, 1) as pool:
        pool.workers.check_responsiveness(time.monotonic())
        pool.workers.check_responsiveness(time.monotonic() + 3600.0)
        assert not pool.workers.stuck
        assert pool.workers.accepting
