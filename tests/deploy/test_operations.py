"""docs/operations.md has a section for each alert and each answer, and says of a pod's end what the chart does."""

from __future__ import annotations

import re
from typing import Any

from router.auth.issuers import ISSUER_SETTINGS
from router.service_settings import SERVICE_SETTINGS, VERSION_SETTINGS
from router.settings import ROUTER_SETTINGS
from tests.deploy.chart import DEFAULTS, ROOT, pod_of, render, smallest
from tests.deploy.monitoring import alerts, metrics_in, series

PAGE = (ROOT / "docs" / "operations.md").read_text()


def sections(chapter: str) -> dict[str, str]:
    """Headings of the third level below one of the second, with their text."""
    (text,) = re.findall(rf"^## {chapter}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^### (.+)$", text, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_each_alert_has_its_section() -> None:
    found = sections("Alerts")
    assert list(found) == list(alerts())  # in the same order
    assert all(len(text.split()) >= 25 for text in found.values())


def test_each_answer_has_its_section_with_its_status() -> None:
    source = (ROOT / "router/http/answers.py").read_text()
    answers = {slug: status for status, slug in re.findall(r'Answer\(\s*(\d+),\s*"([a-z-]+)"', source)}
    answers["replica-error"] = "502"
    found = {heading.strip("`"): text for heading, text in sections("Answers").items()}
    assert set(found) == set(answers)
    for slug, text in found.items():
        assert text.strip().startswith(answers[slug]), slug


def test_the_order_of_a_pods_end_has_the_charts_timings() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (?:`shutdown\.(\w+): (\d+)`)? ?\|$", PAGE, re.MULTILINE)
    assert [(name, int(value)) for _, name, value in rows if name] == list(DEFAULTS["shutdown"].items())
    seconds, elapsed = [], 0
    for second, _, value in rows:
        elapsed += int(value or 0)
        seconds.append((int(second), elapsed))
    assert all(said == summed for said, summed in seconds), seconds
    assert seconds[-1][0] == pod_of(render(smallest()))["terminationGracePeriodSeconds"]


def test_values_settings_and_metrics_that_are_named_exist() -> None:
    def is_a_value(path: str) -> bool:
        part: Any = DEFAULTS
        for name in path.split("."):
            if not isinstance(part, dict) or name not in part:
                return False
            part = part[name]
        return True

    settings = {setting.name for setting in ROUTER_SETTINGS}
    of_services = {setting.name for setting in (*SERVICE_SETTINGS, *VERSION_SETTINGS)}
    of_issuers = {setting.name for setting in ISSUER_SETTINGS}
    groups = "|".join(name for name, value in DEFAULTS.items() if isinstance(value, dict) and value)
    for path in re.findall(rf"`((?:{groups})\.\w+)", PAGE):
        assert is_a_value(path), path
    for name in re.findall(r"`router\.(\w+)`", PAGE):
        assert name in settings, name
    for name in re.findall(r"azureml-fe/([a-z-]+)[=:`]", PAGE):
        assert name.replace("-", "_") in of_services, name
    for name in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", PAGE):
        assert name in settings | of_services | of_issuers | {
            name.removeprefix("azureml_fe_") for name in series()
        } | set(series()), name
    for metric in metrics_in(PAGE):
        # `azureml_fe_self_scaling_*` names a family.
        assert metric in series() or (metric.endswith("_") and any(name.startswith(metric) for name in series())), (
            metric
        )
