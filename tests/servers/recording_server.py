"""A model server that records named requests, so that a test can detect requests that ran twice or not at all.

`python -m tests.servers.recording_server --host H --port N --slow-seconds S` serves these paths:
- `GET /`: 200.
- `GET /received`: a JSON array with the names of the received requests, in order. A request that was received twice
  is listed twice.
- `GET /in-flight`: a JSON array with the names of the requests in flight.
- `POST /slow`: the request's body, after S seconds.
- `POST /upload`: the SHA-256 of the request's body, in hexadecimal.
- `POST /download`: the `large_body` of the request's name.
- `POST` of any other path: the request's body.

A POST can have a name, in the header `X-Test-Name`. Only requests with a name are recorded.
"""

import argparse
import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE_BYTES, PIECE_COUNT = 1_000_000, 100
LARGE_BODY_BYTES = PIECE_BYTES * PIECE_COUNT
NAME_HEADER = "X-Test-Name"


def large_body(name: str) -> Iterator[bytes]:
    """Yield the pieces of a body that is unique to `name`. No two pieces are equal."""
    block = random.Random(name).randbytes(PIECE_BYTES - 8)
    for number in range(PIECE_COUNT):
        yield number.to_bytes(8) + block


class RequestLog:
    """The named requests of all connections."""

    def __init__(self, slow_seconds: float) -> None:
        self.slow_seconds = slow_seconds
        self.lock = threading.Lock()
        self.received: list[str] = []
        self.in_flight: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """Serves one client connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    log: RequestLog

    def do_GET(self) -> None:
        """Respond with a list of names, or with "Healthy"."""
        with self.log.lock:
            lists = {"/received": list(self.log.received), "/in-flight": list(self.log.in_flight)}
        self._respond(json.dumps(lists.get(self.path, "Healthy")).encode())

    def do_POST(self) -> None:
        """Respond to a request, and record it if it has a name."""
        name = self.headers[NAME_HEADER]
        length = int(self.headers["Content-Length"])
        if name is None:
            self._serve("", length)
            return
        with self.log.lock:
            self.log.received.append(name)
            self.log.in_flight.append(name)
        try:
            self._serve(name, length)
        finally:
            with self.log.lock:
                self.log.in_flight.remove(name)

    def _serve(self, name: str, length: int) -> None:
        if self.path == "/upload":
            digest = hashlib.sha256()
            while length and (data := self.rfile.read(min(length, PIECE_BYTES))):
                digest.update(data)
                length -= len(data)
            self._respond(digest.hexdigest().encode())
            return
        body = self.rfile.read(length)
        if self.path == "/download":
            self._send_head(LARGE_BODY_BYTES)
            for piece in large_body(name):
                self.wfile.write(piece)
            return
        if self.path == "/slow":
            time.sleep(self.log.slow_seconds)
        self._respond(body)

    def _send_head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _respond(self, body: bytes) -> None:
        self._send_head(len(body))
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (the name in http.server)
        """Log nothing."""


class Server(ThreadingHTTPServer):
    """Accepts many connections at the same time."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore closed connections. Clients report the requests that they lost."""


def main() -> None:
    """Serve until the process is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slow-seconds", type=float, required=True)
    options = parser.parse_args()
    Handler.log = RequestLog(options.slow_seconds)
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
