"""Settings of logs, traces and pushed metrics."""

from dataclasses import dataclass

from router.config.declaration import file_setting, setting
from router.config.schema import SettingKind


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings:
    """Settings of logs, traces and pushed metrics. `access_log` is the fraction of requests that are logged."""

    log_level: str = setting(
        "Minimum severity of logged messages.",
        default="info",
        choices=("debug", "info", "warning", "error"),
        flag=True,
        dynamic=True,
    )
    access_log: float = setting(
        "Fraction of requests that are logged, one line per request.",
        kind=SettingKind.FRACTION,
        default=0.0,
        default_text="off",
        flag=True,
        dynamic=True,
    )
    log_exception_messages: bool = setting(
        "Log the messages of exceptions in responses of replicas that `local` has started. They may have data of "
        "requests. Otherwise only the type, the file and the line are logged.",
        default=False,
    )
    traces: str = setting(
        "Exporter of request spans. `otlp` needs the extra `otel`; `azure-monitor` needs the extra `azure-monitor` and "
        "a connection string, see app_insights_connection_string_file.",
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
        dynamic=True,
    )
    metrics_push: str = setting(
        "Exporter to which each router pod pushes the metrics of /metrics. `otlp` needs the extra `otel`; "
        "`azure-monitor` needs the extra `azure-monitor` and a connection string, see "
        "app_insights_connection_string_file.",
        default="off",
        choices=("off", "otlp", "azure-monitor"),
    )
    metrics_push_seconds: float = setting(
        "Time between two pushes of metrics.", unit="s", default=60.0, minimum=1, maximum=3600
    )
    app_insights_connection_string_file: str | None = file_setting(
        "File with the connection string of Application Insights. It is read when the router starts.",
        default_text="the environment variable APPLICATIONINSIGHTS_CONNECTION_STRING has the connection string",
    )
    app_insights_sample_ratio: float = setting(
        "Fraction of the requests of versions with enable_app_insights that are sent to Application Insights. Whole "
        "traces are chosen, the same ones as by Microsoft's libraries.",
        kind=SettingKind.FRACTION,
        default=1.0,
        default_text="on",
    )
    server_timing: bool = setting(
        "Add the header Server-Timing to responses. It has the duration of each step.",
        default=True,
        dynamic=True,
    )
