"""Routes of the admin port: `/status`, `/status.json`, `/status/events`, `/status/timeline`, `/status/requests`,
`/capacity/<service>`, `/config`, `/explain/<id>`."""

from __future__ import annotations

import secrets
from importlib.resources import files

import orjson
from aiohttp import web

from router.admin.config_document import config_document
from router.admin.explain import explain
from router.admin.explain_broker import ExplainBroker
from router.admin.overview import Overview
from router.admin.server import send_in_time
from router.admin.status import capacity_document, requests_document, status_document, timeline_document
from router.admin.status_feed import StatusFeed
from router.admin.timeline import RANGES

_NONCE = "@NONCE@"
_SCRIPTS = ("base.js", "plots.js", "services.js", "detail.js", "main.js")
_MAX_TIMELINES = 100
_MAX_REQUESTS = 20
_MAX_COMPRESSED_HERE = 16_384  # bytes; a thread compresses larger responses
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}


class StatusRoutes:
    """Handlers that read the state of the router. They change nothing."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._feed = StatusFeed(lambda: status_document(overview))
        self.explain_broker = ExplainBroker(
            overview.ledger_dispatcher.own_id,
            lambda request_id: explain(overview, request_id),
            lambda: overview.ledger_dispatcher.links,
            overview.unreachable_peers,
        )
        self._page = _read_page()

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Register the handlers."""
        routes.add_get("/", self._get_root)
        routes.add_get("/status", self._get_page)
        routes.add_get("/status.json", self._get_status)
        routes.add_get("/status/events", self._get_events)
        routes.add_get("/status/timeline", self._get_timeline)
        routes.add_get("/status/requests", self._get_requests)
        routes.add_get("/capacity/{service:.+}", self._get_capacity)
        routes.add_get("/config", self._get_config)
        routes.add_get("/explain/{request_id}", self._get_explanation)

    def close(self) -> None:
        """End the live feeds, which would otherwise last until browsers close them, and cancel answers to other
        pods."""
        self._feed.close()
        self.explain_broker.close()

    async def _get_root(self, _: web.Request) -> web.Response:
        raise web.HTTPFound("status")  # relative, since the API server may proxy this port under another path

    async def _get_page(self, _: web.Request) -> web.Response:
        # Only the page's own style and script may run, even if a name of a service contains HTML.
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        page = self._page.replace(_NONCE, nonce)
        headers = _HEADERS | {"Content-Security-Policy": policy}
        return web.Response(text=page, content_type="text/html", charset="utf-8", headers=headers)

    async def _get_status(self, _: web.Request) -> web.Response:
        return _json(status_document(self._overview))

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        if self._feed.is_full:
            raise web.HTTPServiceUnavailable(text="Too many open status pages.\n", headers={"Retry-After": "10"})
        response = web.StreamResponse(headers=_HEADERS | {"Content-Type": "text/event-stream"})
        await response.prepare(request)
        events = self._feed.subscribe()
        try:
            async for event in events:
                await send_in_time(request, response.write(event))
        except ConnectionError:
            pass  # the client closed the connection, or does not read
        finally:
            await events.aclose()
        return response

    async def _get_timeline(self, request: web.Request) -> web.Response:
        """Parameters: `range`, and `service`, which may be repeated. Unknown services are left out."""
        range_ = request.query.get("range", "hour")
        if range_ not in RANGES:
            return _json({"error": f"range must be one of {', '.join(RANGES)}"}, status=400)
        names = request.query.getall("service", [])[:_MAX_TIMELINES]
        return _json(await timeline_document(self._overview, range_, names))

    async def _get_requests(self, request: web.Request) -> web.Response:
        name = request.query.get("service", "")
        if name not in self._overview.serving.services:
            return _json({"error": "no such service"}, status=404)
        return _json(requests_document(*await self._overview.workers.list_requests(name, _MAX_REQUESTS)))

    async def _get_capacity(self, request: web.Request) -> web.Response:
        name = request.match_info["service"]
        try:
            return _json(capacity_document(self._overview, name))
        except KeyError:
            return _json({"error": "no such service"}, status=404)

    async def _get_config(self, request: web.Request) -> web.Response:
        """Parameter: `service`."""
        try:
            return _json(config_document(self._overview, request.query.get("service")))
        except KeyError:
            return _json({"error": "no such service", "services": sorted(self._overview.serving.services)}, status=404)

    async def _get_explanation(self, request: web.Request) -> web.Response:
        explanation, pods = await self.explain_broker.ask(request.match_info["request_id"])
        if explanation is None:
            error = (
                "no pod that answered remembers this request; each pod remembers only its latest requests, and each "
                "worker at most a thousand successful ones per second"
            )
            return _json({"error": error, "pods": pods}, status=404)
        return _json({**explanation, "pods": pods})


def _read_page() -> str:
    """Return the page as one file: it loads nothing else."""
    page, style, *scripts = [
        files("router.admin").joinpath("page", name).read_text("utf-8")
        for name in ("index.html", "style.css", *_SCRIPTS)
    ]
    return page.replace("@STYLE@", style).replace("@SCRIPT@", "\n".join(scripts))


def _json(data: object, status: int = 200) -> web.Response:
    response = web.Response(
        body=orjson.dumps(data, option=orjson.OPT_APPEND_NEWLINE),
        content_type="application/json",
        status=status,
        headers=_HEADERS,
        zlib_executor_size=_MAX_COMPRESSED_HERE,
    )
    response.enable_compression()
    return response
