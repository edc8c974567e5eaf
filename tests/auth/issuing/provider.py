"""A real OpenID provider (npm's oidc-provider) as a process, over TLS, with its own certificate authority."""

from __future__ import annotations

import base64
import json
import signal
import socket
import ssl
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from tests.auth.signing import key_pair
from tests.processes import TIMEOUT_SECONDS, wait_until

PROGRAM = Path(__file__).parents[2] / "servers/oidc/provider.mjs"
CLIENT, SECRET = "batch", "s3cret-of-the-client"

needs_provider = [
    pytest.mark.needs("node", "npm"),
    pytest.mark.skipif(
        not (PROGRAM.parent / "node_modules/oidc-provider").is_dir(),
        reason="run `npm ci --prefix tests/servers/oidc --ignore-scripts`",
    ),
]


class Provider:
    """Issues access tokens for any resource to one client."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        self.ca_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"https://127.0.0.1:{self.port}"
        self._config = directory / "provider.json"
        self._log = directory / "provider.txt"
        self._settings: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "certificate": str(directory / "certificate.pem"),
            "privateKey": str(directory / "key.pem"),
            "clientId": CLIENT,
            "clientSecret": SECRET,
        }
        certificate.cert_chain_pems[0].write_to_path(self._settings["certificate"])
        certificate.private_key_pem.write_to_path(self._settings["privateKey"])
        self._process: subprocess.Popen[bytes] | None = None

    # Start, rotation and stop.

    def start(self, *kids: str, algorithm: str = "RS256", roles: Sequence[str] = ("Score",)) -> None:
        """Start with these keys; the first one signs."""
        self._configure(kids, algorithm, roles)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["node", str(PROGRAM), str(self._config)], stdout=log, stderr=subprocess.DEVNULL
            )
        wait_until(lambda: "ready" in self._lines(), "the provider")

    def rotate(self, *kids: str, algorithm: str = "RS256", roles: Sequence[str] = ("Score",)) -> None:
        """Replace the keys."""
        assert self._process is not None
        self._configure(kids, algorithm, roles)
        loads = self._lines().count("loaded")
        self._process.send_signal(signal.SIGHUP)
        wait_until(lambda: self._lines().count("loaded") > loads, "the provider's new keys")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _configure(self, kids: Sequence[str], algorithm: str, roles: Sequence[str]) -> None:
        keys = [_private_jwk(kid, algorithm) for kid in kids]
        settings = self._settings | {"jwks": keys, "algorithm": algorithm, "roles": list(roles)}
        self._config.write_text(json.dumps(settings))

    # Requests.

    @property
    def key_requests(self) -> int:
        """The number of requests for its keys."""
        return self._lines().count("asked")

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def token(self, resource: str) -> str:
        """Request an access token with the client's credentials."""
        form = {"grant_type": "client_credentials", "resource": resource, "scope": "score"}
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        request = urllib.request.Request(
            f"{self.url}/token", urllib.parse.urlencode(form).encode(), {"Authorization": f"Basic {basic}"}
        )
        context = ssl.create_default_context(cafile=self.ca_file)
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context) as response:
            token: str = json.loads(response.read())["access_token"]
            return token


def _private_jwk(kid: str, algorithm: str) -> dict[str, Any]:
    key = key_pair(f"provider: {kid}", "RSA" if algorithm.startswith("RS") else "P-256")
    jwk = RSAAlgorithm.to_jwk(key, True) if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm.to_jwk(key, True)
    return {name: value for name, value in jwk.items() if name != "key_ops"} | {
        "kid": kid,
        "use": "sig",
        "alg": algorithm,
    }
