"""Address and credentials of the API server: from the pod's service account, or from a kubeconfig.

kubernetes-asyncio reads kubeconfig files and supports all their authentication methods. It is imported only for them:
it takes 40 MB of memory, which a router in a pod does not need.
"""

from __future__ import annotations

import abc
import base64
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from router.config.regular_file import read_regular_file
from router.config.schema import SettingsError
from router.net.address import host_port

SERVICE_ACCOUNT_DIRECTORY = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_REREAD_SECONDS = 60.0
"""Interval at which the token file is read again. The kubelet renews a token when a fifth of its lifetime is left. The
lifetime is an hour or more."""


class Credentials(abc.ABC):
    """The address of an API server, and how to authenticate there."""

    url: str
    """Without a trailing slash."""
    proxy: str | None = None
    server_name: str | None = None
    """The name in the server's certificate, if it is not the host of `url`."""

    @abc.abstractmethod
    def tls(self) -> ssl.SSLContext | None:
        """Return the context for new connections, None for plain HTTP. Raises OSError."""

    @abc.abstractmethod
    async def headers(self) -> Mapping[str, str]:
        """Return the headers that authenticate a request. Raises OSError."""

    @abc.abstractmethod
    async def renew(self) -> None:
        """Read the credentials again after the server has rejected them. Raises OSError."""


class ServiceAccount(Credentials):
    """The service account of this process's pod."""

    def __init__(self, environ: Mapping[str, str], directory: Path = SERVICE_ACCOUNT_DIRECTORY) -> None:
        """Raises `SettingsError` outside of a pod."""
        if not is_in_pod(environ, directory):
            problem = (
                "must be the path of a kubeconfig file, as this process has no service account of a pod, and there is "
                "no file in KUBECONFIG or at ~/.kube/config"
            )
            raise SettingsError("kubeconfig", None, problem)
        self.url = f"https://{host_port(environ['KUBERNETES_SERVICE_HOST'], environ['KUBERNETES_SERVICE_PORT'])}"
        self._directory = directory
        self._token = ""
        self._read_at = float("-inf")

    def tls(self) -> ssl.SSLContext:
        """Return a context that trusts the cluster's own CA."""
        return _context_trusting(str(self._directory / "ca.crt"))

    async def headers(self) -> Mapping[str, str]:
        """Return the token of the file, which is read at most once a minute."""
        if time.monotonic() - self._read_at >= _REREAD_SECONDS:
            await self.renew()
        return {"Authorization": f"Bearer {self._token}"}

    async def renew(self) -> None:
        """Read the token file again."""
        self._token = (self._directory / "token").read_text().strip()
        self._read_at = time.monotonic()

    @property
    def namespace(self) -> str:
        """The namespace of the pod. Raises OSError."""
        return (self._directory / "namespace").read_text().strip()


class _Context(NamedTuple):
    """The current context of a kubeconfig file."""

    url: str
    namespace: str
    proxy: str | None
    server_name: str | None
    tls: ssl.SSLContext | None
    headers: Mapping[str, str]


class Kubeconfig(Credentials):
    """The current context of a kubeconfig file."""

    def __init__(self, path: Path, context: _Context) -> None:
        self._path = path
        self._use(context)

    @classmethod
    async def load(cls, path: Path) -> Kubeconfig:
        """Read the file and log in. Raises `SettingsError` if the file cannot be used."""
        return cls(path, await _current_context(path))

    def _use(self, context: _Context) -> None:
        self.url, self.namespace = context.url, context.namespace
        self.proxy, self.server_name = context.proxy, context.server_name
        self._tls = context.tls
        self._headers = context.headers

    def tls(self) -> ssl.SSLContext | None:
        """Return the context with the CA and the client certificate of the file."""
        return self._tls

    async def headers(self) -> Mapping[str, str]:
        """Return the token or the password of the file."""
        return self._headers

    async def renew(self) -> None:
        """Read the file and log in again."""
        try:
            self._use(await _current_context(self._path))
        except SettingsError as error:
            raise OSError(str(error)) from error


async def _current_context(path: Path) -> _Context:
    """Raises `SettingsError` if the file cannot be used."""
    from kubernetes_asyncio.client import Configuration
    from kubernetes_asyncio.config import ConfigException, list_kube_config_contexts, load_kube_config
    from yaml import YAMLError

    loaded = Configuration()
    try:
        read_regular_file(path, 0)  # kubernetes-asyncio would wait for the writer of a named pipe
        await load_kube_config(config_file=str(path), client_configuration=loaded)
        _, context = list_kube_config_contexts(config_file=str(path))
        url = str(loaded.host)
        tls = _client_context(loaded) if url.startswith("https") else None
        token = await loaded.get_api_key_with_prefix("BearerToken")
    except (ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        # The file contains secrets. The error of kubernetes-asyncio names the invalid entry, not its content.
        raise SettingsError("kubeconfig", str(path), f"cannot be used: {error}") from None
    except YAMLError:
        raise SettingsError("kubeconfig", str(path), "cannot be used: must be YAML") from None
    if token is None and loaded.username:
        token = "Basic " + base64.b64encode(f"{loaded.username}:{loaded.password or ''}".encode()).decode()
    return _Context(
        url=url.rstrip("/"),
        namespace=(context or {}).get("context", {}).get("namespace") or "default",
        proxy=loaded.proxy,
        server_name=loaded.tls_server_name,
        tls=tls,
        headers={"Authorization": token} if token else {},
    )


def _context_trusting(ca_file: str | None) -> ssl.SSLContext:
    """Return a TLS context that verifies certificates as strictly as Kubernetes' own clients do. By default Python 3.13
    is stricter. For example it requires the authority key identifier, which certificates of many clusters lack."""
    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def _client_context(loaded: object) -> ssl.SSLContext:
    get = loaded.__getattribute__
    context = _context_trusting(get("ssl_ca_cert"))
    if get("cert_file"):
        context.load_cert_chain(get("cert_file"), get("key_file"))
    if not get("verify_ssl"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def load_credentials(
    kubeconfig: Path | None, environ: Mapping[str, str] = os.environ
) -> ServiceAccount | Kubeconfig:
    """Return the credentials of `kubeconfig`. If it is None, return those of the pod, or outside of a pod those of the
    file that kubectl uses. Raises `SettingsError`."""
    if kubeconfig is None and not is_in_pod(environ):
        kubeconfig = default_kubeconfig(environ)
    return await Kubeconfig.load(kubeconfig) if kubeconfig is not None else ServiceAccount(environ)


def is_in_pod(environ: Mapping[str, str], directory: Path = SERVICE_ACCOUNT_DIRECTORY) -> bool:
    """True if this process has the service account of a pod."""
    has_server = bool(environ.get("KUBERNETES_SERVICE_HOST") and environ.get("KUBERNETES_SERVICE_PORT"))
    return has_server and (directory / "token").is_file()


def default_kubeconfig(environ: Mapping[str, str]) -> Path | None:
    """Return the kubeconfig file that kubectl would use: the first existing one in KUBECONFIG, or without this
    variable ~/.kube/config. Return None if there is none. Files are not merged."""
    listed = [Path(each) for each in environ.get("KUBECONFIG", "").split(os.pathsep) if each]
    candidates = listed or [Path(environ.get("HOME", "/")) / ".kube" / "config"]
    return next((path for path in candidates if path.is_file()), None)
