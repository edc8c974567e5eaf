"""A model server for tests: HTTP/1.1 with keep-alive, one thread per connection, started in less than 100 ms.

`python echo_server.py --port 9001` serves these paths:
- `GET /`: 200 `Healthy`, or 503 if not ready.
- `GET /stats`: a JSON object with `requests`, `in_flight`, `peak` (maximum of `in_flight`), `connections`, `pid` and
  `environment` (the variables named by `--show`).
- `POST /ready` and `POST /unready` set the response of `GET /`.
- `/crash`: exits with code 42 without a response.
- `/status/<code>`: a response with that status.
- `/headers`: the request's headers as a JSON object, with names in lower case.
- All others: the request's body, or the path of a GET, after `--delay` seconds. Only these requests are counted.

Imports are few, and local where rarely needed, because each one delays the start.
"""

import os
import socket
import sys
import threading
import time
from typing import BinaryIO

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error", 503: "Service Unavailable"}

Head = tuple[str, str, str, dict[str, str]]


class Server:
    """State shared by all connections."""

    def __init__(self, options: dict[str, str]) -> None:
        self.delay = float(options.get("delay", "0"))
        self.shown = [name for name in options.get("show", "").split(",") if name]
        self.ready_at = time.monotonic() + float(options.get("fail-readiness-for", "0"))
        self.lock = threading.Lock()
        self.ready = True
        self.requests = 0
        self.in_flight = 0
        self.peak = 0
        self.connections = 0
        self.unfinished = 0  # requests of any path that have started and not ended
        self.drained = False

    def serve(self, connection: socket.socket) -> None:
        """Respond to the requests of one connection until either side closes it."""
        with self.lock:
            self.connections += 1
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with connection, connection.makefile("rb") as stream:
                while connection.recv(1, socket.MSG_PEEK) and self.begin_request():
                    try:
                        if not self.serve_request(connection, stream):
                            break
                    finally:
                        with self.lock:
                            self.unfinished -= 1
        except (OSError, ValueError):
            pass  # the client closed the connection, or sent invalid HTTP

    def begin_request(self) -> bool:
        """Count a request as unfinished. Return False once drained."""
        with self.lock:
            self.unfinished += not self.drained
            return not self.drained

    def drain(self) -> None:
        """Exit once no request is unfinished. Requests that are not read by then do not run."""
        while True:
            with self.lock:
                self.drained = not self.unfinished
            if self.drained:
                os._exit(0)
            time.sleep(0.005)

    def serve_request(self, connection: socket.socket, stream: BinaryIO) -> bool:
        """Read a request and respond. Return False if the connection ends."""
        head = read_head(stream)
        if head is None:
            return False
        method, path, protocol, headers = head
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = read_body(stream, headers)
        status, content_type, content = self.make_response(method, path, headers, body)
        keep_alive = protocol != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
        lines = [
            f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(content)}",
            f"Connection: {'keep-alive' if keep_alive else 'close'}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
        return keep_alive

    def make_response(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        """Return the status, content type and content of the response."""
        if path == "/":
            ready = self.ready and time.monotonic() >= self.ready_at
            return (200, "text/plain", b"Healthy") if ready else (503, "text/plain", b"Not ready")
        if path == "/headers":
            import json

            return 200, "application/json", json.dumps(headers).encode()
        if path == "/stats":
            return 200, "application/json", self.stats()
        if path in ("/ready", "/unready"):
            self.ready = path == "/ready"
            return 200, "text/plain", path.encode()
        if path == "/crash":
            os._exit(42)
        if path.startswith("/status/"):
            return int(path.removeprefix("/status/")), "text/plain", b"as requested"
        with self.lock:
            self.requests += 1
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
        try:
            time.sleep(self.delay)
        finally:
            with self.lock:
                self.in_flight -= 1
        return 200, headers.get("content-type", "text/plain"), body or path.encode()

    def stats(self) -> bytes:
        """Return the counters as JSON."""
        import json

        counts = {name: getattr(self, name) for name in ("requests", "in_flight", "peak", "connections")}
        shown = {name: os.environ.get(name) for name in self.shown}
        return json.dumps({**counts, "pid": os.getpid(), "environment": shown}).encode()


def read_head(stream: BinaryIO) -> Head | None:
    """Return method, path, protocol and headers (names in lower case) of the next request; None if there is none."""
    line = stream.readline(65536).decode("latin-1")
    if not line.strip():
        return None
    method, path, protocol = line.split()
    headers: dict[str, str] = {}
    while (line := stream.readline(65536).decode("latin-1").rstrip("\r\n")) != "":
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return method, path, protocol, headers


def read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    """Return the body, with a Content-Length or chunked."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return stream.read(int(headers.get("content-length", "0")))
    chunks = []
    while (size := int(stream.readline().split(b";")[0], 16)) > 0:
        chunks.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(chunks)


def parse_options(arguments: list[str]) -> dict[str, str]:
    """Parse `--name value` pairs. Importing argparse would take as long as everything else."""
    names = (
        "port", "host", "delay", "start-delay", "exit-after-start", "fail-readiness-for", "print", "show", "mark",
        "child", "ignore-sigterm", "drain",
    )  # fmt: skip
    pairs = dict(zip(arguments[::2], arguments[1::2], strict=True))
    unknown = [name for name in pairs if name.removeprefix("--") not in names]
    if unknown:
        sys.exit(f"unknown options: {unknown}")
    return {name.removeprefix("--"): value for name, value in pairs.items()}


def main() -> None:
    """
    --port N, --host H (127.0.0.1)
    --delay S               time that each counted request takes
    --start-delay S         time before it listens
    --exit-after-start N    exits with this code instead of listening
    --fail-readiness-for S  time after the start in which `GET /` gets 503
    --print TEXT            printed to standard error at the start
    --show A,B              environment variables in /stats
    --mark TEXT             ignored; identifies the process
    --child MARK            starts a child that ignores SIGTERM and sleeps
    --ignore-sigterm 1      ignores SIGTERM
    --drain 1               on SIGTERM starts no new request, and exits once the others have ended
    """
    options = parse_options(sys.argv[1:])
    if "ignore-sigterm" in options:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if "child" in options:
        import subprocess

        program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
        subprocess.Popen([sys.executable, "-I", "-S", "-c", program, options["child"]])
    if "print" in options:
        print(options["print"], file=sys.stderr, flush=True)
    time.sleep(float(options.get("start-delay", "0")))
    if "exit-after-start" in options:
        sys.exit(int(options["exit-after-start"]))
    server = Server(options)
    address = (options.get("host", "127.0.0.1"), int(options["port"]))
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.create_server(address, family=family, backlog=1024) as listener:
        if "drain" in options:
            import signal

            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.drain, daemon=True).start())
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=server.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
