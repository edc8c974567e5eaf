"""Targets of exports."""

from typing import Any

from router.config.router import load_settings
from router.telemetry.exporters import CONNECTION_STRING_VARIABLE, ExportTarget, ExportTargets


def export_targets(
    *, connection_string: str | None = None, otlp_headers: str = "", **settings: object
) -> ExportTargets:
    environ = {"OTEL_EXPORTER_OTLP_HEADERS": otlp_headers}
    if connection_string is not None:
        environ[CONNECTION_STRING_VARIABLE] = connection_string
    return ExportTargets(load_settings(environ={}, flags=settings), environ)


def export_target(setting: str, kind: str, connection_string: str | None = None, endpoint: str = "") -> ExportTarget:
    """Return the target of `traces` or `metrics_push`."""
    settings: dict[str, Any] = {setting: kind} | ({"otlp_endpoint": endpoint} if endpoint else {})
    targets = export_targets(connection_string=connection_string, **settings)
    target = targets.traces if setting == "traces" else targets.metrics
    assert target is not None
    return target
