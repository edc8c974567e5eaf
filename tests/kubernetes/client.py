"""A plain, synchronous client of the API server, for tests that look at bytes, statuses and objects as they are.

The router and the conformance test use kubernetes-asyncio; this one hides nothing and knows no kind.
"""

import base64
import http.client
import json
import ssl
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tests.kubernetes.double.resources import RESOURCES, Object, Resource

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
TIMEOUT_SECONDS = 20.0
_IDLE_SECONDS = 30.0  # a server ends a connection that has been idle for 90 seconds


class Reply(NamedTuple):
    """What the server answered."""

    status: int
    headers: dict[str, str]
    body: Any

    def ok(self) -> Object:
        """The object of an answer that must be a success."""
        assert self.status < 300, self.body
        body: Object = self.body
        return body


class Access(NamedTuple):
    """Where the server is and as whom it is asked: what a kubeconfig says."""

    url: str
    authority: bytes
    token: str
    certificate: bytes  # PEM with key, if the user has one
    namespace: str

    @classmethod
    def read(cls, file: Path) -> "Access":
        """Of a kubeconfig's current context."""
        config = yaml.safe_load(file.read_text())

        def named(what: str, name: str) -> Object:
            found: Object = next(entry for entry in config[f"{what}s"] if entry["name"] == name)[what]
            return found

        context = named("context", config["current-context"])
        cluster, user = named("cluster", context["cluster"]), named("user", context["user"])
        certificate = b"\n".join(filter(None, (_data(file, user, f"client-{part}") for part in ("certificate", "key"))))
        authority = _data(file, cluster, "certificate-authority")
        assert authority, f"{file}: tests need the server's certificate-authority(-data)"
        token = user.get("token") or (Path(user["tokenFile"]).read_text().strip() if "tokenFile" in user else "")
        assert token or certificate, f"{file}: tests need a token or a client certificate of an administrator"
        return cls(cluster["server"].rstrip("/"), authority, token, certificate, context.get("namespace", "default"))

    def context(self) -> ssl.SSLContext:
        """What a connection needs."""
        context = ssl.create_default_context(cadata=self.authority.decode())
        # As Go does: many a cluster's certificates name no key of their authority, which RFC 5280 asks for.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.certificate:
            with tempfile.NamedTemporaryFile() as file:
                file.write(self.certificate)
                file.flush()
                context.load_cert_chain(file.name)
        return context


def _data(file: Path, section: Object, name: str) -> bytes:
    if f"{name}-data" in section:
        return base64.b64decode(section[f"{name}-data"])
    return (file.parent / section[name]).read_bytes() if name in section else b""


def resource(plural: str, group: str | None = None) -> Resource:
    """By its plural; `events` of the core group unless another is asked for."""
    return next(found for found in RESOURCES if found.plural == plural and group in (None, found.group))


def path_of(plural: str, namespace: str = "", name: str = "", sub: str = "", group: str | None = None) -> str:
    """The address of a resource, an object or a subresource."""
    its = resource(plural, group)
    parts = ["apis", its.group, its.version] if its.group else ["api", its.version]
    if its.namespaced and namespace:
        parts += ["namespaces", namespace]
    return "/" + "/".join([*parts, plural, *filter(None, (name, sub))])


class Client:
    """Asks the server, with one connection for each thread."""

    def __init__(self, access: Access, user_agent: str = "tests/1") -> None:
        self.access = access
        self._address = urllib.parse.urlsplit(access.url)
        self._context = access.context()
        self._headers = {"User-Agent": user_agent, "Accept": "application/json"}
        if access.token:
            self._headers["Authorization"] = f"Bearer {access.token}"
        self._local = threading.local()

    def _connect(self) -> http.client.HTTPSConnection:
        assert self._address.hostname is not None
        return http.client.HTTPSConnection(
            self._address.hostname, self._address.port, timeout=TIMEOUT_SECONDS, context=self._context
        )

    def close(self) -> None:
        """End this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection:
            connection.close()
            del self._local.connection

    def ask(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: Any
    ) -> Reply:
        """One request."""
        if time.monotonic() - getattr(self._local, "used", 0.0) > _IDLE_SECONDS:
            self.close()
        self._local.used = time.monotonic()
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._connect()
        headers = self._headers | ({"Content-Type": content_type} if body is not None else {})
        target = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        is_json = response.headers.get("Content-Type", "").startswith("application/json")
        return Reply(response.status, dict(response.headers), json.loads(text) if is_json else text.decode())

    # The verbs, by the names of resources.

    def get(self, plural: str, namespace: str, name: str, sub: str = "") -> Object:
        """An object that is there."""
        return self.ask("GET", path_of(plural, namespace, name, sub)).ok()

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """An object that may be there."""
        reply = self.ask("GET", path_of(plural, namespace, name))
        return None if reply.status == 404 else reply.ok()

    def list(self, plural: str, namespace: str = "", **query: Any) -> list[Object]:
        """All that a selector means."""
        items: list[Object] = self.ask("GET", path_of(plural, namespace), **query).ok()["items"]
        return items

    def create(self, plural: str, namespace: str, thing: Object, sub: str = "", name: str = "") -> Object:
        """A new object, all of whose fields the server must know."""
        its = resource(plural)
        typed = {"apiVersion": its.api_version, "kind": its.kind} | thing
        return self.ask("POST", path_of(plural, namespace, name, sub), typed, fieldValidation="Strict").ok()

    def patch(
        self, plural: str, namespace: str, name: str, patch: Any, sub: str = "", kind: str = MERGE, **query: Any
    ) -> Object:
        """Change an object; the server must know all of its fields."""
        query = {"fieldValidation": "Strict"} | query
        return self.ask("PATCH", path_of(plural, namespace, name, sub), patch, kind, **query).ok()

    def delete(self, plural: str, namespace: str, name: str, **options: Any) -> Reply:
        """Delete an object, which may be gone already."""
        return self.ask("DELETE", path_of(plural, namespace, name), options or None)

    def watch(self, plural: str, namespace: str = "", **query: Any) -> Iterator[tuple[str, Object]]:
        """The events of a watch, until it ends."""
        connection = self._connect()
        try:
            query = {"watch": "true", "timeoutSeconds": 15} | query
            target = f"{path_of(plural, namespace)}?{urllib.parse.urlencode(query)}"
            connection.request("GET", target, headers=self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise AssertionError(response.read().decode())
            while line := response.readline():
                event = json.loads(line)
                yield event["type"], event["object"]
        finally:
            connection.close()
