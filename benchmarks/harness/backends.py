"""The replicas behind all engines: nginx for scoring and downloads, the sink for uploads.

nginx has the same response for all paths, so that engines need not rewrite them. A path that ends in ``/large`` is the
download.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.harness.engines import owner, render, responds
from benchmarks.harness.processes import Cpus, free_port, running_child, wait_until

RESPONSE_BODY: Final = '{"result": [0.05, 0.15, 0.8], "label": "virginica"}'
READY_SECONDS: Final = 20.0


def loopback_addresses(count: int) -> tuple[str, ...]:
    """Return 127.0.0.1 and ``count - 1`` other loopback addresses, one for each replica."""
    others = (f"127.1.{i // 250}.{i % 250 + 1}" for i in range(count - 1))
    return ("127.0.0.1", *others)


@contextmanager
def nginx_backend(
    *, cpus: Cpus, directory: Path, hosts: Sequence[str] = ("127.0.0.1",), large_bytes: int = 0
) -> Iterator[int]:
    """Run nginx with one worker that listens on each of ``hosts``. Yield the port.

    It does not listen on all addresses, because nothing here may be reachable from outside the machine.
    """
    port = free_port()
    with (directory / "large").open("wb") as large:
        large.truncate(large_bytes)
    listen = "\n".join(f"        listen {host}:{port} backlog=4096;" for host in hosts)
    values = {"DIR": directory, "LISTEN": listen, "RESPONSE_BODY": RESPONSE_BODY}
    path = render("backend.conf", directory, **values, **owner())
    argv = ("nginx", "-e", "stderr", "-c", str(path))
    with running_child(argv, name="backend", cpus=cpus.load, directory=directory) as child:
        wait_until(lambda: responds(port, "/"), child=child, seconds=READY_SECONDS)
        yield port


@contextmanager
def sink_backend(*, cpus: Cpus, directory: Path) -> Iterator[int]:
    """Run the upload sink. Yield the port. ``benchmarks.load.sink`` explains why it is not nginx."""
    port = free_port()
    argv = (sys.executable, "-m", "benchmarks.load.sink", str(port))
    with running_child(argv, name="sink", cpus=cpus.load, directory=directory) as child:
        wait_until(lambda: responds(port, "/"), child=child, seconds=READY_SECONDS)
        yield port
