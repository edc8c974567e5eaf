"""One request as a record: what was read of it, how far it has come, what was measured.

Lives here: the states, every field of an exchange, and the access log's view of them. Must not live here: what any of
it leads to (`admission`, `exchange`) and how heads are written (`heads`).

    NEW -> HELD -> QUEUED -> CONNECTING -> SENT -> ANSWERING -> DONE
                                                      `-> TUNNEL ->'

HELD: waits for the key that its token names. QUEUED: waits for a slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from router.telemetry.access_log import AccessRecord
from router.telemetry.counters import NO_VERSION
from router.telemetry.journal import Entry
from router.telemetry.tracing import TraceContext

if TYPE_CHECKING:
    from router.gateway.downstream import ClientConnection
    from router.gateway.exchange import Exchange
    from router.gateway.gateway import Gateway
    from router.gateway.pool import ReplicaPool
    from router.gateway.table import ServiceRoute, VersionRoute
    from router.gateway.timeouts import TimeoutList
    from router.gateway.upstream import ReplicaConnection
    from router.http.answers import Answer
    from router.slots.holder import HeldReplica

NEW: Final = 0
HELD: Final = 1
QUEUED: Final = 2
CONNECTING: Final = 3
SENT: Final = 4
ANSWERING: Final = 5
TUNNEL: Final = 6
DONE: Final = 7

CHUNKED_BODY: Final = -1  # the length of a request whose body comes in chunks


class Request:
    """A request and its answer. Times are seconds of the monotonic clock; 0 where something has not happened."""

    __slots__ = (
        "answer_bytes",
        "answer_chunked",
        "answer_lines",
        "answered",
        "arrival",
        "attempts",
        "began",
        "beside",
        "body",
        "body_bytes",
        "body_complete",
        "checked",
        "client",
        "client_id",
        "connected_at",
        "expects_continue",
        "gateway",
        "granted",
        "head",
        "http11",
        "id_lines",
        "is_cross_origin",
        "keep_alive",
        "kept",
        "lease",
        "length",
        "method",
        "parts",
        "queued_seconds",
        "refusal",
        "replica_id",
        "request_id",
        "sent",
        "service",
        "slug",
        "state",
        "status",
        "target",
        "timeouts",
        "trace",
        "trailers",
        "underscored",
        "until_close",
        "upgrade",
        "upstream",
        "version",
        "waiter_number",
        "waiting_since",
    )

    def __init__(
        self,
        client: ClientConnection,
        method: bytes,
        target: bytes,
        parts: list[bytes],
        kept: dict[bytes, bytes],
        length: int,
    ) -> None:
        # As read.
        self.client = client
        self.gateway: Gateway = client.gateway
        self.method = method
        self.target = target
        self.parts = parts  # lines of the head that are passed on; the first one is the request line's place
        self.kept = kept  # fields that the router reads itself, by lower-case name
        self.length = length  # of the body; CHUNKED_BODY if only its end will tell
        self.http11 = self.keep_alive = True
        self.underscored: Sequence[bytes] = ()
        self.body: list[bytes] = []  # received, and not yet sent or kept to be sent once more
        self.body_bytes = 0  # received so far
        self.trailers: list[bytes] = []
        self.refusal: Answer | None = None  # what reading it has already led to
        # How far it has come. `id_lines` and `answer_lines` are set as it begins.
        self.state = NEW
        self.service: ServiceRoute | None = None
        self.version: VersionRoute | None = None
        self.lease: HeldReplica[ReplicaPool] | None = None
        self.upstream: ReplicaConnection | None = None
        self.timeouts: TimeoutList[Exchange] | None = None  # where its scoring timeout runs
        self.head = self.client_id = b""  # `head`: as sent to the replica, while it may have to be sent once more
        self.expects_continue = self.upgrade = self.body_complete = False
        self.answer_chunked = self.until_close = self.is_cross_origin = False
        self.slug = self.replica_id = ""  # `replica_id`: of the last one that it was sent to
        self.attempts = self.answer_bytes = self.status = 0
        # When. What has no value yet gets it on the way to whoever reads it: `checked` when key and version are,
        # `granted` with the slot, `beside` with the replica, the others in the queue.
        self.began = self.sent = self.answered = self.queued_seconds = 0.0
        self.checked: float
        self.granted: float
        self.connected_at: float
        self.trace: TraceContext  # while traces are on
        self.beside: int  # requests at the replica when it was chosen, this one included
        self.arrival: tuple[int, tuple[tuple[str, int, bool], ...]]  # place in the queue, replicas as found then
        self.waiting_since: float
        self.waiter_number: int
        self.request_id: bytes
        self.id_lines: bytes
        self.answer_lines: bytes

    def entry(self, now: float) -> Entry:
        """What the journal keeps of it."""
        known = self.version is not None
        sent = self.sent
        position, considered = self.arrival if self.queued_seconds else (0, ())
        return Entry(
            request_id=self.request_id,
            client_id=self.client_id,
            service=self.service.name if self.service is not None else "",
            version=self.version.key[1] if self.version is not None else NO_VERSION,
            began=self.began,
            checked=self.checked if known else 0.0,
            granted=self.granted if sent else 0.0,
            connected_at=self.connected_at if sent else 0.0,
            sent=sent,
            answered=self.answered,
            ended=now,
            status=self.status,
            replica=self.replica_id,
            beside=self.beside if sent else 0,
            attempts=self.attempts,
            request_bytes=self.body_bytes,
            response_bytes=self.answer_bytes,
            slug=self.slug,
            queued_seconds=self.queued_seconds,
            position=position,
            considered=considered,
        )

    def record(self, now: float) -> AccessRecord:
        """Its line in the access log."""
        wall = self.gateway.wall_clock()
        sent, answered = self.sent, self.answered
        traceparent = self.kept.get(b"traceparent")
        return AccessRecord(
            time=wall - (now - self.began),
            request_id=self.request_id.decode(),
            client_request_id=self.client_id.decode() or None,
            traceparent=traceparent.decode("latin-1") if traceparent else None,
            service=self.service.name if self.service is not None else None,
            version=self.version.key[1] if self.version is not None else None,
            replica=self.replica_id or None,
            method=self.method.decode(),
            status=self.status,
            error=self.slug or None,
            request_bytes=self.body_bytes,
            response_bytes=self.answer_bytes,
            queue=self.queued_seconds if self.version is not None else None,
            route=sent - self.began - self.queued_seconds if sent else None,
            replica_time=answered - sent if sent and answered else None,
            duration=now - self.began,
            attempt=self.attempts + 1,
        )
