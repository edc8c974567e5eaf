"""The backlog of a connection, and the queue for turns of the event loop."""

from __future__ import annotations

import asyncio
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from router.gateway.turns import BULK_READS_PER_TURN, Backlog, TurnQueue

STEPS = st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 30), st.sampled_from(["all", "back"])))


@given(STEPS)
def test_backlog_returns_what_was_added_in_order(steps: list[bytes | int | str]) -> None:
    backlog, expected = Backlog(TurnQueue()), b""
    for step in steps:
        if isinstance(step, bytes):
            backlog.append(step)
            expected += step
        elif isinstance(step, int):
            assert backlog.take(step) == expected[:step]
            expected = expected[step:]
        elif step == "all":
            assert backlog.take_all() == expected
            expected = b""
        else:
            backlog.put_back(b"back")
            expected = b"back" + expected
        assert len(backlog) == len(expected)
    backlog.clear()
    assert not backlog


async def test_few_connections_with_long_reads_continue_in_each_turn() -> None:
    turns = TurnQueue()
    order: list[int] = []
    backlogs = [Backlog(turns) for _ in range(3 * BULK_READS_PER_TURN)]
    for number, backlog in enumerate(backlogs):
        backlog.wait_for_turn(partial(order.append, number), is_bulk=True)
    backlogs[1].append(b"to be parsed")
    counts = []
    for _ in range(4):
        await asyncio.sleep(0)
        counts.append(len(order))
    assert counts == [2, 2 + BULK_READS_PER_TURN, 2 + 2 * BULK_READS_PER_TURN, len(backlogs)]
    assert order == list(range(len(backlogs)))


async def test_one_connection_continues_in_each_turn() -> None:
    turns = TurnQueue()
    order: list[int] = []
    backlogs = [Backlog(turns) for _ in range(3)]

    def on_turn(number: int) -> None:
        order.append(number)
        if number == 0 and order.count(0) < 3:
            backlogs[0].wait_for_turn(partial(on_turn, 0))

    for number, backlog in enumerate(backlogs):
        for _ in range(2):  # the second has no effect
            backlog.wait_for_turn(partial(on_turn, number))
    assert all(backlog.waiting for backlog in backlogs)
    counts = []
    for _ in range(6):
        await asyncio.sleep(0)
        counts.append(len(order))
    assert counts == [1, 2, 3, 4, 5, 5]
    assert order == [0, 1, 2, 0, 0]
    assert not any(backlog.waiting for backlog in backlogs)
