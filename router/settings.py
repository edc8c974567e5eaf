"""Settings of the router process itself.

Lives here: their table (`ROUTER_SETTINGS`) and how defaults, the file's `router:` section, the environment and flags
are laid over one another. Must not live here: settings of services (`service_settings`), reading of files
(`cluster.local.file`), command-line syntax (`cli`).
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.cluster_settings import CLUSTER_SETTINGS
from router.connection_settings import CONNECTION_SETTINGS
from router.self_scaling_settings import SELF_SCALING_SETTINGS, resolved
from router.values import Kind, Scope, Setting, SettingsError, parse_value, settings_of, unknown_name

ENVIRONMENT_PREFIX = "AZUREML_FE_"
CONFIG_VARIABLE = "AZUREML_FE_CONFIG"
"""Names the file that `serve` reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """What the processes of one router go by; each field is explained in `ROUTER_SETTINGS`.

    `workers` is None where the number follows the load or the CPU quota, `max_workers` where the quota is the limit;
    `access_log` is the share of requests that are logged; `allow_insecure_connections` is None where it follows from
    `host`, see `plain_http`.
    """

    compatibility: str
    scoring_prefix: str
    host: str
    port: int
    https_port: int
    tls_cert_file: str | None
    tls_key_file: str | None
    tls_client_ca_file: str | None
    allow_insecure_connections: bool | None
    peer_tls: str
    peer_tls_cert_file: str | None
    peer_tls_key_file: str | None
    peer_tls_ca_file: str | None
    admin_host: str
    admin_port: int
    peer_port: int
    workers: int | None
    state_dir: Path
    log_level: str
    access_log: float
    traces: str
    otlp_endpoint: str
    trace_sample_ratio: float
    server_timing: bool
    max_payload_bytes: int
    max_head_bytes: int
    max_headers: int
    max_client_connections: int
    client_head_timeout_seconds: float
    client_body_timeout_seconds: float
    body_min_rate_bytes: int
    client_idle_timeout_seconds: float
    connect_timeout_ms: int
    replica_idle_connection_seconds: float
    drain_seconds: float
    token_issuing: bool
    token_lifetime_seconds: int
    token_key_rotation_seconds: float
    shutdown_delay_seconds: float
    cluster_purpose: str
    min_workers: int
    max_workers: int | None
    self_scaling_enabled: bool
    self_scaling_route_time_threshold_ms: float
    self_scaling_route_time_percentile: float
    self_scaling_window_seconds: float
    self_scaling_busy_cpu_percent: float
    self_scaling_cpu_steps: tuple[float, ...]
    self_scaling_cpu_threshold_percent: float
    self_scaling_scale_in_cpu_threshold_percent: float
    self_scaling_min_pods: int
    self_scaling_max_pods: int
    self_scaling_up_cooldown_seconds: float
    self_scaling_down_cooldown_seconds: float
    self_scaling_no_room_seconds: float
    self_scaling_resize_patience_seconds: float
    namespaces: tuple[str, ...]
    pod_name: str | None
    pod_namespace: str | None
    pod_ip: str | None
    peer_secret_file: str
    kubeconfig: str | None
    generate_keys: bool
    contested_scaling_pause_seconds: float

    @property
    def plain_http(self) -> bool:
        """Whether clients may connect without TLS."""
        allowed = self.allow_insecure_connections
        return is_loopback(self.host) if allowed is None else allowed


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine can connect to a host that is listened on."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


PATHS_OF_FILES = (
    "tls_cert_file",
    "tls_key_file",
    "tls_client_ca_file",
    "peer_tls_cert_file",
    "peer_tls_key_file",
    "peer_tls_ca_file",
    "peer_secret_file",
    "kubeconfig",
)
"""Settings that are paths; in a file, relative to that file."""

_router = settings_of(Scope.ROUTER)

_FILE: dict[str, Any] = {"pattern": r"[^\x00]+", "pattern_means": "a path"}
_HOST: dict[str, Any] = {"pattern": r"[^\s/]{1,255}", "pattern_means": "an address or a host name"}

_SCORING_PREFIXES = {"v1": "/api/v1/service/", "v2": "/api/v1/endpoint/"}

