"""A model server with one thread, which goes on with a request although its client has left.

`python -m tests.servers.sleeping_server --port N`: `POST /score` sleeps for the seconds in the body. It
responds with all times that this server has slept, as a JSON array.
"""

import argparse
import json
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

slept: list[float] = []


class Handler(BaseHTTPRequestHandler):
    """Serves one request: HTTP/1.0, as by default."""

    def do_GET(self) -> None:
        self._respond(b"ready")

    def do_POST(self) -> None:
        seconds = float(self.rfile.read(int(self.headers["Content-Length"])))
        if seconds:
            slept.append(seconds)
        time.sleep(seconds)
        self._respond(json.dumps(slept).encode())

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
