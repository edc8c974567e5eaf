"""One exchange: the life of a request and its response between a client and a replica.

The client's protocol calls `begin` when the head of a request was read, then the `on_client_...` methods. The replica's
protocol calls the methods of `ResponseHandler`. Every exchange ends in `_close`, which gives the slot back and does
nothing the second time. So no slot leaks, whichever side fails first.

    NEW -> HELD -> RECEIVING -> QUEUED -> CONNECTING -> SENT -> RESPONDING -> DONE
                                                           `-> TUNNEL ------->'

HELD: until the keys of the token's issuer were fetched again. RECEIVING: until the body is complete, or there is no
room for more. QUEUED: in the queue of the `LeaseCache`, until a slot is free. States may be skipped. DONE may follow
each state.

Does not contain: decisions about requests without a slot (`admission`), the router's own headers (`own_headers`),
counters and logs (`accounting`), abandoned requests (`abandoned`), data collection (`collection.outbox`, which gets a
copy of what passes), and bytes of any protocol (`http`).
"""

from __future__ import annotations

import asyncio
import errno
import logging
from time import monotonic
from typing import Final

from router.collection.outbox import ExchangeTap
from router.gateway.abandoned import abandon
from router.gateway.accounting import record
from router.gateway.admission import (
    Hold,
    ReceiveBody,
    Refuse,
    Start,
    Wait,
    admit,
    admit_received,
    readmit,
    refuse_without_slot,
)
from router.gateway.buffers import buffered_size, merge_small_pieces
from router.gateway.context import GatewayContext
from router.gateway.own_headers import add_request_lines, response_lines, timing_line
from router.gateway.pool import ReplicaPool
from router.gateway.replica_health import CLOSED, HALF_OPEN, INVALID, ON_TRIAL, TIMEOUT
from router.gateway.request import Request
from router.gateway.routes import VersionRoute
from router.gateway.timeouts import TimeoutList
from router.http import responses
from router.http.ids import clean_client_id
from router.http.responses import LocalResponse
from router.http.streams import UNKNOWN_LENGTH, ClientStream, ReplicaStream, ResponseHandler
from router.http.target import scoring_target
from router.slots.replica_leases import ReplicaLeases
from router.telemetry.journal import MAX_REPLICAS_AT_ARRIVAL
from router.telemetry.log import event

_log = logging.getLogger("router.gateway")

NEW: Final = 0
HELD: Final = 1
RECEIVING: Final = 2
QUEUED: Final = 3
CONNECTING: Final = 4
SENT: Final = 5
RESPONDING: Final = 6
TUNNEL: Final = 7
DONE: Final = 8

# A whole body up to this size is kept until the response starts, so that the request can be sent again.
_MAX_REPLAYABLE_BYTES: Final = 262144
# How much of a body that is not received first is read before the request has a replica. Reading more would use
# unlimited memory. Reading nothing would not detect that the client leaves.
_MAX_BODY_BYTES_BEFORE_REPLICA: Final = 65536
_MAX_ATTEMPTS: Final = 3
# Errors of this process or machine when a connection is opened: no descriptor, no memory, no local port.
_LOCAL_ERRORS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))

_REPLICA_ERROR_LINE: Final = b"azureml-fe-error: replica-error"


