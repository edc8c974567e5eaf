"""docs/operations.md has a section for each alert and error code, the chart's shutdown timings, and existing names."""

from __future__ import annotations

import re
from typing import Any

from router.auth.issuers import ISSUER_SETTINGS
from router.cluster.kubernetes.annotations import DEPLOYMENT_SETTINGS
from router.config.router import ROUTER_SETTINGS
from router.config.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.telemetry.access_log import AccessRecord
from tests.deploy.chart import DEFAULTS, ROOT, pod_of, render, smallest
from tests.deploy.monitoring import alerts, dashboard, metrics_in, series

PAGE = (ROOT / "docs" / "operations.md").read_text()


def sections(chapter: str) -> dict[str, str]:
    """Return the subsections of a chapter: their headings and texts."""
    (text,) = re.findall(rf"^## {chapter}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_each_alert_has_a_section() -> None:
    found = sections("Alerts")
    assert list(found) == list(alerts())  # in the same order
    assert all(len(text.split()) >= 25 for text in found.values())


def test_named_dashboard_panels_exist() -> None:
    titles = [panel["title"] for panel in dashboard()["panels"]]
    named = [name for text in sections("Alerts").values() for name in re.findall(r'"([A-Z][a-zA-Z ]+)"', text)]
    assert named
    for name in named:
        assert any(title.startswith(name) for title in titles), name


def test_each_error_code_has_a_section_with_its_status() -> None:
    source = (ROOT / "router/http/responses.py").read_text()
    statuses = {code: status for status, code in re.findall(r'LocalResponse\(\s*(\d+),\s*"([a-z-]+)"', source)}
    statuses |= {"replica-error": "502", "stream-timeout": "200", "tunnel-idle": "101"}
    found = {heading.strip("`"): text for heading, text in sections("Error codes").items()}
    assert set(found) == set(statuses)
    for code, text in found.items():
        assert text.strip().startswith(statuses[code]), code


def test_shutdown_table_has_the_charts_timings() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (?:`shutdown\.(\w+): (\d+)`)? ?\|$", PAGE, re.MULTILINE)
    assert [(name, int(value)) for _, name, value in rows if name] == list(DEFAULTS["shutdown"].items())
    seconds, elapsed = [], 0
    for second, _, value in rows:
        elapsed += int(value or 0)
        seconds.append((int(second), elapsed))
    assert all(documented == total for documented, total in seconds), seconds
    assert seconds[-1][0] == pod_of(render(smallest()))["terminationGracePeriodSeconds"]


def test_named_values_settings_and_metrics_exist() -> None:
    def is_a_value(path: str) -> bool:
        part: Any = DEFAULTS
        for name in path.split("."):
            if not isinstance(part, dict) or name not in part:
                return False
            part = part[name]
        return True

    settings = {setting.name for setting in ROUTER_SETTINGS}
    service_settings = {setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS, *DEPLOYMENT_SETTINGS)}
    issuer_settings = {setting.name for setting in ISSUER_SETTINGS}
    choices = {choice for setting in VERSION_SETTINGS for choice in setting.choices}
    groups = "|".join(name for name, value in DEFAULTS.items() if isinstance(value, dict) and value)
    for path in re.findall(rf"`((?:{groups})\.\w+)", PAGE):
        assert is_a_value(path), path
    for name in re.findall(r"`router\.(\w+)`", PAGE):
        assert name in settings, name
    for name in re.findall(r"azureml-fe/([a-z-]+)[=:`]", PAGE):
        assert name.replace("-", "_") in service_settings, name
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE):
        assert name in settings | service_settings | choices | issuer_settings | {*AccessRecord._fields} | {
            name.removeprefix("azureml_fe_") for name in series()
        } | set(series()), name
    for metric in metrics_in(PAGE):
        # `azureml_fe_self_scaling_*` stands for several metrics.
        assert metric in series() or (metric.endswith("_") and any(name.startswith(metric) for name in series())), (
            metric
        )
