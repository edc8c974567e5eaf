"""The double as a server: bytes in, bytes out. What it answers is decided in the modules beside this one."""

import asyncio
import gzip
import json
import ssl
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from tests.kubernetes.double import discovery, patches, watch
from tests.kubernetes.double.api import Api, flag, now, stamp
from tests.kubernetes.double.defaults import PLUGINS
from tests.kubernetes.double.errors import (
    ApiError,
    bad_request,
    no_such_resource,
    unsupported_media_type,
)
from tests.kubernetes.double.rbac import Request, Tokens, User, authorize, user_of
from tests.kubernetes.double.resources import Object, Resource, find
from tests.kubernetes.double.rules import Writer, created
from tests.kubernetes.double.selectors import field_requirements
from tests.kubernetes.double.store import Change, Store

_MOST_BYTES = 3 << 20  # of a body, as the real server has it
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_IDLE_SECONDS = 90.0  # of a connection, before it is closed
_LONG_BYTES = 128 << 10  # from which on answers are compressed
_BEFORE_THE_END_SECONDS = 2.0  # when a watch that ends gets its last bookmark


@dataclass(frozen=True, slots=True)
class Options:
    """What may be chosen of a double."""

    history_length: int = 100_000  # writes that a watch may go back
    bookmark_seconds: float = 60.0
    watch_seconds: float = 1800.0  # of a watch that names no time
    plugins: Collection[str] = PLUGINS  # of admission, those that are on


