"""`/logging` of the admin port: what is logged, and the way to change it while the router runs.

    curl -X POST 'http://127.0.0.1:9090/logging?log_level=debug&access_log=0.01'

A change lasts until the router ends, or its file says something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from router.settings import parse_router_values
from router.values import SettingsError


class WhatIsLogged(NamedTuple):
    """The two settings of that name."""

    log_level: str
    access_log: float


class LoggingRoutes:
    """Tells, and changes, what is logged."""

    def __init__(self, now: Callable[[], WhatIsLogged], change: Callable[[WhatIsLogged], None]) -> None:
        self._now = now
        self._change = change

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Serve it."""
        routes.add_get("/logging", self._get)
        routes.add_post("/logging", self._post)

    async def _get(self, _: web.Request) -> web.Response:
        return web.json_response(self._now()._asdict())

    async def _post(self, request: web.Request) -> web.Response:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="A page of another origin may not change what is logged.\n")
        try:
            values = parse_router_values(dict(request.query), lambda _: "POST /logging")
            if unknown := values.keys() - WhatIsLogged._fields:
                name = min(unknown)
                raise SettingsError(name, request.query[name], "not to be changed here", "POST /logging")
        except SettingsError as error:
            return web.json_response({"error": str(error)}, status=400)
        self._change(self._now()._replace(**values))
        return web.json_response(self._now()._asdict())
