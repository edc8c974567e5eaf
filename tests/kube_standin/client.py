"""A synchronous client of the API server. It exposes statuses, headers and objects as the server sends them."""

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

from tests.kube_standin.api_server.resources import RESOURCES, Object, Resource

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
TIMEOUT_SECONDS = 20.0
_IDLE_SECONDS = 30.0  # the server closes connections that are idle for 90 seconds


class Reply(NamedTuple):
    """A response of the server."""

    status: int
    headers: dict[str, str]
    body: Any

    def ok(self) -> Object:
        """Return the body of a successful response. Raises `AssertionError` for others."""
        assert self.status < 300, self.body
        body: Object = self.body
        return body


class Access(NamedTuple):
    """The server's address and the user's credentials, as in a kubeconfig."""

    url: str
    authority: bytes
    token: str
    certificate: bytes  # PEM with key, if the user has one
    namespace: str

    @classmethod
    def read(cls, file: Path) -> "Access":
        """Return the access of a kubeconfig's current context."""
        config = yaml.safe_load(file.read_text())

        def named(section: str, name: str) -> Object:
            found: Object = next(entry for entry in config[f"{section}s"] if entry["name"] == name)[section]
            return found

        context = named("context", config["current-context"])
        cluster, user = named("cluster", context["cluster"]), named("user", context["user"])
        certificate = b"\n".join(filter(None, (_data(file, user, f"client-{part}") for part in ("certificate", "key"))))
        authority = _data(file, cluster, "certificate-authority")
        assert authority, f"{file}: the tests need certificate-authority or certificate-authority-data"
        token = user.get("token") or (Path(user["tokenFile"]).read_text().strip() if "tokenFile" in user else "")
        assert token or certificate, f"{file}: the tests need an administrator's token or client certificate"
        return cls(cluster["server"].rstrip("/"), authority, token, certificate, context.get("namespace", "default"))

    def context(self) -> ssl.SSLContext:
        """Return the TLS settings of a connection."""
        context = ssl.create_default_context(cadata=self.authority.decode())
        # Like Go. Many clusters have certificates without the authority key identifier that RFC 5280 requires.
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
    """Return the resource of this plural, by default in the first group that has it."""
    return next(found for found in RESOURCES if found.plural == plural and group in (None, found.group))


def path_of(plural: str, namespace: str = "", name: str = "", sub: str = "", group: str | None = None) -> str:
    """Return the URL path of a resource, an object or a subresource."""
    found = resource(plural, group)
    parts = ["apis", found.group, found.version] if found.group else ["api", found.version]
    if found.namespaced and namespace:
        parts += ["namespaces", namespace]
    return "/" + "/".join([*parts, plural, *filter(None, (name, sub))])


class Client:
    """Sends requests, over one connection for each thread."""

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
        """Close this thread's connection."""
        connection = getattr(self._local, "connection", None)
        if connection:
            connection.close()
            del self._local.connection

    def request(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json", **query: Any
    ) -> Reply:
        """Send one request and return its response, also if it is an error."""
        if time.monotonic() - getattr(self._local, "used_at", 0.0) > _IDLE_SECONDS:
            self.close()
        self._local.used_at = time.monotonic()
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

    # The verbs. Each raises `AssertionError` if the response is an error.

    def get(self, plural: str, namespace: str, name: str, sub: str = "") -> Object:
        """Return an existing object."""
        return self.request("GET", path_of(plural, namespace, name, sub)).ok()

    def find(self, plural: str, namespace: str, name: str) -> Object | None:
        """Return an object, or None if it does not exist."""
        reply = self.request("GET", path_of(plural, namespace, name))
        return None if reply.status == 404 else reply.ok()

    def list(self, plural: str, namespace: str = "", **query: Any) -> list[Object]:
        """Return the objects that match a selector."""
        items: list[Object] = self.request("GET", path_of(plural, namespace), **query).ok()["items"]
        return items

    def create(self, plural: str, namespace: str, obj: Object, sub: str = "", name: str = "") -> Object:
        """Create an object. Unknown fields are refused."""
        found = resource(plural)
        typed = {"apiVersion": found.api_version, "kind": found.kind} | obj
        return self.request("POST", path_of(plural, namespace, name, sub), typed, fieldValidation="Strict").ok()

    def patch(
        self, plural: str, namespace: str, name: str, patch: Any, sub: str = "", kind: str = MERGE, **query: Any
    ) -> Object:
        """Change an object. Unknown fields are refused."""
        query = {"fieldValidation": "Strict"} | query
        return self.request("PATCH", path_of(plural, namespace, name, sub), patch, kind, **query).ok()

    def delete(self, plural: str, namespace: str, name: str, **options: Any) -> Reply:
        """Delete an object. It may not exist."""
        return self.request("DELETE", path_of(plural, namespace, name), options or None)

    def watch(self, plural: str, namespace: str = "", **query: Any) -> Iterator[tuple[str, Object]]:
        """Yield the events of a watch until it ends: type and object."""
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