ROUTER_SETTINGS: tuple[Setting, ...] = (
    _router(
        "compatibility",
        Kind.TEXT,
        "Whose defaults are used: v1 for `AksWebservice` of Azure ML's first SDK, v2 for endpoints of its second "
        "(autoscale_max_replicas 1, scoring_timeout_ms 5000, another scoring_prefix).",
        default="v1",
        choices=tuple(_SCORING_PREFIXES),
    ),
    _router(
        "scoring_prefix",
        Kind.TEXT,
        "What the addresses of services begin with; a service's name and a path of its replicas follow.",
        default_means="`/api/v1/service/`, or `/api/v1/endpoint/` with compatibility v2",
        pattern=r"/([A-Za-z0-9._~-]+/)*",
        pattern_means="a path that begins and ends with /",
    ),
    _router("host", Kind.TEXT, "Address that clients connect to.", default="127.0.0.1", flag=True, **_HOST),
    _router(
        "port",
        Kind.INT,
        "Port that clients connect to; 0 picks a free one.",
        default=8080,
        maximum=65535,
        flag=True,
    ),
    _router(
        "https_port",
        Kind.INT,
        "Port that clients connect to with TLS, where there is a certificate; 0 picks a free one.",
        default=8443,
        maximum=65535,
    ),
    _router(
        "tls_cert_file",
        Kind.TEXT,
        "Certificate for clients in PEM, followed by those that lead to its root; a changed file is taken while "
        "running. Turns HTTPS on.",
        default_means="none",
        **_FILE,
    ),
    _router("tls_key_file", Kind.TEXT, "Private key of that certificate in PEM.", default_means="none", **_FILE),
    _router(
        "tls_client_ca_file",
        Kind.TEXT,
        "Authorities in PEM of which a client must have a certificate (mTLS).",
        default_means="none: clients need no certificate",
        **_FILE,
    ),
    _router(
        "allow_insecure_connections",
        Kind.BOOL,
        "Clients may connect without TLS, to `port`.",
        default_means="true where `host` is a loopback address",
    ),
    _router(
        "peer_tls",
        Kind.TEXT,
        "TLS between router pods, with certificates that they make themselves unless files are given: preferred also "
        "links with one that does not encrypt (an earlier release, off), required does not.",
        default="preferred",
        choices=("off", "preferred", "required"),
    ),
    _router(
        "peer_tls_cert_file",
        Kind.TEXT,
        "Certificate for other router pods in PEM, of an authority in `peer_tls_ca_file`, in place of their own.",
        default_means="none",
        **_FILE,
    ),
    _router("peer_tls_key_file", Kind.TEXT, "Private key of that certificate in PEM.", default_means="none", **_FILE),
    _router(
        "peer_tls_ca_file",
        Kind.TEXT,
        "Authorities in PEM of the certificates of all router pods.",
        default_means="none",
        **_FILE,
    ),
    _router("admin_host", Kind.TEXT, "Address of metrics, health and status.", default="127.0.0.1", **_HOST),
    _router(
        "admin_port",
        Kind.INT,
        "Port of metrics, health and status; 0 picks a free one.",
        default=9090,
        maximum=65535,
        flag=True,
    ),
    _router("peer_port", Kind.INT, "Port for other router pods.", default=9091, maximum=65535, flag=True),
    _router(
        "workers",
        Kind.INT,
        "Processes that forward requests, whatever the load.",
        default_means="as many as the load needs",
        minimum=1,
        maximum=1024,
        flag=True,
    ),
    _router(
        "state_dir",
        Kind.TEXT,
        "Folder of generated keys and other state; in a file, relative to that file.",
        default_means="`$XDG_STATE_HOME/azureml-fe`, else `~/.local/state/azureml-fe`",
        pattern=r"[^\x00]+",
        pattern_means="a path",
        flag=True,
    ),
    _router(
        "log_level",
        Kind.TEXT,
        "Least severe messages that are logged.",
        default="info",
        choices=("debug", "info", "warning", "error"),
        flag=True,
    ),
    _router(
        "access_log",
        Kind.RATE,
        "Share of the requests that are logged, one line each.",
        default=0.0,
        default_means="off",
        flag=True,
    ),
    _router(
        "traces",
        Kind.TEXT,
        "Where spans of requests go; `otlp` needs the extra `otel`, `azure-monitor` the extra of that name and the "
        "environment variable APPLICATIONINSIGHTS_CONNECTION_STRING.",
        default="off",
        choices=("off", "otlp", "azure-monitor"),
    ),
    _router(
        "otlp_endpoint",
        Kind.TEXT,
        "Address of the OpenTelemetry collector (OTLP over HTTP).",
        default="http://127.0.0.1:4318",
        pattern=r"https?://[^\s?#]{1,2000}",
        pattern_means="http://HOST:PORT or https://HOST:PORT",
    ),
    _router(
        "trace_sample_ratio",
        Kind.RATE,
        "Share of the traces begun here that is sampled; where the client began one, its own decision holds.",
        default=0.01,
    ),
    _router("server_timing", Kind.BOOL, "Answers say in Server-Timing where their time went.", default=True),
    *CONNECTION_SETTINGS,
    _router(
        "drain_seconds",
        Kind.FLOAT,
        "Time that open requests get to finish when the router stops.",
        unit="s",
        default=60.0,
    ),
    _router(
        "token_issuing",
        Kind.BOOL,
        "The router issues tokens for services with token_auth_enabled, and accepts its own.",
        default=True,
    ),
    _router(
        "token_lifetime_seconds",
        Kind.INT,
        "How long a token that the router issues is valid, where nothing else is asked for.",
        unit="s",
        default=3600,
        minimum=60,
        maximum=86_400,
    ),
    _router(
        "token_key_rotation_seconds",
        Kind.FLOAT,
        "After this time the router signs tokens with a new key; the former one is known until they have expired.",
        unit="s",
        default=2_592_000.0,
        minimum=86_400,
        maximum=31_536_000,
    ),
    _router(
        "shutdown_delay_seconds",
        Kind.FLOAT,
        "Before the router stops accepting clients it is not ready for this long, so that load balancers turn away.",
        unit="s",
        default=0.0,
        maximum=600,
    ),
    *SELF_SCALING_SETTINGS,
    *CLUSTER_SETTINGS,
)

