"""An HTTP proxy in front of the API server that records requests and injects faults.

Faults are the same for the stand-in and for a real API server. The proxy runs in a thread with its own event loop.
Call its methods from the thread of the test.
"""

import asyncio
import contextlib
import selectors
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import trustme
from aiohttp import web

from tests.kube_standin.client import Access

_CLOSE_SECONDS = 5.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"}


@dataclass(slots=True)
class RecordedRequest:
    """One request that passed the proxy."""

    time: float  # time.monotonic
    method: str
    path: str
    query: dict[str, str]
    user_agent: str
    body: bytes
    status: int = 0  # 0 until there is a response
    warnings: list[str] = field(default_factory=list)  # the response's Warning headers, such as for unknown fields

    @property
    def is_watch(self) -> bool:
        """True for a watch."""
        return self.query.get("watch", "false").lower() not in ("false", "0")


Matcher = Callable[[RecordedRequest], bool]


def every_request(_: RecordedRequest) -> bool:
    """Match all requests."""
    return True


@dataclass(slots=True)
class Fault:
    """What happens to matching requests before they are forwarded, or instead of it."""

    matches: Matcher
    times: int | None = None  # None: until the fault ends
    delay_seconds: float = 0.0
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    is_event: bool = False  # send the body as the ERROR event of a watch
    hangs: bool = False
    hit: int = 0  # requests that had this fault


def failure_status(code: int, reason: str, message: str = "injected by the proxy", **details: Any) -> dict[str, Any]:
    """Return a `Status` object like those of the server's errors."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }


class FaultProxy:
    """A proxy that listens on 127.0.0.1."""

    def __init__(self, upstream: Access) -> None:
        self._upstream = upstream
        self._authority = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert("127.0.0.1").configure_cert(self._context)
        self._selector = selectors.DefaultSelector()
        self._loop = asyncio.SelectorEventLoop(self._selector)
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None
        self._port = 0
        self._in_flight: dict[int, tuple[web.Request, RecordedRequest]] = {}
        self._faults: list[Fault] = []
        self.records: list[RecordedRequest] = []

    @property
    def access(self) -> Access:
        """The proxy's address and certificate authority, without credentials."""
        authority = self._authority.cert_pem.bytes()
        return self._upstream._replace(
            url=f"https://127.0.0.1:{self._port}", authority=authority, certificate=b"", token=""
        )

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def start(self) -> None:
        """Start the thread and listen."""
        self._thread.start()
        self._run(self._connect())
        self._run(self._listen())

    def stop(self) -> None:
        """Close all connections and end the thread."""
        self._run(self._close())
        if self._session:
            self._run(self._session.close())
        self._run(self._all_closed())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(self) -> None:
        connector = aiohttp.TCPConnector(ssl=self._upstream._replace(certificate=b"").context(), limit=0)
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
        )

    async def _listen(self) -> None:
        app = web.Application(client_max_size=16 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._context, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def _all_closed(self) -> None:
        """Wait for aborted TLS connections, which close in later loop iterations, after the peer's close_notify."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                while len(self._selector.get_map()) > 1:  # one is the loop's own
                    await asyncio.sleep(0.001)

    async def _close(self) -> None:
        self._abort(every_request)
        if self._runner:
            for connection in self._runner.server.connections if self._runner.server else ():
                if connection.transport is not None:  # an idle connection
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    # Faults.

    @contextlib.contextmanager
    def outage(self) -> Iterator[None]:
        """Take the server away: close all connections and refuse new ones."""
        self._run(self._close())
        try:
            yield
        finally:
            self._run(self._listen())

    def break_connections(self, matches: Matcher = every_request) -> None:
        """Abort the connections of requests in flight, like a network failure."""

        async def abort() -> None:
            self._abort(matches)

        self._run(abort())

    def _abort(self, matches: Matcher) -> None:
        for request, record in list(self._in_flight.values()):
            if matches(record) and request.transport is not None:
                request.transport.abort()

    @contextlib.contextmanager
    def fault(self, matches: Matcher = every_request, **fields: Any) -> Iterator[Fault]:
        """Inject a fault inside the `with` block. `fields` are those of `Fault`."""
        fault = Fault(matches, **fields)
        self._faults.append(fault)
        try:
            yield fault
        finally:
            self._faults.remove(fault)

    def expire_watches(
        self, matches: Matcher = every_request, times: int | None = None
    ) -> contextlib.AbstractContextManager[Fault]:
        """Let matching watches start with the error that their resource version is too old."""
        body = failure_status(410, "Expired", "too old resource version: 1 (2)")
        return self.fault(lambda record: record.is_watch and matches(record), body=body, is_event=True, times=times)

    # Forwarding.

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        record = RecordedRequest(
            time.monotonic(),
            request.method,
            request.path,
            dict(request.query),
            request.headers.get("User-Agent", ""),
            body,
        )
        self.records.append(record)
        self._in_flight[id(request)] = (request, record)
        try:
            return await self._faulty_response(record) or await self._forward(request, record)
        except (aiohttp.ClientError, ConnectionResetError):
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)  # never sent: the connection is closed
        finally:
            del self._in_flight[id(request)]

    async def _faulty_response(self, record: RecordedRequest) -> web.StreamResponse | None:
        for fault in self._faults:
            if (fault.times is not None and fault.hit >= fault.times) or not fault.matches(record):
                continue
            fault.hit += 1
            if fault.hangs:
                await asyncio.Event().wait()
            await asyncio.sleep(fault.delay_seconds)
            if fault.is_event:
                record.status = 200
                event = orjson.dumps({"type": "ERROR", "object": fault.body}) + b"\n"
                return web.Response(body=event, content_type="application/json")
            if fault.status:
                record.status = fault.status
                body = orjson.dumps(fault.body or failure_status(fault.status, "InternalError"))
                return web.Response(
                    body=body, status=fault.status, content_type="application/json", headers=fault.headers
                )
        return None

    async def _forward(self, request: web.Request, record: RecordedRequest) -> web.StreamResponse:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        target = self._upstream.url + request.raw_path
        async with self._session.request(
            request.method, target, data=record.body or None, headers=headers, allow_redirects=False
        ) as upstream:
            record.status = upstream.status
            headers = {name: value for name, value in upstream.headers.items() if name.lower() not in _HOP_BY_HOP}
            if "Content-Encoding" in upstream.headers:  # the body is forwarded without decoding
                headers["Content-Encoding"] = upstream.headers["Content-Encoding"]
            record.warnings += upstream.headers.getall("Warning", [])
            response = web.StreamResponse(status=upstream.status, headers=headers)
            await response.prepare(request)
            async for piece in upstream.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


@contextlib.contextmanager
def running_fault_proxy(upstream: Access) -> Iterator[FaultProxy]:
    """Run a proxy inside the `with` block."""
    proxy = FaultProxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
