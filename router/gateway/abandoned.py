"""An abandoned request of a replica that does not notice closed connections: its response is read and discarded.

The client has left, or got 504, and the exchange has ended. The replica goes on with the request all the same
(`cancellation: none`), so its slot is not free. An `AbandonedResponse` takes over connection and lease from the
exchange, and gives both back at the end of the response. If that has not come after `abandoned_request_timeout_ms`, it
closes the connection.
"""

from __future__ import annotations

from time import monotonic

from router.gateway.context import GatewayContext
from router.gateway.pool import ReplicaPool
from router.gateway.request import Request
from router.gateway.routes import VersionRoute
from router.http.streams import ReplicaStream, ResponseHandler
from router.slots.replica_leases import ReplicaLeases
from router.telemetry.journal import Abandonment


class AbandonedResponse(ResponseHandler):
    """The response to an abandoned request. Times are seconds of the monotonic clock."""

    __slots__ = ("_abandonment", "_context", "_lease", "_replica", "_slot_acquired_at", "_timeouts", "_version")

    def __init__(
        self,
        context: GatewayContext,
        version: VersionRoute,
        lease: ReplicaLeases[ReplicaPool],
        replica: ReplicaStream,
        slot_acquired_at: float,
        abandonment: Abandonment,
    ) -> None:
        """Take over `lease`, held since `slot_acquired_at`, and `replica`, to which the whole request was sent."""
        self._context = context
        self._version = version
        self._lease: ReplicaLeases[ReplicaPool] | None = lease
        self._replica = replica
        self._slot_acquired_at = slot_acquired_at
        self._abandonment = abandonment
        version.lease_cache.keep_abandoned(lease)
        context.abandoned[self] = None
        self._timeouts = version.abandoned_timeouts
        self._timeouts.add(self, abandonment.at)
        replica.hand_over(self)

    # What the replica sends is discarded.

    def on_interim_response(self, status: int, reason: bytes, lines: list[bytes]) -> None:
        """See `ResponseHandler`."""

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
        """See `ResponseHandler`. A tunnel without a client is closed."""
        if status == 101:
            self._abort("closed")

    def on_response_body(self, pieces: list[bytes]) -> None:
        """See `ResponseHandler`."""

    def on_response_progress(self) -> None:
        """See `ResponseHandler`."""

    def on_tunnel_data(self, data: bytes) -> None:
        """See `ResponseHandler`."""

    def on_replica_write_paused(self) -> None:
        """See `ResponseHandler`. The whole request was sent."""

    def on_replica_writable(self) -> None:
        """See `ResponseHandler`."""

    # Ends.

    def on_response_end(self, trailers: tuple[bytes, ...], reusable: bool, now: float) -> None:
        """Return the connection to its pool, and free the slot."""
        lease = self._lease
        if lease is None:
            return
        if reusable:
            lease.target.put(self._replica, now)
        if lease.suspect:
            self._version.lease_cache.on_answered(lease)
        self._end("response", now)

    def on_bad_response(self, error: BaseException | None) -> None:
        """Close the connection, and free the slot."""
        self._abort("closed")

    def on_replica_closed(self, error: BaseException | None, unread: bool) -> None:
        """Free the slot."""
        self._end("closed", monotonic())

    def on_fault(self, error: Exception) -> None:
        """Close the connection, and free the slot."""
        self._context.log_fault(error)
        self._abort("closed")

    def on_timeout(self) -> None:
        """Close the connection, and free the slot: the response has not come in time."""
        self._version.counters.abandoned_timeouts += 1
        self._abort("timeout")

    def close(self) -> None:
        """Close the connection, as this process is about to end. The replica may work on, so the slot is suspect."""
        lease = self._lease
        if lease is not None:
            self._replica.abort()
            now = monotonic()
            seconds = max(self._abandonment.at + self._timeouts.seconds - now, 0.0)
            self._forget("closed", now)
            self._version.return_suspect(lease, now, now - self._slot_acquired_at, seconds, kept=True)

    def _abort(self, end: str) -> None:
        self._replica.abort()
        self._end(end, monotonic())

    def _end(self, end: str, now: float) -> None:
        lease = self._lease
        if lease is not None:
            self._forget(end, now)
            self._version.release_abandoned(lease, now, now - self._slot_acquired_at)

    def _forget(self, end: str, now: float) -> None:
        self._lease = None
        self._timeouts.discard(self)
        self._context.abandoned.pop(self, None)
        self._abandonment.ended.append((now, end))


def abandon(
    context: GatewayContext, request: Request, lease: ReplicaLeases[ReplicaPool], replica: ReplicaStream, now: float
) -> bool:
    """Give up the response to `request`. The replica may continue with the request: `cancellation` tells.

    Return True if the lease was taken from the exchange, False if the exchange must release it.
    """
    version = request.version
    assert version is not None
    settings = version.settings
    if settings.cancellation == "on_close" or not (replica.is_open and replica.is_request_sent):
        handling = "closed"
        replica.abort()
    elif settings.cancellation == "none":
        handling = "kept"
    else:
        handling = "suspect"
        replica.abort()
    request.abandonment = abandonment = Abandonment(handling, now, [])
    version.counters.abandonments[handling] += 1
    if handling == "closed":
        return False
    if lease.target.health.trial is request:
        version.suspensions.on_trial_released(lease)
    if handling == "kept":
        AbandonedResponse(context, version, lease, replica, request.slot_acquired_at, abandonment)
    else:
        slot_seconds, suspect_seconds = now - request.slot_acquired_at, settings.abandoned_timeout_ms / 1000
        version.return_suspect(lease, now, slot_seconds, suspect_seconds, kept=False)
    return True
