"""HTTP client of the API server: JSON requests, typed errors, watches line by line.

Objects stay plain JSON. A client that lists thousands of pods would spend most of its time and memory on typed models
of every field. Does not contain: which requests are sent, and when they are retried.
"""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from types import MappingProxyType
from typing import Any

import aiohttp
import orjson

from router import __version__
from router.cluster.kubernetes.credentials import Credentials
from router.net.backoff import Backoff

FIELD_MANAGER = "azureml-fe"
"""The field manager of writes by commands. That of a router has the name of its release, see `field_manager_of`."""
_MAX_FIELD_MANAGER = 128  # characters, a limit of the API server
MERGE_PATCH = "application/merge-patch+json"
WRITE_SECONDS = 4.0
"""Timeout of a write. A leader stops writing at least this time before another router may start to write."""
_READ_SECONDS = 30.0
_CONNECT_SECONDS = 3.0
# The kernel detects the loss of the API server after 10 + 3 * 5 s. Bookmarks are less frequent, and not guaranteed.
_TCP_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

FIRST_RETRY_SECONDS = 0.2
MAX_RETRY_SECONDS = 10.0

JsonObject = dict[str, Any]


def api_backoff(random: Callable[[], float] = random.random) -> Backoff:
    """Return the backoff between retries of a failed request. `random` returns a number from 0 to 1."""
    return Backoff(FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, jitter=0.5, random=random)


class ApiUnreachable(OSError):
    """No response arrived, or one that does not come from an API server."""


class ApiError(Exception):
    """The API server responded with an error. `reason` is the `Status.reason`, for example `NotFound`, `Conflict`,
    `Forbidden` or `Expired`. `retry_after` is in seconds, 0 if the response has no `Retry-After`."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


def field_manager_of(release: str) -> str:
    """Return the field manager under which the API server records the writes of a release of the router."""
    manager = f"{FIELD_MANAGER}/{release}"
    if len(manager) > _MAX_FIELD_MANAGER:
        manager = f"{FIELD_MANAGER}/{hashlib.sha256(release.encode()).hexdigest()}"
    return manager


class ApiClient:
    """A client of one API server. The keys of `request_counts` are verb, resource and status (0 for no response)."""

    def __init__(self, credentials: Credentials, field_manager: str = FIELD_MANAGER) -> None:
        """`field_manager` is the name under which the API server records the writes of this client."""
        self._credentials = credentials
        self.field_manager = field_manager
        self._session: aiohttp.ClientSession | None = None
        self.request_counts: Counter[tuple[str, str, int]] = Counter()

    async def close(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: JsonObject | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> JsonObject:
        """Send a request and return the object in the response. After a 401, renew the credentials and retry once.

        Raises `ApiError` and `ApiUnreachable`.
        """
        seconds = _READ_SECONDS if method == "GET" else WRITE_SECONDS
        if body is not None:
            params = {"fieldManager": self.field_manager, **(params or {})}
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        for is_last in (False, True):
            try:
                async with await self._send(method, path, params, body, content_type, limits, headers) as response:
                    content = await response.read()
                    self._count(method, path, params, response.status)
                    if response.status == 401 and not is_last:
                        await self._credentials.renew()
                        continue
                    return _parse(response, content)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._count(method, path, params, 0)
                raise await self._unreachable(error) from error
        raise AssertionError("the last attempt returns or raises")

    async def watch(self, path: str, params: Mapping[str, str], seconds: float) -> AsyncGenerator[bytes]:
        """Yield the lines of a watch, for at most `seconds`. First yield an empty line, when the API server has
        accepted the watch.

        Raises `ApiError` and `ApiUnreachable`.
        """
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        try:
            async with await self._send("GET", path, params, None, "", limits) as response:
                self._count("GET", path, params, response.status)
                if response.status != 200:
                    if response.status == 401:
                        await self._credentials.renew()
                    _parse(response, await response.read())
                _enable_tcp_keep_alive(response)
                yield b""
                partial = bytearray()
                async for chunk in response.content.iter_any():
                    *lines, last = chunk.split(b"\n")
                    for line in lines:
                        yield bytes(partial) + line if partial else line
                        partial.clear()
                    partial += last
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise await self._unreachable(error) from error

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: JsonObject | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> aiohttp.ClientResponse:
        headers = {**headers, **await self._credentials.headers()}
        if body is not None:
            headers["Content-Type"] = content_type
        return await self._open_session().request(
            method,
            self._credentials.url + path,
            params=params,
            data=None if body is None else orjson.dumps(body),
            headers=headers,
            timeout=limits,
            proxy=self._credentials.proxy,
            server_hostname=self._credentials.server_name,
            allow_redirects=False,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            tls = self._credentials.tls()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=tls if tls is not None else True, limit=0),
                headers={"User-Agent": f"azureml-fe/{__version__}", "Accept": "application/json"},
                read_bufsize=2**20,
            )
        return self._session

    async def _unreachable(self, error: Exception) -> ApiUnreachable:
        if isinstance(error, ssl.SSLError | aiohttp.ClientSSLError):
            await self.close()  # the CA may have been renewed: the next connection reads it again
        if isinstance(error, TimeoutError):
            return ApiUnreachable("no response in time")
        return error if isinstance(error, ApiUnreachable) else ApiUnreachable(str(error) or type(error).__name__)

    def _count(self, method: str, path: str, params: Mapping[str, str] | None, status: int) -> None:
        verb = "watch" if params is not None and "watch" in params else method.lower()
        self.request_counts[verb, resource_of(path), status] += 1


def resource_of(path: str) -> str:
    """Return the resource of a path: `deployments/scale` for `/apis/apps/v1/namespaces/ns/deployments/iris/scale`."""
    words = path.strip("/").split("/")
    words = words[2:] if words[0] == "api" else words[3:]  # without group and version
    if words[:1] == ["namespaces"] and len(words) > 2:
        words = words[2:]
    return "/".join([*words[:1], *words[2:3]])


def _parse(response: aiohttp.ClientResponse, content: bytes) -> JsonObject:
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError:
        parsed = None
    if response.status < 300 and isinstance(parsed, dict):
        return parsed
    status = parsed if isinstance(parsed, dict) else {}
    if response.status < 400:
        raise ApiUnreachable(f"status {response.status} without a JSON object")
    try:
        retry_after = float(response.headers.get("Retry-After", "0"))
    except ValueError:  # an HTTP date
        retry_after = 0.0
    reason, message = str(status.get("reason") or response.reason), str(status.get("message") or "no reason given")
    raise ApiError(response.status, reason, message, retry_after)


def _enable_tcp_keep_alive(response: aiohttp.ClientResponse) -> None:
    """Have the kernel detect the loss of the API server while a watch has no events."""
    connection = response.connection
    sock = connection.transport.get_extra_info("socket") if connection is not None and connection.transport else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _TCP_KEEP_ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
