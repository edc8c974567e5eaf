"""Ends a worker whose supervisor has ended, if it cannot end by itself.

A worker notices the end of its supervisor in its event loop, and closes its listeners there, so that a new router can
use the ports. It does neither while it is stopped or its event loop hangs:

- The kernel resumes a stopped worker when its supervisor ends (PR_SET_PDEATHSIG with SIGCONT, see prctl(2)).
- A thread ends the process if the event loop does not respond, or does not end in time.

Does not contain: what a worker without a supervisor does (`gateway_control`).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from router.workers.messages import EXIT_REQUESTS_ABORTED

RESPONSE_SECONDS = 5.0
"""Maximum time for the event loop to respond once the supervisor has ended."""

_EXIT_MARGIN_SECONDS = 5.0
"""Time between the end of the drain time and the end of the process."""

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def resume_when_parent_ends() -> None:
    """Have the kernel send SIGCONT to this process when its parent ends. Linux only."""
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")


def start_watchdog(
    channel: socket.socket, loop: asyncio.AbstractEventLoop, drain_seconds: Callable[[], float]
) -> threading.Thread:
    """Start the thread. `channel` is that to the supervisor. `drain_seconds` returns the time that requests have after
    its end."""
    arguments = (channel.dup(), loop, drain_seconds)
    thread = threading.Thread(target=_end_orphan, args=arguments, name="orphan watchdog", daemon=True)
    thread.start()
    return thread


def _end_orphan(channel: socket.socket, loop: asyncio.AbstractEventLoop, drain_seconds: Callable[[], float]) -> None:
    closed = select.poll()
    closed.register(channel, 0)  # only POLLHUP: the other side has closed
    closed.poll()
    responsive = threading.Event()
    try:
        loop.call_soon_threadsafe(responsive.set)
    except RuntimeError:  # the event loop is closed, so the process is exiting
        return
    if responsive.wait(RESPONSE_SECONDS):
        time.sleep(drain_seconds() + _EXIT_MARGIN_SECONDS)
    os._exit(EXIT_REQUESTS_ABORTED)