_BY_NAME = {setting.name: setting for setting in ROUTER_SETTINGS}

# Kubernetes sets such variables for every Service of the namespace, and the router's own is called azureml-fe.
_SERVICE_LINK_NAME = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
_SERVICE_LINK_VALUE = re.compile(r"(tcp|udp|sctp)://\S+")


def environment_name(name: str) -> str:
    """The environment variable of a setting: `AZUREML_FE_ADMIN_PORT` for `admin_port`."""
    return ENVIRONMENT_PREFIX + name.upper()


def flag_name(name: str) -> str:
    """The flag of a setting that has one: `--admin-port` for `admin_port`."""
    return "--" + name.replace("_", "-")


def parse_router_values(mapping: Mapping[str, object], locate: Callable[[str], str]) -> dict[str, Any]:
    """Typed values of a mapping by setting names; `locate` says where a name's value was written.

    Raises `SettingsError` for an unknown name or a value outside its limits.
    """
    values: dict[str, Any] = {}
    for name, raw in mapping.items():
        if name not in _BY_NAME:
            raise unknown_name(name, _BY_NAME, locate(name))
        values[name] = parse_value(_BY_NAME[name], raw, locate(name))
    return values


def load_settings(
    *,
    environ: Mapping[str, str],
    file: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
    defaults: Mapping[str, object] | None = None,
) -> RouterSettings:
    """Settings from defaults, those of `defaults` before those of the table, overridden by `file` (the `router:`
    section), that by `environ`, that by `flags`.

    `environ` also gives the user's folders for the default of `state_dir`. Variables without the `AZUREML_FE_` prefix
    and those that Kubernetes makes for Services are passed over. Raises `SettingsError`.
    """
    values: dict[str, Any] = {setting.name: setting.default for setting in ROUTER_SETTINGS}
    values |= parse_router_values(defaults or {}, lambda _: "defaults")
    values |= parse_router_values(file or {}, lambda _: "router section")
    values |= _from_environment(environ)
    values |= parse_router_values(flags or {}, lambda name: f"flag {flag_name(name)}")
    values["state_dir"] = _state_dir(values["state_dir"], environ)
    values["scoring_prefix"] = values["scoring_prefix"] or _SCORING_PREFIXES[values["compatibility"]]
    return _check_ports(RouterSettings(**resolved(values)))


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    names = {environment_name(setting.name): setting for setting in ROUTER_SETTINGS}
    values: dict[str, Any] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        if variable in names:
            if not (variable.endswith("_PORT") and _SERVICE_LINK_VALUE.fullmatch(text)):
                setting = names[variable]
                values[setting.name] = parse_value(setting, text, f"environment {variable}")
        elif not _SERVICE_LINK_NAME.fullmatch(variable.removeprefix(ENVIRONMENT_PREFIX)):
            raise unknown_name(variable, names, "environment")
    return values


def _state_dir(given: str | None, environ: Mapping[str, str]) -> Path:
    if given is not None:
        try:
            return Path(given).expanduser()
        except RuntimeError as error:
            raise SettingsError("state_dir", given, "must not begin with the home of an unknown user") from error
    base = environ.get("XDG_STATE_HOME", "")
    # The XDG base directory specification says to ignore a relative path.
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "azureml-fe"


def _check_ports(settings: RouterSettings) -> RouterSettings:
    if settings.port and (settings.host, settings.port) == (settings.admin_host, settings.admin_port):
        raise SettingsError("admin_port", settings.admin_port, "must differ from port")
    if settings.https_port and settings.tls_cert_file is not None:
        if settings.https_port == settings.port and settings.plain_http:
            raise SettingsError("https_port", settings.https_port, "must differ from port")
        if (settings.host, settings.https_port) == (settings.admin_host, settings.admin_port):
            raise SettingsError("https_port", settings.https_port, "must differ from admin_port")
    return settings
