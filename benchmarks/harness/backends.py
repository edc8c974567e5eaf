"""The replicas behind every engine: nginx for scoring and downloads, the sink for uploads.

nginx answers every path alike, so that an engine need not rewrite it; a path that ends in ``/large`` is the download.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.harness.engines import answers, owner, render
from benchmarks.harness.processes import Cpus, free_port, started, wait_until

ANSWER: Final = '{"result": [0.05, 0.15, 0.8], "label": "virginica"}'
READY_SECONDS: Final = 20.0


def loopback_addresses(count: int) -> tuple[str, ...]:
    """127.0.0.1 and ``count - 1`` other addresses of the loopback network, each to stand for one replica's host."""
    others = (f"127.1.{i // 250}.{i % 250 + 1}" for i in range(count - 1))
    return ("127.0.0.1", *others)


@contextmanager
def nginx_backend(
    *, cpus: Cpus, directory: Path, hosts: Sequence[str] = ("127.0.0.1",), large_bytes: int = 0
) -> Iterator[int]:
    """nginx with one worker that listens on each of ``hosts``; the port.

    It names every address rather than listening on all, as nothing here may be reached from outside the machine.
    """
    port = free_port()
    with (directory / "large").open("wb") as large:
        large.truncate(large_bytes)
    listen = "\n".join(f"        listen {host}:{port} backlog=4096;" for host in hosts)
    values = {"DIR": directory, "LISTEN": listen, "ANSWER": ANSWER}
    path = render("backend.conf", directory, **values, **owner())
    argv = ("nginx", "-e", "stderr", "-c", str(path))
    with started(argv, name="backend", cpus=cpus.load, directory=directory) as child:
        wait_until(lambda: answers(port, "/"), child=child, seconds=READY_SECONDS)
        yield port


@contextmanager
def sink_backend(*, cpus: Cpus, directory: Path) -> Iterator[int]:
    """The upload sink; the port. See ``benchmarks.load.sink`` for why it is not nginx."""
    port = free_port()
    argv = (sys.executable, "-m", "benchmarks.load.sink", str(port))
    with started(argv, name="sink", cpus=cpus.load, directory=directory) as child:
        wait_until(lambda: answers(port, "/"), child=child, seconds=READY_SECONDS)
        yield port
