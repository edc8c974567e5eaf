"""Pages of the admin port: `/status`, `/status.json`, `/status/events`, `/capacity/<service>`, `/explain/<id>`."""

from __future__ import annotations

import secrets
from importlib.resources import files

import orjson
from aiohttp import web

from router.overview import document
from router.overview.explain import explain
from router.overview.feed import Feed
from router.overview.inquiries import Inquiries
from router.overview.overview import Overview

_NONCE = "@NONCE@"
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class StatusRoutes:
    """Handlers; they read, and change nothing."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._feed = Feed(lambda: document.status(overview))
        self.inquiries = Inquiries(
            overview.peering.own_id,
            lambda request_id: explain(overview, request_id),
            lambda: overview.peering.links,
            overview.unreachable,
        )
        self._page = files("router.overview").joinpath("page.html").read_text("utf-8")

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Serve these pages."""
        routes.add_get("/", self._get_root)
        routes.add_get("/status", self._get_page)
        routes.add_get("/status.json", self._get_status)
        routes.add_get("/status/events", self._get_events)
        routes.add_get("/capacity/{service}", self._get_capacity)
        routes.add_get("/explain/{request_id}", self._get_explanation)

    def close(self) -> None:
        """End the live feeds, which would otherwise last as long as whoever watches, and answer no other pod."""
        self._feed.close()
        self.inquiries.close()

    async def _get_root(self, _: web.Request) -> web.Response:
        raise web.HTTPFound("status")  # relative: an API server may stand before it

    async def _get_page(self, _: web.Request) -> web.Response:
        # Nothing but this very style and script may run, wherever a name that is shown came from.
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        page = self._page.replace(_NONCE, nonce)
        headers = _HEADERS | {"Content-Security-Policy": policy}
        return web.Response(text=page, content_type="text/html", charset="utf-8", headers=headers)

    async def _get_status(self, _: web.Request) -> web.Response:
        return _json(document.status(self._overview))

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        if self._feed.is_full:
            raise web.HTTPServiceUnavailable(text="Too many watch this page.\n", headers={"Retry-After": "10"})
        response = web.StreamResponse(headers=_HEADERS | {"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = self._feed.watch()
        try:
            async for event in events:
                await response.write(event)
        except ConnectionError:
            pass  # whoever watched has gone
        finally:
            await events.aclose()
        return response

    async def _get_capacity(self, request: web.Request) -> web.Response:
        name = request.match_info["service"]
        try:
            return _json(document.capacity(self._overview, name))
        except KeyError:
            return _json({"error": "no such service"}, status=404)

    async def _get_explanation(self, request: web.Request) -> web.Response:
        explanation, pods = await self.inquiries.ask(request.match_info["request_id"])
        if explanation is None:
            why = (
                "no pod that was heard remembers this request; each pod remembers its own latest ones, and of those "
                "that just went well at most a thousand a second of each worker"
            )
            return _json({"error": why, "pods": pods}, status=404)
        return _json({**explanation, "pods": pods})


def _json(data: object, status: int = 200) -> web.Response:
    response = web.Response(
        body=orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE),
        content_type="application/json",
        status=status,
        headers=_HEADERS,
    )
    response.enable_compression()
    return response
