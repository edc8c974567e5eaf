"""Settings of the router's listeners: for clients, for operators and for other router pods."""

import ipaddress
from dataclasses import dataclass
from typing import Any

from router.config.declaration import file_setting, setting

SCORING_PREFIXES = {"v1": "/api/v1/service/", "v2": "/api/v1/endpoint/"}
"""Default of `scoring_prefix` by `compatibility`."""


def _host_setting(description: str, *, default: str, flag: bool = False) -> Any:
    pattern = r"[^\s/]{1,255}"
    pattern_text = "an address or a host name"
    return setting(description, default=default, flag=flag, pattern=pattern, pattern_text=pattern_text)


@dataclass(frozen=True, kw_only=True)
class ClientListenerSettings:
    """Where and how clients reach the services. If `allow_insecure_connections` is None, it depends on `host`."""

    compatibility: str = setting(
        "The Azure ML SDK whose defaults apply: v1 for `AksWebservice` of the first SDK, v2 for endpoints of the "
        "second SDK. v2 has other defaults of autoscale_max_replicas (1), scoring_timeout_ms (5000), probes, and "
        "scoring_prefix.",
        default="v1",
        choices=tuple(SCORING_PREFIXES),
    )
    scoring_prefix: str = setting(
        "Path prefix of all services. A request path consists of this prefix, the name of a service, and a path of its "
        "replicas.",
        default_text="`/api/v1/service/`, or `/api/v1/endpoint/` with compatibility v2",
        pattern=r"/([A-Za-z0-9._~-]+/)*",
        pattern_text="a path that begins and ends with /",
    )
    host: str = _host_setting(
        "Address on which the router listens for clients. `::` is all addresses of IPv6 and IPv4, or those of IPv4 on "
        "a system without IPv6; `0.0.0.0` is all of IPv4 only.",
        default="127.0.0.1",
        flag=True,
    )
    port: int = setting("Port for HTTP; 0 picks a free port.", default=8080, maximum=65535, flag=True)
    https_port: int = setting(
        "Port for HTTPS, used with `tls_cert_file`; 0 picks a free port.", default=8443, maximum=65535
    )
    tls_cert_file: str | None = file_setting(
        "The router's certificate for clients in PEM, followed by its intermediate certificates. Enables HTTPS. The "
        "router loads a changed file without a restart.",
        default_text="none",
    )
    tls_key_file: str | None = file_setting("Private key of `tls_cert_file` in PEM.", default_text="none")
    tls_client_ca_file: str | None = file_setting(
        "Certificate authorities in PEM. A client must present a certificate signed by one of them (mTLS).",
        default_text="none: clients need no certificate",
    )
    allow_insecure_connections: bool | None = setting(
        "Accept clients without TLS on `port`.", default_text="true if `host` is a loopback address"
    )
    http2: str = setting(
        "HTTP/2 from clients, beside HTTP/1.1: by ALPN on the port for HTTPS, by prior knowledge on the port for HTTP.",
        default="off",
        choices=("off", "on"),
    )
    http2_max_streams: int = setting(
        "Maximum number of requests in progress on one HTTP/2 connection. A client may open several connections.",
        default=100,
        minimum=1,
        maximum=1000,
    )
    trusted_proxies: tuple[str, ...] = setting(
        "Networks of the proxies and load balancers in front of the router. What they report in X-Forwarded-*, "
        "Forwarded and X-Real-IP is forwarded to replicas, and the client's address is the last one in X-Forwarded-For "
        "that is not in these networks. From all others, these headers are dropped or replaced.",
        default=(),
        pattern=r"[0-9]{1,3}([.][0-9]{1,3}){3}(/[0-9]{1,2})?|[0-9A-Fa-f]*(:[0-9A-Fa-f.]*){2,}(/[0-9]{1,3})?",
        pattern_text="networks such as 10.0.0.0/8 or fd00::/8, or single addresses",
    )

    @property
    def allows_plain_http(self) -> bool:
        """True if clients may connect without TLS."""
        given = self.allow_insecure_connections
        return is_loopback(self.host) if given is None else given


@dataclass(frozen=True, kw_only=True)
class PeerTlsSettings:
    """TLS of the links between router pods."""

    peer_tls: str = setting(
        "TLS between router pods, with generated certificates unless files are given. `preferred` also accepts "
        "unencrypted links, from pods of an earlier release or with `off`; `required` does not.",
        default="preferred",
        choices=("off", "preferred", "required"),
    )
    peer_tls_cert_file: str | None = file_setting(
        "Certificate for links to other router pods in PEM, signed by an authority in `peer_tls_ca_file`. It replaces "
        "the generated certificate.",
        default_text="none",
    )
    peer_tls_key_file: str | None = file_setting("Private key of `peer_tls_cert_file` in PEM.", default_text="none")
    peer_tls_ca_file: str | None = file_setting(
        "Certificate authorities in PEM that sign the certificates of all router pods.", default_text="none"
    )


@dataclass(frozen=True, kw_only=True)
class InternalListenerSettings:
    """Where operators and other router pods connect."""

    admin_host: str = _host_setting(
        "Address on which the router listens for metrics, health and status. `::` is all addresses, as for `host`.",
        default="127.0.0.1",
    )
    admin_port: int = setting(
        "Port for metrics, health and status; 0 picks a free port.", default=9090, maximum=65535, flag=True
    )
    admin_hosts: tuple[str, ...] = setting(
        "Further names by which operators address the admin port. A request with another name in `Host` gets 421, so "
        "that a page of a foreign site cannot read the responses (DNS rebinding). IP addresses, localhost, the host "
        "name, the names of the pod and its Service, and the paths of probes are always allowed.",
        default=(),
        default_text="none",
        pattern=r"[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?",
        pattern_text="host names",
    )
    peer_port: int = setting("Port for other router pods.", default=9091, maximum=65535, flag=True)


def is_loopback(host: str) -> bool:
    """True if only this machine can reach a listener on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
