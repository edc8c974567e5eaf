"""One request's life: routed, authenticated, admitted, sent, answered, counted. All decisions about it are taken here.

    NEW -> QUEUED -> CONNECTING -> SENT -> ANSWERING -> DONE
                                              `-> TUNNEL ->'

`begin` walks from NEW as far as it can without waiting; what is waited for calls one of the methods below. Every way
to the end leads through `_close`, the one place where the slot is given back, and `_close` does nothing the second
time: that is what keeps slots from leaking, whoever fails first.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

from router.auth.keys import CHALLENGE, INVALID_CHALLENGE
from router.gateway.proof import never_ran
from router.gateway.upstream import LENGTH, NO_BODY, ReplicaConnection, ReplicaPool
from router.http import answers
from router.http.answers import Answer
from router.http.headers import fields_named_by, without_fields
from router.http.ids import clean_client_id
from router.http.target import origin_form, split_target
from router.telemetry.access_log import AccessRecord

if TYPE_CHECKING:
    from router.gateway.downstream import ClientConnection
    from router.gateway.gateway import Gateway
    from router.gateway.table import ServiceRoute, VersionRoute
    from router.gateway.timeouts import TimeoutList
    from router.slots.holder import HeldReplica

NEW, QUEUED, CONNECTING, SENT, ANSWERING, TUNNEL, DONE = range(7)

CHUNKED_BODY = -1  # the length of a request whose body comes in chunks

# A whole body up to this size is kept until the answer begins, so that the request can be sent once more.
_REPLAYABLE_BYTES = 262144
# Before it can be sent on, this much of a body is read, so that a client that leaves is noticed.
_HELD_BODY_BYTES = 65536
_MOST_ATTEMPTS = 3
_METHODS = (b"POST", b"GET")
_STATUS_OK = b"HTTP/1.1 200 OK"
_SERVER_TIMING = (
    b"\r\nServer-Timing: auth;dur=%.2f, queue;dur=%.2f, connect;dur=%.2f, replica;dur=%.2f, router;dur=%.2f"
)
_CORS_METHODS = b"GET, POST"
_CORS_SECONDS = b"600"
_CORS_ANSWER_HEADERS = frozenset((b"access-control-allow-origin", b"access-control-expose-headers"))


class Exchange:
    """A request and its answer. Times are seconds of the monotonic clock."""

    __slots__ = (
        "_answer_lines",
        "_answered",
        "_attempts",
        "_connected_at",
        "_granted",
        "_head",
        "_id_lines",
        "_is_cross_origin",
        "_kept",
        "_parts",
        "_passed_checks",
        "_queued_seconds",
        "_replica_id",
        "_sent",
        "_slug",
        "_status",
        "_timeouts",
        "_until_close",
        "_upstream",
        "answer_bytes",
        "answer_chunked",
        "began",
        "body",
        "body_bytes",
        "body_complete",
        "client",
        "client_id",
        "expects_continue",
        "gateway",
        "http11",
        "keep_alive",
        "lease",
        "length",
        "method",
        "refusal",
        "request_id",
        "service",
        "state",
        "target",
        "trailers",
        "underscored",
        "upgrade",
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
        self.client = client
        self.gateway: Gateway = client.gateway
        self.method = method
        self.target = target
        self.length = length  # of the body; CHUNKED_BODY if only its end will tell
        self.http11 = True
        self.keep_alive = True
        self.expects_continue = False
        self.upgrade = False
        self.underscored: Sequence[bytes] = ()
        self.body: list[bytes] = []  # received, and not yet sent or kept to be sent once more
        self.body_bytes = 0  # received so far
        self.body_complete = False
        self.trailers: list[bytes] = []
        self.state = NEW
        self.service: ServiceRoute | None = None
        self.version: VersionRoute | None = None
        self.lease: HeldReplica[ReplicaPool] | None = None
        self.request_id = b""
        self.client_id = b""
        self.answer_bytes = 0
        self.answer_chunked = False
        self._until_close = False
        self._is_cross_origin = False
        self.waiting_since = 0.0
        self.waiter_number = 0
        self.refusal: Answer | None = None  # what reading it has already led to
        self.began = 0.0
        self._parts = parts
        self._kept = kept
        self._head = b""
        self._upstream: ReplicaConnection | None = None
        self._timeouts: TimeoutList[Exchange] | None = None
        self._replica_id = ""  # of the last one that it was sent to
        self._attempts = 0
        self._queued_seconds = 0.0
        self._granted = 0.0
        self._sent = 0.0
        self._answered = 0.0
        self._status = 0
        self._slug = ""

    # From the head to a slot.

    def begin(self) -> None:
        """Decide what becomes of the request, now that its head is read."""
        gateway = self.gateway
        self.began = monotonic()
        self.request_id = request_id = gateway.ids.next()
        kept = self._kept
        lines = b"\r\nx-ms-request-id: " + request_id + b"\r\nx-request-id: " + request_id
        if b"x-ms-client-request-id" in kept:
            self.client_id = clean_client_id(kept[b"x-ms-client-request-id"])
            if self.client_id:
                lines += b"\r\nx-ms-client-request-id: " + self.client_id
        self._answer_lines = self._id_lines = lines
        if self.refusal is not None:
            self.refuse(self.refusal)
            return
        target = self.target
        if target[:1] != b"/":
            path = origin_form(target, kept.get(b"host", b""))
            if path is None:
                self.refuse(answers.bad_request("the target is not a path of this host"))
                return
            self.target = target = path
        address = split_target(target)
        if address is None:
            self._begin_elsewhere()
            return
        name, self.target = address
        service = gateway.services.get(name)
        if service is None:
            self.refuse(answers.unknown_service(name[:64].decode("latin-1")))
            return
        self.service = service
        if (self.method not in _METHODS or service.origins is not None) and not self._allow_method_and_origin(service):
            return
        check = service.check
        if check is not None and not check.allows(kept.get(b"authorization")):
            reason = "missing" if b"authorization" not in kept else "invalid"
            gateway.counters.auth_failures[service.name, reason] += 1
            self.refuse(answers.unauthorized(CHALLENGE if reason == "missing" else INVALID_CHALLENGE))
            return
        if self.length > gateway.settings.max_payload_bytes:
            self.refuse(answers.payload_too_large(gateway.settings.max_payload_bytes))
            return
        version = service.choose(kept.get(b"azureml-model-deployment"))
        if version is None:
            asked = kept[b"azureml-model-deployment"][:64].decode("latin-1")
            self.refuse(answers.unknown_version(service.name, asked))
            return
        self.version = version
        self._answer_lines += version.answer_line
        self._passed_checks = now = monotonic()
        lease = version.holder.acquire(now)
        if lease is None:
            self._wait(version, now)
        else:
            self.start(lease, now)

    def _begin_elsewhere(self) -> None:
        """An address that is no service's."""
        if self.target == b"/" and self.method in (b"GET", b"HEAD"):
            self.refuse(answers.HEALTHY)
        elif self.method not in _METHODS:
            self.refuse(answers.method_not_allowed("GET, POST"))
        else:
            self.refuse(answers.NO_SUCH_PATH)

    def _allow_method_and_origin(self, service: ServiceRoute) -> bool:
        """Answer a preflight or a wrong method, and return False; else mark the answer for a browser's origin."""
        origins = service.origins
        if origins is not None:
            origin = self._kept.get(b"origin", b"")
            if origin and (b"*" in origins or origin in origins):
                self._is_cross_origin = True
                self._answer_lines += b"\r\nAccess-Control-Allow-Origin: %b\r\nVary: Origin" % origin
                if self.method == b"OPTIONS" and b"access-control-request-method" in self._kept:
                    self._answer_lines += (
                        b"\r\nAccess-Control-Allow-Methods: %b\r\nAccess-Control-Allow-Headers: Authorization, "
                        b"Content-Type, azureml-model-deployment, traceparent, x-ms-client-request-id"
                        b"\r\nAccess-Control-Max-Age: %b" % (_CORS_METHODS, _CORS_SECONDS)
                    )
                    self.refuse(Answer(204, "", ""))
                    return False
                self._answer_lines += b"\r\nAccess-Control-Expose-Headers: *"
        if self.method not in _METHODS:
            self.refuse(answers.method_not_allowed("GET, POST, OPTIONS" if origins is not None else "GET, POST"))
            return False
        return True

    def _wait(self, version: VersionRoute, now: float) -> None:
        """No slot is free: queue up, unless that is hopeless."""
        if not version.may_wait:
            self._refuse_for_want_of_slot(version)
            return
        self.state = QUEUED
        version.holder.enqueue(self, now)
        self.gateway.slots_changed(version)
        version.watch_queue()

    def wait_anew(self, now: float) -> None:
        """The first replica is there: from now on the usual limit of the wait applies."""
        self._queued_seconds += now - self.waiting_since
        self.waiting_since = now

    def waited_too_long(self, now: float) -> None:
        """The time in the queue is up; the holder has let go of this waiter."""
        assert self.version is not None
        self._queued_seconds += now - self.waiting_since
        self.state = NEW
        self._refuse_for_want_of_slot(self.version)

    def _refuse_for_want_of_slot(self, version: VersionRoute) -> None:
        version.holder.refuse()
        if version.has_ready_replicas:
            self.refuse(answers.overloaded(version.service_name, version.retry_after()))
        else:
            self.refuse(answers.no_ready_replicas(version.service_name, version.retry_after()))

    def start(self, lease: HeldReplica[ReplicaPool], now: float) -> None:
        """A slot is held: send the request to its replica."""
        if self.state == QUEUED:
            self._queued_seconds += now - self.waiting_since
        self.lease = lease
        self._granted = now
        pool = lease.target
        try:
            if self.expects_continue and not self.body_bytes and not self.body_complete:
                self.expects_continue = False
                self.to_client(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection = pool.take()
            if connection is None:
                self.state = CONNECTING
                pool.connect(self)
            else:
                self._send(connection, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the slot must not be lost with it
            self.fault(error)

    # From the slot to the replica.

    def connected(self, pool: ReplicaPool, connection: ReplicaConnection) -> bool:
        """A connection is open. False if it is not wanted any more."""
        if self.state != CONNECTING or self.lease is None or self.lease.target is not pool:
            return False
        now = monotonic()
        if self.version is not None:
            self.version.counters.connect.observe(now - self._granted)
        try:
            self._send(connection, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the slot must not be lost with it
            self.fault(error)
        return True

    def connect_failed(self, pool: ReplicaPool, error: BaseException) -> None:
        """The replica refuses connections. Nothing was sent: any other replica may have the request."""
        lease = self.lease
        if self.state != CONNECTING or lease is None or lease.target is not pool:
            return
        version = self.version
        assert version is not None
        self.gateway.replica_refused(version, lease, error)
        self._release(monotonic())
        self._attempts += 1
        if self._attempts >= _MOST_ATTEMPTS or not version.may_retry():
            self.refuse(answers.REPLICA_CLOSED)
            return
        now = monotonic()
        other = version.holder.acquire_again(now)
        if other is not None:
            version.counters.retried("connect")
            self.start(other, now)
        elif version.holder.has_other(lease.id):
            version.counters.retried("connect")
            self._wait(version, now)
        else:
            self.refuse(answers.REPLICA_CLOSED)

    def _send(self, connection: ReplicaConnection, now: float) -> None:
        self._connected_at = now
        self._replica_id = connection.pool.replica_id
        self._upstream = connection
        connection.exchange = self
        self.state = SENT
        if not self.body_complete:
            self.client.release_body()  # before the replica may ask to hold it
        head = self._head or self._make_head()
        body = self.body
        if body:
            if self.body_complete and self.body_bytes <= _REPLAYABLE_BYTES:
                self._head = head  # all of it is in hand, and stays so until the answer begins
                if self.length != CHUNKED_BODY:
                    connection.transport.write(head + body[0] if len(body) == 1 else b"".join((head, *body)))
                else:
                    connection.transport.write(b"".join((head, *self._framed(body), self._body_end())))
            else:
                connection.transport.write(head)
                self.body = []
                self._send_pieces(connection, body)
        else:
            self._head = head
            if self.body_complete and self.length == CHUNKED_BODY:
                connection.transport.write(head + self._body_end())
            else:
                connection.transport.write(head)
        self._sent = now = monotonic()
        version = self.version
        assert version is not None
        if not self._attempts:
            version.counters.route_time.observe(now - self.began - self._queued_seconds)
        if self.body_complete:
            self._timeouts = timeouts = version.timeouts
            timeouts.begin(self, now)

    def _make_head(self) -> bytes:
        kept = self._kept
        parts = self._parts
        client = self.client
        host = kept.get(b"host", b"")
        parts[0] = self.method + b" " + self.target + b" HTTP/1.1\r\nHost: " + host
        service = self.service
        assert service is not None
        if self.underscored and service.keep_underscore_headers:
            parts += self.underscored
        if b"connection" in kept and (named := fields_named_by(kept[b"connection"])):
            self._parts = parts = without_fields(parts, named)
        if service.forward_authorization and b"authorization" in kept:
            parts.append(b"Authorization: " + kept[b"authorization"])
        if self.length > 0 or (self.length == 0 and self.method == b"POST"):
            parts.append(b"Content-Length: %d" % self.length)
        elif self.length == CHUNKED_BODY:
            parts.append(b"Transfer-Encoding: chunked")
        if self.upgrade:
            parts.append(b"Connection: Upgrade\r\nUpgrade: websocket")
        forwarded_for = client.address
        if b"x-forwarded-for" in kept:
            forwarded_for = kept[b"x-forwarded-for"] + b", " + forwarded_for
        parts.append(b"X-Forwarded-For: " + forwarded_for + client.forwarded_host + host + self._id_lines + b"\r\n\r\n")
        return b"\r\n".join(parts)

    def _framed(self, pieces: list[bytes]) -> list[bytes]:
        if self.length != CHUNKED_BODY:
            return pieces
        framed: list[bytes] = []
        for piece in pieces:
            framed += (b"%x\r\n" % len(piece), piece, b"\r\n")
        return framed

    def _body_end(self) -> bytes:
        return b"0\r\n%b\r\n" % b"".join(self.trailers) if self.length == CHUNKED_BODY else b""

    def _send_pieces(self, connection: ReplicaConnection, pieces: list[bytes]) -> None:
        transport = connection.transport
        if transport.is_closing():
            return  # its end is on its way to `replica_lost`
        for piece in self._framed(pieces):
            transport.write(piece)
        if self.body_complete and self.length == CHUNKED_BODY:
            transport.write(self._body_end())

    # More of the body.

    def advance(self) -> None:
        """More of the request has arrived: pass it on where that is possible."""
        if self.state >= SENT:
            connection = self._upstream
            if connection is None or self.state == DONE:
                self.body = []
                return
            self._head = b""  # with what comes now the request can be sent only once
            pieces, self.body = self.body, []
            self._send_pieces(connection, pieces)
            if self.body_complete and self.state != TUNNEL:
                self._watch_replica()
        elif self.body_bytes >= _HELD_BODY_BYTES and not self.body_complete:
            self.client.hold_body()

    def replica_stalled(self) -> None:
        """The replica does not read: read no more of the body, and give it no more time than for an answer."""
        if not self.body_complete:
            self.client.hold_body()
            self._watch_replica()
        elif self.state == TUNNEL:
            self.client.hold_body()

    def replica_flows(self) -> None:
        """The replica reads again."""
        if not self.body_complete:
            self._unwatch_replica()
        self.client.release_body()

    def _watch_replica(self) -> None:
        """Start the scoring timeout anew."""
        if self.version is not None and not self.client.stalled_since:
            self._timeouts = self.version.timeouts
            self._timeouts.add(self, monotonic())

    def _unwatch_replica(self) -> None:
        if self._timeouts is not None:
            self._timeouts.discard(self)
            self._timeouts = None

    def client_stalled(self) -> None:
        """The client does not read: neither does the router, and the replica's time stands still."""
        if self._upstream is not None and not self._upstream.transport.is_closing():
            self._unwatch_replica()
            self._upstream.transport.pause_reading()

    def client_flows(self) -> None:
        """The client reads again."""
        if self._upstream is not None and not self._upstream.transport.is_closing():
            self._upstream.transport.resume_reading()
            if self.state in (SENT, ANSWERING) and self.body_complete:
                self._watch_replica()

    # The answer.

    def to_client(self, data: bytes) -> None:
        """Write to the client, unless it is gone."""
        self.client.write(data)

    def interim_answer(self, status: int, reason: bytes, parts: list[bytes]) -> None:
        """A 1xx of the replica's: 100 is the router's own affair, others go to clients that understand them."""
        if status != 100 and self.http11:
            self.to_client(b"\r\n".join((b"HTTP/1.1 %d %b" % (status, reason), *parts, b"\r\n")))

    def answer_head(
        self,
        connection: ReplicaConnection,
        status: int,
        reason: bytes,
        parts: list[bytes],
        kept: dict[bytes, bytes],
        framing: int,
        length: int,
    ) -> None:
        """The replica's answer begins: make the head that the client gets."""
        self._answered = now = monotonic()
        self.body = []
        self._head = b""
        gateway = self.gateway
        version = self.version
        assert version is not None
        if not self.body_complete:
            self.keep_alive = False  # the rest of the body is of no use to anyone
        elif gateway.draining:
            self.keep_alive = False
        if status == 500:
            self._slug = answers.REPLICA_ERROR
            status, reason = 502, b"Bad Gateway"
            self._answer_lines += b"\r\nazureml-fe-error: replica-error"
        self._status = status
        version.counters.first_byte.observe(now - self._sent)
        if b"connection" in kept and (named := fields_named_by(kept[b"connection"])):
            parts = without_fields(parts, named)
        if self._is_cross_origin:
            parts = without_fields(parts, _CORS_ANSWER_HEADERS)
        if framing == LENGTH and self.keep_alive and self.http11:  # as nearly all are
            tail = b"\r\nContent-Length: %d" % length
        else:
            tail = self._frame_answer(status, framing, length)
        if gateway.settings.server_timing:
            queued = self._queued_seconds
            tail += _SERVER_TIMING % (
                (self._passed_checks - self.began) * 1e3,
                queued * 1e3,
                (self._connected_at - self._granted) * 1e3,
                (now - self._sent) * 1e3,
                (self._sent - self.began - queued) * 1e3,
            )  # fmt: skip
        line = _STATUS_OK if status == 200 and reason == b"OK" else b"HTTP/1.1 %d %b" % (status, reason)
        connection.out.append(b"\r\n".join((line, *parts)) + self._answer_lines + tail + b"\r\n\r\n")
        self.state = ANSWERING
        if status == 101:
            self._open_tunnel(connection)

    def _frame_answer(self, status: int, framing: int, length: int) -> bytes:
        """How the client can tell where the answer ends."""
        if status == 101:
            return b"\r\nConnection: Upgrade\r\nUpgrade: websocket"
        if framing == LENGTH or (framing == NO_BODY and length >= 0):
            tail = b"\r\nContent-Length: %d" % length
        elif framing == NO_BODY:
            tail = b""
        elif self.http11:
            self.answer_chunked = True
            tail = b"\r\nTransfer-Encoding: chunked"
        else:
            self._until_close = True
            self.keep_alive = False
            tail = b""
        if not self.keep_alive:
            return tail + b"\r\nConnection: close"
        return tail if self.http11 else tail + b"\r\nConnection: keep-alive"

    def replica_spoke(self) -> None:
        """A piece of the answer has come, and more is to come: the replica has its time anew."""
        if self._timeouts is not None:
            self._timeouts.add(self, monotonic())

    def answer_end(self, trailers: list[bytes]) -> None:
        """The answer is complete, as the replica meant it."""
        if self.answer_chunked and self.state == ANSWERING:
            self.to_client(b"0\r\n%b\r\n" % b"".join(trailers))

    def finish(self) -> None:
        """The answer is with the client, and the replica's connection back in its pool or closed."""
        self._upstream = None
        self._close()
        self.client.exchange_done(self)

    # Tunnels (RFC 9110 section 7.8).

    def _open_tunnel(self, connection: ReplicaConnection) -> None:
        self._unwatch_replica()
        self.state = TUNNEL
        self.keep_alive = False
        connection.tunnelled = True
        self.client.tunnel_opened()

    def from_tunnel(self, data: bytes) -> None:
        """The client speaks through the tunnel."""
        if self._upstream is not None and not self._upstream.transport.is_closing():
            self._upstream.transport.write(data)

    # Ends other than a complete answer.

    def refuse(self, answer: Answer) -> None:
        """Answer the request without a replica."""
        self._unwatch_replica()
        self._status = answer.status
        self._slug = answer.slug
        if not self.body_complete and not self.client.may_drain(self):
            self.keep_alive = False
        if self.gateway.draining:
            self.keep_alive = False
        close = not self.keep_alive
        extra = () if close or self.http11 else (b"Connection: keep-alive",)
        data = answers.render(
            answer,
            self._answer_lines,
            now=self.gateway.wall_clock(),
            close=close,
            bodiless=self.method == b"HEAD",
            extra=extra,
        )
        self.answer_bytes = len(answer.text)
        self.to_client(data)
        self._close()
        self.client.exchange_done(self)

    def fail(self, answer: Answer) -> None:
        """End the request for a reason of the router's or the replica's; answer it if no answer has begun."""
        begun = self.state >= ANSWERING
        self._drop_upstream()
        if self.state == DONE:
            return
        if not begun:
            self._release(monotonic())
            self.keep_alive = self.keep_alive and self.body_complete
            self.refuse(answer)
            return
        self._slug = answer.slug
        self._close()
        self.client.cut_off(hard=self._until_close)

    def timed_out(self) -> None:
        """The replica has been silent for as long as it may be."""
        self._timeouts = None
        version = self.version
        assert version is not None
        self.fail(answers.scoring_timeout(version.settings.scoring_timeout_ms))

    def fault(self, error: Exception) -> None:
        """This program has a fault: answer the request all the same, if that is still possible."""
        self.gateway.log_fault(error)
        self.fail(answers.ROUTER_ERROR)

    def client_gone(self) -> None:
        """The client has closed the connection: stop the replica's work on its request."""
        if self.state == DONE:
            return
        if self.state == TUNNEL:
            upstream, self._upstream = self._upstream, None
            if upstream is not None:
                upstream.hang_up()
        else:
            self._drop_upstream()
            if self.version is not None:
                self.version.counters.client_aborts += 1
            self._status, self._slug = answers.CLIENT_CLOSED.status, answers.CLIENT_CLOSED.slug
        self._close()

    def replica_lost(self, connection: ReplicaConnection, error: BaseException | None, unacknowledged: int) -> None:
        """The connection to the replica has ended before the answer did."""
        if connection is not self._upstream or self.state == DONE:
            return
        self._upstream = None
        if self.state == TUNNEL:
            self._close()
            self.client.close()
            return
        version, lease = self.version, self.lease
        assert version is not None
        assert lease is not None
        may_send_again = (
            self.state == SENT
            and not connection.answer_begun
            and connection.served > 0
            and self._attempts == 0
            and self.body_complete
            and bool(self._head)
        )
        if may_send_again and never_ran(error, unacknowledged) and version.may_retry():
            self._attempts += 1
            version.counters.retried("stale")
            self._unwatch_replica()
            self.state = CONNECTING
            lease.target.connect(self)
            return
        self.fail(answers.REPLICA_CLOSED)

    def replica_garbled(self, connection: ReplicaConnection, error: BaseException | None) -> None:
        """The replica's answer is not HTTP."""
        self.gateway.log_garbled(self.version, connection.pool.replica_id, error)
        self.fail(answers.REPLICA_CLOSED)

    def _drop_upstream(self) -> None:
        self._unwatch_replica()
        if self._upstream is not None:
            self._upstream.abort()
            self._upstream = None

    # The one way out.

    def _close(self) -> None:
        if self.state == DONE:
            return
        now = monotonic()
        if self.state == QUEUED:
            self._leave_queue(now)
        self.state = DONE
        if self._timeouts is not None:
            self._unwatch_replica()
        if self.lease is not None:
            self._release(now)
        self.body = []
        self._head = b""
        version = self.version
        status, slug = self._status, self._slug
        if version is None:
            if self.service is not None:
                self.gateway.counters.version((self.service.name, "")).count(status, slug)
            else:
                self.gateway.counters.answers[status, slug] += 1
        else:
            counters = version.counters
            counters.answers[status, slug] += 1
            counters.duration.observe(now - self.began)
            if self._queued_seconds:
                counters.queue_wait.observe(self._queued_seconds)
            else:
                counters.queue_wait.counts[0] += 1
            counters.request_bytes += self.body_bytes
            counters.response_bytes += self.answer_bytes
        log = self.gateway.access_log
        if log.rate and log.wanted():
            log.add(self._record(now))

    def _leave_queue(self, now: float) -> None:
        assert self.version is not None
        self._queued_seconds += now - self.waiting_since
        self.version.holder.cancel(self, now)
        self.gateway.slots_changed(self.version)

    def _release(self, now: float) -> None:
        """Give the slot back, and start whoever gets it."""
        lease = self.lease
        version = self.version
        if lease is None or version is None:
            return
        self.lease = None
        holder = version.holder
        waiter = holder.release(lease, now, now - self._granted)
        if holder.news:
            self.gateway.slots_changed(version)
        if waiter is not None:
            waiter.start(lease, now)

    def _record(self, now: float) -> AccessRecord:
        wall = self.gateway.wall_clock()
        sent, answered = self._sent, self._answered
        traceparent = self._kept.get(b"traceparent")
        return AccessRecord(
            time=wall - (now - self.began),
            request_id=self.request_id.decode(),
            client_request_id=self.client_id.decode() or None,
            traceparent=traceparent.decode("latin-1") if traceparent else None,
            service=self.service.name if self.service is not None else None,
            version=self.version.key[1] if self.version is not None else None,
            replica=self._replica_id or None,
            method=self.method.decode(),
            status=self._status,
            error=self._slug or None,
            request_bytes=self.body_bytes,
            response_bytes=self.answer_bytes,
            queue=self._queued_seconds if self.version is not None else None,
            route=sent - self.began - self._queued_seconds if sent else None,
            replica_time=answered - sent if sent and answered else None,
            duration=now - self.began,
            attempt=self._attempts + 1,
        )
