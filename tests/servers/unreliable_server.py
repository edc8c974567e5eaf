"""A model server for tests that ends connections, is away for a while, or never stops sending.

`python unreliable_server.py --port 9001` serves these paths:
- `POST /score`: the request's body.
- `POST /reset`, `POST /close`: the connection is reset, or closed, after the request was read. If the same body has
  come before, the response is as that of `/score`.
- `GET /received`: a JSON array with the bodies of the requests to these three paths, in order.
- `POST /close-others`: closes all other connections.
- `POST /away/<seconds>`: closes all connections, and refuses new ones for so long.
- `GET /flood`: a response without end.
- `GET /tunnel/echo`, `GET /tunnel/flood`: another protocol, in which it returns what it gets, or sends without end.
- All others: 200.
"""

import argparse
import json
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = b"x" * 65536


class Handler(BaseHTTPRequestHandler):
    """Serves one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self.server.handlers.add(self)

    def finish(self) -> None:
        self.server.handlers.discard(self)
        super().finish()

    def do_GET(self) -> None:
        if self.path == "/received":
            self._respond(json.dumps(received).encode())
        elif self.path == "/flood":
            self._begin(200, "Transfer-Encoding", "chunked")
            while True:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(PIECE), PIECE))
        elif self.path.startswith("/tunnel/"):
            self._begin(101, "Upgrade", "websocket")
            self.close_connection = True
            while self.path == "/tunnel/flood":
                self.wfile.write(PIECE)
            while data := self.connection.recv(65536):
                self.wfile.write(data)
        else:
            self._respond(b"ready")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        command, _, argument = self.path.removeprefix("/").partition("/")
        if command in ("score", "reset", "close"):
            is_first = body.decode() not in received
            received.append(body.decode())
            if is_first and command != "score":
                self._end_connection(reset=command == "reset")
                return
        if command == "away":
            self.server.away_seconds = float(argument)
            self.server.shutdown()
            self.server.server_close()
        if command in ("away", "close-others"):
            for handler in [each for each in self.server.handlers if each is not self]:
                handler.connection.shutdown(socket.SHUT_RDWR)
        self._respond(body)

    def _end_connection(self, *, reset: bool) -> None:
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True

    def _respond(self, body: bytes) -> None:
        self._begin(200, "Content-Length", str(len(body)))
        self.wfile.write(body)

    def _begin(self, status: int, name: str, value: str) -> None:
        self.send_response(status)
        self.send_header(name, value)
        if status == 101:
            self.send_header("Connection", "Upgrade")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


class Server(ThreadingHTTPServer):
    """Accepts connections until it goes away."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.handlers: set[Handler] = set()
        self.away_seconds = 0.0

    def handle_error(self, *_: object) -> None:
        """Ignore connections that the other side has closed."""


received: list[str] = []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mark")
    port = parser.parse_args().port
    while True:
        with Server(port) as server:
            server.serve_forever(poll_interval=0.02)
        time.sleep(server.away_seconds)
