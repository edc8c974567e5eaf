"""A model server that keeps a record of every request, so that a test can tell whether one came twice or not at all.

`python -m tests.servers.recording_server --host H --port N --slow-seconds S`. It answers
- `GET /` with 200;
- `GET /seen` with JSON: the names of all requests, in their order, as often as they came;
- `GET /in-flight` with JSON: the names of those that have begun and are not answered;
- a POST, which may name itself in `X-Test-Name`, by its path: `/slow` with its body after S seconds; `/upload` with the
  SHA-256 of its body, which is not kept; `/download` with the `pieces` of its name; others with their body.
"""

import argparse
import hashlib
import json
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE, PIECES = 1_000_000, 100
LARGE = PIECE * PIECES
"""Bytes of an upload or download."""
NAME = "X-Test-Name"


def pieces(name: str) -> Iterator[bytes]:
    """A large body that no other name has, and of which no piece is like another."""
    block = random.Random(name).randbytes(PIECE - 8)
    for number in range(PIECES):
        yield number.to_bytes(8) + block


class Record:
    """What all connections share."""

    def __init__(self, slow_seconds: float) -> None:
        self.slow_seconds = slow_seconds
        self.lock = threading.Lock()
        self.seen: list[str] = []
        self.in_flight: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    record: Record

    def do_GET(self) -> None:
        """What is known."""
        with self.record.lock:
            known = {"/seen": list(self.record.seen), "/in-flight": list(self.record.in_flight)}
        self._answer(json.dumps(known.get(self.path, "Healthy")).encode())

    def do_POST(self) -> None:
        """A request; one without a name is not kept on record."""
        name = self.headers[NAME]
        length = int(self.headers["Content-Length"])
        if name is None:
            self._serve("", length)
            return
        with self.record.lock:
            self.record.seen.append(name)
            self.record.in_flight.append(name)
        try:
            self._serve(name, length)
        finally:
            with self.record.lock:
                self.record.in_flight.remove(name)

    def _serve(self, name: str, length: int) -> None:
        if self.path == "/upload":
            digest = hashlib.sha256()
            while length and (data := self.rfile.read(min(length, PIECE))):
                digest.update(data)
                length -= len(data)
            self._answer(digest.hexdigest().encode())
            return
        body = self.rfile.read(length)
        if self.path == "/download":
            self._head(LARGE)
            for piece in pieces(name):
                self.wfile.write(piece)
            return
        if self.path == "/slow":
            time.sleep(self.record.slow_seconds)
        self._answer(body)

    def _head(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _answer(self, body: bytes) -> None:
        self._head(len(body))
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (its name in http.server)
        """Nothing."""


class Server(ThreadingHTTPServer):
    """Takes all that come at once."""

    request_queue_size = 1024
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may leave; what they lost by it they say themselves."""


def main() -> None:
    """Serve until the end of the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slow-seconds", type=float, required=True)
    options = parser.parse_args()
    Handler.record = Record(options.slow_seconds)
    Server((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
