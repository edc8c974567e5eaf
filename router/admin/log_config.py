"""`/logging` of the admin port: shows the log configuration and changes it at run time.

    curl -X POST 'http://127.0.0.1:9090/logging?log_level=debug&access_log=0.01'

A change lasts until the router restarts or its settings file changes these settings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from aiohttp import web

from router.config.router import parse_router_values
from router.config.schema import SettingsError


class LogConfig(NamedTuple):
    """The settings `log_level` and `access_log`."""

    log_level: str
    access_log: float


class LogConfigRoutes:
    """Handlers of `/logging`."""

    def __init__(self, current: Callable[[], LogConfig], change: Callable[[LogConfig], None]) -> None:
        """`current` returns the log configuration in effect, `change` replaces it."""
        self._current = current
        self._change = change

    def add_to(self, routes: web.UrlDispatcher) -> None:
        """Register the handlers."""
        routes.add_get("/logging", self._get)
        routes.add_post("/logging", self._post)

    async def _get(self, _: web.Request) -> web.Response:
        return web.json_response(self._current()._asdict())

    async def _post(self, request: web.Request) -> web.Response:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="A page of another origin must not change the log configuration.\n")
        try:
            values = parse_router_values(dict(request.query), lambda _: "POST /logging")
            if unknown := values.keys() - LogConfig._fields:
                name = min(unknown)
                raise SettingsError(name, request.query[name], "cannot be changed here", "POST /logging")
        except SettingsError as error:
            return web.json_response({"error": str(error)}, status=400)
        self._change(self._current()._replace(**values))
        return web.json_response(self._current()._asdict())
