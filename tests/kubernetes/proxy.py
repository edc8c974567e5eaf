"""An HTTP proxy before the API server: it keeps a record of requests, and makes faults.

So a fault is the same whether the double or a real server stands behind it. It runs in a thread with an event loop
of its own; its methods are for the thread of the test.
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

from tests.kubernetes.client import Access

_CLOSING_SECONDS = 5.0
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "content-encoding"}


@dataclass(slots=True)
class Record:
    """One request that came by."""

    time: float  # time.monotonic
    method: str
    path: str
    query: dict[str, str]
    user_agent: str
    body: bytes
    status: int = 0  # 0 until answered
    warnings: list[str] = field(default_factory=list)  # of the server, such as about fields that it does not know

    @property
    def is_watch(self) -> bool:
        """Whether it follows changes."""
        return self.query.get("watch", "false").lower() not in ("false", "0")


Meant = Callable[[Record], bool]


def everything(_: Record) -> bool:
    """Every request."""
    return True


@dataclass(slots=True)
class Fault:
    """What is done to requests that are meant, instead of or before passing them on."""

    meant: Meant
    times: int | None = None  # how often; None: until it is lifted
    delay_seconds: float = 0.0
    status: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    is_event: bool = False  # the body is sent as the ERROR event of a watch
    hangs: bool = False
    hit: int = 0


def status(code: int, reason: str, message: str = "made by the proxy", **details: Any) -> dict[str, Any]:
    """A Status, as the server's errors are."""
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


class Proxy:
    """One proxy, listening on 127.0.0.1."""

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
        self._open: dict[int, tuple[web.Request, Record]] = {}
        self._faults: list[Fault] = []
        self.records: list[Record] = []

    @property
    def access(self) -> Access:
        """Where clients find it."""
        authority = self._authority.cert_pem.bytes()
        return self._upstream._replace(
            url=f"https://127.0.0.1:{self._port}", authority=authority, certificate=b"", token=""
        )

    def _run(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(20)

    def start(self) -> None:
        """Begin."""
        self._thread.start()
        self._run(self._connect())
        self._run(self._listen())

    def stop(self) -> None:
        """End, with all connections."""
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
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=self._context, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]

    async def _all_closed(self) -> None:
        """TLS of a connection that was broken off ends in turns of the loop, and with a word of the other side."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING_SECONDS):
                while len(self._selector.get_map()) > 1:  # one is the loop's own
                    await asyncio.sleep(0.001)

    async def _close(self) -> None:
        self._cut(everything)
        if self._runner:
            for connection in self._runner.server.connections if self._runner.server else ():
                if connection.transport is not None:  # one that rests
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    # Faults.

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """The server is gone: connections break, new ones are refused."""
        self._run(self._close())
        try:
            yield
        finally:
            self._run(self._listen())

    def cut(self, meant: Meant = everything) -> None:
        """Break the connections of requests under way, as a network does."""

        async def act() -> None:
            self._cut(meant)

        self._run(act())

    def _cut(self, meant: Meant) -> None:
        for request, record in list(self._open.values()):
            if meant(record) and request.transport is not None:
                request.transport.abort()

    @contextlib.contextmanager
    def fault(self, meant: Meant = everything, **what: Any) -> Iterator[Fault]:
        """Have a fault in force for a while."""
        made = Fault(meant, **what)
        self._faults.append(made)
        try:
            yield made
        finally:
            self._faults.remove(made)

    def expired(self, meant: Meant = everything, times: int | None = None) -> contextlib.AbstractContextManager[Fault]:
        """Watches that are meant are told that their version is too old, as their first event."""
        body = status(410, "Expired", "too old resource version: 1 (2)")
        return self.fault(lambda record: record.is_watch and meant(record), body=body, is_event=True, times=times)

    # Passing on.

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        record = Record(
            time.monotonic(),
            request.method,
            request.path,
            dict(request.query),
            request.headers.get("User-Agent", ""),
            body,
        )
        self.records.append(record)
        self._open[id(request)] = (request, record)
        try:
            return await self._faulty(request, record) or await self._forward(request, record)
        except (aiohttp.ClientError, ConnectionResetError):
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=502)  # nobody gets it: one of the two sides is gone
        finally:
            del self._open[id(request)]

    async def _faulty(self, request: web.Request, record: Record) -> web.StreamResponse | None:
        for fault in self._faults:
            if (fault.times is not None and fault.hit >= fault.times) or not fault.meant(record):
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
                answer = orjson.dumps(fault.body or status(fault.status, "InternalError"))
                return web.Response(
                    body=answer, status=fault.status, content_type="application/json", headers=fault.headers
                )
        return None

    async def _forward(self, request: web.Request, record: Record) -> web.StreamResponse:
        assert self._session is not None
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        target = self._upstream.url + request.raw_path
        async with self._session.request(
            request.method, target, data=record.body or None, headers=headers, allow_redirects=False
        ) as upstream:
            record.status = upstream.status
            kept = {name: value for name, value in upstream.headers.items() if name.lower() not in _HOP_BY_HOP}
            if "Content-Encoding" in upstream.headers:  # bytes pass as they are
                kept["Content-Encoding"] = upstream.headers["Content-Encoding"]
            record.warnings += upstream.headers.getall("Warning", [])
            response = web.StreamResponse(status=upstream.status, headers=kept)
            await response.prepare(request)
            async for piece in upstream.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response


@contextlib.contextmanager
def proxying(upstream: Access) -> Iterator[Proxy]:
    """A proxy for as long as it is needed."""
    proxy = Proxy(upstream)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
