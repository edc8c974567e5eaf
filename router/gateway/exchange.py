"""From a slot to the end: sent, answered, counted, and the slot given back.

`start` is called with a slot; whatever is waited for from then on calls one of the methods below. Every way to the end
leads through `_close`, the one place where the slot is given back, and `_close` does nothing the second time: that is
what keeps slots from leaking, whoever fails first. The states are `request`'s, the way to the slot is `admission`'s.
"""

from __future__ import annotations

import asyncio
import errno
from time import monotonic
from typing import TYPE_CHECKING, Final

from router.gateway.admission import Admission
from router.gateway.heads import answer_head, body_end, framed, request_head, timing_of_own_answer
from router.gateway.proof import never_ran
from router.gateway.request import ANSWERING, CHUNKED_BODY, CONNECTING, DONE, QUEUED, SENT, TUNNEL
from router.http import answers
from router.http.answers import Answer
from router.telemetry.counters import NO_VERSION
from router.telemetry.tracing import Traced

if TYPE_CHECKING:
    from router.gateway.pool import ReplicaPool
    from router.gateway.upstream import ReplicaConnection
    from router.slots.holder import HeldReplica

# A whole body up to this size is kept until the answer begins, so that the request can be sent once more.
_REPLAYABLE_BYTES: Final = 262144
# Before it can be sent on, this much of a body is read, so that a client that leaves is noticed.
_HELD_BODY_BYTES: Final = 65536
_MOST_ATTEMPTS: Final = 3
# Of this process or machine, when a connection cannot be made: no descriptor, no memory, no local port.
_OUT_OF_MEANS: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL))


