"""The objects that all requests of one gateway share: settings, routes, counters and logs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

from router.collection.outbox import CollectionOutbox
from router.config.router import RouterSettings
from router.gateway.authentication import Authentication
from router.gateway.buffers import BufferBudget
from router.gateway.client_registry import ClientConnectionControl, ClientRegistry
from router.gateway.connection_limits import ConnectionLimits
from router.gateway.ledger_outbox import LedgerOutbox
from router.gateway.request_reader import RequestLimits
from router.gateway.routing_table import RoutingTable
from router.gateway.turns import TurnQueue
from router.http.forwarding import TrustedProxies
from router.http.header_rules import request_rules
from router.http.ids import RequestIds
from router.telemetry.access_log import AccessLog
from router.telemetry.counters import GatewayCounters
from router.telemetry.journal import Journal
from router.telemetry.log import event
from router.telemetry.tracing import Tracer

_log = logging.getLogger("router.gateway")

_WARNING_INTERVAL_SECONDS: Final = 60.0


class Http2Client(Protocol):
    """A connection of an HTTP/2 client. This module and HTTP/1.1 do not depend on it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start a connection whose client has chosen HTTP/2 by ALPN."""

    def take_over(self, transport: asyncio.Transport, data: bytes, previous: ClientConnectionControl) -> None:
        """Replace a connection of HTTP/1.1 whose client has sent the preface of HTTP/2. `data` is all that it sent."""


Http2ClientFactory = Callable[["GatewayContext", ClientRegistry, bool], Http2Client]
"""Arguments: the context, the registry, and whether the connection uses TLS."""


class GatewayContext:
    """The shared parts of one gateway, for its connections and exchanges."""

    __slots__ = (
        "_next_tls_warning_at", "abandoned", "access_log", "authentication", "buffers", "collection",
        "connection_limits", "counters", "http2_client", "ids", "journal", "lame_duck", "outbox", "proxy_request_rules",
        "request_limits", "request_rules", "routes", "server_timing", "settings", "tracer", "trusted_proxies", "turns",
        "wall_clock",
    )  # fmt: skip

    def __init__(
        self,
        settings: RouterSettings,
        *,
        routes: RoutingTable,
        outbox: LedgerOutbox,
        authentication: Authentication,
        access_log: AccessLog,
        wall_clock: Callable[[], float],
        collection: CollectionOutbox | None = None,
    ) -> None:
        """`wall_clock` returns seconds since the epoch. `collection` is None without a collector."""
        self.settings = settings
        self.request_limits = RequestLimits(settings)
        self.server_timing: bool = settings.server_timing
        self.routes = routes
        self.outbox = outbox
        self.authentication = authentication
        self.access_log = access_log
        self.tracer: Tracer | None = None  # while requests may be traced
        self.wall_clock = wall_clock
        self.collection = collection
        self.ids = RequestIds()
        self.trusted_proxies = TrustedProxies(settings.trusted_proxies)
        self.request_rules = request_rules()
        self.proxy_request_rules = request_rules(trusted_proxy=True)
        self.counters = GatewayCounters()
        self.buffers = BufferBudget(
            self.counters,
            limit=settings.buffer_budget_bytes,
            max_request_bytes=settings.request_buffer_bytes,
            max_response_bytes=settings.response_buffer_bytes,
        )
        self.turns = TurnQueue()
        self.http2_client: Http2ClientFactory | None = None
        """Makes connections of HTTP/2 clients; None if `http2` is off."""
        self.connection_limits = ConnectionLimits(settings.max_connection_age_seconds, settings.max_connection_requests)
        self.journal = Journal()
        self.abandoned: dict[Any, None] = {}
        """Each `AbandonedResponse` that has not ended."""
        self._next_tls_warning_at = 0.0
        self.lame_duck = False
        """True if responses ask clients to send no more requests over their connections (`Connection: close`)."""

    def change_settings(self, settings: RouterSettings) -> None:
        """Apply changed settings: those with the mark `dynamic`. Connections keep their age and number of requests."""
        self.settings = settings
        self.request_limits.change(settings)
        self.server_timing = settings.server_timing
        self.buffers.change(
            limit=settings.buffer_budget_bytes,
            max_request_bytes=settings.request_buffer_bytes,
            max_response_bytes=settings.response_buffer_bytes,
        )
        self.connection_limits = ConnectionLimits(settings.max_connection_age_seconds, settings.max_connection_requests)

    def begin_lame_duck(self) -> None:
        """Ask clients in each response from now on to send no more requests over their connections."""
        self.lame_duck = True

    def log_tls_on_http_port(self, address: bytes) -> None:
        """Log that a client uses TLS where plain HTTP is served; at most once in `_WARNING_INTERVAL_SECONDS`."""
        now = monotonic()
        if now >= self._next_tls_warning_at:
            self._next_tls_warning_at = now + _WARNING_INTERVAL_SECONDS
            event(_log, logging.WARNING, "TLS was sent to a port for plain HTTP", client=address.decode())

    def log_fault(self, error: BaseException) -> None:
        """Log a fault of the router. The caller responds to the request with 500."""
        event(_log, logging.ERROR, "request failed through a fault of the router", exception=error)
