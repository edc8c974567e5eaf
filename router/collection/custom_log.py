"""Custom logging: receives what entry scripts log with azureml-ai-monitoring 1.0, over HTTP.

A local replica has a token in its environment, which its requests carry as a user name: the library puts the variable
AZUREML_MDC_HOST into a URL. A pod is recognized by its address. Others are refused.
"""

from __future__ import annotations

import base64
import binascii
import re
import socket
import time
import uuid
from collections.abc import Mapping

from aiohttp import web

from router.collection.event_log import EventLog
from router.collection.events import Event, EventKey
from router.collection.messages import LogSources
from router.model import data_collection
from router.model.data_collection import DataCollector
from router.model.services import VersionKey

_PATH = "/modeldata/log"
_TYPE_PREFIX = "azureml.inference."
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_EXTRA = {
    "ce-model-version": "modelversion",
    "ce-collect-data-type": "collectdatatype",
    "ce-agent": "agent",
}
_MAX_ATTRIBUTE_CHARACTERS = 256
_STOP_SECONDS = 0.5


class CustomLogServer:
    """The HTTP server for entry scripts. It listens while a version has collections of its entry script."""

    def __init__(self, sock: socket.socket, log: EventLog, max_bytes: int) -> None:
        """`sock` is bound. `max_bytes`: of one body."""
        self.sources = LogSources({}, {})
        self.collectors: Mapping[VersionKey, DataCollector] = {}
        self._socket = sock
        self._log = log
        self._max_bytes = max_bytes
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen. Does nothing the second time. Raises OSError."""
        if self._runner is None:
            application = web.Application()
            application.router.add_post(_PATH, self._receive)
            self._runner = runner = web.AppRunner(application, access_log=None, shutdown_timeout=_STOP_SECONDS)
            await runner.setup()
            await web.SockSite(runner, self._socket).start()

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _source_of(self, request: web.Request) -> VersionKey | None:
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            try:
                token = base64.b64decode(encoded, validate=True).decode().partition(":")[0]
            except (binascii.Error, UnicodeDecodeError):
                return None
            return self.sources.tokens.get(token)
        return self.sources.hosts.get((request.remote or "").removeprefix("::ffff:"))

    async def _receive(self, request: web.Request) -> web.Response:
        version = self._source_of(request)
        if version is None:
            return web.Response(status=403, text="unknown replica")
        collector = self.collectors.get(version)
        name = request.headers.get("ce-type", "").removeprefix(_TYPE_PREFIX).lower()
        collection = collector.collection(name) if collector is not None else None
        if collector is None or collection is None or name in (data_collection.REQUEST, data_collection.RESPONSE):
            return web.Response(status=404, text="this collection is not enabled")
        key = EventKey(*version, name)
        event_id, logged_at = str(uuid.uuid4()), _time(request.headers.get("ce-time", ""))
        content_type = request.headers.get("Content-Type", "")
        body = self._log.new_body(event_id, key, collector, logged_at, content_type)
        try:
            async for piece in request.content.iter_any():
                body.add(piece)
                if body.size > self._max_bytes:
                    raise web.HTTPRequestEntityTooLarge(self._max_bytes, body.size)
        except BaseException:
            body.truncate()
            raise
        given = request.headers.get("ce-x-request-id", "")
        event = Event(
            key=key, id=event_id, time=logged_at, request_id=given if _REQUEST_ID.fullmatch(given) else event_id,
            content_type=content_type, size=0 if body.truncated else body.size, total=body.size,
            extra={
                attribute: request.headers[header][:_MAX_ATTRIBUTE_CHARACTERS]
                for header, attribute in _EXTRA.items() if header in request.headers
            },
        )  # fmt: skip
        self._log.add(event, collector, body, time.monotonic())
        return web.Response(status=200)


def _time(text: str) -> float:
    """Return the time of an event, in seconds since the epoch; now if it is not in the last day."""
    now = time.time()
    seconds = float(text) if text.isascii() and text.isdigit() and len(text) < 12 else now
    return seconds if now - 86_400 < seconds < now + 60 else now
