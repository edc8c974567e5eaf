"""What the SDKs ask Azure before they score: where a service is, and which key or token it accepts.

Answers over TLS, in the form of Azure's REST APIs, for the services of a router on this machine. Keys and tokens are
those that the router's own commands print. Requests for scores do not come here: the SDKs send them to the router.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import trustme

from tests.certificates import issue

Document = dict[str, Any]
AUTH_MODES = {"key": "Key", "aml_token": "AMLToken", "aad_token": "AADToken"}

_SERVICES = re.compile(r"/modelmanagement/[\w.]+(/subscriptions/.+/workspaces/workspace)/services(?:/([\w-]+)(/\w+)?)?")
_ENDPOINTS = re.compile(r"(/subscriptions/.+/workspaces/workspace)/onlineEndpoints/([\w-]+)(/\w+)?")


@dataclass
class Endpoint:
    """A service or endpoint of the management plane. `keys` and `token` run commands of the router."""

    scoring_uri: str
    keys: Callable[[], Document]
    token: Callable[[], Document]
    auth_mode: str | None = "key"
    """`key`, `aml_token`, `aad_token`, or None without authentication."""
    versions: tuple[str, ...] = ()

    def answer(self, action: str) -> Document | None:
        """Return the credentials that a request asks for."""
        return {"/listkeys": self.keys, "/token": self.token}[action]() if action in ("/listkeys", "/token") else None

    def service(self, name: str) -> Document:
        """Return the service of the first API. With versions it is an AksEndpoint."""
        document: Document = {
            "name": name,
            "computeType": "AKSENDPOINT" if self.versions else "AKS",
            "createdTime": "2026-01-31T12:00:00+00:00",
            "description": None,
            "kvTags": {},
            "properties": {},
            "appInsightsEnabled": False,
            "authEnabled": self.auth_mode == "key",
            "aadAuthEnabled": self.auth_mode == "aml_token",
            "computeName": "aks",
            "scoringUri": self.scoring_uri,
            "state": "Healthy",
        }
        if self.versions:
            return document
        return document | {
            "autoScaler": _nothing("autoscaleEnabled", "maxReplicas", "minReplicas", "refreshPeriodInSeconds",
                                   "targetUtilization"),
            "containerResourceRequirements": _nothing("cpu", "cpuLimit", "memoryInGB", "memoryInGBLimit", "gpu"),
            "dataCollection": {"eventHubEnabled": False, "storageEnabled": False},
            "livenessProbeRequirements": _nothing("periodSeconds", "initialDelaySeconds", "timeoutSeconds",
                                                  "successThreshold", "failureThreshold"),
            **_nothing("maxConcurrentRequestsPerContainer", "maxQueueWaitMs", "numReplicas", "scoringTimeoutMs"),
        }  # fmt: skip

    def endpoint(self, identity: str, name: str) -> Document:
        """Return the endpoint of the second API."""
        mode = AUTH_MODES[self.auth_mode or "key"]
        properties = {"authMode": mode, "scoringUri": self.scoring_uri, "provisioningState": "Succeeded"}
        return {"id": identity, "name": name, "location": "local", "properties": properties}

    def deployments(self, identity: str) -> Document:
        """Return the deployments of the second API."""
        properties = {"endpointComputeType": "Kubernetes", "provisioningState": "Succeeded"}
        listed = [
            {"id": f"{identity}/{name}", "name": name, "location": "local", "properties": properties}
            for name in self.versions
        ]
        return {"value": listed}


def _nothing(*names: str) -> Document:
    return dict.fromkeys(names)


class ManagementPlane:
    """A server with endpoints by name, and with published keys of a token issuer. `certificate` has the files of a
    certificate of its authority."""

    def __init__(self, url: str, ca_file: Path, certificate: tuple[Path, Path]) -> None:
        self.url = url
        self.ca_file = ca_file
        self.certificate = certificate
        self.endpoints: dict[str, Endpoint] = {}
        self.public_keys: list[Mapping[str, str]] = []

    def answer(self, path: str) -> Document | None:
        """Return the document at a path; None if there is none."""
        if path == "/discovery":
            names = ("api", "experimentation", "history", "hyperdrive", "modelmanagement", "studio")
            return dict.fromkeys(names, self.url)
        if path == "/keys":
            return {"keys": self.public_keys}
        for pattern in (_SERVICES, _ENDPOINTS):
            match = pattern.fullmatch(path)
            if match is not None and match[2] is None:
                return {"value": [endpoint.service(name) for name, endpoint in self.endpoints.items()]}
            if match is None or (endpoint := self.endpoints.get(match[2])) is None:
                continue
            action = (match[3] or "").lower()
            if action == "/deployments":
                return endpoint.deployments(path)
            if action:
                return endpoint.answer(action)
            return endpoint.service(match[2]) if pattern is _SERVICES else endpoint.endpoint(path, match[2])
        return None


@contextlib.contextmanager
def running_management_plane(directory: Path) -> Iterator[ManagementPlane]:
    """Run a management plane with its own certificate authority."""
    authority = trustme.CA()
    ca_file = directory / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            is_public = path in ("/discovery", "/keys")
            has_access = is_public or self.headers["Authorization"] == "Bearer management"
            document = plane.answer(path) if has_access else None
            body = json.dumps(document or {"error": {"code": "NotFound"}}).encode()
            self.send_response(404 if document is None else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        issued, certificate = issue(authority), (directory / "cert.pem", directory / "key.pem")
        certificate[0].write_bytes(issued.chain)
        certificate[1].write_bytes(issued.key)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        plane = ManagementPlane(f"https://127.0.0.1:{server.server_address[1]}", ca_file, certificate)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield plane
        finally:
            server.shutdown()
            thread.join()
