"""A proxy in front of Azurite: storage that throttles."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tests.collection.azurite import Azurite

_MAX_REFUSALS = 3


class Throttle:
    """A proxy in front of Azurite that refuses some requests, before or after they took effect.

    It refuses at most three for each blob: the pauses between failed attempts become longer.
    """

    def __init__(self, azurite: Azurite) -> None:
        self.refused: Counter[int] = Counter()
        self.retry_after = "0"
        self._rng = random.Random(1)
        self._refused_by_blob: Counter[str] = Counter()
        self._upstream = f"http://127.0.0.1:{azurite.port}"
        throttle = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                throttle.handle(self)

            do_GET = do_HEAD = do_PUT

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/devstoreaccount1"

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        blob = handler.path.partition("?")[0]
        fate = self._rng.random() if self._refused_by_blob[blob] < _MAX_REFUSALS else 1.0
        status, headers, content = 503, {}, b""
        if fate > 0.3:
            headers = {name: value for name, value in handler.headers.items() if name != "Host"}
            # The signature of a request covers its path, not its host.
            request = Request(self._upstream + handler.path, body or None, headers, method=handler.command)
            status, headers, content = _forward(request)
        if fate < 0.5 and (fate <= 0.3 or status < 300):
            status = 429 if fate < 0.15 else 503
            headers, content = {"Retry-After": self.retry_after}, b""
            self.refused[status] += 1
            self._refused_by_blob[blob] += 1
        handler.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                handler.send_header(name, value)
        handler.send_header("Content-Length", headers.get("Content-Length", "0"))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)


def _forward(request: Request) -> tuple[int, dict[str, str], bytes]:
    try:
        with urlopen(request, timeout=30) as response:
            return response.status, _headers(response.headers, content := response.read()), content
    except HTTPError as error:
        return error.code, _headers(error.headers, content := error.read()), content


def _headers(headers: Message, content: bytes) -> dict[str, str]:
    by_name = {name.title(): value for name, value in headers.items()}
    return by_name | ({"Content-Length": str(len(content))} if content else {})


@contextlib.contextmanager
def throttled(azurite: Azurite) -> Iterator[Throttle]:
    throttle = Throttle(azurite)
    thread = threading.Thread(target=throttle.server.serve_forever)
    thread.start()
    try:
        yield throttle
    finally:
        throttle.server.shutdown()
        thread.join()
        throttle.server.server_close()
