"""A model server with one thread for requests. It completes each request before it starts the next one.

`POST /.../score` works for a while, and returns a small document, or one of the length in the header `X-Length`.
Command line: port, seconds of work.
"""

import socketserver
import sys
import threading
import time
from io import BufferedIOBase

PIECE = b"x" * 65_536
HEALTHY = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nHealthy"

one_at_a_time = threading.Lock()


class Handler(socketserver.StreamRequestHandler):
    """One connection."""

    timeout = 120
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while head := read_head(self.rfile):
            if head[""].startswith("GET"):
                self.wfile.write(HEALTHY)
                continue
            with one_at_a_time:
                if head.get("expect"):
                    self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                read_body(self.rfile, head)
                time.sleep(float(sys.argv[2]))
                self.respond(int(head.get("x-length", "2")))

    def respond(self, length: int) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length)
        while length:
            length -= self.wfile.write(PIECE[:length])


def read_head(stream: BufferedIOBase) -> dict[str, str]:
    """Return the headers by lower-case name, and the request line as ``""``; nothing at the end of the connection."""
    head = {"": stream.readline().decode().strip()}
    if not head[""]:
        return {}
    while line := stream.readline().decode().strip():
        name, _, value = line.partition(":")
        head[name.lower()] = value.strip()
    return head


def read_body(stream: BufferedIOBase, head: dict[str, str]) -> None:
    """Read a body, of which the length is known or which comes in chunks."""
    if "transfer-encoding" not in head:
        left = int(head.get("content-length", "0"))
        while left and (data := stream.read(min(left, 65_536))):
            left -= len(data)
        return
    while size := int(stream.readline() or b"0", 16):
        stream.read(size + 2)
    stream.readline()


class Server(socketserver.ThreadingTCPServer):
    """Accepts any number of connections."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 1024

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore connections that are closed early: their clients are stopped at the end of a measurement."""


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
