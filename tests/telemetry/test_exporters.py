"""Exporters: connection strings from files and the environment, which no error and no message shows."""

import io
import logging
from pathlib import Path

import pytest

from router.config.schema import SettingsError
from router.telemetry.export_log import ExportLog
from router.telemetry.exporters import metric_exporter, span_exporter
from tests.telemetry.collector import INSTRUMENTATION_KEY
from tests.telemetry.export_targets import export_target, export_targets

CONNECTION_STRING = f"InstrumentationKey={INSTRUMENTATION_KEY};IngestionEndpoint=https://example.com/;LiveEndpoint=x"


def test_file_with_the_connection_string_replaces_that_of_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "connection"
    path.write_text(CONNECTION_STRING + "\n")
    targets = export_targets(
        connection_string="InstrumentationKey=other", app_insights_connection_string_file=str(path)
    )
    assert targets.connection_string == CONNECTION_STRING
    assert CONNECTION_STRING not in repr(targets.app_insights)


@pytest.mark.parametrize(
    "content",
    [b"", b"no connection string", f"InstrumentationKey={INSTRUMENTATION_KEY[:-1]}".encode(), b"\xff\xfe", b"a" * 9999],
)
def test_invalid_file_is_an_error_without_its_content(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "connection"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="must have a connection string") as raised:
        export_targets(app_insights_connection_string_file=str(path))
    assert INSTRUMENTATION_KEY[:8] not in str(raised.value)
    assert "no connection" not in str(raised.value)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        export_targets(app_insights_connection_string_file=str(tmp_path / "missing"))


@pytest.mark.parametrize("connection_string", [None, "", "InstrumentationKey=secret-but-invalid"])
@pytest.mark.parametrize("setting", ["traces", "metrics_push"])
def test_azure_monitor_without_a_valid_connection_string_is_an_error(
    setting: str, connection_string: str | None
) -> None:
    target = export_target(setting, "azure-monitor", connection_string)
    with pytest.raises(SettingsError, match="APPLICATIONINSIGHTS_CONNECTION_STRING") as raised:
        span_exporter(target) if setting == "traces" else metric_exporter(target)
    assert "secret-but-invalid" not in str(raised.value)


def test_messages_of_the_libraries_are_kept_without_secrets() -> None:
    root = io.StringIO()
    handler = logging.StreamHandler(root)
    logging.getLogger().addHandler(handler)
    log = ExportLog([INSTRUMENTATION_KEY, ""])
    log.install()
    library = logging.getLogger("azure.monitor.opentelemetry.exporter.export._base")
    library.warning("Data drop %s:\n%s", 400, {"iKey": INSTRUMENTATION_KEY, "more": "x" * 1000})
    message = log.take()
    assert message.startswith("Data drop 400: {'iKey': '[redacted]'")
    assert len(message) < 400
    assert log.take() == ""
    log.install()  # once more has no effect
    library.warning("once")
    assert log.take() == "once"
    logging.getLogger().removeHandler(handler)
    assert root.getvalue() == ""


def test_headers_of_otlp_are_secret() -> None:
    target = export_targets(otlp_headers="api-key=abc123,other=xyz789", traces="otlp").traces
    assert target is not None
    assert target.log.printable("a abc123 b xyz789 c") == "a [redacted] b [redacted] c"
