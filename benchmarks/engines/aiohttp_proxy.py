"""The engine "aiohttp": a simple streaming proxy with aiohttp's server and client, on uvloop.

It has no authentication, metrics or slots. ``python -m benchmarks.engines.aiohttp_proxy PORT BACKEND``.
"""

import sys
from collections.abc import Mapping

import aiohttp
import uvloop
from aiohttp import web

HOP_BY_HOP = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"})
CHUNK_BYTES = 65_536


def end_to_end(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the headers to forward, including repeated ones."""
    return [(name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP]


async def application(backend: str) -> web.Application:
    """Return an application that forwards all requests to ``backend`` (``host:port``)."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False)

    async def forward(request: web.Request) -> web.StreamResponse:
        body = request.content if request.body_exists else None
        url = f"http://{backend}{request.raw_path}"
        async with session.request(request.method, url, headers=end_to_end(request.headers), data=body) as upstream:
            response = web.StreamResponse(status=upstream.status, headers=end_to_end(upstream.headers))
            await response.prepare(request)
            async for chunk in upstream.content.iter_chunked(CHUNK_BYTES):
                await response.write(chunk)
            await response.write_eof()
            return response

    async def close(_: web.Application) -> None:
        await session.close()

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    app.on_cleanup.append(close)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(application(sys.argv[2]), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
