"""New TLS connections at a fixed rate, with one request each. The latency starts when the connection was due.

Connections are sequential, so that they do not affect one another. If one takes longer than the interval, the delay
counts for those after it. Standard input: a ``Job`` as JSON. Standard output: one line of JSON.
"""

import json
import socket
import ssl
import sys
import time
from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The server, the request, and the rate per second. With ``resumed``, connections resume the session of the first.
    A tenth of ``seconds`` is added as a warm-up, which is not counted."""

    host: str
    port: int
    request: str
    rate: int
    seconds: float
    resumed: bool


def send_request(
    job: Job, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """Send one request over a new connection. Return its session, and True if it was resumed. Raises OSError."""
    plain = socket.create_connection((job.host, job.port), TIMEOUT_SECONDS)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(plain, session=session) as connection:
        connection.sendall(job.request.encode("latin-1"))
        response = connection.recv(65536)
        if not response.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"unexpected response {response[:80]!r}")
        return connection.session, bool(connection.session_reused)


def run(job: Job) -> dict[str, float]:
    """Open all connections. Return latencies in microseconds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the client's own work is not measured
    session = send_request(job, context, None)[0] if job.resumed else None
    total = round(job.rate * job.seconds)
    latencies: list[float] = []
    resumed = 0
    start = time.monotonic() + 0.1
    for number in range(-total // 10, total):
        due = start + (number + total // 10) / job.rate
        time.sleep(max(0.0, due - time.monotonic()))
        _, was_resumed = send_request(job, context, session)
        if number >= 0:
            latencies.append(time.monotonic() - due)
            resumed += was_resumed
    ordered = sorted(latencies)
    return {
        **{f"p{p}": 1e6 * ordered[int(len(ordered) * p / 100)] for p in (50, 99)},
        "connections": len(ordered),
        "resumed": resumed,
    }


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.load(sys.stdin)))))
