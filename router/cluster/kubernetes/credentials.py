"""Where the API server is and how the router proves itself there.

Lives here: the account of the pod (files that the kubelet renews) and a kubeconfig, which kubernetes-asyncio reads with
all its ways to log in. It is imported only then: it is 40 MB that a router in a pod does without.
"""

from __future__ import annotations

import abc
import base64
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path

from router.authority import authority
from router.values import SettingsError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_REREAD_SECONDS = 60.0  # the kubelet renews a token with a fifth of its life, an hour at least, left


class Credentials(abc.ABC):
    """An address of the API server and what it takes to be let in."""

    url: str
    """Without a slash at its end."""
    proxy: str | None = None
    server_name: str | None = None
    """The name in its certificate, where it is not the one in `url`."""

    @abc.abstractmethod
    def tls(self) -> ssl.SSLContext | None:
        """For new connections; None for plain HTTP. Raises OSError."""

    @abc.abstractmethod
    async def headers(self) -> Mapping[str, str]:
        """What each request says. Raises OSError."""

    @abc.abstractmethod
    async def renew(self) -> None:
        """The server did not take what `headers` said. Raises OSError."""


class PodAccount(Credentials):
    """The service account of the pod that this runs in."""

    def __init__(self, environ: Mapping[str, str], folder: Path = ACCOUNT) -> None:
        """Raises `SettingsError` outside of a pod."""
        host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "")
        if not host or not port or not (folder / "token").is_file():
            allowed = "must be the path of a kubeconfig file, as this process runs in no pod with a service account"
            raise SettingsError("kubeconfig", None, allowed)
        self.url = f"https://{authority(host, port)}"
        self._folder = folder
        self._token = ""
        self._read_at = float("-inf")

    def tls(self) -> ssl.SSLContext:
        """Trusts the cluster's own authority."""
        return _trusting(str(self._folder / "ca.crt"))

    async def headers(self) -> Mapping[str, str]:
        """The token as the file has it, at most a minute old."""
        if time.monotonic() - self._read_at >= _REREAD_SECONDS:
            await self.renew()
        return {"Authorization": f"Bearer {self._token}"}

    async def renew(self) -> None:
        """Read the file anew."""
        self._token = (self._folder / "token").read_text().strip()
        self._read_at = time.monotonic()

    @property
    def namespace(self) -> str:
        """The namespace that the pod is in. Raises OSError."""
        return (self._folder / "namespace").read_text().strip()


class Kubeconfig(Credentials):
    """The current context of a kubeconfig file. `load` comes first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._headers: dict[str, str] = {}
        self._tls: ssl.SSLContext | None = None
        self.namespace = "default"

    async def load(self) -> Kubeconfig:
        """Raises `SettingsError` when the file cannot be used."""
        from kubernetes_asyncio.client import Configuration
        from kubernetes_asyncio.config import ConfigException, list_kube_config_contexts, load_kube_config
        from yaml import YAMLError

        found = Configuration()
        try:
            await load_kube_config(config_file=str(self._path), client_configuration=found)
            _, context = list_kube_config_contexts(config_file=str(self._path))
            url = str(found.host)
            tls = _tls(found) if url.startswith("https") else None
            token = await found.get_api_key_with_prefix("BearerToken")
        except (ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            # The file holds secrets; what its reader says of it names the entry at fault.
            raise SettingsError("kubeconfig", str(self._path), f"cannot be used: {error}") from None
        except YAMLError:
            raise SettingsError("kubeconfig", str(self._path), "cannot be used: must be YAML") from None
        self.namespace = (context or {}).get("context", {}).get("namespace") or "default"
        self.url, self.proxy, self.server_name = url.rstrip("/"), found.proxy, found.tls_server_name
        self._tls = tls
        if token is None and found.username:
            token = "Basic " + base64.b64encode(f"{found.username}:{found.password or ''}".encode()).decode()
        self._headers = {"Authorization": token} if token else {}
        return self

    def tls(self) -> ssl.SSLContext | None:
        """As the file says."""
        return self._tls

    async def headers(self) -> Mapping[str, str]:
        """As the file says."""
        return self._headers

    async def renew(self) -> None:
        """Log in anew."""
        try:
            await self.load()
        except SettingsError as error:
            raise OSError(str(error)) from error


def _trusting(authority: str | None) -> ssl.SSLContext:
    """Checks certificates as Kubernetes' own clients do. Python 3.13 asks for more, such as the authority's key
    identifier, and so refuses the certificates of many a cluster."""
    context = ssl.create_default_context(cafile=authority)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _tls(found: object) -> ssl.SSLContext:
    get = found.__getattribute__
    context = _trusting(get("ssl_ca_cert"))
    if get("cert_file"):
        context.load_cert_chain(get("cert_file"), get("key_file"))
    if not get("verify_ssl"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def credentials(kubeconfig: Path | None, environ: Mapping[str, str] = os.environ) -> PodAccount | Kubeconfig:
    """Those of `kubeconfig`, else of the pod. Raises `SettingsError`."""
    return await Kubeconfig(kubeconfig).load() if kubeconfig is not None else PodAccount(environ)
