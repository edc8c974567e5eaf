"""The admin port: an HTTP server for operators, the kubelet and Prometheus, separate from the clients' port.

Requests are rare here, so aiohttp serves them. The handlers in this file only call the functions given to
`AdminServer`. Other parts add routes to `AdminServer.routes` before `start()`.

Anybody who reaches the port may open connections. So a connection without a complete request is closed after
`_IDLE_SECONDS`, and so is one whose client does not read its response for `SEND_SECONDS`. At `MAX_CONNECTIONS` a new
connection replaces the one that has been idle for longest: probes and scrapes send their request at once, so they get
through. `HostCheck` refuses pages of foreign names (DNS rebinding).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from operator import itemgetter

from aiohttp import web

from router.net.host_check import HostCheck
from router.net.listen import bind_listener, listen_error
from router.telemetry.metrics import MetricsSnapshot, render_metrics

MAX_CONNECTIONS = 256
"""Maximum number of connections. It is well above the number of live feeds (`status_feed.MAX_SUBSCRIBERS`), which keep
theirs busy."""

SEND_SECONDS = 30.0
"""Maximum time to send a response. Longer than the timeout of a scrape, which is 10 s by default."""

_IDLE_SECONDS = 20.0
"""Maximum time from the start of a connection, or the end of a response, to the end of the next request's head."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_PROBE_PATHS = frozenset(("/healthz", "/readyz"))
"""The kubelet and load balancers may send any Host with their probes. The responses are no secret."""

_SHUTDOWN_SECONDS = 1.0
"""Timeout for responses in progress at `stop()`. The slowest response, a scrape of 1,000 services, takes less."""


class AdminServer:
    """Serves `/metrics`, `/healthz` and `/readyz`, and the routes added to `routes`."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[], MetricsSnapshot],
        unmet_conditions: Callable[[], Sequence[str]],
        warnings: Callable[[], Sequence[str]] = tuple,
        host_names: Sequence[str] = (),
        idle_seconds: float = _IDLE_SECONDS,
        send_seconds: float = SEND_SECONDS,
    ) -> None:
        """`unmet_conditions` returns why the router is not ready, one line for each reason; empty if it is ready.
        `warnings` returns further lines of `/readyz` for a ready router. `host_names` are those of `HostCheck`. Port 0
        picks a free port.

        All functions are called in the event loop and must not block.
        """
        self._host = host
        self._port = port
        self._metrics = metrics
        self._unmet_conditions = unmet_conditions
        self._warnings = warnings
        self._host_check = HostCheck(host_names)
        self._send_seconds = send_seconds
        self._idle_seconds = idle_seconds
        self._idle_since: dict[web.RequestHandler, float | None] = {}  # by connection; None: a request is in progress
        self._idle_timer: asyncio.TimerHandle | None = None
        app = web.Application(middlewares=[self._track_and_send, self._check_host])
        app.on_response_prepare.append(_remove_server_header)
        self.routes = app.router
        self.routes.add_get("/metrics", self._get_metrics)
        self.routes.add_get("/healthz", self._get_healthz)
        self.routes.add_get("/readyz", self._get_readyz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)
        self._listener: asyncio.Server | None = None  # while started

    @property
    def port(self) -> int:
        """The port of the listener; the configured port before `start()`."""
        return int(self._listener.sockets[0].getsockname()[1]) if self._listener is not None else self._port

    async def start(self) -> None:
        """Start to listen. Raises OSError with the name of the setting if the address cannot be bound."""
        await self._runner.setup()
        try:
            sock = bind_listener(self._host, self._port)
        except OSError as error:
            await self._runner.cleanup()
            raise listen_error("admin_port", self._port, self._host, error, host_setting="admin_host") from error
        self._listener = await asyncio.get_running_loop().create_server(self._make_connection, sock=sock)
        self._close_idle_connections()

    async def stop(self) -> None:
        """Close the listener and all connections. Does nothing if not started."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        await self._runner.cleanup()

    # Connections.

    def _make_connection(self) -> asyncio.BaseProtocol:
        """Return the protocol of a new connection. Close the one that has been idle for longest if there are too many;
        refuse the new one if none is idle."""
        server = self._runner.server
        assert server is not None  # it exists while the port is open
        connections = [each for each in server.connections if each.transport is not None]  # not those being closed
        if len(connections) >= MAX_CONNECTIONS:
            idle = [(since, each) for each in connections if (since := self._idle_since.get(each)) is not None]
            if not idle:
                return _RefusedConnection()
            _abort(min(idle, key=itemgetter(0))[1])
        connection = server()
        self._idle_since[connection] = asyncio.get_running_loop().time()
        return connection

    def _close_idle_connections(self) -> None:
        """Close the connections that have been idle for too long. Repeat this until the server stops."""
        loop, server = asyncio.get_running_loop(), self._runner.server
        now, connections = loop.time(), () if server is None else server.connections
        self._idle_since = {each: self._idle_since.get(each, now) for each in connections}
        for connection, since in self._idle_since.items():
            if since is not None and now - since >= self._idle_seconds:
                _abort(connection)
        self._idle_timer = loop.call_later(self._idle_seconds / 4, self._close_idle_connections)

    @web.middleware
    async def _track_and_send(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Note that the connection is busy, and send the response within a bounded time."""
        self._idle_since[request.protocol] = None
        try:
            response = await handler(request)
            await self._send(request, response)
            return response
        except web.HTTPException as error:
            await self._send(request, error)
            raise
        finally:
            self._idle_since[request.protocol] = asyncio.get_running_loop().time()

    @web.middleware
    async def _check_host(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if request.path not in _PROBE_PATHS and (problem := self._host_check.problem(request.headers)) is not None:
            raise web.HTTPMisdirectedRequest(text=problem + "\n")
        return await handler(request)

    async def _send(self, request: web.Request, response: web.StreamResponse) -> None:
        """Send a response, until the kernel has all of it. aiohttp then finds nothing left to send.

        A lost connection is no error: aiohttp ends it.
        """
        with contextlib.suppress(ConnectionError):
            await send_in_time(request, _write(request, response), self._send_seconds)

    # Handlers.

    async def _get_metrics(self, request: web.Request) -> web.Response:
        snapshot = self._metrics()
        accept = request.headers.get("Accept", "")
        # For thousands of versions the text has megabytes. A thread renders it to keep the event loop free.
        body, content_type = await asyncio.to_thread(render_metrics, snapshot, accept)
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    async def _get_healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readyz(self, _: web.Request) -> web.Response:
        unmet = self._unmet_conditions()
        if unmet:
            return web.Response(status=503, text="".join(f"{condition}\n" for condition in unmet))
        return web.Response(text="".join(f"{line}\n" for line in ("ok", *self._warnings())))


def _abort(connection: web.RequestHandler) -> None:
    if connection.transport is not None:
        connection.transport.abort()


class _RefusedConnection(asyncio.Protocol):
    """Closes its connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def send_in_time(request: web.Request, sending: Awaitable[None], seconds: float = SEND_SECONDS) -> None:
    """Await `sending`. Abort the connection, and raise ConnectionError, if the client does not read for `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await sending
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionAbortedError("the client did not read the response in time") from None


async def _write(request: web.Request, response: web.StreamResponse) -> None:
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=0)  # so that `drain` waits for the last byte
    await response.prepare(request)
    await response.write_eof()
    await request.writer.drain()


async def _remove_server_header(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop("Server", None)
