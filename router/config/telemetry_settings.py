"""Settings of logs and traces."""

from dataclasses import dataclass

from router.config.declaration import setting
from router.config.schema import SettingKind


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """Settings of logs and traces. `access_log` is the fraction of requests that are logged."""

    log_level: str = setting(
        "Minimum severity of logged messages.",
        default="info",
        choices=("debug", "info", "warning", "error"),
        flag=True,
    )
    access_log: float = setting(
        "Fraction of requests that are logged, one line per request.",
        kind=SettingKind.FRACTION,
        default=0.0,
        default_text="off",
        flag=True,
    )
    log_exception_messages: bool = setting(
        "Log the messages of exceptions in responses of replicas that `local` has started. They may have data of "
        "requests. Otherwise only the type, the file and the line are logged.",
        default=False,
    )
    traces: str = setting(
        "Exporter of request spans. `otlp` needs the extra `otel`; `azure-monitor` needs the extra `azure-monitor` and "
        "the environment variable APPLICATIONINSIGHTS_CONNECTION_STRING.",
        default="off",
        choices=("off", "otlp", "azure-monitor"),
    )
    otlp_endpoint: str = setting(
        "URL of the OpenTelemetry collector (OTLP over HTTP).",
        default="http://127.0.0.1:4318",
        pattern=r"https?://[^\s?#]{1,2000}",
        pattern_text="http://HOST:PORT or https://HOST:PORT",
    )
    trace_sample_ratio: float = setting(
        "Fraction of the traces started by the router that are sampled. A trace started by the client keeps the "
        "client's decision.",
        kind=SettingKind.FRACTION,
        default=0.01,
    )
    server_timing: bool = setting(
        "Add the header Server-Timing to responses. It has the duration of each step.", default=True
    )
