"""A model server for tests that streams tokens: HTTP/1.1, one thread per connection.

`python token_server.py --port 9001 [--host 127.0.0.1]` serves these paths:
- `/tokens/<count>/<seconds>`: that many chunks `token\n`, one every so many seconds.
- `/silence/<seconds>`: a response after that time.
- All others: `ok`.
"""

import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = b"token\n"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        match self.path.split("/"):
            case ["", "tokens", count, seconds]:
                self._stream(int(count), float(seconds))
            case ["", "silence", seconds]:
                time.sleep(float(seconds))
                self._respond()
            case _:
                self._respond()

    def _respond(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def _stream(self, count: int, seconds: float) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(count):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(TOKEN), TOKEN))
            time.sleep(seconds)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # the client has left


if __name__ == "__main__":
    options = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    Server((options.get("--host", "127.0.0.1"), int(options["--port"])), Handler).serve_forever()
