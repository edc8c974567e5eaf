"""New TLS connections at a fixed rate, one request over each: latency from the moment a connection was due.

One after the other, so that each latency is that of a connection alone; where one takes longer than the interval, those
that it delays count that too. Standard input: a ``Job`` as JSON. Standard output: one line of JSON.
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
    """Where, what, and how often per second; ``resumed``: each continues the session of the first. The first tenth is
    sent at the same rate and not counted."""

    host: str
    port: int
    request: str
    rate: int
    seconds: float
    resumed: bool


def ask(job: Job, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
    """One connection, one request: the session to go on with, and whether a former one was. Raises OSError."""
    plain = socket.create_connection((job.host, job.port), TIMEOUT_SECONDS)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with context.wrap_socket(plain, session=session) as line:
        line.sendall(job.request.encode("latin-1"))
        answer = line.recv(65536)
        if not answer.startswith(b"HTTP/1.1 200 "):
            raise OSError(f"answered {answer[:80]!r}")
        return line.session, bool(line.session_reused)


def run(job: Job) -> dict[str, float]:
    """All of them; microseconds."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the client's work is not what is measured
    session = ask(job, context, None)[0] if job.resumed else None
    total = round(job.rate * job.seconds)
    latencies: list[float] = []
    resumed = 0
    start = time.monotonic() + 0.1
    for number in range(-total // 10, total):
        due = start + (number + total // 10) / job.rate
        time.sleep(max(0.0, due - time.monotonic()))
        _, again = ask(job, context, session)
        if number >= 0:
            latencies.append(time.monotonic() - due)
            resumed += again
    ordered = sorted(latencies)
    return {
        **{f"p{p}": 1e6 * ordered[int(len(ordered) * p / 100)] for p in (50, 99)},
        "connections": len(ordered),
        "resumed": resumed,
    }


if __name__ == "__main__":
    print(json.dumps(run(Job(**json.load(sys.stdin)))))
