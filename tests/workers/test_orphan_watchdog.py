"""The thread that ends a worker whose supervisor has ended, if its event loop does not."""

import socket
import subprocess
import sys

import pytest

from router.workers.messages import EXIT_REQUESTS_ABORTED
from tests.processes import TIMEOUT_SECONDS
from tests.routers import router_environment

WORKER = """
import asyncio, socket, sys, time
from router.workers import orphan_watchdog
fd, behavior, response_seconds, drain_seconds = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
orphan_watchdog.RESPONSE_SECONDS = response_seconds
orphan_watchdog._EXIT_MARGIN_SECONDS = 0.05
channel = socket.socket(fileno=fd)

async def main():
    orphan_watchdog.start_watchdog(channel, asyncio.get_running_loop(), lambda: drain_seconds)
    print("started", flush=True)
    match behavior:
        case "blocks":
            time.sleep(1000)
        case "loops":
            while True:
                pass
        case "never ends":
            await asyncio.sleep(1000)
        case "ends":
            await asyncio.get_running_loop().sock_recv(channel, 1)

channel.setblocking(False)
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("behavior", "response_seconds", "drain_seconds", "exit_code"),
    [
        ("blocks", 0.1, 1000.0, EXIT_REQUESTS_ABORTED),
        ("loops", 0.1, 1000.0, EXIT_REQUESTS_ABORTED),
        ("never ends", 1000.0, 0.1, EXIT_REQUESTS_ABORTED),
        ("ends", 1000.0, 1000.0, 0),
    ],
)
def test_worker_ends_after_its_supervisor(
    behavior: str, response_seconds: float, drain_seconds: float, exit_code: int
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", WORKER, str(theirs.fileno()), behavior]
        with subprocess.Popen(
            [*command, str(response_seconds), str(drain_seconds)],
            pass_fds=[theirs.fileno()], env=router_environment(), stdout=subprocess.PIPE, text=True,
        ) as worker:  # fmt: skip
            theirs.close()
            assert worker.stdout is not None
            assert worker.stdout.readline() == "started\n"
            assert worker.poll() is None
            ours.close()
            assert worker.wait(TIMEOUT_SECONDS) == exit_code
