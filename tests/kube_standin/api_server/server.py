"""The HTTP server of the stand-in. The other modules of this package make the decisions."""

import asyncio
import dataclasses
import gzip
import json
import ssl
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from tests.kube_standin.api_server import discovery, patches, watch
from tests.kube_standin.api_server.api import Api, format_time, now, query_flag
from tests.kube_standin.api_server.defaults import PLUGINS
from tests.kube_standin.api_server.errors import (
    ApiError,
    bad_request,
    invalid,
    no_such_resource,
    unsupported_media_type,
)
from tests.kube_standin.api_server.rbac import Request, Tokens, User, authorize, user_of
from tests.kube_standin.api_server.resources import Object, Resource, find
from tests.kube_standin.api_server.selectors import field_requirements
from tests.kube_standin.api_server.store import Change, Store
from tests.kube_standin.api_server.writes import Writer, new_object

_MAX_BODY_BYTES = 3 << 20  # like the real server
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_KEEPALIVE_SECONDS = 90.0
_COMPRESS_ABOVE_BYTES = 128 << 10
_LAST_BOOKMARK_SECONDS = 2.0  # before the end of a watch


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a server."""

    history_length: int = 100_000  # number of writes that watches can go back
    bookmark_seconds: float = 60.0
    watch_seconds: float = 1800.0  # duration of a watch without its own timeout
    plugins: Collection[str] = PLUGINS  # enabled admission plugins


class ApiServer:
    """An API server with its own store."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self.store = Store(options.history_length)
        self.tokens = Tokens()
        self._api = Api(self.store, self.tokens, options.plugins)
        self._runner: web.AppRunner | None = None
        for name in ("default", "kube-system"):
            self._create_namespace(name)

    def _create_namespace(self, name: str) -> None:
        resource = find("", "v1", "namespaces")
        assert resource is not None
        obj = new_object(resource, {"metadata": {"name": name}}, "", Writer("kube-apiserver", format_time(now())))
        self.store.put("namespaces", ("", name), obj)

    async def start(self, context: ssl.SSLContext | None, port: int = 0) -> int:
        """Listen on 127.0.0.1. Return the port."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1, keepalive_timeout=_KEEPALIVE_SECONDS
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=context)
        await site.start()
        actual_port: int = self._runner.addresses[0][1]
        return actual_port

    async def stop(self) -> None:
        """Close all connections."""
        if self._runner:
            await self._runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        try:
            user = self._user(request)
            attributes = _attributes(request)
            authorize(self.store, user, attributes)
            if attributes.path:
                return _document(request.path)
            resource = find(attributes.group, attributes.version, attributes.resource)
            if resource is None or (attributes.subresource and attributes.subresource not in resource.subresources):
                raise no_such_resource()
            if not resource.namespaced:
                attributes = _without_namespace(attributes)
            if attributes.verb == "watch":
                return await self._watch(request, resource, attributes)
            return _compressed(request, await self._execute(request, resource, attributes, user))
        except ApiError as error:
            headers = {}
            if "retryAfterSeconds" in error.status.get("details", {}):
                headers["Retry-After"] = str(error.status["details"]["retryAfterSeconds"])
            return _json(error.status, error.code, headers)

    def _user(self, request: web.Request) -> User:
        certificate = request.get_extra_info("peercert")
        return (
            user_of(certificate)
            if certificate
            else self.tokens.user(request.headers.get("Authorization", ""), self.store)
        )

    async def _execute(self, request: web.Request, resource: Resource, attributes: Request, user: User) -> web.Response:
        query = request.query
        if query.get("fieldValidation", "") not in ("", "Strict", "Warn", "Ignore"):
            raise bad_request(f"fieldValidation: Unsupported value: {query['fieldValidation']}")
        writer = Writer(_manager(request), format_time(now()), query.get("fieldValidation") or "Warn")
        response = await self._execute_verb(request, resource, attributes, user, writer)
        for warning in writer.warnings:
            response.headers.add("Warning", f"299 - {json.dumps(warning)}")
        return response

    async def _execute_verb(
        self, request: web.Request, resource: Resource, attributes: Request, user: User, writer: Writer
    ) -> web.Response:
        query = request.query
        api = self._api_of(resource, attributes, [query["dryRun"]] if "dryRun" in query else [])
        match attributes.verb:
            case "get":
                return _json(self._api.get(resource, attributes))
            case "list":
                return _json(self._api.list(resource, attributes, query))
            case "create":
                body = await _body(request)
                return _json(api().create(resource, attributes, body, writer, user), 201)
            case "update":
                body = await _body(request)
                obj, is_new = api().update(resource, attributes, body, writer, user)
                return _json(obj, 201 if is_new else 200)
            case "patch":
                kind = request.content_type
                if kind not in patches.SUPPORTED:
                    raise unsupported_media_type(kind, patches.SUPPORTED)
                body = await _body(request)
                return _json(api().patch(resource, attributes, kind, body, writer, user))
            case "deletecollection":
                options = await _delete_options(request)
                return _json(self._api.delete_collection(resource, attributes, query, options, writer, user))
            case _:
                options = await _delete_options(request)
                api = self._api_of(resource, attributes, options.get("dryRun") or [])
                return _json(api().delete(resource, attributes, options, writer, user))

    def _api_of(self, resource: Resource, attributes: Request, dry_run: Sequence[str]) -> Callable[[], Api]:
        """Return a function that returns what executes a write. It must be called after the last `await`: a dry run
        works with a copy of all objects."""
        if unknown := [each for each in dry_run if each != "All"]:
            message = f'Unsupported value: "{unknown[0]}": supported values: "All"'
            raise invalid(resource, attributes.name, "dryRun", message)
        return lambda: dataclasses.replace(self._api, store=self.store.copy()) if dry_run else self._api

    async def _watch(self, request: web.Request, resource: Resource, attributes: Request) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        query = request.query
        watched = watch.Watch(self.store, resource, attributes, query)
        changes: deque[Change] = deque()
        changed = asyncio.Event()

        def on_change(change: Change) -> None:
            changes.append(change)
            changed.set()

        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        stop_listening = self.store.listen(on_change)
        try:
            for event in list(watched.initial_events()):
                await response.write(event)
            begin = loop.time()
            end = begin + float(query.get("timeoutSeconds") or self._options.watch_seconds)
            last_bookmark = max(end - _LAST_BOOKMARK_SECONDS, begin)
            bookmark_due = min(begin + self._options.bookmark_seconds, last_bookmark)
            while (time := loop.time()) < end:
                if time >= bookmark_due and not changes:
                    if watched.wants_bookmarks:
                        await response.write(watched.bookmark())
                    next_bookmark = min(time + self._options.bookmark_seconds, last_bookmark)
                    bookmark_due = end if bookmark_due >= last_bookmark else next_bookmark
                try:
                    async with asyncio.timeout(min(bookmark_due, end) - time):
                        await changed.wait()
                except TimeoutError:
                    continue
                changed.clear()
                while changes:
                    for event in watched.event(changes.popleft()):
                        await response.write(event)
        except ApiError as error:
            await response.write(watch.encode_error(error))
        except ConnectionResetError:
            return response
        finally:
            stop_listening()
        await response.write_eof()
        return response


def _attributes(request: web.Request) -> Request:
    """Return the attributes of a request for authorization."""
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
        verb = "watch" if query_flag(request.query, "watch") else "list"
        for path, equal, value in field_requirements(request.query.get("fieldSelector", "")):
            if path == "metadata.name" and equal:
                name = value
    elif verb == "delete" and not name:
        verb = "deletecollection"
    return Request(verb, group, version, rest[0], "/".join(rest[2:]), namespace, name)


def _without_namespace(attributes: Request) -> Request:
    return dataclasses.replace(attributes, namespace="")


def _manager(request: web.Request) -> str:
    """Return the field manager of a request."""
    name = request.query.get("fieldManager") or request.headers.get("User-Agent", "unknown").partition("/")[0]
    return name[:128]


def _document(path: str) -> web.Response:
    if path in ("/healthz", "/livez", "/readyz"):
        return web.Response(text="ok")
    if path == "/openapi/v2":  # empty: clients such as Helm then accept all objects
        return web.Response(body=b"", content_type="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
    found = discovery.document(path)
    if found is None:
        return web.Response(status=404, text="404 page not found\n")
    return _json(found)


def _json(obj: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    body = orjson.dumps(obj)
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


def _compressed(request: web.Request, response: web.Response) -> web.Response:
    """Compress a large response if the client accepts it."""
    body, accepted = response.body, request.headers.get("Accept-Encoding", "")
    if isinstance(body, bytes) and len(body) > _COMPRESS_ABOVE_BYTES and "gzip" in accepted:
        response.body = gzip.compress(body, 1)
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"
    return response


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
    elif "dryRun" in request.query:  # a real server ignores it if there is a body
        options["dryRun"] = [request.query["dryRun"]]
    if "gracePeriodSeconds" in request.query:
        options["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
    if "propagationPolicy" in request.query:
        options["propagationPolicy"] = request.query["propagationPolicy"]
    return options