class Double:
    """One API server with a cluster of its own."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.store = Store(options.history_length)
        self.tokens = Tokens()
        self._api = Api(self.store, self.tokens, options.plugins)
        self._runner: web.AppRunner | None = None
        for name in ("default", "kube-system"):
            self._found_namespace(name)

    def _found_namespace(self, name: str) -> None:
        resource = find("", "v1", "namespaces")
        assert resource is not None
        thing = created(resource, {"metadata": {"name": name}}, "", Writer("kube-apiserver", stamp(now())))
        self.store.put("namespaces", ("", name), thing)

    async def start(self, context: ssl.SSLContext | None, port: int = 0) -> int:
        """Listen on 127.0.0.1; the port."""
        app = web.Application(client_max_size=_MOST_BYTES)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1, keepalive_timeout=_IDLE_SECONDS
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=context)
        await site.start()
        chosen: int = self._runner.addresses[0][1]
        return chosen

    async def stop(self) -> None:
        """Close every connection."""
        if self._runner:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            user = self._user(request)
            asked = _request(request)
            authorize(self.store, user, asked)
            if asked.path:
                return _document(request.path)
            resource = find(asked.group, asked.version, asked.resource)
            if resource is None or (asked.subresource and asked.subresource not in resource.subresources):
                raise no_such_resource()
            if not resource.namespaced:
                asked = _of_cluster(asked)
            if asked.verb == "watch":
                return await self._watch(request, resource, asked)
            return _packed(request, await self._carry_out(request, resource, asked, user))
        except ApiError as refusal:
            headers = {}
            if "retryAfterSeconds" in refusal.status.get("details", {}):
                headers["Retry-After"] = str(refusal.status["details"]["retryAfterSeconds"])
            return _json(refusal.status, refusal.code, headers)

    def _user(self, request: web.Request) -> User:
        certificate = request.get_extra_info("peercert")
        return (
            user_of(certificate)
            if certificate
            else self.tokens.user(request.headers.get("Authorization", ""), self.store)
        )

    async def _carry_out(self, request: web.Request, resource: Resource, asked: Request, user: User) -> web.Response:
        query = request.query
        if query.get("fieldValidation", "") not in ("", "Strict", "Warn", "Ignore"):
            raise bad_request(f"fieldValidation: Unsupported value: {query['fieldValidation']}")
        writer = Writer(_manager(request), stamp(now()), query.get("fieldValidation") or "Warn")
        answer = await self._answer_of(request, resource, asked, user, writer)
        for warning in writer.warnings:
            answer.headers.add("Warning", f"299 - {json.dumps(warning)}")
        return answer

    async def _answer_of(
        self, request: web.Request, resource: Resource, asked: Request, user: User, writer: Writer
    ) -> web.Response:
        query = request.query
        match asked.verb:
            case "get":
                return _json(self._api.get(resource, asked))
            case "list":
                return _json(self._api.list(resource, asked, query))
            case "create":
                body = await _body(request)
                return _json(self._api.create(resource, asked, body, writer, user), 201)
            case "update":
                thing, new = self._api.update(resource, asked, await _body(request), writer, user)
                return _json(thing, 201 if new else 200)
            case "patch":
                kind = request.content_type
                if kind not in patches.SUPPORTED:
                    raise unsupported_media_type(kind, patches.SUPPORTED)
                return _json(self._api.patch(resource, asked, kind, await _body(request), writer))
            case "deletecollection":
                options = await _delete_options(request)
                return _json(self._api.delete_collection(resource, asked, query, options, writer))
            case _:
                return _json(self._api.delete(resource, asked, await _delete_options(request), writer))

    async def _watch(self, request: web.Request, resource: Resource, asked: Request) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        query = request.query
        watched = watch.Watch(self.store, resource, asked, query)
        changes: deque[Change] = deque()
        news = asyncio.Event()

        def heard(change: Change) -> None:
            changes.append(change)
            news.set()

        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        forget = self.store.listen(heard)
        try:
            for event in list(watched.beginning()):
                await response.write(event)
            begin = loop.time()
            end = begin + float(query.get("timeoutSeconds") or self._options.watch_seconds)
            last_bookmark = max(end - _BEFORE_THE_END_SECONDS, begin)
            mark = min(begin + self._options.bookmark_seconds, last_bookmark)
            while (moment := loop.time()) < end:
                if moment >= mark and not changes:
                    if watched.wants_bookmarks:
                        await response.write(watched.bookmark())
                    mark = end if mark >= last_bookmark else min(moment + self._options.bookmark_seconds, last_bookmark)
                try:
                    async with asyncio.timeout(min(mark, end) - moment):
                        await news.wait()
                except TimeoutError:
                    continue
                news.clear()
                while changes:
                    for event in watched.event(changes.popleft()):
                        await response.write(event)
        except ApiError as refusal:
            await response.write(watch.error(refusal))
        except ConnectionResetError:
            return response
        finally:
            forget()
        await response.write_eof()
        return response


def _request(request: web.Request) -> Request:
    """What is asked for."""
    parts = request.path.strip("/").split("/")
    if parts[0] == "api" and len(parts) > 2:
        group, version, rest = "", parts[1], parts[2:]
    elif parts[0] == "apis" and len(parts) > 3:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return Request(verb=request.method.lower(), path=request.path)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in ("status", "finalize"):
            rest = rest[2:]
    name = rest[1] if len(rest) > 1 else ""
    verb = _VERBS.get(request.method, request.method.lower())
    if verb == "get" and not name:
        verb = "watch" if flag(request.query, "watch") else "list"
        for path, equal, value in field_requirements(request.query.get("fieldSelector", "")):
            if path == "metadata.name" and equal:
                name = value
    elif verb == "delete" and not name:
        verb = "deletecollection"
    return Request(verb, group, version, rest[0], "/".join(rest[2:]), namespace, name)


def _of_cluster(asked: Request) -> Request:
    return Request(asked.verb, asked.group, asked.version, asked.resource, asked.subresource, "", asked.name)


def _manager(request: web.Request) -> str:
    """The name under which the server notes who wrote."""
    name = request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").partition("/")[0]
    return name[:128]


def _document(path: str) -> web.Response:
    if path in ("/healthz", "/livez", "/readyz"):
        return web.Response(text="ok")
    if path == "/openapi/v2":  # an empty document: clients that check objects by it, such as Helm, let them pass
        return web.Response(body=b"", content_type="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
    found = discovery.document(path)
    if found is None:
        return web.Response(status=404, text="404 page not found\n")
    return _json(found)


def _json(thing: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    body = orjson.dumps(thing)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _packed(request: web.Request, answer: web.Response) -> web.Response:
    """Long answers are compressed, for whoever takes that."""
    body = answer.body
    if isinstance(body, bytes) and len(body) > _LONG_BYTES and "gzip" in request.headers.get("Accept-Encoding", ""):
        answer.body = gzip.compress(body, 1)
        answer.headers["Content-Encoding"] = "gzip"
        answer.headers["Vary"] = "Accept-Encoding"
    return answer


async def _body(request: web.Request) -> Any:
    if not request.content_type.endswith("json"):
        raise unsupported_media_type(request.content_type, ("application/json",))
    text = await request.read()
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise bad_request(f"couldn't get version/kind; json parse error: {error}") from error


async def _delete_options(request: web.Request) -> Object:
    options: Object = {}
    if request.can_read_body and (text := await request.read()):
        options = orjson.loads(text) or {}
    if "gracePeriodSeconds" in request.query:
        options["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
    if "propagationPolicy" in request.query:
        options["propagationPolicy"] = request.query["propagationPolicy"]
    return options