class Exchange(Admission):
    """A request and its answer."""

    __slots__ = ()

    def start(self, lease: HeldReplica[ReplicaPool], now: float) -> None:
        """A slot is held: send the request to its replica."""
        if self.state == QUEUED:
            self.queued_seconds += now - self.waiting_since
        self.lease = lease
        self.granted = now
        self.beside = lease.busy
        self.state = CONNECTING
        pool = lease.target
        try:
            if self.expects_continue and not self.body_bytes and not self.body_complete:
                self.expects_continue = False
                self.to_client(b"HTTP/1.1 100 Continue\r\n\r\n")
            connection = pool.take()
            if connection is None:
                pool.connect(self)
            else:
                self._send(connection, now)
        except Exception as error:  # noqa: BLE001 - whatever it is, the slot must not be lost with it
            # In a turn of its own: who gets the slot next may have the same fault, and so on through a long queue.
            asyncio.get_running_loop().call_soon(self.fault, error)

    # From the slot to the replica.

    def connected(self, pool: ReplicaPool, connection: ReplicaConnection) -> bool:
        """A connection is open. False if it is not wanted any more."""
        if self.state != CONNECTING or self.lease is None or self.lease.target is not pool:
            return False
        now = monotonic()
        if self.version is not None:
            self.version.counters.connect.observe(now - self.granted)
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
        if isinstance(error, OSError) and error.errno in _OUT_OF_MEANS:
            self._release(monotonic())  # the replica is not to blame, nor would another do better
            self._refuse_for_want_of_slot(version)
            return
        self.gateway.replica_refused(version, lease, error)
        self._release(monotonic())
        self.attempts += 1
        if self.attempts >= _MOST_ATTEMPTS or not version.may_retry():
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
        self.connected_at = now
        self.replica_id = connection.pool.replica_id
        self.upstream = connection
        connection.exchange = self
        self.state = SENT
        if not self.body_complete:
            self.client.release_body()  # before the replica may ask to hold it
        head = self.head or request_head(self)
        body = self.body
        if body:
            if self.body_complete and self.body_bytes <= _REPLAYABLE_BYTES:
                self.head = head  # all of it is in hand, and stays so until the answer begins
                if self.length != CHUNKED_BODY:
                    connection.transport.write(head + body[0] if len(body) == 1 else b"".join((head, *body)))
                else:
                    connection.transport.write(b"".join((head, *framed(self, body), body_end(self))))
            else:
                connection.transport.write(head)
                self.body = []
                self._send_pieces(connection, body)
        else:
            self.head = head
            if self.body_complete and self.length == CHUNKED_BODY:
                connection.transport.write(head + body_end(self))
            else:
                connection.transport.write(head)
        self.sent = now = monotonic()
        version = self.version
        assert version is not None
        if not self.attempts:
            version.counters.route_time.observe(now - self.began - self.queued_seconds)
        if self.body_complete:
            self.timeouts = timeouts = version.timeouts
            timeouts.begin(self, now)

    def _send_pieces(self, connection: ReplicaConnection, pieces: list[bytes]) -> None:
        transport = connection.transport
        if transport.is_closing():
            return  # its end is on its way to `replica_lost`
        for piece in framed(self, pieces):
            transport.write(piece)
        if self.body_complete and self.length == CHUNKED_BODY:
            transport.write(body_end(self))

    # More of the body.

    def advance(self) -> None:
        """More of the request has arrived: pass it on where that is possible."""
        if self.state >= SENT:
            connection = self.upstream
            if connection is None or self.state == DONE:
                self.body = []
                return
            self.head = b""  # with what comes now the request can be sent only once
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
            self.timeouts = self.version.timeouts
            self.timeouts.add(self, monotonic())

    def _unwatch_replica(self) -> None:
        if self.timeouts is not None:
            self.timeouts.discard(self)
            self.timeouts = None

    def client_stalled(self) -> None:
        """The client does not read: neither does the router, and the replica's time stands still."""
        if self.upstream is not None and not self.upstream.transport.is_closing():
            self._unwatch_replica()
            self.upstream.transport.pause_reading()

    def client_flows(self) -> None:
        """The client reads again."""
        if self.upstream is not None and not self.upstream.transport.is_closing():
            self.upstream.transport.resume_reading()
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
        self.answered = now = monotonic()
        self.body = []
        self.head = b""
        version = self.version
        assert version is not None
        if not self.body_complete or self.gateway.draining:  # the rest of a body would be of no use to anyone
            self.keep_alive = False
        if status == 500:
            self.slug = answers.REPLICA_ERROR
            status, reason = 502, b"Bad Gateway"
            self.answer_lines += b"\r\nazureml-fe-error: replica-error"
        self.status = status
        version.counters.first_byte.observe(now - self.sent)
        connection.out.append(answer_head(self, status, reason, parts, kept, framing, length))
        self.state = ANSWERING
        if status == 101:
            self._open_tunnel(connection)

    def replica_spoke(self) -> None:
        """A piece of the answer has come, and more is to come: the replica has its time anew."""
        if self.timeouts is not None:
            self.timeouts.add(self, monotonic())

    def finish(self, trailers: list[bytes], now: float) -> None:
        """The answer is complete, as the replica meant it, and its connection back in the pool or closed."""
        self.upstream = None  # a client that stalls now does not hold up the connection's next exchange
        if self.answer_chunked and self.state == ANSWERING:
            self.to_client(b"0\r\n%b\r\n" % b"".join(trailers))
        self._close(now)
        self.client.exchange_done(self, now)

    # Tunnels (RFC 9110 section 7.8).

    def _open_tunnel(self, connection: ReplicaConnection) -> None:
        self._unwatch_replica()
        self.state = TUNNEL
        self.keep_alive = False
        connection.tunnelled = True
        self.client.tunnel_opened()

    def from_tunnel(self, data: bytes) -> None:
        """The client speaks through the tunnel."""
        if self.upstream is not None and not self.upstream.transport.is_closing():
            self.upstream.transport.write(data)

    # Ends other than a complete answer.

    def refuse(self, answer: Answer) -> None:
        """Answer the request without a replica."""
        self._unwatch_replica()
        self.status = answer.status
        self.slug = answer.slug
        if not self.body_complete and not self.client.may_drain(self):
            self.keep_alive = False
        if self.gateway.draining:
            self.keep_alive = False
        close = not self.keep_alive
        now = monotonic()
        extra = [] if close or self.http11 else [b"Connection: keep-alive"]
        if self.gateway.settings.server_timing:
            extra.append(timing_of_own_answer(self, now))
        data = answers.render(
            answer,
            self.answer_lines,
            now=self.gateway.wall_clock(),
            close=close,
            bodiless=self.method == b"HEAD",
            extra=extra,
        )
        self.answer_bytes = len(answer.text)
        self.to_client(data)
        self._close(now)
        self.client.exchange_done(self, now)

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
        self.slug = answer.slug
        self._close(monotonic())
        self.client.cut_off(hard=self.until_close)

    def timed_out(self) -> None:
        """The replica has been silent for as long as it may be."""
        self.timeouts = None
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
            upstream, self.upstream = self.upstream, None
            if upstream is not None:
                upstream.hang_up()
        else:
            self._drop_upstream()
            if self.version is not None:
                self.version.counters.client_aborts += 1
            self.status, self.slug = answers.CLIENT_CLOSED.status, answers.CLIENT_CLOSED.slug
        self._close(monotonic())

    def replica_lost(self, connection: ReplicaConnection, error: BaseException | None, unacknowledged: int) -> None:
        """The connection to the replica has ended before the answer did."""
        if connection is not self.upstream or self.state == DONE:
            return
        self.upstream = None
        if self.state == TUNNEL:
            self._close(monotonic())
            self.client.close()
            return
        version, lease = self.version, self.lease
        assert version is not None
        assert lease is not None
        may_send_again = (
            self.state == SENT
            and not connection.answer_begun
            and connection.served > 0
            and self.attempts == 0
            and self.body_complete
            and bool(self.head)
        )
        if may_send_again and never_ran(error, unacknowledged) and version.may_retry():
            self.attempts += 1
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
        if self.upstream is not None:
            self.upstream.abort()
            self.upstream = None

    # The one way out.

    def _close(self, now: float) -> None:
        state, self.state = self.state, DONE
        if state != ANSWERING:
            if state == DONE:
                return
            if state == QUEUED:
                self._leave_queue(now)
            self.body = []
            self.head = b""
        timeouts = self.timeouts
        if timeouts is not None:
            timeouts.discard(self)
            self.timeouts = None
        if self.lease is not None:
            self._release(now)
        version = self.version
        if version is not None:
            counters = version.counters
            counters.answers[self.status, self.slug] += 1
            counters.duration.observe(now - self.began)
            if self.queued_seconds or self.slug or self.attempts or not self.sent:
                counters.queue_wait.observe(self.queued_seconds)
                self.gateway.journal.notable.append(self.entry(now))
            else:
                counters.queue_wait.counts[0] += 1
                journal = self.gateway.journal
                if journal.room:
                    journal.room -= 1
                    journal.plain.append(self.entry(now))
            counters.request_bytes += self.body_bytes
            counters.response_bytes += self.answer_bytes
        else:
            self._count_without_version(now)
        tracer = self.gateway.tracer
        if tracer is not None and self.service is not None:
            context = getattr(self, "trace", None) or tracer.context(self.kept.get(b"traceparent"))
            if context.sampled:
                tracer.ended(Traced(context, self.method.decode(), self.entry(now)))
        log = self.gateway.access_log
        if log.rate and log.wanted():
            log.add(self.record(now))

    def _count_without_version(self, now: float) -> None:
        """It was answered before a version was chosen."""
        if self.service is not None:
            self.gateway.counters.version((self.service.name, NO_VERSION)).count(self.status, self.slug)
        else:
            self.gateway.counters.answers[self.status, self.slug] += 1
        if self.slug:  # others are load balancers' probes and browsers' preflights
            self.gateway.journal.refused.append(self.entry(now))

    def _leave_queue(self, now: float) -> None:
        assert self.version is not None
        self.queued_seconds += now - self.waiting_since
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
        waiter = holder.release(lease, now, now - self.granted)
        if holder.news:
            self.gateway.slots_changed(version)
        if waiter is not None:
            waiter.start(lease, now)
