"""Large-body client: concurrent connections that upload or download one body each, with every byte counted.

It uses non-blocking sockets, one selector, `sendfile` for uploads and one buffer for downloads, so it needs far less
CPU than any engine. Standard input: a ``Job`` as JSON. Standard output: one line of JSON.
"""

import json
import os
import selectors
import socket
import sys
import time
from dataclasses import dataclass

BUFFER_BYTES = 1_048_576
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Each connection sends ``head`` and ``upload`` bytes, and expects ``download`` bytes, or a short body if None."""

    host: str
    port: int
    head: str
    connections: int
    upload: int
    download: int | None


class Transfer:
    """One connection: sends, then reads a response with a ``Content-Length``."""

    def __init__(self, job: Job, source: int) -> None:
        self.job = job
        self.source = source
        self.sent = 0
        self.head = b""
        self.expected: int | None = None
        self.body = b""
        self.received = 0
        self.socket = socket.create_connection((job.host, job.port))
        self.socket.sendall(job.head.encode("latin-1"))
        self.socket.setblocking(False)

    def writable(self) -> bool:
        """Send some bytes. Return True while there are more."""
        self.sent += os.sendfile(self.socket.fileno(), self.source, self.sent, self.job.upload - self.sent)
        return self.sent < self.job.upload

    def readable(self, buffer: memoryview) -> bool:
        """Read some bytes. Return True while there are more. Raises ConnectionError if the response is incomplete or no
        200."""
        count = self.socket.recv_into(buffer)
        if not count:
            raise ConnectionError(f"closed after {self.received} of {self.expected} bytes of the response's body")
        if self.expected is None:
            self.head += bytes(buffer[:count])
            head, end, rest = self.head.partition(b"\r\n\r\n")
            if not end:
                return True
            self.on_head(head, rest)
        else:
            self.received += count
            if self.expected < BUFFER_BYTES:
                self.body += bytes(buffer[:count])
        assert self.expected is not None
        return self.received < self.expected

    def on_head(self, head: bytes, rest: bytes) -> None:
        lines = head.split(b"\r\n")
        if lines[0].split(b" ")[1] != b"200":
            raise ConnectionError(f"response {lines[0].decode('latin-1')} after {self.sent} bytes were sent")
        fields = dict(line.lower().split(b":", 1) for line in lines[1:])
        self.expected = int(fields[b"content-length"])
        self.received = len(rest)
        self.body = rest

    def check(self) -> None:
        """Raise ConnectionError unless every byte has arrived."""
        if self.job.upload and json.loads(self.body) != {"received": self.job.upload}:
            raise ConnectionError(f"the sink read {self.body.decode('latin-1')} of {self.job.upload} bytes sent")
        if self.job.download is not None and self.received != self.job.download:
            raise ConnectionError(f"received {self.received} of {self.job.download} bytes")


def run(job: Job) -> dict[str, float]:
    """Run all transfers concurrently. Return the seconds from the first byte sent to the last byte received."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    source = os.memfd_create("body")
    os.ftruncate(source, job.upload)
    start = time.monotonic()
    transfers = [Transfer(job, source) for _ in range(job.connections)]
    with selectors.DefaultSelector() as selector:
        for transfer in transfers:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if job.upload else 0)
            selector.register(transfer.socket, events, transfer)
        while selector.get_map():
            if time.monotonic() - start > TIMEOUT_SECONDS:
                raise TimeoutError(f"transfers take longer than {TIMEOUT_SECONDS} s")
            for key, events in selector.select(1.0):
                transfer = key.data
                if events & selectors.EVENT_WRITE and not transfer.writable():
                    selector.modify(transfer.socket, selectors.EVENT_READ, transfer)
                if events & selectors.EVENT_READ and not transfer.readable(buffer):
                    selector.unregister(transfer.socket)
    seconds = time.monotonic() - start
    for transfer in transfers:
        transfer.check()
        transfer.socket.close()
    os.close(source)
    return {"seconds": seconds, "bytes": float(job.connections * (job.upload or job.download or 0))}


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.load(sys.stdin)))))
