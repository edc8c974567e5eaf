"""The exporters of spans and metrics: OpenTelemetry's for OTLP over HTTP, and Azure Monitor's.

They are made here with bounded times, without files and without telemetry of their own. Connection strings come from a
file or from the environment, and are never part of an error or of the log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from router.config.regular_file import read_regular_file
from router.config.router import RouterSettings
from router.config.schema import SettingsError
from router.telemetry.export_log import ExportLog

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricExporter
    from opentelemetry.sdk.trace.export import SpanExporter

T = TypeVar("T")

CONNECTION_STRING_VARIABLE = "APPLICATIONINSIGHTS_CONNECTION_STRING"
_FILE_SETTING = "app_insights_connection_string_file"
_MAX_CONNECTION_STRING_BYTES = 4096
_INSTRUMENTATION_KEY = re.compile(r"InstrumentationKey=([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})", re.IGNORECASE)
_CONNECTION_STRING = re.compile(rf"(?:[^;=]+=[^;=]*;)*{_INSTRUMENTATION_KEY.pattern}(?:;[^;=]+=[^;=]*)*", re.IGNORECASE)
_HEADERS_VARIABLE = re.compile(r"OTEL_EXPORTER_OTLP_(?:TRACES_|METRICS_)?HEADERS")

_AZURE_OPTIONS: Mapping[str, Any] = {
    "disable_offline_storage": True,  # it would be a directory with the instrumentation key in its name
    "instrumentation_collection": True,  # sends no telemetry about the exporter itself
    "retry_total": 2,
    "read_timeout": 10,  # seconds
    "timeout": 10,  # of a connect, and of all retries; seconds
}


@dataclass(frozen=True, slots=True)
class ExportTarget:
    """Where an exporter sends to. `kind` is `otlp` or `azure-monitor`, `setting` the name of the setting for errors."""

    setting: str
    kind: str
    endpoint: str
    connection_string: str | None = field(repr=False)
    log: ExportLog

    @property
    def value(self) -> object:
        """The value of the setting."""
        return True if self.setting == "enable_app_insights" else self.kind


class ExportTargets:
    """The targets of one router."""

    def __init__(self, settings: RouterSettings, environ: Mapping[str, str]) -> None:
        """Raises SettingsError if the file with the connection string cannot be read or has none."""
        self._settings = settings
        self.connection_string = _connection_string(settings.app_insights_connection_string_file, environ)
        """The connection string of Application Insights; None if there is none."""
        self._log = ExportLog(_secrets(self.connection_string, environ))

    @property
    def traces(self) -> ExportTarget | None:
        """The target of the setting `traces`; None if it is off."""
        return self._target("traces", self._settings.traces)

    @property
    def metrics(self) -> ExportTarget | None:
        """The target of the setting `metrics_push`; None if it is off."""
        return self._target("metrics_push", self._settings.metrics_push)

    @property
    def app_insights(self) -> ExportTarget:
        """The target of versions with `enable_app_insights`."""
        target = self._target("enable_app_insights", "azure-monitor")
        assert target is not None
        return target

    def check(self) -> None:
        """Raise SettingsError if the exporter of a setting that is on cannot be made."""
        if (target := self.traces) is not None:
            span_exporter(target).shutdown()
        if (target := self.metrics) is not None:
            metric_exporter(target).shutdown()

    def _target(self, setting: str, kind: str) -> ExportTarget | None:
        if kind == "off":
            return None
        return ExportTarget(setting, kind, self._settings.otlp_endpoint, self.connection_string, self._log)


def span_exporter(target: ExportTarget) -> SpanExporter:
    """Return an exporter of spans.

    Raises SettingsError if its extra is not installed or its connection string is missing or invalid.
    """

    def make() -> SpanExporter:
        if target.kind == "azure-monitor":
            from azure.monitor.opentelemetry.exporter import AzureMonitorTraceExporter

            class _SpanExporter(AzureMonitorTraceExporter):
                def _should_collect_otel_resource_metric(self) -> bool:
                    return False  # a metric in each request about the resource, which the items have anyway

            return _make_azure_exporter(_SpanExporter, target)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter(endpoint=_url(target, "traces"))

    return _make(target, make)


def metric_exporter(target: ExportTarget) -> MetricExporter:
    """Return an exporter of metrics. Raises SettingsError as `span_exporter` does."""

    def make() -> MetricExporter:
        if target.kind == "azure-monitor":
            from azure.monitor.opentelemetry.exporter import AzureMonitorMetricExporter

            return _make_azure_exporter(AzureMonitorMetricExporter, target)
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        return OTLPMetricExporter(endpoint=_url(target, "metrics"))

    return _make(target, make)


def _make(target: ExportTarget, make: Callable[[], T]) -> T:
    target.log.install()
    try:
        return make()
    except ImportError as error:
        extra = "azure-monitor" if target.kind == "azure-monitor" else "otel"
        raise SettingsError(
            target.setting, target.value, f"needs the extra: in the checkout: pip install '.[{extra}]'"
        ) from error


def _make_azure_exporter(exporter: Callable[..., T], target: ExportTarget) -> T:
    if target.connection_string is None:
        raise SettingsError(
            target.setting, target.value,
            f"needs a connection string: set {_FILE_SETTING}, or the environment variable {CONNECTION_STRING_VARIABLE}",
        )  # fmt: skip
    if not _CONNECTION_STRING.fullmatch(target.connection_string):
        raise _invalid_connection_string(f"environment {CONNECTION_STRING_VARIABLE}")
    return exporter(connection_string=target.connection_string, **_AZURE_OPTIONS)


def _url(target: ExportTarget, signal: str) -> str:
    return f"{target.endpoint.rstrip('/')}/v1/{signal}"


def _connection_string(file: str | None, environ: Mapping[str, str]) -> str | None:
    if file is None:
        return environ.get(CONNECTION_STRING_VARIABLE) or None
    try:
        text = read_regular_file(file, _MAX_CONNECTION_STRING_BYTES).decode().strip()
    except OSError as error:
        raise SettingsError(_FILE_SETTING, file, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        text = ""
    if not _CONNECTION_STRING.fullmatch(text):
        raise _invalid_connection_string(file)
    return text


def _invalid_connection_string(where: str) -> SettingsError:
    return SettingsError(
        _FILE_SETTING, None, f"{where} must have a connection string: InstrumentationKey=UUID;IngestionEndpoint=URL"
    )


def _secrets(connection_string: str | None, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the texts that no message may have."""
    if connection_string is not None:
        yield connection_string
        yield from _INSTRUMENTATION_KEY.findall(connection_string)
    for variable, headers in environ.items():
        if _HEADERS_VARIABLE.fullmatch(variable):
            yield headers
            yield from (header.partition("=")[2].strip() for header in headers.split(","))