class Exchange(ResponseHandler):
    """A request and its response. Times are seconds of the monotonic clock."""

    __slots__ = (
        "_client",
        "_context",
        "_lease",
        "_pieces_sent",
        "_replica",
        "_reserved",
        "_tap",
        "_timeouts",
        "_waited",
        "request",
        "state",
        "waiter_number",
        "waiting_since",
    )

    def __init__(self, context: GatewayContext, client: ClientStream, request: Request) -> None:
        self._context = context
        self._client = client
        self.request = request
        self.state = NEW
        self._lease: ReplicaLeases[ReplicaPool] | None = None
        self._replica: ReplicaStream | None = None
        self._pieces_sent = 0  # number of the pieces in `request.body` that were sent to the replica
        self._reserved = 0  # bytes of the buffer budget, for a body that was received before a slot was asked for
        self._timeouts: TimeoutList[Exchange] | None = None  # the list with this exchange's scoring timeout, if it runs
        self._tap: ExchangeTap | None = None  # if the exchange is collected
        self._waited = 0.0  # seconds of `max_request_wait_time` that it has used, except in its present wait
        # Set by the lease cache when the exchange is enqueued.
        self.waiting_since: float
        self.waiter_number: int

    # From the head of the request to a slot.

    def begin(self) -> None:
        """Start an exchange whose head was read."""
        request, context = self.request, self._context
        request.started_at = monotonic()
        client = self._client
        request.client_address = client.address
        if client.is_trusted_proxy:
            reported = request.captured.get(b"x-forwarded-for")
            request.client_address = context.trusted_proxies.client_address(reported, client.address)
        request.request_id = request_id = context.ids.next()
        id_lines: tuple[bytes, ...] = (b"x-ms-request-id: " + request_id, b"x-request-id: " + request_id)
        if b"x-ms-client-request-id" in request.captured:
            request.client_request_id = client_id = clean_client_id(request.captured[b"x-ms-client-request-id"])
            if client_id:
                id_lines += (b"x-ms-client-request-id: " + client_id,)
        request.id_lines = id_lines
        decision = admit(request, context.routes, monotonic)
        if isinstance(decision, ReplicaLeases):
            self.start(decision, request.authenticated_at)
        else:
            self._hold_queue_or_refuse(decision)

    def _on_keys_fetched(self) -> None:
        if self.state != HELD:
            return
        try:
            decision = readmit(self.request, self._context.routes, monotonic)
            if isinstance(decision, ReplicaLeases):
                self.start(decision, self.request.authenticated_at)
            else:
                self._hold_queue_or_refuse(decision)
        except Exception as error:  # noqa: BLE001 - other requests were parked for the same keys
            self.on_fault(error)

    def _hold_queue_or_refuse(self, decision: Refuse | Hold | ReceiveBody | Wait) -> None:
        if isinstance(decision, Refuse):
            self._refuse(decision)
        elif isinstance(decision, Wait):
            self._queue(self.request.authenticated_at)
        elif isinstance(decision, ReceiveBody):
            self._receive_body()
        elif self._context.authentication.park_until_keys_fetched(decision.issuer, self._on_keys_fetched):
            self.state = HELD
        else:
            self._refuse(decision.otherwise)

    def _receive_body(self) -> None:
        """Receive the body before a slot is asked for."""
        self.state = RECEIVING
        if self.request.body_bytes:
            self._client.resume_body()
            self._on_body_received()
        else:
            self._client.send_continue()

    def _on_body_received(self) -> None:
        """Ask for a slot if the body is complete, or there is no room for more of it."""
        request, buffers = self.request, self._context.buffers
        if not request.body_complete:
            merge_small_pieces(request.body)
            size = buffered_size(request.body, request.body_bytes)
            if request.body_bytes <= buffers.max_request_bytes and buffers.reserve(size - self._reserved):
                self._reserved = size
                return
        now = monotonic()
        self._end_receiving(now)
        decision = admit_received(request, self._context.routes, now)
        if isinstance(decision, ReplicaLeases):
            self.start(decision, now)
        elif isinstance(decision, Refuse):
            self._refuse(decision)
        else:
            self._queue(now)
        if self.state < SENT:
            self._limit_body()

    def _end_receiving(self, now: float) -> None:
        self.request.body_seconds = now - self.request.authenticated_at

    def _limit_body(self) -> None:
        """Read only so much of a body before the request has a replica."""
        if self.request.body_bytes >= _MAX_BODY_BYTES_BEFORE_REPLICA and not self.request.body_complete:
            self._client.pause_body()

    def _release_buffer(self) -> None:
        self._context.buffers.release(self._reserved)
        self._reserved = 0

    def _refuse(self, decision: Refuse) -> None:
        if decision.denial_reason:
            service = self.request.service
            assert service is not None
            self._context.counters.auth_failures[service.name, decision.denial_reason] += 1
        self.respond(decision.response)

    def _queue(self, now: float) -> None:
        version = self.request.version
        assert version is not None
        lease_cache = version.lease_cache
        self.state = QUEUED
        lease_cache.enqueue(self, now, self._waited)
        self.request.queue_position = len(lease_cache.waiters)
        self.request.replicas_at_arrival = lease_cache.replica_loads(MAX_REPLICAS_AT_ARRIVAL)
        self._context.outbox.notify(version)
        version.watch_queue(self._waited)

    def restart_wait(self, now: float) -> None:
        """Restart the timeout of the wait, as the first replica has become ready."""
        self._end_wait(now)
        self._waited = 0.0
        self.waiting_since = now

    def _end_wait(self, now: float) -> None:
        """Count the present wait. `waiting_since` includes previous ones."""
        waited = now - self.waiting_since
        self.request.queued_seconds += waited - self._waited
        self._waited = waited

    def on_wait_timeout(self, now: float) -> None:
        """The exchange waited too long and was removed from the queue."""
        version = self.request.version
        assert version is not None
        self._end_wait(now)
        self.state = NEW
        self._refuse(refuse_without_slot(version, self.request))

    def on_version_removed(self, now: float) -> None:
        """The version was removed, and the exchange was removed from its queue.

        Another version of the service can serve the request, unless the client named the removed version.
        """
        request = self.request
        assert request.service is not None
        service = self._context.routes.services.get(request.service.name.encode())
        version = service.choose(request.captured.get(b"azureml-model-deployment")) if service is not None else None
        if version is None:
            self.on_wait_timeout(now)
        else:
            request.service = service
            self.requeue(version, now)

    def requeue(self, version: VersionRoute, now: float) -> None:
        """Use or queue for another route of the exchange, which was removed from the queue of its previous route."""
        self._end_wait(now)
        self.request.version = version
        self.state = NEW
        lease = version.lease_cache.reacquire(now)
        if lease is not None:
            self.start(lease, now)
        else:
            self._queue_again(version, now)

    def _queue_again(self, version: VersionRoute, now: float) -> None:
        if version.may_queue:
            self._queue(now)
        else:
            self._refuse(refuse_without_slot(version, self.request))

    # From the slot to the replica.

    def start(self, lease: Start, now: float) -> None:
        """Send the request to the replica of the lease, which the exchange has acquired at `now`."""
        request = self.request
        if self.state == QUEUED:
            self._end_wait(now)
        self._lease = lease
        request.slot_acquired_at = now
        request.abandoned_at_dispatch = abandoned = lease.abandoned
        request.in_flight_at_dispatch = lease.busy - abandoned
        request.suspect_at_dispatch = lease.suspect
        self.state = CONNECTING
        pool = lease.target
        try:
            if pool.health.state == HALF_OPEN:
                assert request.version is not None
                request.version.suspensions.begin_trial(lease, request, now)
            if not request.body_complete and not request.body_bytes:
                self._client.send_continue()
            replica = pool.take(now)
            if replica is None:
                pool.connect(self._on_connected, self._on_connect_failed)
            else:
                self._send(replica, now)
        except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
            # Not at once: the next exchange that gets the slot may fail in the same way, and so recurse through a long
            # queue.
            asyncio.get_running_loop().call_soon(self.on_fault, error)

    def _on_connected(self, pool: ReplicaPool, replica: ReplicaStream) -> bool:
        """Use a new connection to the replica. Return False if it is not needed any more."""
        if self.state != CONNECTING or self._lease is None or self._lease.target is not pool:
            return False
        now = monotonic()
        version = self.request.version
        if version is not None:
            version.counters.connect.observe(now - self.request.slot_acquired_at)
        try:
            self._send(replica, now)
        except Exception as error:  # noqa: BLE001 - the slot must not be lost, whatever the error
            self.on_fault(error)
        return True

    def _on_connect_failed(self, pool: ReplicaPool, error: BaseException) -> None:
        """No connection could be opened. Nothing was sent, so any other replica may get the request."""
        lease, version, request = self._lease, self.request.version, self.request
        if self.state != CONNECTING or lease is None or lease.target is not pool:
            return
        assert version is not None
        now = monotonic()
        if isinstance(error, OSError) and error.errno in _LOCAL_ERRORS:
            self._release_slot(now)  # another replica would not help
            self._refuse(refuse_without_slot(version, self.request))
            return
        version.suspensions.on_refused(lease, error)
        self._release_slot(now)
        request.retries += 1
        waited = now - request.authenticated_at - request.body_seconds
        if request.retries >= _MAX_ATTEMPTS and waited >= version.settings.max_request_wait_time / 1000:
            self._refuse(refuse_without_slot(version, request))
            return
        # No budget as for other retries: nothing was sent, and a replica that refuses gets no request until it accepts.
        version.counters.count_retry("connect")
        now = monotonic()
        other = version.lease_cache.reacquire(now)
        if other is not None:
            self.start(other, now)
        else:
            self._queue_again(version, now)

    def _send(self, replica: ReplicaStream, now: float) -> None:
        request, version, lease = self.request, self.request.version, self._lease
        assert version is not None
        assert lease is not None
        request.connected_at = now
        request.replica_id = lease.id
        self._replica = replica
        self.state = SENT
        complete = request.body_complete
        host = request.captured.get(b"host", b"")
        if not complete:
            self._client.resume_body()  # before the replica may pause it
        if not request.sent_at:  # else this is a retry
            add_request_lines(request, self._client, self._context.tracer, host)
            if version.collection is not None:
                self._begin_tap(version)
        pieces = request.body
        is_long = request.body_bytes > _MAX_REPLAYABLE_BYTES
        paced = is_long and self._reserved > 0
        if paced:  # the replica gets it as fast as it reads it
            complete = False
            pieces = []
        elif self._reserved and not complete:
            self._release_buffer()
        self._pieces_sent = len(pieces)
        if self._tap is not None:
            self._tap_request(self._tap, pieces)
        request.sent_at = now = monotonic()
        target = request.replica_target
        if version.scoring_path is not None:
            target = scoring_target(target, version.scoring_path)
        replica.send_request(
            self,
            request.method,
            target,
            host,
            request.header_lines,
            request.length,
            request.upgrade,
            pieces,
            request.trailers if complete else None,
        )
        if is_long and not paced:
            self._discard_body()
        if not request.retries:
            version.counters.route_time.observe(
                now - request.started_at - request.queued_seconds - request.body_seconds
            )
        if complete:
            self._timeouts = timeouts = version.scoring_timeouts
            timeouts.add(self, now)
        elif paced:
            self._forward_received_body(replica)

    def _begin_tap(self, version: VersionRoute) -> None:
        """Collect the exchange, if it is sampled. Tunnels are not collected."""
        rule, outbox = version.collection, self._context.collection
        if rule is not None and outbox is not None and not self.request.upgrade and rule.is_sampled():
            self._tap = ExchangeTap(outbox, rule, version.counters)

    def _tap_request(self, tap: ExchangeTap, pieces: list[bytes]) -> None:
        """Collect the head of the request and the pieces that are sent with it. A query may have credentials."""
        request = self.request
        time = self._context.wall_clock() - (monotonic() - request.started_at)
        path = request.replica_target.partition(b"?")[0]
        tap.on_request(time, request.request_id, request.method, path, request.header_lines, pieces)

    # The rest of the request.

    def on_client_body(self) -> None:
        """More of the body was read: pass it on if the request has a replica."""
        request = self.request
        if self.state >= SENT:
            replica = self._replica
            if replica is None or self.state == DONE:
                self._discard_body()
                return
            if self._has_unsent_body:
                return
            pieces = request.body[self._pieces_sent :]
            self._pieces_sent = len(request.body)
            if self.state != SENT or request.body_bytes > _MAX_REPLAYABLE_BYTES:
                self._discard_body()
            else:
                merge_small_pieces(request.body)
                self._pieces_sent = len(request.body)
            if self._tap is not None:
                self._tap.on_request_body(pieces)
            replica.send_body(pieces, request.trailers if request.body_complete else None)
            if request.body_complete and self.state != TUNNEL:
                self._restart_timeout()
        elif self.state == RECEIVING:
            self._on_body_received()
        else:
            merge_small_pieces(request.body)
            self._limit_body()

    @property
    def _has_unsent_body(self) -> bool:
        """True while the replica has not been sent all that was received before a slot was asked for."""
        return self._reserved > 0 and self.request.body_bytes > _MAX_REPLAYABLE_BYTES

    def _forward_received_body(self, replica: ReplicaStream) -> None:
        """Send the replica what was received of the body, until it stops reading."""
        request = self.request
        while request.body:
            if replica.write_paused:
                return
            piece = request.body.pop(0)
            if self._tap is not None:
                self._tap.on_request_body([piece])
            replica.send_body([piece], request.trailers if request.body_complete and not request.body else None)
        self._release_buffer()
        if request.body_complete:
            self._restart_timeout()

    def _discard_body(self) -> None:
        """Keep no body for a retry."""
        self.request.body = []
        self._pieces_sent = 0

    def on_replica_write_paused(self) -> None:
        """Read no more of the body, and apply the scoring timeout to the replica until it reads again."""
        if not self.request.body_complete:
            self._client.pause_body()
            self._restart_timeout()
        elif self.state == TUNNEL:
            self._client.pause_body()
        elif self._has_unsent_body:
            self._restart_timeout()

    def on_replica_writable(self) -> None:
        """Continue to send and to read the body."""
        if not self.request.body_complete or self._has_unsent_body:
            self._stop_timeout()
        if self._has_unsent_body and self._replica is not None:
            self._forward_received_body(self._replica)
            if self._replica.write_paused:
                return
        self._client.resume_body()

    def _restart_timeout(self) -> None:
        """Restart the scoring timeout, unless the response is not read because the client does not read it."""
        version = self.request.version
        if version is not None and not (self._replica is not None and self._replica.response_paused):
            self._timeouts = version.scoring_timeouts
            self._timeouts.restart(self, monotonic())

    def _stop_timeout(self) -> None:
        if self._timeouts is not None:
            self._timeouts.discard(self)
            self._timeouts = None

    def on_client_write_paused(self) -> None:
        """The client does not read the response: hold the rest of it, or stop reading from the replica, and stop the
        timeout."""
        replica = self._replica
        if replica is None or not replica.is_open:
            return
        left = replica.response_left
        fits = left != UNKNOWN_LENGTH and self.request.response_bytes + left <= self._context.buffers.max_response_bytes
        if not (fits and self._client.hold_response(left)):
            self._stop_timeout()
            replica.pause_response()

    def on_client_writable(self) -> None:
        """The client reads again."""
        if self._replica is not None and self._replica.is_open and self._replica.response_paused:
            self._replica.resume_response()
            if self.state in (SENT, RESPONDING) and self.request.body_complete:
                self._restart_timeout()

    # The response.

    def on_interim_response(self, status: int, reason: bytes, lines: list[bytes]) -> None:
        """Pass on a 1xx response, except 100: the router itself responds to `Expect: 100-continue`."""
        if status != 100:
            self._client.send_interim(status, reason, lines)

    def on_response_head(
        self,
        status: int,
        reason: bytes,
        lines: list[bytes],
        captured: dict[bytes, bytes],
        length: int,
        pieces: list[bytes],
        now: float,
    ) -> None:
        """Send the client the head of the response, with the router's headers, and the first pieces of the body."""
        request, version = self.request, self.request.version
        lease = self._lease
        assert version is not None
        assert lease is not None
        if lease.target.health.state == ON_TRIAL:
            version.suspensions.on_trial_responds(lease, status, now)
        request.response_started_at = now
        if not self._reserved:
            self._discard_body()
        elif not self._has_unsent_body:
            self._discard_body()
            self._release_buffer()
        context = self._context
        if self._tap is not None:
            self._tap.on_response(context.wall_clock(), status, lines, pieces)
        lines = response_lines(
            request, version, lease.target, lines, captured, now, context.wall_clock, context.server_timing
        )
        if status == 500:
            request.error_code = responses.REPLICA_ERROR
            status, reason = 502, b"Bad Gateway"
            lines.append(_REPLICA_ERROR_LINE)
        request.status = status
        version.counters.first_byte.observe(now - request.sent_at)
        for piece in pieces:
            request.response_bytes += len(piece)
        if status == 101:
            self._stop_timeout()
            self.state = TUNNEL
        else:
            self.state = RESPONDING
        self._client.send_head(status, reason, lines, length, pieces)

    def on_response_body(self, pieces: list[bytes]) -> None:
        """Send the client more of the body."""
        for piece in pieces:
            self.request.response_bytes += len(piece)
        if self._tap is not None:
            self._tap.on_response_body(pieces)
        self._client.send_body(pieces)

    def on_response_progress(self) -> None:
        """Restart the scoring timeout, as the replica is alive."""
        if self._timeouts is not None:
            self._timeouts.restart(self, monotonic())

    def on_response_end(self, trailers: tuple[bytes, ...], reusable: bool, now: float) -> None:
        """Complete the response, and return the connection to its pool."""
        replica, self._replica = self._replica, None
        request, version, lease = self.request, self.request.version, self._lease
        assert version is not None
        assert lease is not None
        pool = lease.target
        if self._tap is not None:
            self._tap.response_complete = True
        if reusable:
            assert replica is not None
            pool.put(replica, now)
        if lease.suspect and request.status < 500:
            version.lease_cache.on_answered(lease)
        if request.status < 400:
            pool.health.successes += 1
        if request.status >= 400 or version.outliers.watching:
            status = 500 if request.error_code == responses.REPLICA_ERROR else request.status
            version.suspensions.on_response(lease, status, self.request.client_address, now)
        self._close(now)
        self._client.end(trailers, now)

    def on_tunnel_data(self, data: bytes) -> None:
        """Pass bytes of the replica to the client."""
        self._client.send_tunnel_data(data)

    def on_client_tunnel_data(self, data: bytes) -> None:
        """Pass bytes of the client to the replica."""
        if self._replica is not None:
            self._replica.send_tunnel_data(data)

    def enforce_stream_limits(self, now: float, idle_seconds: float) -> None:
        """End a stream that lasts too long, or a tunnel without data for too long; called several times a second.

        `idle_seconds` is the time since the last data of a tunnel.
        """
        version = self.request.version
        if version is None or self.state not in (RESPONDING, TUNNEL):
            return
        settings = version.settings
        if 0 < settings.max_stream_seconds < now - self.request.response_started_at:
            if self.state == RESPONDING:
                self._abandon_replica()
            self._abort(responses.STREAM_TIMEOUT)
        elif self.state == TUNNEL and 0 < settings.tunnel_idle_timeout_seconds < idle_seconds:
            self._abort(responses.TUNNEL_IDLE)

    # Other ways to end than a complete response of the replica.

    def respond(self, response: LocalResponse) -> None:
        """End the exchange with a response of the router."""
        self._stop_timeout()
        request = self.request
        request.status = response.status
        request.error_code = response.error_code
        request.response_bytes = len(response.text)
        now = monotonic()
        if self.state == RECEIVING:
            self._end_receiving(now)
        extra_lines = [*request.id_lines, *request.cors_lines]
        if request.version is not None:
            extra_lines.append(request.version.response_line)
        if self._context.server_timing:
            extra_lines.append(timing_line(request, now))
        self._client.send_local(response, extra_lines)
        self._close(now)
        self._client.end((), now)

    def fail(self, response: LocalResponse) -> None:
        """End the exchange with a response of the router, or by aborting a response that has started."""
        has_started = self.state >= RESPONDING
        self._abort_replica()
        if self.state == DONE:
            return
        if not has_started:
            self._release_slot(monotonic())
            if not self.request.body_complete:
                self._client.close_after_response()
            self.respond(response)
            return
        self._abort(response.error_code)

    def _abort(self, error_code: str) -> None:
        """Abort a response whose head was sent, so that the client detects that it is incomplete."""
        self._abort_replica()
        self.request.error_code = error_code
        self._close(monotonic())
        self._client.abort_response()

    def on_scoring_timeout(self) -> None:
        """The replica was silent for `scoring_timeout_ms`."""
        self._timeouts = None
        version = self.request.version
        assert version is not None
        self._count_failure(TIMEOUT)
        self._abandon_replica()
        self.fail(responses.scoring_timeout(version.settings.scoring_timeout_ms))

    @property
    def streaming_replica(self) -> str:
        """The replica whose response is in progress; "" if there is none."""
        lease = self._lease
        return lease.id if lease is not None and self.state in (RESPONDING, TUNNEL) else ""

    def on_drain_timeout(self, replica_ids: frozenset[str]) -> None:
        """End the exchange if it is at one of these replicas, which are removed now."""
        lease = self._lease
        if lease is not None and lease.id in replica_ids:
            self.fail(responses.REPLICA_REMOVED)

    def on_fault(self, error: Exception) -> None:
        """End the exchange after a fault of the router."""
        self._context.log_fault(error)
        self.fail(responses.ROUTER_ERROR)

    @property
    def is_cancelled_by_fin(self) -> bool:
        """True if the client cancels the request when it closes its side of the connection."""
        version = self.request.version
        return self.state == TUNNEL or (version is not None and version.settings.half_close_cancels)

    def on_client_closed(self) -> None:
        """The client has closed its connection: abandon the request at the replica."""
        if self.state == DONE:
            return
        if self.state == NEW:  # the exchange was not begun, so there is nothing to count
            self.state = DONE
            return
        if self.state == TUNNEL:
            replica, self._replica = self._replica, None
            if replica is not None:
                replica.close_gracefully()
        else:
            self._abandon_replica()
            request = self.request
            if request.version is not None:
                request.version.counters.client_aborts += 1
            request.status, request.error_code = responses.CLIENT_CLOSED.status, responses.CLIENT_CLOSED.error_code
        self._close(monotonic())

    def on_replica_closed(self, error: BaseException | None, unread: bool) -> None:
        """Send the request again if the replica has certainly not read it or the version allows it. Else fail."""
        replica, self._replica = self._replica, None
        if self.state == DONE or replica is None:
            return
        if self.state == TUNNEL:
            self._close(monotonic())
            self._client.close_tunnel()
            return
        request, version, lease = self.request, self.request.version, self._lease
        assert version is not None
        assert lease is not None
        if replica.responses_served and not replica.response_started and (error is None or unread):
            lease.target.on_unannounced_close(replica, monotonic())
        may_retry = (
            self.state == SENT
            and not replica.response_started
            and replica.responses_served > 0
            and request.retries == 0
            and sum(map(len, request.body)) == request.body_bytes  # none of it was discarded
            and (unread or version.settings.retry_on_reset)
        )
        if may_retry and version.may_retry():
            request.retries += 1
            version.counters.count_retry("stale")
            self._stop_timeout()
            self.state = CONNECTING
            lease.target.connect(self._on_connected, self._on_connect_failed)
            return
        self._count_failure(CLOSED)
        self.fail(responses.REPLICA_CLOSED)

    def on_bad_response(self, error: BaseException | None) -> None:
        """Log the violation, and fail."""
        service, version = self.request.version.key if self.request.version is not None else ("", "")
        event(
            _log, logging.WARNING, "replica sent an invalid response",
            service=service, version=version, replica=self.request.replica_id, error=str(error),
        )  # fmt: skip
        self._count_failure(INVALID)
        self.fail(responses.REPLICA_CLOSED)

    def _abandon_replica(self) -> None:
        """Give up the response of the replica, which may go on with the request: `cancellation` tells."""
        replica, lease, request = self._replica, self._lease, self.request
        self._stop_timeout()
        if replica is None or lease is None:
            return
        self._replica = None
        if abandon(self._context, request, lease, replica, monotonic()):
            self._lease = None

    def _count_failure(self, kind: str) -> None:
        """Report a failure of the replica, before its slot is given back."""
        version = self.request.version
        if self._lease is not None and version is not None:
            version.suspensions.on_failure(self._lease, kind, self.request.client_address, monotonic())

    def _abort_replica(self) -> None:
        self._stop_timeout()
        if self._replica is not None:
            self._replica.abort()
            self._replica = None

    # The end.

    def _close(self, now: float) -> None:
        state, self.state = self.state, DONE
        request = self.request
        if state != RESPONDING:
            if state == DONE:
                return
            if state == QUEUED:
                self._leave_queue(now)
            elif state == RECEIVING:
                self._end_receiving(now)
            self._discard_body()
        if self._reserved:
            self._release_buffer()
        timeouts = self._timeouts
        if timeouts is not None:
            timeouts.discard(self)
            self._timeouts = None
        if self._lease is not None:
            self._release_slot(now)
        if self._tap is not None:
            self._tap.on_end(request.body_complete)
        record(self._context, request, now)

    def _leave_queue(self, now: float) -> None:
        version = self.request.version
        assert version is not None
        self._end_wait(now)
        version.lease_cache.cancel(self, now)
        self._context.outbox.notify(version)

    def _release_slot(self, now: float) -> None:
        """Give the slot back, and start the waiter that gets it."""
        lease, version = self._lease, self.request.version
        if lease is None or version is None:
            return
        self._lease = None
        if lease.target.health.trial is self.request:
            version.suspensions.on_trial_released(lease)
        lease_cache = version.lease_cache
        waiter: Exchange | None = lease_cache.release(lease, now, now - self.request.slot_acquired_at)
        if lease_cache.needs_flush:
            self._context.outbox.notify(version)
        if waiter is not None:
            waiter.start(lease, now)
