"""The admin port: what operators, the kubelet and Prometheus ask, away from the clients' port.

Requests are rare here, so aiohttp serves. Handlers only read: what they tell comes from the callables they are given.
Who puts the parts together may add routes to `AdminServer.routes` before `start()`.
"""

import asyncio
import os
from collections.abc import Callable, Sequence

from aiohttp import web

from router.telemetry.metrics import MetricsView, exposition

_SHUTDOWN_SECONDS = 1.0
"""What open answers may take at `stop()`: the longest, a scrape of 1,000 services, takes less."""


class AdminPortError(OSError):
    """The admin port cannot be listened on; `str()` is one line that names the setting."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(
            f"admin_port: {port} cannot be listened on at {host}: {reason}; "
            "allowed: a free port from 1 to 65535 of an address of this machine, 0 for any free port"
        )


class AdminServer:
    """Serves `/metrics`, `/healthz` and `/readyz`, and what else is added to `routes`."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[], MetricsView],
        ready: Callable[[], Sequence[str]],
        notes: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        """`ready` tells the conditions that are not met, one line each; none means ready. `notes` tells what is wrong
        all the same. Port 0: any free one.

        All callables are called on the event loop and must not wait.
        """
        self._host = host
        self._port = port
        self._metrics = metrics
        self._ready = ready
        self._notes = notes
        app = web.Application()
        app.on_response_prepare.append(_without_banner)
        self.routes = app.router
        self.routes.add_get("/metrics", self._get_metrics)
        self.routes.add_get("/healthz", self._get_healthz)
        self.routes.add_get("/readyz", self._get_readyz)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_SECONDS)

    @property
    def port(self) -> int:
        """The port that is listened on; before `start()` the one that was asked for."""
        addresses = self._runner.addresses
        return int(addresses[0][1]) if addresses else self._port

    async def start(self) -> None:
        """Listen. Raises AdminPortError when the port is taken, forbidden or not of this machine."""
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise AdminPortError(self._host, self._port, _reason(error)) from error

    async def stop(self) -> None:
        """Stop listening and close what is open. Does nothing when not started."""
        await self._runner.cleanup()

    async def _get_metrics(self, request: web.Request) -> web.Response:
        view = self._metrics()
        accept = request.headers.get("Accept", "")
        # Thousands of versions make a text of megabytes: the event loop goes on meanwhile.
        body, content_type = await asyncio.to_thread(exposition, view, accept)
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    async def _get_healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _get_readyz(self, _: web.Request) -> web.Response:
        unmet = self._ready()
        if unmet:
            return web.Response(status=503, text="".join(f"{condition}\n" for condition in unmet))
        return web.Response(text="".join(f"{line}\n" for line in ("ok", *self._notes())))


async def _without_banner(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop("Server", None)


def _reason(error: OSError) -> str:
    """Why, in words that do not differ between event loops; the numbers of resolver errors are negative."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)
