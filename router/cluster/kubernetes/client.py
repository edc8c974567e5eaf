"""Requests to the API server: JSON in, JSON out, errors with their reason, watches line by line.

Objects stay as the server writes them: typed models of every field would cost a reader of thousands of pods most of its
time and memory. Must not live here: which requests are made, and when they are made again.
"""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import aiohttp
import orjson

from router import __version__
from router.cluster.kubernetes.credentials import Credentials

FIELD_MANAGER = "azureml-fe"
"""Who the server says has written a field."""
MERGE_PATCH = "application/merge-patch+json"
WRITE_SECONDS = 4.0
"""Longest time that a write may be under way. A leader stops writing so long before another one may begin."""
_READ_SECONDS = 30.0
_CONNECT_SECONDS = 3.0
# A peer that is gone without a word is noticed after 10 + 3 * 5 s: bookmarks are rarer, and not promised.
_KEEP_ALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

Object = dict[str, Any]


class ApiUnreachable(OSError):
    """No answer, or none that an API server gives."""


class ApiError(Exception):
    """The API server refused. `reason` is its slug (`NotFound`, `Conflict`, `Forbidden`, `Expired`), `retry_after` in
    seconds, 0 when it names none."""

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class Api:
    """One API server. `calls` counts requests by verb, resource and status (0: no answer)."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._session: aiohttp.ClientSession | None = None
        self.calls: Counter[tuple[str, str, int]] = Counter()

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
        body: Object | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """The object that the server answers with. Raises `ApiError` and `ApiUnreachable`."""
        seconds = _READ_SECONDS if method == "GET" else WRITE_SECONDS
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        for is_last in (False, True):
            try:
                async with await self._send(method, path, params, body, content_type, limits) as response:
                    content = await response.read()
                    self._count(method, path, params, response.status)
                    if response.status == 401 and not is_last:
                        await self._credentials.renew()
                        continue
                    return _object(response, content)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                self._count(method, path, params, 0)
                raise await self._unreachable(error) from error
        raise AssertionError("the last turn returns or raises")

    async def watch(self, path: str, params: Mapping[str, str], seconds: float) -> AsyncGenerator[bytes]:
        """The lines of a watch, which ends itself by `seconds`. An empty line comes first, when the server has begun.
        Raises `ApiError` and `ApiUnreachable`."""
        limits = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        try:
            async with await self._send("GET", path, params, None, "", limits) as response:
                self._count("GET", path, params, response.status)
                if response.status != 200:
                    if response.status == 401:
                        await self._credentials.renew()
                    _object(response, await response.read())
                _keep_alive(response)
                yield b""
                rest = bytearray()
                async for chunk in response.content.iter_any():
                    *lines, last = chunk.split(b"\n")
                    for line in lines:
                        yield bytes(rest) + line if rest else line
                        rest.clear()
                    rest += last
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise await self._unreachable(error) from error

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: Object | None,
        content_type: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        headers = dict(await self._credentials.headers())
        if body is not None:
            headers["Content-Type"] = content_type
        return await self._opened().request(
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

    def _opened(self) -> aiohttp.ClientSession:
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
            await self.close()  # the authority may have been renewed: the next connection reads it anew
        if isinstance(error, TimeoutError):
            return ApiUnreachable("no answer in time")
        return error if isinstance(error, ApiUnreachable) else ApiUnreachable(str(error) or type(error).__name__)

    def _count(self, method: str, path: str, params: Mapping[str, str] | None, status: int) -> None:
        verb = "watch" if params is not None and "watch" in params else method.lower()
        self.calls[verb, resource_of(path), status] += 1


def resource_of(path: str) -> str:
    """The resource of a path: `deployments/scale` of `/apis/apps/v1/namespaces/ns/deployments/iris/scale`."""
    words = path.strip("/").split("/")
    words = words[2:] if words[0] == "api" else words[3:]  # less the group's version
    if words[:1] == ["namespaces"] and len(words) > 2:
        words = words[2:]
    return "/".join([*words[:1], *words[2:3]])


def _object(response: aiohttp.ClientResponse, content: bytes) -> Object:
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        answer = None
    if response.status < 300 and isinstance(answer, dict):
        return answer
    status = answer if isinstance(answer, dict) else {}
    if response.status < 400:
        raise ApiUnreachable(f"answered {response.status} with no JSON object")
    try:
        retry_after = float(response.headers.get("Retry-After", "0"))
    except ValueError:  # a date
        retry_after = 0.0
    reason, message = str(status.get("reason") or response.reason), str(status.get("message") or "no reason given")
    raise ApiError(response.status, reason, message, retry_after)


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Have the kernel see whether the server is still there, while it says nothing."""
    connection = response.connection
    sock = connection.transport.get_extra_info("socket") if connection is not None and connection.transport else None
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEP_ALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
