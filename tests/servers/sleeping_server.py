"""A model server with one thread, which goes on with a request although its client has left.

`python -m tests.servers.sleeping_server --port N`: `POST /score` sleeps for as many seconds as the body says, and
responds with the port.
"""

import argparse
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    """Serves one request: HTTP/1.0, as by default."""

    def do_GET(self) -> None:
        self._respond(b"ready")

    def do_POST(self) -> None:
        time.sleep(float(self.rfile.read(int(self.headers["Content-Length"]))))
        self._respond(str(self.server.server_port).encode())  # type: ignore[attr-defined]

    def _respond(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Print nothing."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--mark")
    HTTPServer(("127.0.0.1", parser.parse_args().port), Handler).serve_forever()
