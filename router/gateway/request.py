"""The record of one request: its parsed head and body, its route, and its measurements.

Contains: all fields that the journal, the access log and metrics use. Does not contain: decisions about the request
(`admission`), its progress (`exchange`) and bytes of any protocol (`http`).
"""

from __future__ import annotations

from collections.abc import Sequence

from router.gateway.routes import ServiceRoute, VersionRoute
from router.http.responses import LocalResponse
from router.http.target import loggable_path
from router.telemetry.access_log import AccessRecord
from router.telemetry.counters import NO_VERSION
from router.telemetry.journal import Abandonment, Entry, ReplicaAtArrival
from router.telemetry.tracing import TraceContext


class Request:
    """A request, and the data about its response. Times are seconds of the monotonic clock, 0 before the event."""

    __slots__ = (
        "abandoned_at_dispatch",
        "abandonment",
        "authenticated_at",
        "body",
        "body_bytes",
        "body_complete",
        "body_seconds",
        "captured",
        "client_address",
        "client_request_id",
        "connected_at",
        "cors_lines",
        "error_code",
        "expects_continue",
        "header_lines",
        "http11",
        "id_lines",
        "in_flight_at_dispatch",
        "keep_alive",
        "length",
        "method",
        "queue_position",
        "queued_seconds",
        "rejection",
        "replica_id",
        "replica_target",
        "replicas_at_arrival",
        "request_id",
        "response_bytes",
        "response_started_at",
        "retries",
        "sent_at",
        "service",
        "slot_acquired_at",
        "started_at",
        "status",
        "suspect_at_dispatch",
        "target",
        "trace",
        "trailers",
        "underscore_lines",
        "upgrade",
        "version",
    )

    def __init__(
        self, method: bytes, target: bytes, header_lines: list[bytes], captured: dict[bytes, bytes], length: int
    ) -> None:
        """`header_lines` and `length` are those of `http.streams`; `captured` are the header fields that the router
        interprets itself, by lower-case name."""
        # As read. The client's protocol writes these fields; the exchange takes the pieces of the body.
        self.method = method
        self.target = target
        self.header_lines = header_lines
        self.captured = captured
        self.length = length
        self.http11 = True
        self.keep_alive = True  # the client's connection stays open after the response
        self.expects_continue = self.upgrade = self.body_complete = False
        self.underscore_lines: Sequence[bytes] = ()  # headers whose names have an underscore
        self.body: list[bytes] = []  # pieces that were received and not sent yet, or are kept for a retry
        self.body_bytes = 0  # received
        self.trailers: tuple[bytes, ...] = ()
        self.rejection: LocalResponse | None = None  # the response to a request that violates the protocol
        # Routing. Admission writes these fields. The exchange writes address and ids at its start.
        self.service: ServiceRoute | None = None
        self.version: VersionRoute | None = None
        self.client_address: bytes  # behind trusted proxies the one that they report
        self.client_request_id = b""
        self.replica_target: bytes  # the path and query at the replica, set with the service
        self.cors_lines: tuple[bytes, ...] = ()  # headers of a response to an allowed origin
        self.request_id: bytes
        self.id_lines: tuple[bytes, ...]  # headers with the ids, for the replica and the client
        # Measurements, written by the exchange. Fields without a value here are set before they are read:
        # `authenticated_at` with the version; `slot_acquired_at` and those at dispatch with the slot;
        # `connected_at` with the connection; `queue_position` and `replicas_at_arrival` when the request is queued.
        self.started_at = self.sent_at = self.response_started_at = self.queued_seconds = 0.0
        self.body_seconds = 0.0  # for which the body was received before the request asked for a slot
        self.response_bytes = self.status = 0
        self.retries = 0
        self.error_code = self.replica_id = ""  # `replica_id`: of the last one that the request was sent to
        self.authenticated_at: float
        self.slot_acquired_at: float
        self.in_flight_at_dispatch: int  # requests at the replica when it was chosen, this one included
        self.abandoned_at_dispatch: int  # abandoned requests there that held a slot
        self.suspect_at_dispatch: bool  # it had suspect slots
        self.abandonment: Abandonment | None = None
        self.connected_at: float
        self.queue_position: int
        self.replicas_at_arrival: tuple[ReplicaAtArrival, ...]
        self.trace: TraceContext | None = None  # if it is traced, set when it is sent to a replica

    def journal_entry(self, now: float) -> Entry:
        """Return the entry of the request in the journal."""
        routed, sent, queued = self.version is not None, bool(self.sent_at), bool(self.queued_seconds)
        return Entry(
            request_id=self.request_id,
            client_request_id=self.client_request_id,
            service=self.service.name if self.service is not None else "",
            version=self.version.key[1] if self.version is not None else NO_VERSION,
            started_at=self.started_at,
            authenticated_at=self.authenticated_at if routed else 0.0,
            slot_acquired_at=self.slot_acquired_at if sent else 0.0,
            connected_at=self.connected_at if sent else 0.0,
            sent_at=self.sent_at,
            response_started_at=self.response_started_at,
            ended_at=now,
            status=self.status,
            replica=self.replica_id,
            in_flight_at_dispatch=self.in_flight_at_dispatch if sent else 0,
            retries=self.retries,
            request_bytes=self.body_bytes,
            response_bytes=self.response_bytes,
            error_code=self.error_code,
            queued_seconds=self.queued_seconds,
            queue_position=self.queue_position if queued else 0,
            replicas_at_arrival=self.replicas_at_arrival if queued else (),
            abandoned_at_dispatch=self.abandoned_at_dispatch if sent else 0,
            suspect_at_dispatch=self.suspect_at_dispatch if sent else False,
            abandonment=self.abandonment,
            body_seconds=self.body_seconds,
            client=self.client_address,
            method=self.method,
            path=self._logged_path(),
        )

    def access_record(self, now: float, wall_clock: float) -> AccessRecord:
        """Return the request's line in the access log. `wall_clock` is `now` in seconds since the epoch."""
        sent, started = self.sent_at, self.response_started_at
        traceparent = self.captured.get(b"traceparent")
        return AccessRecord(
            time=wall_clock - (now - self.started_at),
            request_id=self.request_id.decode(),
            client_request_id=self.client_request_id.decode() or None,
            traceparent=traceparent.decode("latin-1") if traceparent else None,
            service=self.service.name if self.service is not None else None,
            version=self.version.key[1] if self.version is not None else None,
            replica=self.replica_id or None,
            client=self.client_address.decode("ascii", "backslashreplace"),
            method=self.method.decode(),
            path=self._logged_path().decode("ascii", "backslashreplace") or None,
            status=self.status,
            error=self.error_code or None,
            request_bytes=self.body_bytes,
            response_bytes=self.response_bytes,
            queue=self.queued_seconds if self.version is not None else None,
            route=sent - self.started_at - self.queued_seconds - self.body_seconds if sent else None,
            replica_time=started - sent if sent and started else None,
            duration=now - self.started_at,
            attempt=self.retries + 1,
        )

    def _logged_path(self) -> bytes:
        """Return the path for logs. It is empty if no service matched: a client may have put its key there."""
        return loggable_path(self.target) if self.service is not None else b""
