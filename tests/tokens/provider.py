"""A real OpenID provider (npm's oidc-provider) as a process, over TLS, with an authority of its own."""

from __future__ import annotations

import base64
import json
import shutil
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

from tests.auth.signing import pair
from tests.processes import PATIENCE_SECONDS, until

PROGRAM = Path(__file__).parents[1] / "servers/oidc/provider.mjs"
CLIENT, SECRET = "batch", "s3cret-of-the-client"

needs_provider = pytest.mark.skipif(
    shutil.which("node") is None or not (PROGRAM.parent / "node_modules/oidc-provider").is_dir(),
    reason="needs Node.js and `npm ci --prefix tests/servers/oidc`, as .ci/run does",
)


class Provider:
    """Issues access tokens for whatever resource is asked for, to one client."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        self.ca_file = folder / "ca.pem"
        authority.cert_pem.write_to_path(self.ca_file)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = f"https://127.0.0.1:{self.port}"
        self._config = folder / "provider.json"
        self._said = folder / "provider.txt"
        self._facts: dict[str, Any] = {
            "host": "127.0.0.1",
            "port": self.port,
            "certificate": str(folder / "certificate.pem"),
            "privateKey": str(folder / "key.pem"),
            "clientId": CLIENT,
            "clientSecret": SECRET,
        }
        certificate.cert_chain_pems[0].write_to_path(self._facts["certificate"])
        certificate.private_key_pem.write_to_path(self._facts["privateKey"])
        self._process: subprocess.Popen[bytes] | None = None

    # Its life.

    def start(self, *kids: str, algorithm: str = "RS256", roles: Sequence[str] = ("Score",)) -> None:
        """Serve with these keys, of which the first signs."""
        self._configure(kids, algorithm, roles)
        with self._said.open("wb") as said:
            self._process = subprocess.Popen(
                ["node", str(PROGRAM), str(self._config)], stdout=said, stderr=subprocess.DEVNULL
            )
        until(lambda: "ready" in self._lines(), "the provider")

    def rotate(self, *kids: str, algorithm: str = "RS256", roles: Sequence[str] = ("Score",)) -> None:
        """Have these keys instead."""
        assert self._process is not None
        self._configure(kids, algorithm, roles)
        times = self._lines().count("loaded")
        self._process.send_signal(signal.SIGHUP)
        until(lambda: self._lines().count("loaded") > times, "the provider's new keys")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _configure(self, kids: Sequence[str], algorithm: str, roles: Sequence[str]) -> None:
        keys = [_private(kid, algorithm) for kid in kids]
        facts = self._facts | {"jwks": keys, "algorithm": algorithm, "roles": list(roles)}
        self._config.write_text(json.dumps(facts))

    # What it does.

    @property
    def times_asked(self) -> int:
        """How often somebody wanted its keys."""
        return self._lines().count("asked")

    def _lines(self) -> list[str]:
        return self._said.read_text().splitlines()

    def token(self, resource: str) -> str:
        """An access token, by the client's credentials."""
        form = {"grant_type": "client_credentials", "resource": resource, "scope": "score"}
        basic = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
        request = urllib.request.Request(
            f"{self.url}/token", urllib.parse.urlencode(form).encode(), {"Authorization": f"Basic {basic}"}
        )
        context = ssl.create_default_context(cafile=self.ca_file)
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS, context=context) as answer:
            token: str = json.loads(answer.read())["access_token"]
            return token


def _private(kid: str, algorithm: str) -> dict[str, Any]:
    key = pair(f"of the provider: {kid}", "RSA" if algorithm.startswith("RS") else "P-256")
    made = RSAAlgorithm.to_jwk(key, True) if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm.to_jwk(key, True)
    return {name: value for name, value in made.items() if name != "key_ops"} | {
        "kid": kid,
        "use": "sig",
        "alg": algorithm,
    }
