"""A model server for tests: HTTP/1.1 with keep-alive, one thread per connection, standard library only, up in < 100 ms.

Run it as a program (`python echo_server.py --port 9001`). It answers
- `GET /` with 200 `Healthy`, or 503 while it is told not to be ready;
- `GET /stats` with JSON: `requests`, `concurrent`, `highest` (most at once), `connections`, `pid`, `environment` (what
  the variables named in `--show` hold);
- `POST /ready` and `POST /unready`: what `GET /` says from now on;
- `/crash` by dying with exit code 42, without an answer;
- `/status/<code>` with that status;
- `/headers` with the request's headers as JSON, names in lower case;
- anything else with the request's body (a GET: with its path), after `--delay` seconds; only these are counted.

It imports little, as each import delays the start.
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
    """State that all connections share."""

    def __init__(self, options: dict[str, str]) -> None:
        self.delay = float(options.get("delay", "0"))
        self.shown = [name for name in options.get("show", "").split(",") if name]
        self.ready_at = time.monotonic() + float(options.get("fail-readiness-for", "0"))
        self.lock = threading.Lock()
        self.ready = True
        self.requests = 0
        self.concurrent = 0
        self.highest = 0
        self.connections = 0
        self.busy = 0
        self.ended = False

    def serve(self, connection: socket.socket) -> None:
        """Answer one connection's requests until either side ends it."""
        with self.lock:
            self.connections += 1
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with connection, connection.makefile("rb") as stream:
                while connection.recv(1, socket.MSG_PEEK) and self.begin():
                    try:
                        if not self.answer_next(connection, stream):
                            break
                    finally:
                        with self.lock:
                            self.busy -= 1
        except (OSError, ValueError):
            pass  # the client went away, or spoke no HTTP

    def begin(self) -> bool:
        """Whether a request may begin; none does once the program ends."""
        with self.lock:
            self.busy += not self.ended
            return not self.ended

    def drain(self) -> None:
        """End when no request is under way; one that has not been read then has not run."""
        while True:
            with self.lock:
                self.ended = not self.busy
            if self.ended:
                os._exit(0)
            time.sleep(0.005)

    def answer_next(self, connection: socket.socket, stream: BinaryIO) -> bool:
        """Answer one request; false when the connection ends."""
        head = read_head(stream)
        if head is None:
            return False
        method, path, protocol, headers = head
        if headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = read_body(stream, headers)
        status, kind, content = self.respond(method, path, headers, body)
        keep = protocol != "HTTP/1.0" and headers.get("connection", "").lower() != "close"
        lines = [
            f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(content)}",
            f"Connection: {'keep-alive' if keep else 'close'}",
        ]
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + content)
        return keep

    def respond(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        """Status, content type and content of the answer."""
        if path == "/":
            ready = self.ready and time.monotonic() >= self.ready_at
            return (200, "text/plain", b"Healthy") if ready else (503, "text/plain", b"Not ready")
        if path == "/headers":
            import json  # here, to start sooner

            return 200, "application/json", json.dumps(headers).encode()
        if path == "/stats":
            return 200, "application/json", self.stats()
        if path in ("/ready", "/unready"):
            self.ready = path == "/ready"
            return 200, "text/plain", path.encode()
        if path == "/crash":
            os._exit(42)
        if path.startswith("/status/"):
            return int(path.removeprefix("/status/")), "text/plain", b"as told"
        with self.lock:
            self.requests += 1
            self.concurrent += 1
            self.highest = max(self.highest, self.concurrent)
        try:
            time.sleep(self.delay)
        finally:
            with self.lock:
                self.concurrent -= 1
        return 200, headers.get("content-type", "text/plain"), body or path.encode()

    def stats(self) -> bytes:
        """Its counts as JSON."""
        import json  # here, to start sooner

        counts = {name: getattr(self, name) for name in ("requests", "concurrent", "highest", "connections")}
        shown = {name: os.environ.get(name) for name in self.shown}
        return json.dumps({**counts, "pid": os.getpid(), "environment": shown}).encode()


def read_head(stream: BinaryIO) -> Head | None:
    """Method, path, protocol and headers (names in lower case) of the next request; None at the end."""
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
    """The whole body, of a stated length or chunked."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return stream.read(int(headers.get("content-length", "0")))
    parts = []
    while (size := int(stream.readline().split(b";")[0], 16)) > 0:
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(parts)


def options_of(arguments: list[str]) -> dict[str, str]:
    """`--name value` pairs. argparse would take as long to import as all the rest."""
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
    --delay S             each counted request takes this long
    --start-delay S       before it listens
    --exit-after-start N  exits with this code instead of listening
    --fail-readiness-for S  `GET /` answers 503 for so long
    --print TEXT          said on standard error at the start
    --show A,B            environment variables to show in /stats
    --mark TEXT           nothing; for finding the process
    --child MARK          starts a child that ignores SIGTERM and sleeps
    --ignore-sigterm 1    ignores SIGTERM
    --drain 1             on SIGTERM accepts nothing new and ends when no request is under way
    """
    options = options_of(sys.argv[1:])
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
    with socket.create_server(address, backlog=1024) as listener:
        if "drain" in options:
            import signal

            signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.drain, daemon=True).start())
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=server.serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
